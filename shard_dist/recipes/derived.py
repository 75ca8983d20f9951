"""Records that hold several prompts of the recipe's own beside or instead of the one they belong to.

The k-th has the fields prompt_<k> and answer_<k> (and what the recipe adds), k from 1. Each that passes becomes an
example, under the key of the record's prompt: there its provenance is found.
"""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING

from shard_dist.judges.gate import pre_gate
from shard_dist.judges.refusal import classify
from shard_dist.prompts.render import Templates
from shard_dist.recipes.base import Recipe
from shard_dist.recipes.rewards import harm
from shard_dist.recipes.selection import Decision, Jury
from shard_dist.records import Example, Prompt, Record

if TYPE_CHECKING:
    from shard_dist.engines.protocol import Ask


def derived(prompt: Prompt, number: int | str, text: str) -> Prompt:
    """A prompt made of another one; its key is for seeds alone."""
    return replace(prompt, id=f"{prompt.id}/{number}", text=text)


def numbers(record: Record) -> list[str]:
    """Those of the record's prompts that have an answer, in their order."""
    found = (name.removeprefix("answer_") for name in record.fields if name.startswith("answer_"))
    return [number for number in found if number.isdecimal()]


class Derived(Recipe):
    """Keeps answers that are complete, on topic and unsafe to no rater. `scores` says of each answer 1 or 0."""

    kept = "kept"
    """Reason of a record with at least one answer that is kept."""

    def may_refuse(self, record: Record, number: str) -> bool:
        """Whether a refusal may be the answer to this prompt of the record."""
        return False

    def empty(self) -> Record:
        return Record(Prompt("", "", ""), "", {"prompt_1": "", "answer_1": "yes", "answer_1_finish_reason": "stop"})

    async def decide(self, record: Record, jury: Jury, ask: Ask) -> Decision:
        """The record's word is that of its first answer that is kept, else the commonest reason against them."""
        if record.failure:
            return Decision(*record.prompt.key, False, pre_gate(record.failure, "", "", ""))
        answered = numbers(record)
        against = await asyncio.gather(*(self.against(record, number, jury, ask) for number in answered))
        scores = {f"answer_{number}": float(not dropped) for number, dropped in zip(answered, against, strict=True)}
        chosen = next((name for name, score in scores.items() if score), "")
        reason = self.kept if chosen else Counter(against).most_common(1)[0][0]
        return Decision(*record.prompt.key, bool(chosen), reason, chosen=chosen, scores=json.dumps(scores))

    async def against(self, record: Record, number: str, jury: Jury, ask: Ask) -> str:
        """What speaks against an answer, "" if nothing does; judges are asked for what is left by cheap reasons."""
        prompt = derived(record.prompt, number, record.fields[f"prompt_{number}"])
        answer, finish = record.fields[f"answer_{number}"], record.fields[f"answer_{number}_finish_reason"]
        kind = classify(answer, prompt.language, prompt.text).kind
        refuses = kind == "full" and self.may_refuse(record, number)
        if dropped := pre_gate("", answer, finish, "" if refuses else kind):
            return dropped
        topic = "yes" if refuses else await jury.panel.on_topic(prompt, answer, ask)
        if topic != "yes":
            return "off_topic" if topic == "no" else "unparsed_verdict"
        harmful = await harm(prompt, answer, [judge for judge in jury.raters if judge.unsafe], ask)
        return "unparsed_verdict" if harmful is None else "unsafe" if harmful else ""

    def examples(self, record: Record, decision: Decision, templates: Templates) -> Iterator[Example]:
        for name, score in json.loads(decision.scores).items():
            if score:
                yield self.example(record, name.removeprefix("answer_"), templates)

    def example(self, record: Record, number: str, templates: Templates) -> Example:
        messages = templates.chat(record.fields[f"prompt_{number}"])
        return Example(*record.prompt.key, messages, record.fields[f"answer_{number}"])
