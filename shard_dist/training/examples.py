"""Examples on disk: the Parquet files that selection writes and training reads."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path

import pyarrow as pa

from shard_dist.artefacts import read_rows, write_rows
from shard_dist.records import Example

EXAMPLE_SCHEMA = pa.schema(
    [
        ("dataset", pa.string()),
        ("id", pa.string()),
        ("messages", pa.list_(pa.struct([("role", pa.string()), ("content", pa.string())]))),
        ("target", pa.string()),
        ("objective", pa.string()),
    ]
)


def write_examples(path: Path, examples: Iterable[Example]) -> None:
    """All examples to one Parquet file, whole or not at all. Raises ValueError where the disk is full."""
    write_rows(path, (asdict(example) for example in examples), EXAMPLE_SCHEMA)


def read_examples(path: Path) -> list[Example]:
    """The examples of a file, in its order. Raises ValueError for a missing file or other columns."""
    if not path.is_file():
        raise ValueError(f"no examples at {path}; run the select stage first")
    rows = read_rows(path)
    missing = set(EXAMPLE_SCHEMA.names) - set(rows[0] if rows else EXAMPLE_SCHEMA.names)
    if missing:
        raise ValueError(f"{path} is no file of examples: it lacks the columns {sorted(missing)}")
    return [Example(**{**row, "messages": tuple(row["messages"])}) for row in rows]
