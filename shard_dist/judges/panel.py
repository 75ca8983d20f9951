"""The judges of one stage, as its row programs use them: both orders of a pair, and whether an answer is on topic."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import TYPE_CHECKING

from shard_dist.config.schema import JudgeKind
from shard_dist.engines.protocol import CallRefused
from shard_dist.judges.pairwise import LLMJudge, RuleJudge
from shard_dist.judges.protocol import PairwiseJudge, Verdict, combine
from shard_dist.judges.topic import LLMTopic, on_topic
from shard_dist.prompts.render import Templates
from shard_dist.records import Prompt, Sampling

if TYPE_CHECKING:
    from shard_dist.engines.protocol import Ask


@dataclass(frozen=True)
class PairVerdict:
    """Both orders of one question. `forward` is the winner of compare(a, b), `backward` of compare(b, a)."""

    question: str
    forward: str
    backward: str
    combined: str
    reason: str


@dataclass(frozen=True)
class Panel:
    """`pairwise` compares; `topic` is the model that decides on topicality, None for the word rule."""

    pairwise: PairwiseJudge
    topic: LLMTopic | None

    @property
    def name(self) -> str:
        return self.pairwise.name

    async def compare(self, question: str, prompt: Prompt, a: str, b: str, ask: Ask) -> PairVerdict:
        forward, backward = await asyncio.gather(
            self._one(question, prompt, a, b, ask), self._one(question, prompt, b, a, ask)
        )
        combined = combine(forward.winner, backward.winner)
        return PairVerdict(question, forward.winner, backward.winner, combined, forward.reason)

    async def _one(self, question: str, prompt: Prompt, first: str, second: str, ask: Ask) -> Verdict:
        try:
            return await self.pairwise.compare(question, prompt, first, second, ask)
        except CallRefused as error:  # two long answers may exceed the judge's context
            return Verdict(question, "unparsed", str(error))

    async def on_topic(self, prompt: Prompt, answer: str, ask: Ask) -> str:
        """yes, no or unparsed."""
        if self.topic is None:
            return on_topic(prompt, answer)
        try:
            return await self.topic.on_topic(prompt, answer, ask)
        except CallRefused:
            return "unparsed"


def panel(kind: JudgeKind, role: str, templates: Templates, sampling: Sampling, attempts: int, seed: int) -> Panel:
    if kind == JudgeKind.rule:
        return Panel(RuleJudge(), None)
    settings = (role, templates, sampling, attempts, seed)
    return Panel(LLMJudge(*settings), LLMTopic(*settings))
