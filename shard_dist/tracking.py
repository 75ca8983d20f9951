"""Where a run's numbers go: a plain JSONL always, W&B beside it (offline unless asked otherwise)."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

from shard_dist.artefacts import value_hash
from shard_dist.config.load import as_dict, redacted
from shard_dist.config.schema import Config, WandbMode


class Tracker(Protocol):
    def log(self, values: dict[str, Any], step: int | None = None) -> None: ...

    def close(self) -> None: ...


class JsonlTracker:
    """One JSON object a line: the values and, where there is one, the step. Appends: a resumed run goes on."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self.stream = path.open("a", encoding="utf-8", buffering=1)

    def log(self, values: dict[str, Any], step: int | None = None) -> None:
        self.stream.write(json.dumps({**values, **({} if step is None else {"step": step})}) + "\n")

    def close(self) -> None:
        self.stream.close()


class WandbTracker:
    """One W&B run per run directory: its id follows from the directory, so a resumed run goes on there."""

    def __init__(self, config: Config, directory: Path) -> None:
        import wandb

        directory.mkdir(parents=True, exist_ok=True)
        os.environ.setdefault("WANDB_SILENT", "true")
        self.run = wandb.init(
            project=config.tracking.project,
            name=config.run.name,
            id=value_hash(str(directory.resolve()))[:16],
            resume="allow",
            dir=directory,
            mode=config.tracking.wandb.value,
            config=redacted(as_dict(config)),
            settings=wandb.Settings(console="off"),
        )

    def log(self, values: dict[str, Any], step: int | None = None) -> None:
        # W&B steps only grow; ours restart with a resumed training, so the step is a value and the axis.
        self.run.log({**values, **({} if step is None else {"step": step})})

    def close(self) -> None:
        self.run.finish()


class Trackers:
    """Several trackers as one."""

    def __init__(self, trackers: list[Tracker]) -> None:
        self.trackers = trackers

    def log(self, values: dict[str, Any], step: int | None = None) -> None:
        for tracker in self.trackers:
            tracker.log(values, step)

    def close(self) -> None:
        for tracker in self.trackers:
            tracker.close()


@contextmanager
def tracking(config: Config, directory: Path) -> Iterator[Tracker]:
    trackers: list[Tracker] = [JsonlTracker(directory / "tracking.jsonl")]
    if config.tracking.wandb != WandbMode.disabled:
        trackers.append(WandbTracker(config, directory / "tracking"))
    both = Trackers(trackers)
    try:
        yield both
    finally:
        both.close()
