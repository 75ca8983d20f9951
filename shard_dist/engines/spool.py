"""Results of rows on their way from engines to Parquet: each one is on disk before its row counts as done.

A directory with a segment per writer, one line `[index, value]` per result, so no locks and no loss: a killed writer
leaves at most one torn line, whose row is done again (from the ledger). Read in order at the end, then removed.
"""

from __future__ import annotations

import errno
import json
import os
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np


class SpoolWriter:
    """One writer's segment, made with the first result."""

    def __init__(self, directory: Path, name: str) -> None:
        self.path = directory / f"{name}-{uuid.uuid4().hex[:8]}.jsonl"
        self.stream: Any = None

    def append(self, index: int, value: Any) -> None:
        """One write to an O_APPEND file. Raises ValueError where the disk is full."""
        line = (json.dumps([index, value], separators=(",", ":")) + "\n").encode()
        try:
            if self.stream is None:
                self.path.parent.mkdir(parents=True, exist_ok=True)
                self.stream = self.path.open("xb", buffering=0)
            if self.stream.write(line) != len(line):
                raise OSError(errno.ENOSPC, "short write")
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise ValueError(
                    f"no space left in {self.path.parent}; free some and run the same command again: nothing is lost"
                ) from error
            raise

    def close(self) -> None:
        if self.stream is not None:
            self.stream.close()


def stored(directory: Path) -> Iterator[tuple[int, Any]]:
    """Every whole line as it lies there: (index, value)."""
    for path in sorted(directory.glob("*.jsonl")):
        with path.open("rb") as stream:
            for line in stream:
                if line.endswith(b"]\n"):
                    yield tuple(json.loads(line))


class Spool:
    """The results found in `directory` when it is opened, for `rows` rows: 14 bytes of memory per row."""

    def __init__(self, directory: Path, rows: int) -> None:
        self.paths = sorted(directory.glob("*.jsonl"))
        assert len(self.paths) < 1 << 15
        self.segment = np.full(rows, -1, np.int16)
        self.offset = np.zeros(rows, np.int64)
        self.length = np.zeros(rows, np.int32)
        for number, path in enumerate(self.paths):
            self._index(number, path)

    def _index(self, number: int, path: Path) -> None:
        offset = 0
        with path.open("rb") as stream:
            for line in stream:
                if line.endswith(b"]\n"):  # anything else is the torn end of a killed writer
                    index = int(line[1 : line.index(b",")])
                    self.segment[index], self.offset[index], self.length[index] = number, offset, len(line)
                offset += len(line)

    @property
    def missing(self) -> np.ndarray:
        """Indices of the rows without a result, rising."""
        return np.flatnonzero(self.segment < 0)

    def ordered(self) -> Iterator[Any]:
        """Every row's value in the rows' order; all must be there."""
        assert not len(self.missing)
        files = [os.open(path, os.O_RDONLY) for path in self.paths]
        try:
            for segment, offset, length in zip(self.segment, self.offset, self.length, strict=True):
                yield json.loads(os.pread(files[segment], int(length), int(offset)))[1]
        finally:
            for file in files:
                os.close(file)
