"""Faults of a ledger that can be known before anything is spent."""

from __future__ import annotations

import errno
import os
from pathlib import Path

from shard_dist.ledger.catalogue import read_packs
from shard_dist.ledger.lines import is_header, new_name
from shard_dist.ledger.location import SEGMENTS, Remote, locate

PROBE_BYTES = 64 << 10  # more than a line; smaller than what a nearly full disk would still take in its last block


def check_ledger(location: str | Path) -> int:
    """How many packs are damaged: a warning each, their calls are made again.

    Raises ValueError where the ledger cannot be written (no directory, no permission, full disk, no such store) or
    where a file is of a newer format.
    """
    place = locate(location)
    _check_writable(place.directory)
    if isinstance(place, Remote):
        _check_store(place)
    for path in sorted(place.directory.glob(SEGMENTS)):
        try:
            with path.open("rb") as stream:
                is_header(path, stream.readline(1 << 10))
        except FileNotFoundError:  # sealed since it was listed
            continue
        except OSError as error:
            raise ValueError(f"run.ledger: cannot read {path}: {error.strerror}") from error
    return len(read_packs(place)[1])


def _check_writable(directory: Path) -> None:
    probe = directory / f".{new_name()}.probe"
    try:
        directory.mkdir(parents=True, exist_ok=True)
        with probe.open("xb", buffering=0) as stream:
            if stream.write(b"\0" * PROBE_BYTES) != PROBE_BYTES:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            os.fsync(stream.fileno())
        probe.unlink()
    except OSError as error:
        probe.unlink(missing_ok=True) if directory.is_dir() else None
        raise ValueError(f"run.ledger: cannot write to {directory}: {_advice(error)}") from error


def _advice(error: OSError) -> str:
    if error.errno in (errno.EEXIST, errno.ENOTDIR):
        return "it is, or lies below, a file and no directory; choose another"
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return "the disk is full; free some space, every call in the ledger is kept"
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return f"{error.strerror}; choose another directory (run.ledger=DIRECTORY) or change its permissions"
    return str(error.strerror)


def _check_store(place: Remote) -> None:
    probe = f"{place.root}/.{new_name()}.probe"
    try:
        place.filesystem.makedirs(place.root, exist_ok=True)
        place.filesystem.pipe_file(probe, b"\0")
        place.filesystem.rm_file(probe)
        place.pull()
    except Exception as error:  # whatever a store's own library raises
        raise ValueError(f"run.ledger: cannot write to {place.url}: {type(error).__name__}: {error}") from error
