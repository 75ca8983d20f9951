"""Segments: plain files of lines. One writer appends to one segment; anybody reads all of them.

A segment of version 2 starts with a header line that names its format; one of version 1 has none. A process killed in
the middle of a line leaves a torn line; readers skip and count it, and its call is made again.
"""

from __future__ import annotations

import errno
import json
import os
import socket
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from shard_dist.ledger.entry import FORMAT, NewerFormat, completion_of, key_of, parse
from shard_dist.records import Completion

HEADER = json.dumps({"shard_dist_ledger": FORMAT}).encode() + b"\n"
# A place is segment, offset and length in one integer: 40 bytes where a tuple takes 150.
OFFSET_BITS, LENGTH_BITS = 44, 28
OPEN_SEGMENTS = 128  # file descriptors held for reading; a process has 1,024 by default


class Vanished(Exception):
    """A file of the ledger is gone: sealed or compacted by another process, so its entries are in a new pack."""


def is_gone(error: OSError) -> bool:
    """ESTALE is how NFS says that another machine removed a file that is open here."""
    return error.errno in (errno.ENOENT, errno.ESTALE)


def new_name() -> str:
    """Unique: one file has one writer, on every machine."""
    return f"{socket.gethostname()}-{os.getpid()}-{uuid.uuid4().hex[:8]}.jsonl"


def is_header(path: Path, line: bytes) -> bool:
    """Whether the first line of a segment is a header. Raises NewerFormat where it names a format above ours."""
    if not line.startswith(HEADER[:20]) or not line.endswith(b"}\n"):
        return False
    try:
        found = json.loads(line)["shard_dist_ledger"]
    except (ValueError, KeyError):
        return False
    if not isinstance(found, int) or found > FORMAT:
        raise NewerFormat(path, found)
    return True


def scan(path: Path, start: int = 0) -> Iterator[tuple[int, bytes]]:
    """Offset and bytes of every line from `start` on, torn ones included, the header not."""
    with path.open("rb") as stream:
        offset = stream.seek(start)
        for line in stream:
            if offset or not is_header(path, line):
                yield offset, line
            offset += len(line)


@dataclass
class Scanned:
    """Lines that were read: whole and torn ones, keys not seen before, where the last complete line ends.

    `cut`: the file ends within a line, which its writer may be writing at this moment.
    """

    end: int
    whole: int = 0
    torn: int = 0
    cut: bool = False
    fresh: list[bytes] = field(default_factory=list)


class Lines:
    """Key -> place for the lines of many segments. Answers stay on disk: about 220 bytes an entry."""

    def __init__(self) -> None:
        self.places: dict[bytes, int] = {}
        self.gone: set[int] = set()
        self._paths: list[Path] = []
        self._readers: dict[int, int] = {}  # segment -> file descriptor
        self._lent: dict[int, int] = {}  # the same, closed by their owners

    def add(self, path: Path, descriptor: int | None = None) -> int:
        """The number of a segment whose lines will be remembered; read through `descriptor` where one is lent."""
        self._paths.append(path)
        if descriptor is not None:
            self._lent[len(self._paths) - 1] = descriptor
        return len(self._paths) - 1

    def index(self, path: Path, segment: int, start: int) -> Scanned:
        """Remember a segment's lines from `start` on."""
        scanned = Scanned(end=start)
        for offset, line in scan(path, start):
            key = key_of(line)
            scanned.cut = not line.endswith(b"\n")
            scanned.end = offset + (0 if scanned.cut else len(line))
            if key is None:
                scanned.torn += not scanned.cut
                continue
            scanned.whole += 1
            if key not in self.places:
                scanned.fresh.append(key)
            self.remember(key, segment, offset, len(line))
        return scanned

    def remember(self, key: bytes, segment: int, offset: int, length: int) -> None:
        assert length < 1 << LENGTH_BITS
        self.places[key] = (segment << OFFSET_BITS | offset) << LENGTH_BITS | length

    def __contains__(self, key: bytes) -> bool:
        place = self.places.get(key)
        return place is not None and place >> OFFSET_BITS + LENGTH_BITS not in self.gone

    def read(self, key: bytes) -> Completion | None:
        """The answer; None where the line turns out to be damaged. Raises Vanished where its segment is gone."""
        start, length = divmod(self.places[key], 1 << LENGTH_BITS)
        segment, offset = divmod(start, 1 << OFFSET_BITS)
        try:
            line = os.pread(self._reader(segment), length, offset)
        except OSError as error:
            if is_gone(error):
                self.gone.add(segment)
                raise Vanished from error
            raise
        entry = parse(line) if len(line) == length else None
        return completion_of(entry.completion) if entry and entry.key == key else None

    def take_back(self, segment: int) -> None:
        """Read a segment through its own name again."""
        self._lent.pop(segment, None)

    def forget(self, segment: int, keys: list[bytes]) -> None:
        """Drop what is remembered of a segment; `keys` are those of its lines."""
        for key in keys:
            if self.places.get(key, -1) >> OFFSET_BITS + LENGTH_BITS == segment:
                del self.places[key]
        self.take_back(segment)

    def _reader(self, segment: int) -> int:
        if segment in self._lent:
            return self._lent[segment]
        if segment not in self._readers:
            if len(self._readers) >= OPEN_SEGMENTS:
                self.close()
            self._readers[segment] = os.open(self._paths[segment], os.O_RDONLY)
        return self._readers[segment]

    def close(self) -> None:
        for descriptor in self._readers.values():
            os.close(descriptor)
        self._readers.clear()


class Segment:
    """Our own segment: created here, appended to by us alone."""

    def __init__(self, directory: Path) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self.path = directory / new_name()
        self.size = 0
        self.keys: list[bytes] = []
        self.born = self.written = time.monotonic()
        self.descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_APPEND, 0o644)

    def append(self, key: bytes, line: bytes) -> int:
        """Write one line in a single write, the first with the header; its offset.

        Raises Vanished where the file was removed under us, so that the line is nowhere; OSError for a full disk.
        """
        head = HEADER if not self.size else b""
        try:
            written = os.write(self.descriptor, head + line)
            if written != len(head) + len(line):
                raise OSError(errno.ENOSPC, "short write")
            if os.fstat(self.descriptor).st_nlink == 0:
                raise Vanished
        except OSError as error:
            if error.errno == errno.ESTALE:
                raise Vanished from error
            raise
        offset = self.size + len(head)
        self.size = offset + len(line)
        self.keys.append(key)
        self.written = time.monotonic()
        return offset

    def close(self) -> None:
        os.close(self.descriptor)
