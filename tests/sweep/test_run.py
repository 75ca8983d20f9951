"""A sweep runs: nothing is asked twice, one arm's failure is its own, the same command goes on."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

import shard_dist.sweep.run
from shard_dist.artefacts import read_json
from shard_dist.ledger.store import Ledger
from shard_dist.progress import Progress
from shard_dist.rundir import Run, locked
from shard_dist.stages import evaluate, generate, prompts, report
from shard_dist.sweep.dry import probe
from shard_dist.sweep.estimate import estimate
from shard_dist.sweep.plan import Arm, Sweep, load_sweep
from shard_dist.sweep.run import State, run_sweep

SweepFile = Callable[..., Path]
Trainer = Callable[[Arm, Progress], None]
AXES = {
    "recipe": {
        "self": {"recipe.generator": "student"},
        "teacher": {"recipe.generator": "teacher"},
        "mixed": {"recipe.name": "shard_mixed"},
    },
    "seed": {"s0": {"run.seed": 0}, "s1": {"run.seed": 1}},
}
TWO = {"recipe": {name: AXES["recipe"][name] for name in ("self", "teacher")}}
ENGINES = ("generate", "select", "evaluate")

pytestmark = pytest.mark.usefixtures("without_ray", "no_page")


@pytest.fixture
def no_page(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Pages are tested elsewhere; here only that the comparison comes last, over all arms."""
    compared: list[str] = []

    def compare(sweep: Sweep, progress: Progress) -> Path:
        state = read_json(sweep.path / "sweep.json")
        compared.append(" ".join(f"{name}:{arm['state']}" for name, arm in state["arms"].items()))
        return sweep.path / "index.html"

    def page(run: Path, samples: int) -> Path:
        (run / "report").mkdir(exist_ok=True)
        (run / "report" / "index.html").write_text("page")
        return run / "report" / "index.html"

    monkeypatch.setattr(shard_dist.sweep.run, "compare", compare)
    monkeypatch.setattr(report, "build_report", page)
    return compared


def small(sweep_file: SweepFile, axes: dict[str, Any], *words: str) -> Sweep:
    return load_sweep(sweep_file({"axes": axes}), ["data.sources[0].limit=40", "data.split.test=0.3", *words])


def calls(sweep: Sweep, field: str) -> int:
    manifests = (arm.run.manifest(stage) for arm in sweep.arms for stage in ENGINES)
    return sum(manifest["counts"][field] for manifest in manifests if manifest)


def ledger(sweep: Sweep) -> tuple[int, int]:
    """(distinct keys, lines ever written)."""
    with closing(Ledger(sweep.config.run.ledger)) as opened:
        return opened.stats.entries, opened.stats.lines


def states(state: State) -> dict[str, str]:
    return {name: arm["state"] for name, arm in state.arms.items()}


def test_every_call_is_made_once_and_as_foretold(
    sweep_file: SweepFile, trainer: Trainer, progress: Progress, no_page: list[str]
) -> None:
    """self, teacher, mixed x 2 seeds: calls made = distinct keys = foretold ones, and at most 0.6 of those alone."""
    sweep = small(sweep_file, AXES)
    foretold = estimate(sweep, progress)
    assert not sweep.path.exists()
    state = run_sweep(sweep, progress, trainer)
    assert set(states(state).values()) == {"done"}
    entries, lines = ledger(sweep)
    assert calls(sweep, "calls_made") == entries == lines == foretold["total"]["new"]
    assert foretold["total"]["calls"] == calls(sweep, "calls")
    assert entries <= 0.6 * calls(sweep, "calls")
    again = estimate(sweep, progress)
    assert {arm["new"] for arm in again["arms"]} == {0} == {len(arm["to_do"]) for arm in again["arms"]}
    assert again["total"]["in_ledger"] == again["total"]["calls"]
    assert len(no_page) == 1


def test_an_arm_that_fails_leaves_the_others_alone_and_the_same_command_tries_it_again(
    sweep_file: SweepFile, trainer: Trainer, progress: Progress, no_page: list[str]
) -> None:
    sweep = small(sweep_file, TWO)

    def fails(arm: Arm, progress: Progress) -> None:
        if arm.name == "teacher":
            raise RuntimeError("out of memory")
        trainer(arm, progress)

    state = run_sweep(sweep, progress, fails)
    assert states(state) == {"self": "done", "teacher": "failed"}
    assert state.failed == {"teacher": "RuntimeError: out of memory"}
    kept = read_json(sweep.path / "sweep.json")["arms"]
    assert (kept["teacher"]["stage"], kept["teacher"]["error"]) == ("train", "RuntimeError: out of memory")
    assert set(kept["self"]["counts"]) == {"prompts", "generate", "select", "train", "evaluate", "report"}
    assert set(kept["teacher"]["counts"]) == {"prompts", "generate", "select"}
    assert "out of memory" in (sweep.arms[1].run / "logs" / "sweep_error.txt").read_text()
    assert state.summary() == "teacher failed in train: RuntimeError: out of memory\n1 of 2 arms done"
    trained: list[str] = []
    state = run_sweep(sweep, progress, lambda arm, progress: (trained.append(arm.name), trainer(arm, progress))[1])
    assert (trained, set(states(state).values()), state.failed) == (["teacher"], {"done"}, {})
    entries, lines = ledger(sweep)
    assert entries == lines
    assert no_page == ["self:done teacher:failed", "self:done teacher:done"]


def test_a_sweep_that_is_killed_goes_on_and_asks_nothing_twice(
    sweep_file: SweepFile, trainer: Trainer, progress: Progress, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ended in the middle of a generation, of the trainings, and of an evaluation."""
    sweep = small(sweep_file, TWO)

    class Killed(BaseException):
        pass

    def dies(*_: Any, **__: Any) -> Any:
        raise Killed

    for module, name in ((generate, "record_row"), (shard_dist.sweep.run, "_side_by_side"), (evaluate, "metrics")):
        with monkeypatch.context() as patch:
            patch.setattr(module, name, dies)
            with pytest.raises(Killed):
                run_sweep(sweep, progress, trainer)
    state = run_sweep(sweep, progress, trainer)
    assert set(states(state).values()) == {"done"}
    entries, lines = ledger(sweep)
    assert entries == lines == estimate(sweep, progress)["total"]["in_ledger"] - shared(sweep, progress)


def shared(sweep: Sweep, progress: Progress) -> int:
    """Calls of more than one arm, counted once for each further arm."""
    _, probes, _ = probe(sweep, progress)
    return sum(len(each.keys) for each in probes) - len(set().union(*(each.keys for each in probes)))


def test_new_arms_join_and_find_what_the_others_asked(
    sweep_file: SweepFile, trainer: Trainer, progress: Progress
) -> None:
    run_sweep(small(sweep_file, {"recipe": {"self": TWO["recipe"]["self"]}}), progress, trainer)
    more = small(sweep_file, TWO)
    found = estimate(more, progress)["arms"]
    assert [arm["to_do"][:1] for arm in found] == [[], ["prompts"]]
    assert found[1]["in_ledger"] > 0  # the base's answers
    assert set(states(run_sweep(more, progress, trainer)).values()) == {"done"}


def test_an_arm_whose_settings_changed_is_refused_before_anything_starts(
    sweep_file: SweepFile, trainer: Trainer, progress: Progress
) -> None:
    run_sweep(small(sweep_file, TWO), progress, trainer)
    with pytest.raises(ValueError, match=r"sweep arm self: .*belongs to another configuration; it differs in .*top_p"):
        run_sweep(small(sweep_file, TWO, "recipe.answer_sampling.top_p=0.9"), progress, trainer)


def test_a_directory_of_something_else_is_left_alone(
    sweep_file: SweepFile, trainer: Trainer, progress: Progress
) -> None:
    sweep = small(sweep_file, TWO)
    sweep.path.mkdir()
    (sweep.path / "run.json").write_text("{}")
    with pytest.raises(ValueError, match="is not empty and no sweep of ours"):
        run_sweep(sweep, progress, trainer)
    assert [path.name for path in sweep.path.iterdir()] == ["run.json"]


def test_one_sweep_at_a_time_works_in_a_directory(sweep_file: SweepFile, trainer: Trainer, progress: Progress) -> None:
    sweep = small(sweep_file, TWO)
    sweep.path.mkdir()
    (sweep.path / "sweep.json").write_text("{}")
    with locked(Run(sweep.config, sweep.path)), pytest.raises(ValueError, match="another process is working in"):
        run_sweep(sweep, progress, trainer)


def test_test_sets_that_differ_stop_the_sweep_before_a_call(
    sweep_file: SweepFile, trainer: Trainer, progress: Progress, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A student with a shorter context loses prompts."""
    monkeypatch.setattr(
        prompts,
        "longer_than_context",
        lambda run: (lambda text: len(text) > 40) if run.config.recipe.generator == "teacher" else None,
    )
    sweep = small(sweep_file, TWO)
    with pytest.raises(ValueError, match=r"sweep arms self and teacher differ in \d+ test prompts, such as \('demo'"):
        run_sweep(sweep, progress, trainer)
    assert ledger(sweep) == (0, 0)


def test_rounds_run_whole_where_others_generate(
    sweep_file: SweepFile, trainer: Trainer, progress: Progress, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And the dry run says that it counts the first round."""
    sweep = small(sweep_file, {"recipe.rounds": [1, 3]})
    found = estimate(sweep, progress)["arms"]
    assert [(arm["rounds"], arm["to_do"]) for arm in found][1] == (3, ["prompts", "rounds", "evaluate", "report"])
    assert found[1]["shared"] > 0
    assert json.dumps(found)
