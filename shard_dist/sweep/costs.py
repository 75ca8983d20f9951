"""What an arm cost, from the manifests of its stages and the log of its engines; an unfinished arm as far as it got.

Counts are of each stage's last start. Calls `asked` do not depend on what other arms had asked before; calls `made` and
the time do: the first arm that needs an answer pays for it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from shard_dist.config.schema import Config
from shard_dist.engines.placement import gpus_of
from shard_dist.report.inputs import engine_log
from shard_dist.rundir import Run
from shard_dist.sweep.estimate import has_gpus

Row = dict[str, Any]
DATA = ("generate", "select")
COUNTED = {
    "asked": "calls",
    "made": "calls_made",
    "from_ledger": "ledger_hits",
    "prompt_tokens": "prompt_tokens",
    "completion_tokens": "completion_tokens",
}


def costs(run: Run) -> Row:
    """{asked, made, from_ledger, prompt_tokens, completion_tokens, data_calls, seconds: {stage: s}, training_tokens,
    examples, gpu_hours}; data_calls are those asked to make and choose the training data."""
    total: Row = {**dict.fromkeys(COUNTED, 0), "data_calls": 0, "seconds": {}, "training_tokens": 0, "examples": 0}
    gpu_seconds = 0.0
    for stage, manifest in _manifests(run):
        counts = manifest.get("counts") or {}
        for name, count in COUNTED.items():
            total[name] += counts.get(count, 0)
        total["data_calls"] += counts.get("calls", 0) if stage in DATA else 0
        total["seconds"][stage] = total["seconds"].get(stage, 0.0) + manifest.get("seconds", 0.0)
        if stage == "train":
            total["training_tokens"] += counts.get("tokens", 0)
            total["examples"] = counts.get("examples", 0)
            workers = run.config.train.workers
            gpu_seconds += manifest.get("seconds", 0.0) * workers * run.config.train.gpus_per_worker
    gpu_seconds += sum(_engine_gpu_seconds(run.config, inner) for inner in (run.path, *_rounds(run)))
    return {**total, "gpu_hours": gpu_seconds / 3600}


def _manifests(run: Run) -> Iterator[tuple[str, Row]]:
    """(stage, manifest) of all work; with rounds the run's own data and training are a round's."""
    rounds = _rounds(run)
    own = ("evaluate",) if rounds else (*DATA, "train", "evaluate")
    places = [(run.path, stage) for stage in own]
    places += [(inner, stage) for inner in rounds for stage in (*DATA, "train", "gain")]
    for path, stage in places:
        if manifest := Run(run.config, path).manifest(stage):
            yield stage, manifest


def _rounds(run: Run) -> list[Path]:
    return sorted((path for path in (run / "rounds").glob("*") if path.name.isdigit()), key=lambda path: int(path.name))


def rounds(run: Run) -> Row:
    """{"kept", "seen": what the judge of selection saw of each, first to last}; {} where there was one only."""
    manifest = run.manifest("rounds")
    if not manifest:
        return {}
    seen = [Run(run.config, path).manifest("gain") for path in _rounds(run)]
    return {"kept": manifest["counts"].get("kept"), "seen": [each["counts"] for each in seen if each]}


def _engine_gpu_seconds(config: Config, path: Path) -> float:
    return sum(life.seconds * life.gpus for life in engine_lives(config, path))


@dataclass(frozen=True)
class Life:
    """`seconds` between the first and the last sign of an engine, loading not in them, and the `tokens` it wrote."""

    role: str
    gpus: float
    seconds: float
    tokens: int


def engine_lives(config: Config, path: Path) -> Iterator[Life]:
    """Of every engine that the log of the run in `path` tells of and whose role the configuration has."""
    lives: dict[tuple[str, str], list[Row]] = {}
    for sample in engine_log(path / "engines.jsonl").samples:
        lives.setdefault((sample["engine"], sample["life"]), []).append(sample)
    for (engine, _), samples in lives.items():
        role = engine.rpartition("-")[0]
        if spec := config.models.get("student" if role == "tuned" else role):
            times = [sample["time"] for sample in samples]
            tokens = max(sample["completion_tokens"] for sample in samples)
            yield Life(role, gpus_of(spec, has_gpus(config)), max(times) - min(times), tokens)
