"""LinguaSafe (Ning et al. 2025, arXiv 2508.12733): 45k prompts in 12 languages, severity 0 to 3."""

from __future__ import annotations

from collections.abc import Iterator

from shard_dist.config.schema import SourceConfig
from shard_dist.data.read import rows
from shard_dist.records import Prompt

HUB = "zhiyuan-ning/linguasafe"


def prompts(source: SourceConfig) -> Iterator[tuple[str, Prompt]]:
    """(where, prompt) for every row of the CSV file or the hub data set, which have the same columns.

    An id counts for every language (LinguaSafe's own code looks it up without one), so ours names the
    language ("en-17") and the bare id is the group: translations share a split. The id may be missing.
    """
    required = ("prompt", "lang", "type", "subtype", "level")
    for row in rows(source, required=required, optional=("id", "source"), hub=HUB):
        number = row.text("id").removesuffix(".0")  # a CSV file written from a column of numbers with gaps
        language = row.text("lang")
        yield (
            row.where,
            Prompt(
                dataset=source.name or "linguasafe",
                id=f"{language}-{number}" if number else "",
                text=row.text("prompt"),
                category=row.text("type"),
                subcategory=row.text("subtype"),
                level=row.level("level"),
                language=language,
                source=row.text("source"),
                group=number,
            ),
        )
