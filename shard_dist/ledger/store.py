"""The ledger: every finished call, appended as soon as it is finished. The only durable truth of generation.

One segment per writer, so no locks: `<host>-<pid>-<random>.jsonl`, one JSON object a line, its key first. A process
killed in the middle of a line leaves a torn line; readers skip and count it, and its call is made again.

A reader keeps keys and places only, about 250 bytes an entry; an answer is read from its segment when it is asked for.
"""

from __future__ import annotations

import errno
import json
import os
import socket
import uuid
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from shard_dist.records import Call, Completion

HEAD, TAIL = b'{"key":"', b"}\n"
# A place is segment, offset and length in one integer: 40 bytes where a tuple takes 150.
OFFSET_BITS, LENGTH_BITS = 44, 28
OPEN_SEGMENTS = 128  # file descriptors held for reading; a process has 1,024 by default


@dataclass
class LedgerStats:
    """`entries` distinct keys, `lines` whole lines (more of them if a call was made twice), `torn_lines` all others."""

    entries: int = 0
    lines: int = 0
    torn_lines: int = 0


def _completion(value: dict[str, Any]) -> Completion:
    return Completion(
        texts=tuple(value["texts"]),
        finish_reasons=tuple(value["finish_reasons"]),
        prompt_tokens=int(value["prompt_tokens"]),
        completion_tokens=int(value["completion_tokens"]),
        thinking=tuple(value["thinking"]),
    )


def _key(line: bytes) -> str | None:
    """The key of a line that is whole by its ends; None for any other. What lies between is read when asked for."""
    end = line.find(b'"', len(HEAD))
    if end < 0 or not (line.startswith(HEAD) and line.endswith(TAIL)):
        return None
    return line[len(HEAD) : end].decode("ascii", "replace")


class Ledger:
    """All segments of a directory as one mapping key -> Completion, and one segment of our own to append to.

    The segment is created with the first append, so a reader leaves no empty file behind.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.stats = LedgerStats()
        self._places: dict[str, int] = {}
        self._paths: list[Path] = []
        self._readers: dict[int, int] = {}  # segment -> file descriptor
        self._segment: Any = None
        self._written = 0  # bytes of our own segment, the last of the paths once it exists
        for path in sorted(directory.glob("*.jsonl")):
            self._index(path)

    def _index(self, path: Path) -> None:
        segment, offset = len(self._paths), 0
        self._paths.append(path)
        with path.open("rb") as stream:
            for line in stream:
                key = _key(line)
                if key is None:
                    self.stats.torn_lines += 1
                else:
                    self._remember(key, segment, offset, len(line))
                offset += len(line)

    def _remember(self, key: str, segment: int, offset: int, length: int) -> None:
        assert length < 1 << LENGTH_BITS
        self.stats.lines += 1
        self._places[key] = (segment << OFFSET_BITS | offset) << LENGTH_BITS | length
        self.stats.entries = len(self._places)

    def get(self, key: str) -> Completion | None:
        """The answer, or None where there is none; a line that turns out to be damaged counts as torn from now on."""
        place = self._places.get(key)
        if place is None:
            return None
        start, length = divmod(place, 1 << LENGTH_BITS)
        segment, offset = divmod(start, 1 << OFFSET_BITS)
        try:
            value = json.loads(os.pread(self._reader(segment), length, offset))
            if value["key"] != key:
                raise ValueError("another key")
            return _completion(value["completion"])
        except (ValueError, KeyError, TypeError):
            del self._places[key]
            self.stats.entries, self.stats.lines = len(self._places), self.stats.lines - 1
            self.stats.torn_lines += 1
            return None

    def _reader(self, segment: int) -> int:
        if segment not in self._readers:
            if len(self._readers) >= OPEN_SEGMENTS:
                self._close_readers()
            self._readers[segment] = os.open(self._paths[segment], os.O_RDONLY)
        return self._readers[segment]

    def _close_readers(self) -> None:
        for descriptor in self._readers.values():
            os.close(descriptor)
        self._readers.clear()

    def append(self, key: str, call: Call, completion: Completion) -> None:
        """Write one finished call in a single write to an O_APPEND file; after that a kill cannot lose it.

        Raises ValueError where the disk is full.
        """
        assert json.dumps(key) == f'"{key}"', "readers look for the plain key"
        entry = {"key": key, "completion": asdict(completion), "call": asdict(call)}
        line = (json.dumps(entry, ensure_ascii=True, separators=(",", ":")) + "\n").encode()
        try:
            if self._segment is None:
                self.directory.mkdir(parents=True, exist_ok=True)
                name = f"{socket.gethostname()}-{os.getpid()}-{uuid.uuid4().hex[:8]}.jsonl"
                self._segment = (self.directory / name).open("xb", buffering=0)
                self._paths.append(self.directory / name)
            written = self._segment.write(line)
            if written != len(line):
                raise OSError(errno.ENOSPC, "short write")
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise ValueError(
                    f"no space left for the ledger in {self.directory}; free some and run the same command again: "
                    "every call in it is kept"
                ) from error
            raise
        self._remember(key, len(self._paths) - 1, self._written, len(line))
        self._written += len(line)

    def close(self) -> None:
        self._close_readers()
        if self._segment is not None:
            self._segment.close()
            self._segment = None
