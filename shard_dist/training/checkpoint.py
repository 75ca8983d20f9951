"""Checkpoints on shared storage: written by every rank, complete only when their marker is there.

A checkpoint is a directory step<n> of DeepSpeed's files (fp32 weights and optimizer states, one part per rank) and,
written last, `complete.json`. What has no marker is torn: it is ignored, and removed by the next save. Data position,
learning rate and random state are functions of the step and need no file.
"""

from __future__ import annotations

import errno
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch.distributed as dist

from shard_dist.artefacts import read_json, write_json

MARKER = "complete.json"


@dataclass(frozen=True)
class Marker:
    """What a complete checkpoint says of itself. `step` is the number of optimizer steps done."""

    step: int
    identity: str
    ranks: int


def tag(step: int) -> str:
    return f"step{step:08d}"


def complete(directory: Path) -> list[Marker]:
    """The complete checkpoints of a directory, oldest first."""
    markers = [Marker(**read_json(path)) for path in directory.glob(f"step*/{MARKER}")]
    return sorted(markers, key=lambda marker: marker.step)


def newest(directory: Path, identity: str, ranks: int) -> Marker | None:
    """The checkpoint to go on from, None for a fresh start.

    Raises ValueError where the directory belongs to another training or to another number of ranks.
    """
    markers = complete(directory)
    if not markers:
        return None
    last = markers[-1]
    if last.identity != identity:
        raise ValueError(
            f"the checkpoints in {directory} are of another training (configuration, data or base model differ); "
            "remove the directory or choose another run.dir"
        )
    if last.ranks != ranks:
        raise ValueError(
            f"the checkpoints in {directory} were written by {last.ranks} processes and cannot be read by {ranks}; "
            f"set train.workers={last.ranks} or remove the directory"
        )
    return last


def save(engine: Any, directory: Path, marker: Marker, keep: int) -> None:
    """Write one checkpoint; a collective call. Keeps the newest `keep` complete ones.

    Raises ValueError where the disk is full: the older checkpoints are still there.
    """
    target = directory / tag(marker.step)
    if dist.get_rank() == 0:
        shutil.rmtree(target, ignore_errors=True)  # torn, from an earlier attempt
    dist.barrier()
    try:
        engine.save_checkpoint(str(directory), tag=tag(marker.step), save_latest=False)
    except (OSError, RuntimeError) as error:
        # torch reports a write that failed half-way by the name of its own source file, without an errno.
        if getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT) or "inline_container" in str(error):
            raise ValueError(f"cannot write the checkpoint {target} (disk full?): {error}") from error
        raise
    if dist.get_rank() == 0:  # save_checkpoint ends with a barrier: every rank's files are there
        write_json(target / MARKER, asdict(marker))
        remove_old(directory, keep)


def load(engine: Any, directory: Path, marker: Marker) -> None:
    """Restore weights and optimizer; a collective call, to be made before the first step."""
    path, _ = engine.load_checkpoint(str(directory), tag=tag(marker.step), load_lr_scheduler_states=False)
    assert path is not None, f"complete checkpoint {tag(marker.step)} did not load"


def remove_old(directory: Path, keep: int) -> None:
    """All but the newest `keep`; the marker goes first, so that a half-removed checkpoint counts as torn."""
    kept = {tag(marker.step) for marker in complete(directory)[-max(1, keep) :]}
    for path in directory.glob("step*"):
        if path.name not in kept:
            (path / MARKER).unlink(missing_ok=True)
            shutil.rmtree(path)
