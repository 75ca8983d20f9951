"""report: everything above -> one page."""

from __future__ import annotations

from typing import Any

from shard_dist.progress import Progress
from shard_dist.report.build import build_report
from shard_dist.rundir import Run, Stage

# What the page shows; a stage that has not run is a hole on the page, not an error.
SHOWN = (
    "prompts.json",
    "generate.json",
    "select.json",
    "train.json",
    "evaluate.json",
    "metrics.json",
    "config.yaml",
    "run.json",
)


def inputs(run: Run) -> dict[str, Any]:
    return {**{name: run.file_hash(name) for name in SHOWN}, "samples": run.config.report.samples}


def work(run: Run, progress: Progress) -> dict[str, Any]:
    page = build_report(run.path, samples=run.config.report.samples)
    return {"bytes": page.stat().st_size}


STAGE = Stage("report", inputs, ("report",), work)
