"""Rows by index: a Parquet table reads like the list that it was written from, whatever its row groups."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shard_dist.engines.rows import ListRows, TableRows, Where


def name_of(row: dict[str, Any]) -> str:
    return str(row["id"])


def table(path: Path, splits: list[str], group_size: int, start: int = 0) -> Path:
    columns = {
        "id": [str(start + number) for number in range(len(splits))],
        "split": splits,
        "category": [f"c{number % 3}" for number in range(len(splits))],
        "text": ["x" * number for number in range(len(splits))],
    }
    schema = pa.schema([(name, pa.string()) for name in columns])
    pq.write_table(pa.table(columns, schema=schema), path, row_group_size=group_size)
    return path


@given(
    splits=st.lists(st.sampled_from(["train", "val", "test"]), max_size=60),
    group_size=st.integers(1, 20),
    data=st.data(),
)
@settings(max_examples=60)
def test_rows_of_some_splits_read_like_a_list(
    splits: list[str], group_size: int, data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = table(tmp_path_factory.mktemp("rows") / "t.parquet", splits, group_size)
    rows = TableRows((path,), name_of, "category", "text", Where("split", ("train", "val")))
    wanted = [number for number, split in enumerate(splits) if split != "test"]
    assert len(rows) == len(wanted)
    indices = data.draw(st.lists(st.integers(0, len(wanted) - 1), max_size=40)) if wanted else []
    assert rows.read(indices) == [str(wanted[index]) for index in indices]
    groups, lengths = rows.outline(indices)
    assert groups == [f"c{wanted[index] % 3}" for index in indices]
    assert lengths == [wanted[index] for index in indices]
    assert rows.distinct("category") == sorted({f"c{number % 3}" for number in wanted})


def test_several_files_are_one_table(tmp_path: Path) -> None:
    parts = (table(tmp_path / "a", ["train"] * 5, 2), table(tmp_path / "b", ["train"] * 4, 3, start=5))
    rows = TableRows(parts, name_of, "category", "text")
    assert rows.read([8, 0, 4, 5]) == ["8", "0", "4", "5"]


def test_rows_travel_without_what_they_have_open(tmp_path: Path) -> None:
    rows = TableRows((table(tmp_path / "t", ["train"] * 3, 1),), name_of, "category", "text")
    assert len(rows) == 3
    copy = pickle.loads(pickle.dumps(rows))
    assert copy._table is None
    assert copy.read([2]) == ["2"]


def test_memory_holds_few_row_groups(tmp_path: Path) -> None:
    rows = TableRows((table(tmp_path / "t", ["train"] * 100, 2),), name_of, "category", "text")
    rows.read(range(100))
    assert len(rows.table.kept) == 20


def test_a_list_is_rows_too() -> None:
    rows = ListRows("abc")
    assert (len(rows), rows.read([2, 0]), rows.outline([1, 2])) == (3, ["c", "a"], (["", ""], [0, 0]))
