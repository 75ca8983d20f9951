"""A run directory: stages are skipped only if nothing changed, and a directory keeps to its configuration."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest
import yaml
from rich.console import Console

from shard_dist.artefacts import model_hash, read_json, replacing, write_json
from shard_dist.config.load import load_config
from shard_dist.config.schema import Config
from shard_dist.progress import Progress
from shard_dist.rundir import Run, Stage, open_run, run_stage


def config(tmp_path: Path, *words: str) -> Config:
    path = tmp_path / "c.yaml"
    path.write_text(
        "data: {sources: [{kind: do_not_answer}]}\n"
        "models: {student: {model: a/b, env: {HF_TOKEN: hush}}, judge: {model: c/d}}\n"
    )
    return load_config(path, [f"run.dir={tmp_path / 'run'}", *words])


@pytest.fixture
def progress() -> Progress:
    return Progress(Console(file=io.StringIO()), 1.0)


def writes(name: str, text: str, made: list[str]) -> Any:
    def work(run: Run, progress: Progress) -> dict[str, Any]:
        made.append(text)
        (run / name).write_text(text)
        return {"rows": 1}

    return work


def test_a_stage_runs_once_and_again_when_its_input_or_output_changed(tmp_path: Path, progress: Progress) -> None:
    run, made, source = open_run(config(tmp_path)), [], ["one"]
    stage = Stage("s", lambda run: {"x": source[0]}, ("out.txt",), writes("out.txt", "text", made))
    assert run_stage(run, stage, progress)
    assert not run_stage(run, stage, progress)
    source[0] = "two"
    assert run_stage(run, stage, progress)
    (run / "out.txt").write_text("damaged")
    assert run_stage(run, stage, progress)
    assert len(made) == 3
    manifest = read_json(run / "s.json")
    assert (manifest["counts"], manifest["inputs"]) == ({"rows": 1}, {"x": "two"})
    assert {"seconds", "git_commit", "config_hash", "outputs"} <= set(manifest)


def test_a_stage_that_failed_has_not_run(tmp_path: Path, progress: Progress) -> None:
    run = open_run(config(tmp_path))

    def fails(run: Run, progress: Progress) -> dict[str, Any]:
        raise ValueError("no")

    run_stage(run, Stage("s", lambda run: {}, (), lambda *_: {}), progress)
    with pytest.raises(ValueError, match="no"):
        run_stage(run, Stage("s", lambda run: {"new": 1}, (), fails), progress)
    assert run.manifest("s") is None


def test_another_configuration_is_refused_by_the_settings_that_differ(tmp_path: Path) -> None:
    open_run(config(tmp_path))
    open_run(config(tmp_path, "models.student.engines=3"))  # how, not what
    with pytest.raises(ValueError, match=r"belongs to another configuration; it differs in train\.epochs"):
        open_run(config(tmp_path, "train.epochs=9"))
    open_run(config(tmp_path, "train.epochs=9", "run.on_change=redo"))
    open_run(config(tmp_path, "train.epochs=9"))


def test_a_directory_of_something_else_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "thesis.txt").write_text("dear")
    with pytest.raises(ValueError, match="no run of ours"):
        open_run(config(tmp_path))
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["thesis.txt"]


def test_the_configuration_beside_the_artefacts_holds_no_secret(tmp_path: Path) -> None:
    run = open_run(config(tmp_path))
    text = (run / "config.yaml").read_text()
    assert "hush" not in text
    assert yaml.safe_load(text)["models"]["student"]["env"] == {"HF_TOKEN": "<redacted>"}
    assert read_json(run / "run.json")["versions"]["torch"]


def test_a_garbled_manifest_is_named(tmp_path: Path, progress: Progress) -> None:
    run = open_run(config(tmp_path))
    (run / "s.json").write_text("{")
    with pytest.raises(ValueError, match=r"s\.json is no valid JSON"):
        run_stage(run, Stage("s", lambda run: {}, (), lambda *_: {}), progress)


def test_a_missing_artefact_names_the_stage_that_makes_it(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="run `shard-dist generate`"):
        open_run(config(tmp_path)).require("records", "generate")


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    write_json(path, {"a": 1})
    with pytest.raises(RuntimeError), replacing(path) as partial:
        partial.write_text("half")
        raise RuntimeError
    assert read_json(path) == {"a": 1}
    assert [inner.name for inner in tmp_path.iterdir()] == ["x.json"]


def test_a_full_disk_is_said_in_words(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no space left to write"), replacing(tmp_path / "x"):
        raise OSError(28, "No space left on device")


def test_a_model_is_known_by_content_not_by_path_or_date(tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    for directory in (one, two):
        directory.mkdir()
        (directory / "model.safetensors").write_bytes(b"weights")
    assert model_hash(one) == model_hash(two)
    (two / "model.safetensors").write_bytes(b"weighty")
    assert model_hash(one) != model_hash(two)


def test_a_run_knows_its_whole_path_wherever_it_is_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Engines on other nodes have another working directory."""
    monkeypatch.chdir(tmp_path)
    settings = config(tmp_path, "run.ledger=shared")
    settings.run.dir = "run"
    run = open_run(settings)
    assert (run.path, run.ledger) == (tmp_path / "run", str(tmp_path / "shared"))
    settings.run.ledger = "memory://shared"
    assert run.ledger == "memory://shared"
