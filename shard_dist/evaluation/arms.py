"""Arms: models that answer the same test prompts with the same system prompt and decoding, and what judges say of them.

An arm's answers and verdicts are row programs, like a recipe.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from shard_dist.engines.protocol import CallRefused
from shard_dist.judges.panel import PairVerdict, Panel
from shard_dist.judges.protocol import QUESTIONS
from shard_dist.judges.refusal import classify
from shard_dist.ledger.key import request_seed
from shard_dist.prompts.render import Templates
from shard_dist.records import Prompt, Sampling

if TYPE_CHECKING:
    from shard_dist.engines.protocol import Ask

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


@dataclass(frozen=True)
class Answer:
    """Program over one prompt: the arm's answer. `role` is where it is asked, `arm` what it is called in results."""

    role: str
    arm: str
    templates: Templates
    sampling: Sampling
    seed: int

    async def __call__(self, prompt: Prompt, ask: Ask) -> dict[str, str]:
        """A row of ANSWER_SCHEMA. A refused call is a row with its `failure`, so that every prompt is accounted for."""
        row = {"dataset": prompt.dataset, "id": prompt.id, "arm": self.arm}
        # The seed does not know the arm: arms differ in their weights and in nothing else.
        sampling = replace(self.sampling, seed=request_seed(self.seed, "answer", *prompt.key))
        try:
            completion = await ask(self.role, "answer", self.templates.chat(prompt.text), sampling)
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
    """Program over (prompt, answer rows of arms a and b): verdict rows of each and pair rows of both."""

    panel: Panel

    async def __call__(
        self, row: tuple[Prompt, dict[str, str], dict[str, str]], ask: Ask
    ) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
        prompt, a, b = row
        verdicts = [await self._alone(prompt, answer, ask) for answer in (a, b)]
        pairs = [await self._pair(question, prompt, a, b, ask) for question in QUESTIONS]
        return verdicts, pairs

    async def _alone(self, prompt: Prompt, answer: dict[str, str], ask: Ask) -> dict[str, str]:
        row = {name: answer[name] for name in ("dataset", "id", "arm")}
        if answer["failure"]:
            return {**row, "refusal": "unanswered", "on_topic": "unanswered"}
        kind = classify(answer["text"], prompt.language).kind
        # A model is not asked whether nothing is on topic.
        topic = "no" if kind == "empty" else await self.panel.on_topic(prompt, answer["text"], ask)
        return {**row, "refusal": kind, "on_topic": topic}

    async def _pair(
        self, question: str, prompt: Prompt, a: dict[str, str], b: dict[str, str], ask: Ask
    ) -> dict[str, str]:
        if a["failure"] or b["failure"]:  # no answer, nothing to compare; no judge is paid for it
            verdict = PairVerdict(question, "unparsed", "unparsed", "unparsed", "unanswered")
        else:
            verdict = await self.panel.compare(question, prompt, a["text"], b["text"], ask)
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
