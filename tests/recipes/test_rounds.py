"""Rounds: each trains the model of the one before, and they end where the judge sees no gain."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from shard_dist.artefacts import model_hash, read_json
from shard_dist.config.load import load_config
from shard_dist.config.schema import Config
from shard_dist.pipeline import stages_of
from shard_dist.progress import Progress
from shard_dist.rundir import Stage, open_run, run_stage
from shard_dist.stages import generate, prompts, rounds, select

FAKE = ("models.student.backend=fake", "models.student.engine_args={}", "data.sources[0].limit=48")
SHORT = (
    "train={epochs: 1, workers: 1, global_batch_size: 16, micro_batch_size: 4, checkpoint_every: 100, eval_every: 0}"
)
ALL = ("prompts", "generate", "select", "train", "evaluate", "report")


def configured(root: Path, place: Path, *words: str) -> Config:
    settings = [*FAKE, SHORT, f"run.dir={place}", "data.split={val: 0.2, test: 0.3}", *words]
    config = load_config(root / "configs" / "demo.yaml", settings)
    return replace(config, models={"student": replace(config.models["student"], env={})})


def found(net: float, more: int = 0, less: int = 0, n: int = 10) -> dict:
    return {"n": n, "net": net, "helpfulness": {}, "harm": {"b": more, "a": less}}


@pytest.mark.parametrize(
    ("gain", "least", "goes_on"),
    [
        (found(0.1), 0.0, True),
        (found(0.0), 0.0, False),
        (found(-0.2), -0.5, True),
        (found(0.3), 0.3, False),
        (found(0.9, more=2, less=1), 0.0, False),
        (found(0.1, more=1, less=1), 0.0, True),
        (found(0.0, n=0), -1.0, False),
    ],
)
def test_a_gain_is_more_help_and_no_more_harm(gain: dict, least: float, goes_on: bool) -> None:
    assert rounds.enough(gain, least) is goes_on


def test_rounds_replace_the_three_stages_that_they_repeat(root: Path, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(root)
    once, often = configured(root, tmp_path / "a"), configured(root, tmp_path / "b", "recipe.rounds=3")
    assert [stage.name for stage in stages_of(once, ALL)] == list(ALL)
    assert [stage.name for stage in stages_of(often, ALL)] == ["prompts", "rounds", "evaluate", "report"]
    assert [stage.name for stage in stages_of(often, ("evaluate",))] == ["evaluate"]
    with pytest.raises(ValueError, match=r"recipe\.rounds is 3: generate, select and train are repeated together"):
        stages_of(often, ("train",))


@pytest.fixture
def repeated(monkeypatch: pytest.MonkeyPatch, train_stage: Stage) -> None:
    monkeypatch.setattr(rounds, "ROUND", (generate.STAGE, select.STAGE, train_stage))


@pytest.mark.ray
@pytest.mark.zero
@pytest.mark.e2e
def test_every_round_trains_the_model_of_the_one_before(
    root: Path, tmp_path: Path, monkeypatch, ray_cluster, repeated
) -> None:
    """Fake engines, real training of the seed model. Killed after its first round, the second starts where it was."""
    monkeypatch.chdir(root)
    config = configured(root, tmp_path / "run", "recipe.rounds=2", "recipe.min_gain=null")
    run, progress = open_run(config), Progress(Console(quiet=True), 60)
    run_stage(run, prompts.STAGE, progress)
    shown = rounds.show
    monkeypatch.setattr(rounds, "show", lambda *_: (_ for _ in ()).throw(RuntimeError("killed")))
    with pytest.raises(RuntimeError, match="killed"):
        run_stage(run, rounds.STAGE, progress)
    before = (run / "rounds" / "1" / "train.json").stat().st_mtime_ns
    monkeypatch.setattr(rounds, "show", shown)
    assert run_stage(run, rounds.STAGE, progress)
    assert (run / "rounds" / "1" / "train.json").stat().st_mtime_ns == before
    first, second = (run / "rounds" / number for number in "12")
    assert (
        len({model_hash(model) for model in (Path(config.models["student"].model), first / "model", second / "model")})
        == 3
    )
    assert read_json(second / "train.json")["inputs"]["model"] != read_json(first / "train.json")["inputs"]["model"]
    assert (
        read_json(second / "generate.json")["inputs"]["generator"]
        == read_json(second / "train.json")["inputs"]["model"]
    )
    assert (run / "model").resolve() == second / "model"
    assert read_json(run / "rounds.json")["counts"]["kept"] == 2
    assert not run_stage(run, rounds.STAGE, progress)


@pytest.mark.ray
@pytest.mark.zero
@pytest.mark.e2e
def test_without_a_gain_the_model_before_is_kept(
    root: Path, tmp_path: Path, monkeypatch, ray_cluster, repeated
) -> None:
    """At most three rounds, of which the second is no gain."""
    monkeypatch.chdir(root)
    nets = iter((0.5, -0.5))
    monkeypatch.setattr(rounds, "GAIN", replace(rounds.GAIN, work=lambda *_: found(next(nets))))
    run, progress = open_run(configured(root, tmp_path / "run", "recipe.rounds=3")), Progress(Console(quiet=True), 60)
    run_stage(run, prompts.STAGE, progress)
    run_stage(run, rounds.STAGE, progress)
    assert read_json(run / "rounds.json")["counts"] == {"rounds": 2, "kept": 1, "gains": [0.5, -0.5]}
    assert (run / "model").resolve() == run / "rounds" / "1" / "model"
