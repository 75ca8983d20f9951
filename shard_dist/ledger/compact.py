"""Compaction: many small files into few packs, without repeated calls. Beside running writers, without locks.

Each step is one new pack that names what it replaces; from then on its sources count no more, removed or not. So a kill
anywhere loses nothing and repeats nothing, and two compactors at once do no harm.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pyarrow as pa

from shard_dist.ledger.catalogue import Catalogue, Pack, catalogue, date_of, size_of
from shard_dist.ledger.entry import Entry
from shard_dist.ledger.lines import Vanished, new_name
from shard_dist.ledger.location import Location, locate
from shard_dist.ledger.packs import DamagedPack, PackInfo, PackWriter, entries_of, read_tables, tables_of
from shard_dist.ledger.sealing import LineCounter, publish_pack

# A pack of either size is left as it is. Both keep a pack's keys and its rewriting small.
FULL_BYTES, FULL_ENTRIES = 64 << 20, 50_000
# Six times the pause after which a writer starts a new segment, so a segment this old has no writer.
IDLE_SECONDS = 3600.0

Drop = Callable[[Entry], bool]


@dataclass
class Compaction:
    """What was done: files that went into new packs, packs made, entries left out; damaged packs are left alone."""

    merged: int = 0
    made: int = 0
    dropped: int = 0
    damaged: int = 0


@dataclass
class Source:
    """A pack, or a segment from an offset on."""

    path: Path
    pack: Pack | None = None
    start: int = 0
    lines: LineCounter = field(init=False)

    def tables(self) -> Iterator[pa.Table]:
        """Raises Unreadable where the file is damaged or gone."""
        self.lines = LineCounter(self.path, self.start)
        try:
            yield from read_tables(self.path) if self.pack else tables_of(self.lines)
        except (Vanished, FileNotFoundError, DamagedPack) as error:
            raise Unreadable(self, error) from error

    def info(self) -> PackInfo:
        """What the source stands for, once its tables were read."""
        if self.pack is None:
            return PackInfo(self.lines.whole, self.lines.torn, {self.path.name: self.lines.size})
        # Files that it replaces and that a kill left lying must stay replaced.
        left = {name: size for name, size in self.pack.info.replaces.items() if self.path.with_name(name).exists()}
        return PackInfo(self.pack.info.lines, self.pack.info.torn_lines, {**left, self.path.name: size_of(self.path)})


class Unreadable(Exception):
    def __init__(self, source: Source, error: Exception) -> None:
        super().__init__(str(error))
        self.source, self.error = source, error


def compact(location: str | Path, everything: bool = False) -> Compaction:
    """Merge small packs and segments without a writer. `everything`: nothing runs, so take all segments.

    Repeated calls are dropped; a damaged pack is warned of and left. Raises ValueError for a newer format or a full
    disk.
    """
    place = locate(location)
    place.pull()
    clean(place)
    found = catalogue(place)
    done = Compaction(damaged=len(found.damaged))
    small = [pack for pack in found.packs if len(pack.keys) < FULL_ENTRIES and size_of(pack.path) < FULL_BYTES]
    seen = {key for pack in found.packs if pack not in small for key in _raw(pack)}
    sources = [Source(pack.path, pack) for pack in small] + dead_segments(place, found, everything)
    for batch in _batches(sources):
        if len(batch) > 1 or batch[0].pack is None:
            rewrite(place, batch, done, seen, None)
    return done


def _raw(pack: Pack) -> Iterator[bytes]:
    data = pack.keys.tobytes()
    return (data[at : at + 32] for at in range(0, len(data), 32))


def clean(place: Location) -> None:
    """Remove what a kill left lying: files that a pack replaces, and temporary ones older than an hour."""
    for path in catalogue(place).replaced:
        place.remove(path.name)
    now = _now(place.directory)
    for path in place.directory.glob(".*.partial"):
        if now - date_of(path) > IDLE_SECONDS:
            path.unlink(missing_ok=True)


def dead_segments(place: Location, found: Catalogue, everything: bool) -> list[Source]:
    """Segments that nobody writes to, by the clock of the file system."""
    now = _now(place.directory)
    return [
        Source(path, start=start) for path, start in found.segments if everything or now - date_of(path) > IDLE_SECONDS
    ]


def _now(directory: Path) -> float:
    """The date of a file made now: clocks of writers and of a file server need not agree with ours."""
    if not directory.is_dir():
        return 0.0
    probe = directory / f".{new_name()}.now"
    probe.touch()
    date = date_of(probe)
    probe.unlink()
    return date


def _batches(sources: list[Source]) -> Iterator[list[Source]]:
    """Consecutive sources that make a full pack together; the last batch may be smaller."""
    batch: list[Source] = []
    entries = size = 0
    for source in sources:
        batch.append(source)
        entries += len(source.pack.keys) if source.pack else 0
        # A segment shrinks to about a third.
        size += size_of(source.path) // (1 if source.pack else 3)
        if entries >= FULL_ENTRIES or size >= FULL_BYTES:
            yield batch
            batch, entries, size = [], 0, 0
    if batch:
        yield batch


@dataclass
class Merge:
    """Writes one pack out of `batch`, without the keys in `seen` and the entries that `drop` names."""

    batch: list[Source]
    seen: set[bytes]
    drop: Drop | None
    fresh: set[bytes] = field(default_factory=set)
    dropped: int = 0

    def __call__(self, writer: PackWriter) -> PackInfo:
        for source in self.batch:
            for table in source.tables():
                kept = table.filter(pa.array(self._keep(table)))
                self.dropped += table.num_rows - kept.num_rows
                writer.write(kept)
        infos = [source.info() for source in self.batch]
        replaces = {name: size for info in infos for name, size in info.replaces.items()}
        return PackInfo(sum(info.lines for info in infos), sum(info.torn_lines for info in infos), replaces)

    def _keep(self, table: pa.Table) -> list[bool]:
        """[n] booleans for the rows of a table."""
        keys = table["key"].to_pylist()
        dropped = [self.drop(entry) for entry in entries_of(table)] if self.drop else [False] * len(keys)
        keep = []
        for key, out in zip(keys, dropped, strict=True):
            keep.append(not (out or key in self.seen or key in self.fresh))
            if keep[-1]:
                self.fresh.add(key)
        return keep


def rewrite(place: Location, batch: list[Source], done: Compaction, seen: set[bytes], drop: Drop | None) -> None:
    """One new pack in the place of `batch`; sources that cannot be read stay. `seen` and `done` grow."""
    while batch:
        merge = Merge(batch, seen, drop)
        try:
            pack = publish_pack(place, new_name().replace(".jsonl", ".parquet"), merge)
        except Unreadable as error:
            if isinstance(error.error, DamagedPack):
                warnings.warn(f"{error}; left as it is", stacklevel=3)
                done.damaged += 1
            batch = [source for source in batch if source is not error.source]
            continue
        seen |= merge.fresh
        done.merged, done.made, done.dropped = done.merged + len(batch), done.made + 1, done.dropped + merge.dropped
        for source in batch:
            if size_of(source.path) <= pack.info.replaces[source.path.name]:  # else its writer lives after all
                place.remove(source.path.name)
        return
