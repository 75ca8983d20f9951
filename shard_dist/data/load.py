"""Prompts from all sources: de-duplicated, each with its split or the reason why it takes no part."""

from __future__ import annotations

import hashlib
import unicodedata
import warnings
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa

from shard_dist.artefacts import read_rows, write_rows
from shard_dist.config.schema import SourceConfig, SourceKind, SplitConfig
from shard_dist.data import do_not_answer, linguasafe, table, xstest
from shard_dist.data.split import split_of
from shard_dist.engines.rows import TableRows, Where
from shard_dist.records import SPLITS, Key, Prompt

READERS: dict[SourceKind, Callable[[SourceConfig], Iterator[tuple[str, Prompt]]]] = {
    SourceKind.do_not_answer: do_not_answer.prompts,
    SourceKind.linguasafe: linguasafe.prompts,
    SourceKind.xstest: xstest.prompts,
    SourceKind.table: table.prompts,
}

SCHEMA = pa.schema(
    [
        ("dataset", pa.string()),
        ("id", pa.string()),
        ("text", pa.string()),
        ("category", pa.string()),
        ("subcategory", pa.string()),
        ("level", pa.int8()),
        ("language", pa.string()),
        ("source", pa.string()),
        ("group", pa.string()),
        ("split", pa.string()),
        ("excluded", pa.string()),
    ]
)

LARGE_STRATUM = 10  # from here on a stratum without a test or val prompt is worth a warning


def load_prompts(
    sources: list[SourceConfig],
    split: SplitConfig,
    *,
    seed: int,
    max_chars: int,
    too_long: Callable[[str], bool] | None = None,
) -> tuple[list[Prompt], dict[str, Any]]:
    """All prompts in reading order, and their counts.

    A prompt that takes no part has `excluded` set and no split: "other_language", "empty" (nothing but white
    space, control and format characters), "longer_than_max_chars", "duplicate_row" (key and text seen),
    "duplicate_text" (an earlier prompt's text but for case, white space and compatibility forms), or
    "longer_than_context" (`too_long` says so). A row without an id gets its text's hash as its id.

    Counts: {"read", "train", "val", "test", "excluded": {reason: n}, "by_stratum": {stratum: {split: n}}},
    where read = train + val + test + all excluded.

    Raises ValueError for a source that cannot be read, for a key with two texts, and where no prompt is left.
    Warns where a split that has a share stays empty, over all or in a stratum of at least 10 prompts.
    """
    sieve = Sieve(max_chars, too_long)
    prompts: list[Prompt] = []
    for source in sources:
        for where, prompt in read_source(source):
            reason = prompt.excluded or sieve.reason(prompt, where)
            part = "" if reason else split_of(prompt, split, seed)
            prompts.append(replace(prompt, excluded=reason, split=part))
    counts = count(prompts)
    if all(prompt.excluded for prompt in prompts):
        raise ValueError(f"data.sources: none of {counts['read']} prompts is left: {counts['excluded']}")
    warn_of_gaps(counts, split)
    return prompts, counts


def read_source(source: SourceConfig) -> Iterator[tuple[str, Prompt]]:
    """(where, prompt) up to `limit` prompts in the source's language; other languages come out excluded."""
    kept, languages = 0, Counter[str]()
    for where, row in READERS[source.kind](source):
        prompt = replace(row, id=row.id or hashlib.sha256(row.text.encode()).hexdigest()[:16])
        languages[prompt.language] += 1
        if source.language and prompt.language.casefold() != source.language.casefold():
            yield where, replace(prompt, excluded="other_language")
            continue
        yield where, prompt
        kept += 1
        if kept == source.limit:
            break
    if not kept:
        place = source.path or source.hub or f"the hub's {source.kind}"
        there = f"in {source.language!r}; rows by language: {dict(languages)}" if languages else "at all"
        raise ValueError(f"data source {place}: no row {there}")


class Sieve:
    """Decides, prompt by prompt in reading order, which take no part; the first of several equals stays."""

    def __init__(self, max_chars: int, too_long: Callable[[str], bool] | None) -> None:
        self.max_chars = max_chars
        self.too_long = too_long
        self.keys: dict[Key, tuple[str, str]] = {}
        self.texts: set[bytes] = set()

    def reason(self, prompt: Prompt, where: str) -> str:
        """Why the prompt takes no part, or "". Raises ValueError where its key has another text already."""
        first = self.keys.get(prompt.key)
        if first and first[0] != prompt.text:
            raise ValueError(
                f"{where}: the key {prompt.key} has another text already ({first[1]}); give every row an id, "
                "and every source a name, of its own"
            )
        self.keys.setdefault(prompt.key, (prompt.text, where))
        if all(invisible(char) for char in prompt.text):
            return "empty"
        if len(prompt.text) > self.max_chars:
            return "longer_than_max_chars"
        if first:
            return "duplicate_row"
        folded = hashlib.sha256(normalised(prompt.text).encode()).digest()
        if folded in self.texts:
            return "duplicate_text"
        self.texts.add(folded)
        return "longer_than_context" if self.too_long and self.too_long(prompt.text) else ""


def invisible(char: str) -> bool:
    return char.isspace() or unicodedata.category(char) in ("Cc", "Cf")


def normalised(text: str) -> str:
    """What counts as the same text: NFKC, case folded, runs of white space made one space."""
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())


def count(prompts: list[Prompt]) -> dict[str, Any]:
    parts, excluded = Counter(p.split for p in prompts), Counter(p.excluded for p in prompts if p.excluded)
    strata: dict[str, Counter[str]] = defaultdict(Counter)
    for prompt in prompts:
        if not prompt.excluded:
            level = "unknown" if prompt.level is None else prompt.level
            strata[f"{prompt.dataset} / {prompt.category} / level {level}"][prompt.split] += 1
    return {
        "read": len(prompts),
        **{part: parts[part] for part in SPLITS},
        "excluded": dict(sorted(excluded.items())),
        "by_stratum": {name: {part: strata[name][part] for part in SPLITS} for name in sorted(strata)},
    }


def warn_of_gaps(counts: dict[str, Any], shares: SplitConfig) -> None:
    for part, share in (("val", shares.val), ("test", shares.test)):
        if share and not counts[part]:
            warnings.warn(f"data.split: no prompt at all falls into {part} (share {share})", stacklevel=3)
            continue
        strata = counts["by_stratum"].items()
        gaps = [name for name, n in strata if share and not n[part] and sum(n.values()) >= LARGE_STRATUM]
        if gaps:
            warnings.warn(f"data.split: {part} (share {share}) has no prompt of {gaps}", stacklevel=3)


def write_prompts(path: Path, prompts: list[Prompt]) -> None:
    """Parquet, one row per prompt in the given order, excluded ones too."""
    write_rows(path, (vars(prompt) for prompt in prompts), SCHEMA)


def read_prompts(path: Path) -> list[Prompt]:
    return [prompt_of(row) for row in read_rows(path)]


def prompt_of(row: dict[str, Any]) -> Prompt:
    return Prompt(**row)


def prompt_rows(path: Path, splits: tuple[str, ...]) -> TableRows:
    """The prompts of some splits, for programs: read where they are needed."""
    return TableRows((path,), prompt_of, group="category", length="text", where=Where("split", splits))
