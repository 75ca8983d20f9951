"""The rows of a program, read where they are needed: the queue hands out indices, an engine's process reads its own."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

# Row groups that a reader keeps: what the queue looks ahead (16 of 1,024 rows) and hands out category by category.
GROUPS_KEPT = 20
BLOCK = 16_384  # rows looked at together where all are looked at


class Rows(Protocol):
    """Rows by index. Picklable; what it opens, it opens in the process that reads."""

    def __len__(self) -> int: ...

    def read(self, indices: Sequence[int]) -> list[Any]:
        """The rows at `indices`, in that order."""
        ...

    def outline(self, indices: Sequence[int]) -> tuple[list[str], list[int]]:
        """Of the rows at `indices`: the group (its rows share a long prefix), and a length that hints at cost."""
        ...


class ListRows:
    """Rows that are in memory already: for hundreds of them, not millions."""

    def __init__(self, rows: Sequence[Any]) -> None:
        self.rows = list(rows)

    def __len__(self) -> int:
        return len(self.rows)

    def read(self, indices: Sequence[int]) -> list[Any]:
        return [self.rows[index] for index in indices]

    def outline(self, indices: Sequence[int]) -> tuple[list[str], list[int]]:
        return [""] * len(indices), [0] * len(indices)


@dataclass(frozen=True)
class Where:
    """Keep the rows whose `column` is one of `values`."""

    column: str
    values: tuple[str, ...]


@dataclass
class TableRows:
    """Rows of Parquet files, in their order; memory holds a few row groups and 8 bytes per row.

    `decode` makes a row of a dict of columns; `group` and `length` name the columns of `outline`.
    """

    paths: tuple[Path, ...]
    decode: Callable[[dict[str, Any]], Any]
    group: str
    length: str
    where: Where | None = None
    _table: _Table | None = field(default=None, repr=False)

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_table": None}

    @property
    def table(self) -> _Table:
        if self._table is None:
            self._table = _Table(self.paths, self.where)
        return self._table

    def __len__(self) -> int:
        return len(self.table)

    def read(self, indices: Sequence[int]) -> list[Any]:
        return [self.decode(row) for row in self.table.take(indices, None).to_pylist()]

    def outline(self, indices: Sequence[int]) -> tuple[list[str], list[int]]:
        table = self.table.take(indices, [self.group, self.length])
        return table[self.group].to_pylist(), pc.binary_length(table[self.length]).to_pylist()

    def distinct(self, column: str) -> list[str]:
        """The values of a column of text, sorted."""
        found: set[str] = set()
        for start in range(0, len(self), BLOCK):
            part = self.table.take(range(start, min(start + BLOCK, len(self))), [column])
            found.update(part[column].unique().to_pylist())
        return sorted(found)


class _Table:
    """Open Parquet files as one table: row index -> (file, row group, row)."""

    def __init__(self, paths: Iterable[Path], where: Where | None) -> None:
        self.files = [pq.ParquetFile(path) for path in paths]
        self.groups = [(file, n) for file in self.files for n in range(file.metadata.num_row_groups)]
        sizes = [file.metadata.row_group(n).num_rows for file, n in self.groups]
        self.starts = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)
        self.positions = self._matching(where) if where else np.arange(self.starts[-1])
        self.kept: OrderedDict[tuple[int, tuple[str, ...] | None], pa.Table] = OrderedDict()

    def _matching(self, where: Where) -> np.ndarray:
        wanted = pa.array(where.values)
        masks = [
            pc.is_in(file.read_row_group(n, columns=[where.column])[where.column], value_set=wanted).to_numpy()
            for file, n in self.groups
        ]
        return np.flatnonzero(np.concatenate(masks)) if masks else np.empty(0, np.int64)

    def __len__(self) -> int:
        return len(self.positions)

    def take(self, indices: Sequence[int], columns: list[str] | None) -> pa.Table:
        """The rows at `indices`, in that order, one read per run of rows of the same row group."""
        positions = self.positions[np.asarray(indices, dtype=np.int64)]
        numbers = np.searchsorted(self.starts, positions, side="right") - 1
        parts, at = [], 0
        for number, run in groupby(numbers.tolist()):
            size = sum(1 for _ in run)
            rows = positions[at : at + size] - self.starts[number]
            parts.append(self._group(number, columns).take(pa.array(rows)))
            at += size
        if not parts:
            return self.files[0].schema_arrow.empty_table().select(columns or self.files[0].schema_arrow.names)
        return pa.concat_tables(parts)

    def _group(self, number: int, columns: list[str] | None) -> pa.Table:
        key = (number, tuple(columns) if columns else None)
        if key in self.kept:
            self.kept.move_to_end(key)
        else:
            file, inner = self.groups[number]
            self.kept[key] = file.read_row_group(inner, columns=columns)
            if len(self.kept) > GROUPS_KEPT:
                self.kept.popitem(last=False)
        return self.kept[key]
