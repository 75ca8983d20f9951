"""Packs: sealed segments as Parquet, compressed, never changed once they have their name.

One row a call: `key` (32 bytes), `time` (seconds since 1970), `completion` and `call` (JSON texts). Row groups are
small, so that one answer costs one short read; the file's metadata says which files the pack stands for.
"""

from __future__ import annotations

import json
import os
import warnings
from collections import OrderedDict
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from shard_dist.ledger.entry import FORMAT, Entry, NewerFormat, completion_of
from shard_dist.ledger.lines import Vanished, is_gone
from shard_dist.records import Completion

SCHEMA = pa.schema(
    [
        pa.field("key", pa.binary(32), nullable=False),
        pa.field("time", pa.int64(), nullable=False),
        pa.field("completion", pa.string(), nullable=False),
        pa.field("call", pa.string(), nullable=False),
    ]
)
METADATA = "shard_dist.ledger"
# Keys are hashes and do not compress. Pages carry checksums, so a flipped bit is found and never believed.
LAYOUT = {
    "compression": {"key": "none", "time": "zstd", "completion": "zstd", "call": "zstd"},
    "use_dictionary": False,
    "write_statistics": False,
    "write_page_checksum": True,
}
# 128 calls of 1.6 KB: 0.1 ms to read one group of answers; twice as many save 5 % of the disk.
GROUP_ROWS, GROUP_BYTES = 128, 1 << 20
OPEN_PACKS = 64
CACHE_BYTES = 64 << 20  # decoded row groups held for the next call
KEY = np.dtype("S32")


@dataclass(frozen=True)
class PackInfo:
    """What a pack stands for: whole lines ever written (repeated calls included), torn ones, and the files it replaces.

    `replaces` has each file's size in bytes when it was read: what a segment holds behind it is not in the pack.
    """

    lines: int
    torn_lines: int = 0
    replaces: dict[str, int] = field(default_factory=dict)


class PackWriter:
    """Tables of SCHEMA to one file, in row groups of about GROUP_ROWS."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("wb")
        self._writer = pq.ParquetWriter(self._file, SCHEMA, **LAYOUT)
        self._waiting: list[pa.Table] = []
        self._rows = self._bytes = 0

    def write(self, table: pa.Table) -> None:
        self._waiting.append(table)
        self._rows, self._bytes = self._rows + table.num_rows, self._bytes + table.nbytes
        if self._rows >= GROUP_ROWS or self._bytes >= GROUP_BYTES:
            self._flush()

    def _flush(self) -> None:
        if self._rows:
            self._writer.write_table(pa.concat_tables(self._waiting).combine_chunks(), row_group_size=self._rows)
        self._waiting, self._rows, self._bytes = [], 0, 0

    def finish(self, info: PackInfo) -> None:
        """Write the rest and the metadata, down to the disk."""
        self._flush()
        self._writer.add_key_value_metadata({METADATA: json.dumps({"format": FORMAT, **asdict(info)})})
        self._writer.close()
        self._file.flush()
        os.fsync(self._file.fileno())

    def close(self) -> None:
        if self._writer.is_open:  # the pack was given up
            self._writer.close()
        self._file.close()


def tables_of(entries: Iterable[Entry]) -> Iterator[pa.Table]:
    """Entries as tables of the size of a row group."""
    batch: list[Entry] = []
    size = 0
    for entry in entries:
        batch.append(entry)
        size += len(entry.completion) + len(entry.call)
        if len(batch) == GROUP_ROWS or size >= GROUP_BYTES:
            yield table_of(batch)
            batch, size = [], 0
    if batch:
        yield table_of(batch)


def table_of(entries: list[Entry]) -> pa.Table:
    columns = ([getattr(entry, name) for entry in entries] for name in SCHEMA.names)
    return pa.table([pa.array(column, type=kind) for column, kind in zip(columns, SCHEMA.types, strict=True)], SCHEMA)


def open_pack(path: Path) -> tuple[pq.ParquetFile, PackInfo]:
    """The file and what it stands for.

    Raises Vanished where it is gone, NewerFormat, and DamagedPack for anything that is no pack.
    """
    try:
        file = pq.ParquetFile(path, page_checksum_verification=True)
        value = json.loads(file.metadata.metadata[METADATA.encode()])
        if value["format"] > FORMAT:
            raise NewerFormat(path, value["format"])
        return file, PackInfo(int(value["lines"]), int(value["torn_lines"]), dict(value["replaces"]))
    except NewerFormat:
        raise
    except (OSError, pa.ArrowException, ValueError, KeyError, TypeError) as error:
        if isinstance(error, OSError) and is_gone(error):
            raise Vanished from error
        raise DamagedPack(path, error) from error


def read_keys(path: Path, file: pq.ParquetFile) -> np.ndarray:
    """All keys in the order of the rows, [n] of 32 bytes. Raises DamagedPack."""
    try:
        column = file.read(columns=["key"], use_threads=False)["key"].combine_chunks()
    except (OSError, pa.ArrowException, KeyError) as error:
        raise DamagedPack(path, error) from error
    if not len(column):
        return np.empty(0, KEY)
    return np.frombuffer(column.buffers()[1], KEY, count=len(column), offset=32 * column.offset)


def read_tables(path: Path) -> Iterator[pa.Table]:
    """The row groups of a pack, all columns. Raises Vanished, NewerFormat and DamagedPack."""
    file, _ = open_pack(path)
    with file:
        for group in range(file.num_row_groups):
            try:
                yield file.read_row_group(group, use_threads=False).cast(SCHEMA)
            except (OSError, pa.ArrowException) as error:
                raise DamagedPack(path, error) from error


def entries_of(table: pa.Table) -> list[Entry]:
    return [Entry(*row) for row in zip(*(table[name].to_pylist() for name in SCHEMA.names), strict=True)]


class DamagedPack(Exception):
    """A file named like a pack that cannot be read as one."""

    def __init__(self, path: Path, error: Exception) -> None:
        super().__init__(f"{path} is damaged ({str(error).splitlines()[0] if str(error) else type(error).__name__})")


class Packs:
    """Key -> place for the rows of many packs: sorted arrays, 40 bytes an entry. Answers stay on disk."""

    def __init__(self) -> None:
        self._paths: list[Path] = []
        self._gone: set[int] = set()
        self._runs: list[tuple[np.ndarray, np.ndarray]] = []  # sorted keys and their places; the newest run is last
        self._files: OrderedDict[int, tuple[pq.ParquetFile, np.ndarray]] = OrderedDict()
        self._groups: OrderedDict[tuple[int, int], tuple[pa.Array, pa.Array, int]] = OrderedDict()
        self._held = 0  # bytes in _groups

    def index(self, packs: list[tuple[Path, np.ndarray]]) -> np.ndarray:
        """Make packs findable, as one run whose places win over older ones; the keys that are new, [n] of 32 bytes."""
        keys, places = [np.empty(0, KEY)], [np.empty(0, np.int64)]
        for path, pack_keys in packs:
            keys.append(pack_keys)
            places.append((len(self._paths) << 32) + np.arange(len(pack_keys), dtype=np.int64))
            self._paths.append(path)
        run = _sorted_run(np.concatenate(keys), np.concatenate(places))
        fresh = run[0][~self.contains(run[0])]
        self._runs.append(run)
        if len(self._runs) > 8:  # a search of 8 runs takes 10 us
            self._merge()
        return fresh

    def _merge(self) -> None:
        """The young runs into one, and into the oldest when they outgrow it: a million entries take 0.3 s."""
        first, *young = self._runs
        merged = _sorted_run(*(np.concatenate(arrays) for arrays in zip(*young, strict=True)))
        if len(merged[0]) < len(first[0]):
            self._runs = [first, merged]
        else:
            self._runs = [_sorted_run(*(np.concatenate(arrays) for arrays in zip(first, merged, strict=True)))]

    def contains(self, keys: np.ndarray) -> np.ndarray:
        """[n] booleans for [n] keys."""
        found = np.zeros(len(keys), bool)
        for known, _ in self._runs:
            if len(known):
                found |= known[np.minimum(known.searchsorted(keys), len(known) - 1)] == keys
        return found

    def find(self, key: bytes) -> int | None:
        """The newest place of a key in a pack that is not known to be gone."""
        for keys, places in reversed(self._runs):
            at = int(keys.searchsorted(key))
            if at < len(keys) and keys.item(at) == key.rstrip(b"\0"):  # NumPy drops trailing zeros
                place = int(places[at])
                if place >> 32 not in self._gone:
                    return place
        return None

    def read(self, key: bytes, place: int) -> Completion | None:
        """The answer; None where it turns out to be damaged. Raises Vanished where the pack is gone."""
        pack, row = place >> 32, place & 0xFFFFFFFF
        try:
            starts = self._file(pack)[1]
            group = int(starts.searchsorted(row, side="right")) - 1
            keys, completions, _ = self._group(pack, group)
            at = row - int(starts[group])
            return completion_of(completions[at].as_py()) if keys[at].as_py() == key else None
        except Vanished:
            self._gone.add(pack)
            raise
        except (OSError, pa.ArrowException, DamagedPack, ValueError, KeyError, TypeError, IndexError) as error:
            if isinstance(error, OSError) and is_gone(error):
                self._gone.add(pack)
                raise Vanished from error
            warnings.warn(f"{self._paths[pack]} is damaged ({error}); its calls are made again", stacklevel=4)
            return None

    def _file(self, pack: int) -> tuple[pq.ParquetFile, np.ndarray]:
        """The open file and the first row of each of its groups."""
        if pack not in self._files:
            while len(self._files) >= OPEN_PACKS:
                self._files.popitem(last=False)[1][0].close()
            file, _ = open_pack(self._paths[pack])
            sizes = [file.metadata.row_group(group).num_rows for group in range(file.num_row_groups)]
            self._files[pack] = file, np.concatenate([[0], np.cumsum(sizes[:-1], dtype=np.int64)])
        self._files.move_to_end(pack)
        return self._files[pack]

    def _group(self, pack: int, group: int) -> tuple[pa.Array, pa.Array, int]:
        """Keys and completions of one row group, decoded; the groups used last are held."""
        if (pack, group) not in self._groups:
            table = self._file(pack)[0].read_row_group(group, columns=["key", "completion"], use_threads=False)
            decoded = table["key"].combine_chunks(), table["completion"].combine_chunks(), table.nbytes
            self._groups[pack, group] = decoded
            self._held += table.nbytes
            while self._held > CACHE_BYTES and len(self._groups) > 1:
                self._held -= self._groups.popitem(last=False)[1][2]
        self._groups.move_to_end((pack, group))
        return self._groups[pack, group]

    def close(self) -> None:
        for file, _ in self._files.values():
            file.close()
        self._files.clear()
        self._groups.clear()
        self._held = 0


def _sorted_run(keys: np.ndarray, places: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """By key, one place each: the last one given."""
    order = np.argsort(keys, kind="stable")
    keys, places = keys[order], places[order]
    last = np.append(keys[1:] != keys[:-1], True) if len(keys) else np.empty(0, bool)
    return keys[last], places[last]
