"""Examples on disk: the Parquet files that selection writes and training reads."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from shard_dist.artefacts import stream_rows, write_rows
from shard_dist.records import Example

EXAMPLE_SCHEMA = pa.schema(
    [
        ("dataset", pa.string()),
        ("id", pa.string()),
        ("messages", pa.list_(pa.struct([("role", pa.string()), ("content", pa.string())]))),
        ("target", pa.string()),
        ("objective", pa.string()),
        ("rejected", pa.string()),
        ("thinking", pa.string()),
    ]
)
YOUNGER = {"rejected", "thinking"}  # columns that older files lack


def write_examples(path: Path, examples: Iterable[Example]) -> int:
    """All examples to one Parquet file, whole or not at all; how many. Raises ValueError where the disk is full."""
    return write_rows(path, (asdict(example) for example in examples), EXAMPLE_SCHEMA)


def stream_examples(path: Path) -> Iterator[Example]:
    """The examples of a file, in its order; other columns are left out. Raises ValueError for a file that has none."""
    if not path.is_file():
        raise ValueError(f"no examples at {path}; run the select stage first")
    try:
        missing = set(EXAMPLE_SCHEMA.names) - set(pq.read_schema(path).names) - YOUNGER
    except pa.ArrowInvalid as error:
        raise ValueError(f"{path} is no file of examples: {error}") from error
    if missing:
        raise ValueError(f"{path} is no file of examples: it lacks the columns {sorted(missing)}")
    for row in stream_rows(path):
        cells: dict[str, Any] = {name: row.get(name) or "" for name in EXAMPLE_SCHEMA.names}
        yield Example(**{**cells, "messages": tuple(cells["messages"])})
