"""Guards: what counts as a bad step, when the run stops, what a spike is, and when a process is taken for hung."""

import json
import math
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from shard_dist.config.training import GuardConfig
from shard_dist.training.guards import BAD_STEPS, HANG_EXIT, Guards, LossLevel, Watchdog, finite_or_poisoned

KEYS = [("safe data", "7"), ("other", "ж"), ("safe data", "7")]  # two pieces of a split example
NAN, INF = float("nan"), float("inf")


def bad(guards: Guards, step: int, loss: float = NAN, applied: bool = False) -> dict:
    return guards.judge(step, loss, INF, applied, lambda: KEYS)


def good(guards: Guards, step: int, loss: float = 1.0) -> dict:
    def never() -> list:
        raise AssertionError("a good step needs no keys")

    return guards.judge(step, loss, 0.5, True, never)


def test_a_bad_step_is_written_down_with_the_examples_of_its_batch(tmp_path) -> None:
    guards = Guards(GuardConfig(), tmp_path, writer=True)
    assert good(guards, 1) == {}
    line = bad(guards, 2)
    assert line["skipped"] is True
    assert "loss nan, gradient norm inf" in line["warning"]
    (record,) = [json.loads(line) for line in (tmp_path / BAD_STEPS).read_text(encoding="utf-8").splitlines()]
    assert (record["step"], record["grad_norm"]) == (2, INF)
    assert math.isnan(record["loss"])
    assert record["examples"] == [{"dataset": "safe data", "id": "7"}, {"dataset": "other", "id": "ж"}]


def test_either_a_loss_or_an_update_that_was_not_made_makes_a_step_bad(tmp_path) -> None:
    guards = Guards(GuardConfig(), tmp_path, writer=False)
    assert bad(guards, 1, loss=2.0, applied=False)["skipped"]
    assert bad(guards, 2, loss=INF, applied=True)["skipped"]
    assert not (tmp_path / BAD_STEPS).exists(), "only the writer writes"


def test_the_run_stops_after_bad_steps_in_a_row_and_not_before(tmp_path) -> None:
    guards = Guards(GuardConfig(max_bad_steps=2), tmp_path, writer=True)
    for step in (1, 3, 5):  # a good one between
        bad(guards, step)
        guards.stop_if_hopeless(step)
        good(guards, step + 1)
        guards.stop_if_hopeless(step + 1)
    bad(guards, 7)
    bad(guards, 8)
    with pytest.raises(ValueError, match=r"step 8: .* in 2 steps in a row; .*bad_steps\.jsonl\. Lower train"):
        guards.stop_if_hopeless(8)


def test_a_file_that_cannot_be_written_is_a_clear_error(tmp_path) -> None:
    with pytest.raises(ValueError, match="cannot write"):
        bad(Guards(GuardConfig(), tmp_path / "absent", writer=True), 1)


@given(st.lists(st.floats(0.1, 10), min_size=1, max_size=LossLevel.MEMORY))
def test_level_is_mean_and_variance_while_all_steps_weigh_the_same(losses: list[float]) -> None:
    level = LossLevel()
    for loss in losses:
        level.observe(loss, factor=0)
    assert level.mean == pytest.approx(np.mean(losses))
    assert level.variance == pytest.approx(np.var(losses), abs=1e-9)


@given(st.lists(st.floats(0.1, 10), min_size=LossLevel.MEMORY, max_size=200))
def test_later_the_weights_fade_by_one_fiftieth_a_step(losses: list[float]) -> None:
    """Against the closed form: numpy's weighted mean and variance."""
    level, ages = LossLevel(), np.arange(len(losses) - LossLevel.MEMORY, -1, -1)
    for loss in losses:
        level.observe(loss, factor=0)
    fading = (1 - 1 / LossLevel.MEMORY) ** ages
    first = fading[0] / LossLevel.MEMORY  # each of the first fifty
    weights = np.array([first] * LossLevel.MEMORY + [weight / LossLevel.MEMORY for weight in fading[1:]])
    mean = np.average(losses, weights=weights)
    assert weights.sum() == pytest.approx(1)
    assert level.mean == pytest.approx(mean)
    assert level.variance == pytest.approx(np.average((np.array(losses) - mean) ** 2, weights=weights), abs=1e-9)


def noisy(steps: int) -> list[float]:
    return list(2 + 0.1 * np.random.default_rng(0).standard_normal(steps))


def test_a_spike_is_a_warning_and_no_more_and_the_next_one_is_seen_too(tmp_path) -> None:
    guards = Guards(GuardConfig(spike_factor=5), tmp_path, writer=False)
    losses = noisy(120)
    losses[60], losses[61], losses[110] = 1e6, 1e6, 4.0
    lines = [good(guards, step, loss) for step, loss in enumerate(losses, start=1)]
    assert [step for step, line in enumerate(lines) if line] == [60, 61, 110]
    assert lines[60]["warning"].startswith("loss spike: 1e+06, after 2")
    assert "skipped" not in lines[60]


def test_no_warning_in_the_warm_up_where_switched_off_or_of_a_falling_loss(tmp_path) -> None:
    level = LossLevel()
    assert not any(level.observe(loss, 3.0) for loss in [1.0] * (LossLevel.WARMUP - 1) + [100.0])
    level = LossLevel()
    assert not any(level.observe(loss, 0.0) for loss in [*noisy(50), 1e6])
    level = LossLevel()
    assert not any(level.observe(8 * 0.98**step, 3.0) for step in range(300))


def test_a_loss_that_hardly_moves_does_not_warn_of_its_noise() -> None:
    level = LossLevel()
    assert not any(level.observe(loss, 3.0) for loss in [2.0] * 100 + [2.05])
    assert level.observe(2.1, 3.0)


def test_a_new_level_is_learnt() -> None:
    level = LossLevel()
    warned = [bool(level.observe(loss, 3.0)) for loss in [*noisy(100), *(2 + loss for loss in noisy(100))]]
    assert warned[100]
    assert not any(warned[150:])


def test_a_restored_guard_goes_on_as_the_one_that_was_saved(tmp_path) -> None:
    config = GuardConfig(max_bad_steps=3)
    first, second = (Guards(config, tmp_path, writer=False) for _ in range(2))
    losses = noisy(80)
    for step, loss in enumerate(losses[:40], start=1):
        good(first, step, loss)
    bad(first, 41)
    second.restore(json.loads(json.dumps(first.state())))
    for guards in (first, second):
        bad(guards, 42)
        bad(guards, 43)
        with pytest.raises(ValueError, match="in 3 steps in a row"):
            guards.stop_if_hopeless(43)
    rest = [*losses[40:], 5.0]
    assert [good(first, 44, loss) for loss in rest] == [good(second, 44, loss) for loss in rest]
    assert first.state() == second.state()


@pytest.mark.parametrize("value", [NAN, INF, -INF])
def test_a_loss_that_is_not_finite_spoils_every_gradient(value: float) -> None:
    weight = torch.tensor([1.0, 2.0], requires_grad=True)
    finite_or_poisoned(weight.sum() + value).backward()
    assert weight.grad.isnan().all()


@given(st.floats(-(2.0**100), 2.0**100, width=32))
def test_a_finite_loss_passes_bit_for_bit(value: float) -> None:
    weight = torch.tensor(value, requires_grad=True)
    loss = finite_or_poisoned(3 * weight)
    loss.backward()
    assert torch.equal(loss, 3 * weight)
    assert weight.grad == 3


class Clock:
    """A watchdog's time and its reports."""

    def __init__(self) -> None:
        self.now, self.reports = 0.0, []

    def end(self, report: str, grace: float) -> None:
        self.reports.append((report, grace))

    def __call__(self) -> float:
        return self.now


def test_a_watchdog_is_patient_at_the_start_and_in_slow_work_and_strict_between_steps() -> None:
    clock = Clock()
    watchdog = Watchdog(100, 3, clock=clock)
    clock.now = 999
    assert watchdog.overdue() == ""
    watchdog.beat(1)
    clock.now += 99
    assert watchdog.overdue() == ""
    watchdog.beat(2)
    clock.now += 100
    assert watchdog.overdue() == "rank 3: no progress for 100 s after step 2, in a training step"
    with watchdog.slow("a checkpoint"):
        clock.now += 999
        assert watchdog.overdue() == ""
        clock.now += 1
        assert watchdog.overdue() == "rank 3: no progress for 1000 s after step 2, in a checkpoint"
    assert watchdog.overdue() == "", "slow work is progress when it is done"
    clock.now += 100
    assert "in a training step" in watchdog.overdue()


def test_a_watchdog_of_zero_seconds_never_barks() -> None:
    clock = Clock()
    with Watchdog(0, 0, clock=clock, end=clock.end) as watchdog:
        clock.now = 1e9
        assert watchdog.overdue() == ""
        assert not watchdog.thread.is_alive()
    assert not clock.reports


def test_the_thread_reports_once_and_ends_with_the_training() -> None:
    clock = Clock()
    with Watchdog(0.2, 0, clock=clock, end=clock.end) as watchdog:
        watchdog.beat(5)
        clock.now = 1
        watchdog.thread.join(timeout=30)
        ((report, grace),) = clock.reports
        assert report.endswith("after step 5, in a training step")
        assert grace > 0.02, "longer than other ranks take to look at their own clocks"
    with Watchdog(50, 0, end=clock.end) as watchdog:
        assert watchdog.thread.is_alive()
    assert not watchdog.thread.is_alive()
    assert len(clock.reports) == 1


HUNG = """
import threading
from shard_dist.training.guards import Watchdog
def waits_for_what_never_comes(): threading.Event().wait()
with Watchdog(0.5, 7) as watchdog:
    watchdog.beat(12)
    waits_for_what_never_comes()
"""


def test_a_hung_process_ends_with_its_stacks_on_stderr_and_a_code_of_its_own() -> None:
    done = subprocess.run([sys.executable, "-c", HUNG], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == HANG_EXIT
    assert "rank 7: no progress for " in done.stderr
    assert "after step 12, in a training step" in done.stderr
    assert "waits_for_what_never_comes" in done.stderr


@pytest.mark.zero
@pytest.mark.parametrize(("precision", "offload"), [("fp32", "none"), ("bf16", "none"), ("bf16", "cpu")])
def test_zero3_skips_what_is_not_finite_and_goes_on_as_if_it_had_not_been(
    precision: str, offload: str, tmp_path, base_model, launch
) -> None:
    """Two ranks, a fault in one micro-batch of one: weights and AdamW's states stay bit for bit, on every rank, and
    the next step is that of an engine which never met a fault: no gradient is left over."""
    script = Path(__file__).with_name("bad_steps_rank.py")
    done = launch(script, base_model, precision, offload, tmp_path / "result").wait()
    assert done.returncode == 0, done.stderr[-3000:]
    result = pickle.loads((tmp_path / "result").read_bytes())
    first, *faulty, last = result["spoilt"]
    for (loss, applied, norm, state), fault in zip(faulty, result["faults"], strict=True):
        assert not applied, fault
        assert norm == INF
        assert math.isfinite(loss) == (fault == "infinite gradient")
        assert all(torch.equal(now, before) for now, before in zip(state, first[3], strict=True)), fault
    _, clean = result["clean"]
    assert last[:3] == clean[:3]
    assert last[1]
    assert all(torch.equal(now, expected) for now, expected in zip(last[3], clean[3], strict=True))
    assert not all(torch.equal(now, before) for now, before in zip(last[3], first[3], strict=True))
    assert str(result["ranks"][0]) == str(result["ranks"][1]), "every rank sees the same numbers (nan among them)"
