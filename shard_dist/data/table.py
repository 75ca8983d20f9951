"""Any CSV, JSONL or Parquet file or hub data set, by a mapping from our fields to its columns."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from shard_dist.config.schema import SourceConfig
from shard_dist.data.read import did_you_mean, rows
from shard_dist.records import Prompt

FIELDS = ("id", "text", "category", "subcategory", "level", "language", "source", "group")


def prompts(source: SourceConfig) -> Iterator[tuple[str, Prompt]]:
    """(where, prompt) for every row. Fields that are not mapped stay empty.

    Without a language column every row is taken to be in the source's `language`, else in English.
    Raises ValueError for a field that prompts do not have, and for columns that the source does not have.
    """
    name = source.name or Path(source.path or source.hub).stem
    columns = dict(source.columns)
    for field in columns:
        if field not in FIELDS:
            hint = did_you_mean(field, FIELDS)
            raise ValueError(f"data source {name}: prompts have no field {field!r} to map a column to{hint}")
    language = source.language or "en"
    for row in rows(source, required=tuple(columns.values())):
        values = {field: row.text(column) for field, column in columns.items() if field != "level"}
        level = row.level(columns["level"]) if "level" in columns else None
        yield row.where, Prompt(**{"id": "", "language": language, **values}, dataset=name, level=level)
