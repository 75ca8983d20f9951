"""What the two refusal-pattern recipes share: the study of a model's refusals, and who says that a text is one.

A uniform pattern is a diagnostic and no sign of safety: see evaluation/patterns.py.
"""

from __future__ import annotations

import asyncio
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from shard_dist.evaluation.patterns import OPENING_WORDS, READ, opening, patterns
from shard_dist.evaluation.statistics import wilson
from shard_dist.judges.refusal import classify
from shard_dist.recipes.rewards import harm
from shard_dist.recipes.selection import Decision, Jury, unfit
from shard_dist.records import Prompt, Record

if TYPE_CHECKING:
    from shard_dist.engines.protocol import Ask

KINDS = ("full", "partial", "none", "empty")
ANSWER = "answer_1"
WRITTEN = re.compile(rf"[A-Za-z'’]+(?:[^A-Za-z'’]+[A-Za-z'’]+){{0,{OPENING_WORDS - 1}}}")


@dataclass(frozen=True)
class Seen:
    """An answer as the study needs it: `kind` of refusal, `position` in words where the refusal begins."""

    text: str
    kind: str
    position: float = 0.0
    benign: bool = False


def seen(records: Iterable[Record]) -> Iterator[Seen]:
    """The plain answers to train prompts by the refusal rules. Rows without an answer are left out."""
    for record in records:
        if record.failure or record.prompt.split != "train":
            continue
        text, prompt = record.fields[ANSWER], record.prompt
        found = classify(text, prompt.language, prompt.text)
        start = found.span[0] if found.span else 0
        yield Seen(text[:READ], found.kind, len(text[:start].split()), prompt.benign)


def study(answers: Iterable[Seen]) -> dict[str, Any]:
    """A model's refusals: JSON.

    `kinds` counts the answers to sensitive prompts; `refusal_rate` and `over_refusal_rate` are shares of the answers to
    sensitive and to benign prompts that refuse, in full or in part. `patterns` are those of all refusals, see
    evaluation/patterns.py; `uniformity` is 1 - entropy of their openings, None below two refusals. `begins` is the most
    frequent opening as it is written most often, "" where no refusal has Latin letters.
    """
    sensitive, benign = Counter[str](), Counter[str]()
    refusals: list[Seen] = []
    for answer in answers:
        (benign if answer.benign else sensitive)[answer.kind] += 1
        if answer.kind in ("full", "partial"):
            refusals.append(answer)
    texts = [answer.text for answer in refusals]
    found = patterns(texts, [answer.kind == "partial" for answer in refusals], [answer.position for answer in refusals])
    return {
        "kinds": {kind: sensitive[kind] for kind in KINDS},
        "refusal_rate": wilson(sensitive["full"] + sensitive["partial"], sensitive.total()),
        "over_refusal_rate": wilson(benign["full"] + benign["partial"], benign.total()),
        "uniformity": None if found["entropy"] is None else 1 - found["entropy"],
        "begins": begins(texts, next((one["opening"] for one in found["top"] if one["opening"]), "")),
        "patterns": found,
    }


def opens(text: str) -> str:
    """The opening of a text as it stands, normalised as in the study."""
    return opening(text[:READ].lower().replace("’", "'"))


def begins(texts: Sequence[str], wanted: str) -> str:
    """The opening `wanted` with the case and the punctuation that it has most often: "I'm sorry, but I"."""
    written = (match[0] for text in texts if (match := WRITTEN.search(text[:READ])))
    counts = Counter(words for words in written if opens(words) == wanted)
    return counts.most_common(1)[0][0] if wanted and counts else wanted


async def unsafe(prompt: Prompt, answer: str, jury: Jury, ask: Ask) -> bool | None:
    """Whether an answer is unsafe to one of the judges of select.raters that tell; None where that cannot be read.

    Without such judges an answer to a sensitive prompt is unsafe where it refuses nothing.
    """
    judges = [judge for judge in jury.raters if judge.unsafe]
    if not judges:
        return not prompt.benign and classify(answer, prompt.language, prompt.text).kind == "none"
    harmful = await harm(prompt, answer, judges, ask)
    return None if harmful is None else harmful > 0


async def keep_refusal(record: Record, name: str, jury: Jury, ask: Ask) -> Decision:
    """Keeps field `name` where the rules find a full refusal and every judge of select.raters that tells agrees."""
    prompt, answer = record.prompt, record.fields.get(name, "")
    dropped = unfit(record, name)
    if dropped != "refusing":
        return Decision(*prompt.key, False, dropped or "not_refusing")
    judges = [judge for judge in jury.raters if judge.refused]
    ratings = await asyncio.gather(*(judge.rate(prompt, answer, ask) for judge in judges))
    against = [rating for judge, rating in zip(judges, ratings, strict=True) if rating.verdict not in judge.refused]
    if against:
        read = any(rating.parsed for rating in against)
        return Decision(*prompt.key, False, "not_refusing" if read else "unparsed_verdict")
    return Decision(*prompt.key, True, "kept_refusal", chosen=name)


async def keep_benign(record: Record, jury: Jury, ask: Ask) -> Decision:
    """Keeps the plain answer to a benign prompt, which holds over-refusal down, unless it refuses or is unsafe."""
    prompt = record.prompt
    if dropped := unfit(record, ANSWER) or ("" if jury.options.benign else "benign_left_out"):
        return Decision(*prompt.key, False, dropped)
    harmful = await unsafe(prompt, record.fields[ANSWER], jury, ask)
    if harmful is not False:
        return Decision(*prompt.key, False, "unsafe" if harmful else "unparsed_verdict")
    return Decision(*prompt.key, True, "kept_benign_answer", chosen=ANSWER)
