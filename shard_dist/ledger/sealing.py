"""Sealing: a segment that is written no more becomes a pack, in a thread beside appends to the next segment."""

from __future__ import annotations

import os
import socket
import warnings
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

from shard_dist.artefacts import replacing
from shard_dist.ledger.catalogue import Pack, load_pack, size_of
from shard_dist.ledger.entry import Entry, parse
from shard_dist.ledger.lines import Vanished, scan
from shard_dist.ledger.location import SEGMENTS, Location, Remote
from shard_dist.ledger.packs import PackInfo, PackWriter, tables_of


class LineCounter:
    """The entries of a segment from `start` on, counting its lines while they pass; `size` is where they ended.

    A line without a time (version 1) gets that of the file. Lines of our own are not decoded, which takes 20 us each.
    """

    def __init__(self, path: Path, start: int = 0, own: bool = False) -> None:
        self.path, self.start, self.size, self.own = path, start, start, own
        self.whole = self.torn = 0

    def __iter__(self) -> Iterator[Entry]:
        date = int(self.path.stat().st_mtime)
        for offset, line in scan(self.path, self.start):
            self.size = offset + len(line)
            entry = parse(line, trusted=self.own)
            if entry is None:
                self.torn += 1
            else:
                self.whole += 1
                yield entry if entry.time else replace(entry, time=date)


def publish_pack(location: Location, name: str, write: Callable[[PackWriter], PackInfo]) -> Pack:
    """A new pack at a location, on the disk and in the store before it is seen. Raises ValueError on a full disk."""
    target = location.directory / name
    with replacing(target) as partial:
        writer = PackWriter(partial)
        try:
            writer.finish(write(writer))
        finally:
            writer.close()
        location.publish(partial, name)
    descriptor = os.open(location.directory, os.O_RDONLY)
    os.fsync(descriptor)  # the name, too, before anything that it replaces is removed
    os.close(descriptor)
    return load_pack(target)


def seal(location: Location, segment: Path, own: bool = False) -> Pack:
    """Write a segment's pack, let it take the segment's place, and remove the segment; a kill in between loses nothing.

    The pack's name follows from the segment's, so two that seal the same one make one pack. Raises Vanished where the
    segment is gone, ValueError on a full disk.
    """

    def write(writer: PackWriter) -> PackInfo:
        lines = LineCounter(segment, own=own)
        try:
            for table in tables_of(lines):
                writer.write(table)
        except FileNotFoundError as error:
            raise Vanished from error
        if not size_of(segment):
            raise Vanished
        return PackInfo(lines.whole, lines.torn, {segment.name: lines.size})

    pack = publish_pack(location, segment.with_suffix(".parquet").name, write)
    location.remove(segment.name)
    return pack


def adopt(location: Location) -> None:
    """Upload what processes of this machine that are gone left in the mirror of a remote ledger."""
    if not isinstance(location, Remote):
        return
    for segment in sorted(location.directory.glob(SEGMENTS)):
        if not _writer_lives(segment):
            try:
                seal(location, segment)
            except Vanished:  # adopted by somebody else
                continue
            except Exception as error:  # a network: the lines are read from here, and the next one tries again
                warnings.warn(f"{segment} could not be uploaded ({error})", stacklevel=3)


def _writer_lives(segment: Path) -> bool:
    """Whether the process that a segment is named after runs, or may run on another machine."""
    host, pid, _ = segment.stem.rsplit("-", 2)
    if host != socket.gethostname():
        return True
    try:
        os.kill(int(pid), 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
