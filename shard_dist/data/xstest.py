"""XSTest (Roettger et al. 2023, arXiv 2308.01263): 250 safe prompts that look unsafe, 200 contrasts."""

from __future__ import annotations

from collections.abc import Iterator

from shard_dist.config.schema import SourceConfig
from shard_dist.data.read import rows
from shard_dist.records import Prompt

LEVELS = {"safe": 0, "unsafe": None}  # how severe an unsafe prompt is, the set does not say


def prompts(source: SourceConfig) -> Iterator[tuple[str, Prompt]]:
    """(where, prompt) for every row: the category is XSTest's type, the subcategory its note.

    Raises ValueError for a label other than safe or unsafe.
    """
    for row in rows(source, required=("id", "prompt", "type", "label"), optional=("note",)):
        label = row.text("label")
        if label not in LEVELS:
            raise ValueError(f"{row.where}: label {label!r}; XSTest's labels are safe and unsafe")
        yield (
            row.where,
            Prompt(
                dataset=source.name or "xstest",
                id=row.text("id"),
                text=row.text("prompt"),
                category=row.text("type"),
                subcategory=row.text("note"),
                level=LEVELS[label],
            ),
        )
