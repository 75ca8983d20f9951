"""Checkpoints of real engines: another number of ranks, writing in the background, the best one, a notice to leave."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from shard_dist.training.checkpoint import complete, tag
from shard_dist.training.universal import FOLDER

pytestmark = pytest.mark.zero

RANK = Path(__file__).with_name("checkpoint_rank.py")


def plan_of(model: Path, root: Path, ranks: int, steps: int, zero: dict[str, int], **plan) -> Path:
    """A file that asks for `steps` steps on `ranks` ranks, checkpoints in `root`; `zero` changes the ZeRO settings."""
    settings = {
        "workers": ranks, "gpus_per_worker": 0, "threads": 1, "bf16": False, "global_batch_size": 8,
        "micro_batch_size": 8 // ranks, "weight_decay": 0.1, **plan.pop("settings", {}),
        "deepspeed": {"zero_optimization": {"stage3_param_persistence_threshold": 0, **zero}},
    }  # fmt: skip
    root.mkdir(exist_ok=True)
    path = root / "plan.json"
    path.write_text(json.dumps({"model": str(model), "directory": str(root / "checkpoints"), "steps": steps,
                                "save": [], "settings": settings, **plan}))  # fmt: skip
    return path


@pytest.fixture
def finish(launch) -> Callable[..., dict]:
    """`finish(model, root, ranks, steps, zero, ...)`: what such a training left; it must end well."""

    def run(model: Path, root: Path, ranks: int, steps: int, zero: dict[str, int], **plan) -> dict:
        done = launch(RANK, plan_of(model, root, ranks, steps, zero, **plan), ranks=ranks).wait()
        assert done.returncode == 0, done.stderr[-3000:]
        return json.loads((root / "plan.result").read_text())

    return run


SHAPES = {
    # Several groups of parameters per rank, each with a step count of its own.
    "fp32, all sharded": (False, {"sub_group_size": 10_000}, {}),
    # Norms stay whole on every rank, the others are sharded; the copy is made of what a thread wrote.
    "bf16, tied, some whole": (
        True,
        {"stage3_param_persistence_threshold": 100},
        {"bf16": True, "async_checkpoints": True},
    ),
}


@pytest.mark.parametrize("shape", SHAPES)
def test_two_ranks_then_one_then_four(tmp_path, tiny, shape, finish) -> None:
    """As if nothing had happened: losses before and after, and the optimizer's count of updates."""
    tied, zero, settings = SHAPES[shape]
    model = tiny.save_model(tmp_path / "model", tied=tied)
    # The tool that converts takes paths for patterns; here it would fail on "+".
    root = tmp_path / "a+b"
    clean = finish(model, root, 2, 8, zero, save=[3], settings=settings)
    one = finish(model, root, 1, 8, zero, save=[6], settings=settings)
    four = finish(model, root, 4, 8, zero, settings=settings)
    assert (one["from"], four["from"]) == (3, 6)
    for resumed in (one, four):
        after = resumed["from"]
        assert resumed["losses"][after] == pytest.approx(clean["losses"][after], abs=1e-4)
        # A moment or a count of updates that is lost shows after the first update.
        assert resumed["losses"] == pytest.approx(clean["losses"], abs=1e-4 if not settings else 5e-3)
        assert resumed["updates_counted"] == clean["updates_counted"] == [8]


def test_the_copy_for_other_ranks_is_made_once_and_goes_with_its_checkpoint(tmp_path, tiny, finish) -> None:
    """A copy that a kill has left half-made is made again; a second restart makes none."""
    model = tiny.save_model(tmp_path / "model")
    finish(model, tmp_path, 2, 2, {}, save=[2])
    copy = tmp_path / "checkpoints" / tag(2) / FOLDER
    (copy / "zero").mkdir(parents=True)
    finish(model, tmp_path, 1, 3, {})
    made = {path: path.stat().st_mtime_ns for path in copy.rglob("*.pt")}
    assert len(made) == 2 + 1 + 3 * 21  # both ranks' descriptions, the global state, three states of 21 weights
    # What every rank loads of it is no rank's part: 40,000 weights are 480 kB.
    assert (copy / "zero" / "optimizer_state.pt").stat().st_size < 10_000
    again = finish(model, tmp_path, 1, 4, {}, save=[4], settings={"keep_checkpoints": 1})
    assert again["from"] == 2
    assert [path.name for path in (tmp_path / "checkpoints").glob("step*")] == [tag(4)]


def test_a_rank_killed_while_it_writes_in_the_background_leaves_the_checkpoint_before(
    tmp_path, tiny, finish, launch
) -> None:
    """And the same training, started again, ends as if nothing had happened."""
    model = tiny.save_model(tmp_path / "model")
    plan = {"save": [2, 4], "settings": {"async_checkpoints": True, "keep_checkpoints": 5}}
    killed = launch(RANK, plan_of(model, tmp_path, 2, 6, {}, die_in_write=4, **plan)).wait()
    assert killed.returncode != 0
    assert [marker.step for marker in complete(tmp_path / "checkpoints")] == [2]
    assert (tmp_path / "checkpoints" / tag(4)).is_dir()
    resumed = finish(model, tmp_path, 2, 6, {}, **plan)
    assert resumed["from"] == 2
    assert [marker.step for marker in complete(tmp_path / "checkpoints")] == [2, 4]
    clean = finish(model, tmp_path / "clean", 2, 6, {})
    assert resumed["losses"] == pytest.approx(clean["losses"], abs=1e-6)


def test_the_best_checkpoint_stays_and_loads_into_an_engine_that_trained_on(tmp_path, tiny, finish) -> None:
    model = tiny.save_model(tmp_path / "model")
    settings = {"keep_checkpoints": 1, "keep_best": True, "async_checkpoints": True}
    losses = {"2": 1.5, "4": 1.0, "6": 2.0, "8": 3.0}
    plan = {"save": [2, 4, 6, 8], "val_loss": losses, "load_best": True, "settings": settings}
    result = finish(model, tmp_path, 2, 8, {}, **plan)
    assert [marker.step for marker in complete(tmp_path / "checkpoints")] == [4, 8]
    assert result["best"] == 4
    assert result["best_next_loss"] == pytest.approx(result["losses"][4], abs=1e-6)


def test_sigterm_to_torchrun_leaves_a_checkpoint(tmp_path, tiny, finish) -> None:
    """Complete, of the step at which it came, and the next start goes on from there."""
    model = tiny.save_model(tmp_path / "model")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", str(RANK)]
    path = plan_of(model, tmp_path, 2, 1_000_000, {}, save=[2])
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    endless = subprocess.Popen([*command, str(path)], env=environment, text=True, stderr=subprocess.PIPE)
    while not complete(tmp_path / "checkpoints") and endless.poll() is None:
        time.sleep(0.1)
    endless.send_signal(signal.SIGTERM)
    endless.communicate(timeout=300)
    assert endless.returncode != 0
    left = complete(tmp_path / "checkpoints")[-1].step
    assert left > 2
    resumed = finish(model, tmp_path, 2, left + 1, {})
    assert (resumed["from"], len(resumed["losses"])) == (left, left + 1)


def test_a_rank_killed_at_a_random_moment_does_not_show_in_the_losses() -> None:
    """One kill; tests/soak/training.py does twenty."""
    soak = Path(__file__).parents[1] / "soak" / "training.py"
    command = [sys.executable, str(soak), "--kills", "1", "--seed", "3", "async_checkpoints=true"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=500, check=False)
    assert done.returncode == 0, done.stdout + done.stderr[-2000:]
