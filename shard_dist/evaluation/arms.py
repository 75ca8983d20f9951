"""Arms: models that answer the same test prompts with the same system prompt and decoding, and what judges say of them.

An arm's answers and verdicts are row programs, like a recipe.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from shard_dist.engines.protocol import CallRefused
from shard_dist.evaluation.fairness import conditions
from shard_dist.judges.panel import PairVerdict, Panel
from shard_dist.judges.protocol import QUESTIONS, PointwiseJudge
from shard_dist.ledger.key import request_seed
from shard_dist.prompts.render import Templates
from shard_dist.records import Key, Prompt, Sampling

if TYPE_CHECKING:
    from shard_dist.engines.protocol import Ask

Row = dict[str, Any]

ANSWER_SCHEMA = pa.schema(
    [
        ("dataset", pa.string()),
        ("id", pa.string()),
        ("arm", pa.string()),
        ("text", pa.string()),
        ("thinking", pa.string()),
        ("finish_reason", pa.string()),
        ("failure", pa.string()),
        ("call", pa.string()),
        ("conditions", pa.string()),  # hash of messages and sampling: what arms must share
    ]
)
VERDICT_SCHEMA = pa.schema([(name, pa.string()) for name in ("dataset", "id", "arm", "refusal", "on_topic")])
PAIR_SCHEMA = pa.schema(
    [
        (name, pa.string())
        for name in (
            "dataset",
            "id",
            "arm_a",
            "arm_b",
            "question",
            "forward",
            "backward",
            "combined",
            "reason",
        )
    ]
)
RATING_SCHEMA = pa.schema(
    [
        ("dataset", pa.string()),
        ("id", pa.string()),
        ("arm", pa.string()),
        ("judge", pa.string()),
        ("verdict", pa.string()),
        ("score", pa.float64()),
        ("reason", pa.string()),
        ("span_start", pa.int64()),
        ("span_end", pa.int64()),
    ]
)


@dataclass(frozen=True)
class Answer:
    """Program over one prompt: the arm's answer. `role` is where it is asked, `arm` what it is called in results."""

    role: str
    arm: str
    templates: Templates
    sampling: Sampling
    seed: int
    contexts: Mapping[Key, str] = field(default_factory=dict)

    async def __call__(self, prompt: Prompt, ask: Ask) -> dict[str, str]:
        """A row of ANSWER_SCHEMA. A refused call is a row with its `failure`, so that every prompt is accounted for."""
        # The seed does not know the arm: arms differ in their weights and in nothing else.
        sampling = replace(self.sampling, seed=request_seed(self.seed, "answer", *prompt.key))
        messages = self.templates.chat(prompt.text, self.contexts.get(prompt.key, ""))
        row = {
            "dataset": prompt.dataset,
            "id": prompt.id,
            "arm": self.arm,
            "conditions": conditions(self.templates.chat(prompt.text), sampling),  # a context is what is compared
        }
        try:
            completion = await ask(self.role, "answer", messages, sampling)
        except CallRefused as error:
            empty = dict.fromkeys(("text", "thinking", "finish_reason", "call"), "")
            return {**row, **empty, "failure": error.reason}
        return {
            **row,
            "text": completion.text.strip(),
            "thinking": completion.thinking[0] if completion.thinking else "",
            "finish_reason": completion.finish_reasons[0],
            "failure": "",
            "call": ask.calls["answer"][-1],
        }


@dataclass(frozen=True)
class Judge:
    """Program over (prompt, answer rows of all arms): verdict, rating, and pair rows, each against the first arm."""

    panel: Panel
    raters: tuple[PointwiseJudge, ...]  # the refusal rules among them

    async def __call__(self, row: tuple[Prompt, tuple[Row, ...]], ask: Ask) -> tuple[list[Row], list[Row], list[Row]]:
        prompt, answers = row
        rated = await asyncio.gather(
            *(self._rate(judge, prompt, answer, ask) for answer in answers for judge in self.raters)
        )
        ratings = [rating for rating in rated if rating]
        refusals = {rating["arm"]: rating["verdict"] for rating in ratings if rating["judge"] == "refusal"}
        verdicts = [await self._alone(prompt, answer, refusals.get(answer["arm"], ""), ask) for answer in answers]
        pairs = await compared(self.panel, prompt, [(answers[0], other) for other in answers[1:]], ask)
        return verdicts, ratings, pairs

    async def _rate(self, judge: PointwiseJudge, prompt: Prompt, answer: Row, ask: Ask) -> Row | None:
        if answer["failure"]:
            return None
        rating = await judge.rate(prompt, answer["text"], ask)
        start, end = rating.span or (None, None)
        return {
            **{name: answer[name] for name in ("dataset", "id", "arm")},
            "judge": judge.name,
            "verdict": rating.verdict,
            "score": rating.score,
            "reason": rating.reason,
            "span_start": start,
            "span_end": end,
        }

    async def _alone(self, prompt: Prompt, answer: Row, refusal: str, ask: Ask) -> Row:
        row = {name: answer[name] for name in ("dataset", "id", "arm")}
        if answer["failure"]:
            return {**row, "refusal": "unanswered", "on_topic": "unanswered"}
        # A model is not asked whether nothing is on topic.
        topic = "no" if refusal == "empty" else await self.panel.on_topic(prompt, answer["text"], ask)
        return {**row, "refusal": refusal, "on_topic": topic}


@dataclass(frozen=True)
class Contest:
    """Program over (prompt, pairs of arms' answer rows): pair rows."""

    panel: Panel

    async def __call__(self, row: tuple[Prompt, tuple[tuple[Row, Row], ...]], ask: Ask) -> list[Row]:
        return await compared(self.panel, *row, ask)


async def compared(panel: Panel, prompt: Prompt, pairs: Iterable[tuple[Row, Row]], ask: Ask) -> list[Row]:
    """A row of PAIR_SCHEMA for each of the pairs and questions."""
    return [await _pair(panel, question, prompt, a, b, ask) for a, b in pairs for question in QUESTIONS]


async def _pair(panel: Panel, question: str, prompt: Prompt, a: Row, b: Row, ask: Ask) -> Row:
    if a["failure"] or b["failure"]:  # no answer, nothing to compare; no judge is paid for it
        verdict = PairVerdict(question, "unparsed", "unparsed", "unparsed", "unanswered")
    else:
        verdict = await panel.compare(question, prompt, a["text"], b["text"], ask)
    return {
        "dataset": prompt.dataset,
        "id": prompt.id,
        "arm_a": a["arm"],
        "arm_b": b["arm"],
        "question": question,
        "forward": verdict.forward,
        "backward": verdict.backward,
        "combined": verdict.combined,
        "reason": verdict.reason,
    }
