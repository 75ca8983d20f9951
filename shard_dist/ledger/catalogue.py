"""Which files of a ledger count: a file that a pack replaces counts no more, even where a kill left it lying.

So sealing and compaction have one moment at which they take effect, the appearance of the pack under its name.
"""

from __future__ import annotations

import math
import os
import warnings
from collections.abc import Container
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from shard_dist.ledger.lines import Vanished
from shard_dist.ledger.location import PACKS, SEGMENTS, Location
from shard_dist.ledger.packs import DamagedPack, PackInfo, open_pack, read_keys


@dataclass
class Pack:
    path: Path
    info: PackInfo
    keys: np.ndarray  # [n] of 32 bytes, in the order of the rows


@dataclass
class Catalogue:
    """`segments` are files of lines with the offset from which on they count; `replaced` what a kill left lying."""

    packs: list[Pack] = field(default_factory=list)
    segments: list[tuple[Path, int]] = field(default_factory=list)
    replaced: list[Path] = field(default_factory=list)
    damaged: list[Path] = field(default_factory=list)


def catalogue(location: Location) -> Catalogue:
    """What lies at a location. Raises NewerFormat; a damaged pack is warned of and left alone."""
    # Segments are listed first: one that is sealed in between is then found twice rather than never.
    segments = sorted(location.directory.glob(SEGMENTS))
    opened, damaged = read_packs(location)
    found = Catalogue(damaged=damaged)
    replaced = {name: size for pack in opened for name, size in pack.info.replaces.items()}
    for pack in opened:
        found.replaced.append(pack.path) if pack.path.name in replaced else found.packs.append(pack)
    for path in segments:
        start = replaced.get(path.name, 0)
        done = start and size_of(path) <= start
        found.replaced.append(path) if done else found.segments.append((path, start))
    return found


def read_packs(location: Location, known: Container[str] = ()) -> tuple[list[Pack], list[Path]]:
    """Packs whose names are not known yet, and the damaged ones among them."""
    packs, damaged = [], []
    # The oldest first, so that calls lie in memory about as they were made.
    for path in sorted(location.directory.glob(PACKS), key=date_of):
        if path.name in known:
            continue
        try:
            packs.append(load_pack(path))
        except Vanished:  # compacted since it was listed
            continue
        except DamagedPack as error:
            warnings.warn(f"{error}; its calls are made again", stacklevel=4)
            damaged.append(path)
    return packs, damaged


def load_pack(path: Path) -> Pack:
    """Raises Vanished, NewerFormat and DamagedPack."""
    file, info = open_pack(path)
    with file:
        return Pack(path, info, read_keys(path, file))


def size_of(path: Path) -> int:
    """In bytes; 0 where the file is gone."""
    try:
        return os.stat(path).st_size
    except FileNotFoundError:
        return 0


def date_of(path: Path) -> float:
    """When it was written last, in seconds since 1970 by the file server's clock; infinite where the file is gone."""
    try:
        return os.stat(path).st_mtime
    except FileNotFoundError:
        return math.inf
