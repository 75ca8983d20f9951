"""Selection notes which calls its judges made."""

from __future__ import annotations

import asyncio
import json
from typing import Any

from shard_dist.config.schema import JudgeKind
from shard_dist.judges.panel import panel
from shard_dist.prompts.render import Templates
from shard_dist.recipes.selection import Jury
from shard_dist.records import Completion, Prompt, Record, Sampling
from shard_dist.stages.select import DECISION_SCHEMA, Select


class Scripted:
    """An Ask whose judge finds everything on topic and every pair even; keys are numbered."""

    def __init__(self) -> None:
        self.calls: dict[str, list[str]] = {}

    async def __call__(self, role: str, step: str, messages: Any, sampling: Sampling, schema: Any = None) -> Completion:
        self.calls.setdefault(step, []).append(f"{step} {len(self.calls.get(step, []))}")
        verdict = "yes" if step == "judge_topic" else "tie"
        return Completion((json.dumps({"reason": "so", "verdict": verdict}),), ("stop",), 1, 1)


def test_a_decision_names_the_judges_calls_by_step() -> None:
    judges = panel(JudgeKind.llm, "judge", Templates("shard"), Sampling(), 1, 0)
    fields = {"draft": "A saw cuts wood.", "reframed": "A saw cuts wood well.", "reframed_finish_reason": "stop"}
    record = Record(Prompt("d", "1", "How does a saw work?"), "shard", fields)
    decision = asyncio.run(Select("shard", Jury(judges))(record, Scripted()))
    assert json.loads(decision.calls) == {
        "judge_topic": ["judge_topic 0"],
        "judge_helpfulness": ["judge_helpfulness 0", "judge_helpfulness 1"],
        "judge_harm": ["judge_harm 0", "judge_harm 1"],
    }
    assert set(vars(decision)) == set(DECISION_SCHEMA.names)


def test_a_record_that_no_judge_saw_has_no_calls() -> None:
    judges = panel(JudgeKind.llm, "judge", Templates("shard"), Sampling(), 1, 0)
    decision = asyncio.run(
        Select("shard", Jury(judges))(Record(Prompt("d", "1", "?"), "shard", failure="rewrite_refused"), Scripted())
    )
    assert (decision.keep, decision.calls) == (False, "{}")
