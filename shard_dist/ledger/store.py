"""The ledger: every finished call, appended as soon as it is finished. The only durable truth of generation.

Many writers share one place without locks, on a local disk, on NFS or behind a URL: every file has one writer and a
name of its own. A writer appends lines to its segment; a segment of a GiB, and the last one at close, is sealed as a
pack (`sealing.py`). Compaction (`compact.py`) merges packs. What a pack replaces is removed after the pack stands, so a
reader that finds a file gone looks for the packs that came since.

A reader keeps keys and places only, 40 bytes a packed call; answers are read when they are asked for.
"""

from __future__ import annotations

import errno
import threading
import time
import warnings
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from shard_dist.ledger.catalogue import Pack, read_packs
from shard_dist.ledger.entry import encode
from shard_dist.ledger.lines import Lines, Segment, Vanished
from shard_dist.ledger.location import SEGMENTS, Remote, locate
from shard_dist.ledger.packs import KEY, Packs
from shard_dist.ledger.sealing import adopt, seal
from shard_dist.records import Call, Completion

# Sealing takes 8 us a line and the interpreter from the event loop beside it: rarely while engines run, then at close.
SEAL_BYTES, UPLOAD_BYTES = 1 << 30, 8 << 20
UPLOAD_SECONDS = 10.0
# The compactor takes segments of others that were not written for an hour, so a writer that paused starts a new one.
PAUSE_SECONDS = 600.0


@dataclass
class LedgerStats:
    """`entries` distinct keys, `lines` whole lines ever written (more of them if a call was made twice), rest torn."""

    entries: int = 0
    lines: int = 0
    torn_lines: int = 0
    damaged_packs: int = 0


@dataclass
class _Own:
    """Our segment, its number among the lines, and what uploads it in time where the ledger is remote."""

    segment: Segment
    number: int
    timer: threading.Timer | None = None


class Ledger:
    """All files of a location as one mapping key -> Completion, and one segment of our own to append to.

    `location` is a directory or an fsspec URL. The segment is created with the first append, so a reader leaves no file
    behind. Raises NewerFormat (a ValueError) where a file is of a newer format. Safe to use from several threads.
    """

    def __init__(self, location: str | Path) -> None:
        self.location = locate(location)
        self._lost: set[bytes] = set()  # keys whose packed answers turned out to be damaged
        self._own: _Own | None = None
        self._sealing: list[tuple[_Own, Future[Pack]]] = []
        self._unsealed: list[_Own] = []  # to be tried again with the next
        self._compacted: list[_Own] = []  # by somebody else
        self._sealer: ThreadPoolExecutor | None = None
        self._lock = threading.RLock()
        self.location.pull()
        adopt(self.location)
        self.stats = LedgerStats()
        self._lines, self._packs = Lines(), Packs()
        self._counted: dict[str, tuple[int, int]] = {}  # file name -> whole and torn lines
        self._replaced: dict[str, int] = {}  # file name -> size up to which a pack replaces it
        self._read_up_to: dict[str, tuple[int, int, bool]] = {}  # segment's name -> its number, offset, whether cut
        self._ours: set[str] = set()
        self.refresh()

    def refresh(self) -> None:
        """Find what other writers have added since the ledger was opened."""
        with self._lock:
            self.location.pull()
            while not self._read_new():
                pass

    def _read_new(self) -> bool:
        """False where a segment was sealed in the middle of it, so that the packs must be looked for again."""
        # Segments are listed first: one that is sealed in between is then found twice rather than never.
        segments = sorted(self.location.directory.glob(SEGMENTS))
        self._take(*read_packs(self.location, self._counted))
        return all(path.name in self._ours or self._read_segment(path) for path in segments)

    def _read_segment(self, path: Path) -> bool:
        """Index what a segment of another writer has grown by; False where it is gone and no pack known replaces it."""
        name = path.name
        known = self._read_up_to.get(name)
        number, start, cut = known or (self._lines.add(path), self._replaced.get(name, 0), False)
        try:
            if path.stat().st_size > start:
                scanned = self._lines.index(path, number, start)
                lines, torn = self._counted.pop(name, (0, 0))
                self.stats.lines -= lines
                self.stats.torn_lines -= torn
                self._count(name, lines + scanned.whole, torn + scanned.torn + scanned.cut - cut)
                self._read_up_to[name] = (number, scanned.end, scanned.cut)
                fresh = np.array(scanned.fresh, KEY)
                self.stats.entries += int((~self._packs.contains(fresh)).sum())
        except FileNotFoundError:
            return name in self._replaced
        return True

    def _take(self, packs: list[Pack], damaged: Sequence[Path] = ()) -> None:
        """Make packs findable, and count their lines instead of those of the files that they replace."""
        for pack in packs:
            self._replaced |= pack.info.replaces
        packs = [pack for pack in packs if pack.path.name not in self._counted.keys() | self._replaced.keys()]
        if packs:
            fresh = self._packs.index([(pack.path, pack.keys) for pack in packs])
            known = (
                [key for key in fresh.tolist() if key.ljust(32, b"\0") in self._lines.places]
                if self._lines.places
                else []
            )
            self.stats.entries += len(fresh) - len(known)
        for pack in packs:
            for name in pack.info.replaces:
                lines, torn = self._counted.pop(name, (0, 0))
                self.stats.lines -= lines
                self.stats.torn_lines -= torn
                self._counted[name] = (0, 0)
            self._count(pack.path.name, pack.info.lines, pack.info.torn_lines)
        for path in damaged:
            self._count(path.name, 0, 0)
        self.stats.damaged_packs += len(damaged)

    def _count(self, name: str, lines: int, torn: int) -> None:
        self._counted[name] = (lines, torn)
        self.stats.lines += lines
        self.stats.torn_lines += torn

    def get(self, key: str) -> Completion | None:
        """The answer to the call of `key` (64 hexadecimal digits), or None where there is none.

        An answer that turns out to be damaged counts as torn from now on. Raises ValueError for anything but a key.
        """
        raw = bytes.fromhex(key)
        with self._lock:
            self._collect()
            for _ in range(3):
                try:
                    return self._read(raw)
                except Vanished:
                    self.refresh()
        return None

    def _read(self, key: bytes) -> Completion | None:
        if key in self._lines:
            answer = self._lines.read(key)
            if answer is not None:
                return answer
            del self._lines.places[key]
            self._damaged(key)
        place = None if key in self._lost else self._packs.find(key)
        if place is None:
            return None
        answer = self._packs.read(key, place)
        if answer is None:
            self._lost.add(key)
            self._damaged(key)
        return answer

    def _damaged(self, key: bytes) -> None:
        self.stats.lines -= 1
        self.stats.torn_lines += 1
        self.stats.entries -= not self._known(key)

    def _known(self, key: bytes) -> bool:
        return key in self._lines or (key not in self._lost and self._packs.find(key) is not None)

    def append(self, key: str, call: Call, completion: Completion) -> None:
        """Write one finished call in a single write to an O_APPEND file; after that a kill cannot lose it.

        Raises ValueError where the disk is full.
        """
        raw, line = bytes.fromhex(key), encode(key, call, completion)
        assert len(raw) == 32
        with self._lock:
            self._collect()
            fresh = not self._known(raw)
            try:
                own, offset = self._write(raw, line)
            except OSError as error:
                self._rotate()  # half a line may stand at its end
                if error.errno in (errno.ENOSPC, errno.EDQUOT):
                    raise ValueError(
                        f"no space left for the ledger in {self.location.directory}; free some and run the same "
                        "command again: every call in it is kept"
                    ) from error
                raise
            self._lines.remember(raw, own.number, offset, len(line))
            self.stats.entries += fresh
            self.stats.lines += 1
            if own.segment.size >= (UPLOAD_BYTES if isinstance(self.location, Remote) else SEAL_BYTES):
                self._rotate()

    def _write(self, key: bytes, line: bytes) -> tuple[_Own, int]:
        """Append to our segment; its offset there. Where somebody compacted the segment away, to a new one."""
        if self._own and time.monotonic() - self._own.segment.written > PAUSE_SECONDS:
            self._rotate()
        while True:
            own = self._own = self._own or self._start()
            try:
                return own, own.segment.append(key, line)
            except Vanished:
                self._rotate()

    def _start(self) -> _Own:
        segment = Segment(self.location.directory)
        self._ours.add(segment.path.name)
        own = _Own(segment, self._lines.add(segment.path, segment.descriptor))
        if isinstance(self.location, Remote):
            own.timer = threading.Timer(UPLOAD_SECONDS, self._upload, (own,))
            own.timer.daemon = True
            own.timer.start()
        return own

    def _upload(self, own: _Own) -> None:
        with self._lock:
            if self._own is own:
                self._rotate()

    def _rotate(self) -> None:
        """Give our segment to the sealer; the next append starts another."""
        waiting, self._unsealed = self._unsealed, []
        if self._own is not None:
            if self._own.timer:
                self._own.timer.cancel()
            self._counted[self._own.segment.path.name] = (len(self._own.segment.keys), 0)
            waiting.append(self._own)
            self._own = None
        for own in waiting:
            self._sealer = self._sealer or ThreadPoolExecutor(1, "seal")
            self._sealing.append((own, self._sealer.submit(seal, self.location, own.segment.path, True)))

    def _collect(self) -> None:
        """Answer from the packs that the sealer has made."""
        while self._sealing and self._sealing[0][1].done():
            own, pack = self._sealing.pop(0)
            try:
                self._take([pack.result()])
                self._lines.forget(own.number, own.segment.keys)
                own.segment.close()
            except Vanished:  # compacted by somebody; until close we read through the open file
                self._compacted.append(own)
            except Exception as error:  # a full disk, a network: the lines are safe where they are
                warnings.warn(f"{own.segment.path} could not be sealed ({error}); its lines stay there", stacklevel=3)
                self._unsealed.append(own)

    def close(self) -> None:
        """Seal what was appended, upload it where the ledger is remote, and release every file."""
        with self._lock:
            self._rotate()
            if self._sealer is not None:
                self._sealer.shutdown(wait=True)
                self._sealer = None
            self._collect()
            for own in self._compacted:
                self._lines.take_back(own.number)
                own.segment.close()
            self._compacted.clear()
            self._lines.close()
            self._packs.close()
