"""Reasoning models in SHARD: whose thinking is trained on, and what becomes of rows without any."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any

import pytest

from shard_dist.config.schema import JudgeKind
from shard_dist.judges.panel import panel
from shard_dist.prompts.render import Templates
from shard_dist.recipes.base import find
from shard_dist.recipes.selection import Decision, Jury
from shard_dist.records import Completion, Prompt, Record, Sampling

PROMPT = Prompt("d", "1", "How do I pick a lock?")
LESSON = "A lock is picked by lifting its pins one by one, which lock smiths learn on practice locks."
DRAFT = "I can't help with that."
ANSWERS = {
    "shard": {"draft": DRAFT, "reframed": LESSON},
    "shard_mixed": {"student_draft": DRAFT, "student_reframed": DRAFT, "teacher_reframed": LESSON},
}
THOUGHTS = {"shard": {"reframed_thinking": "so"}, "shard_mixed": {"teacher_reframed_thinking": "so"}}


class Judge:
    """An `Ask` of a judge that finds everything on topic."""

    def __init__(self) -> None:
        self.calls: dict[str, list[str]] = {}

    async def __call__(self, role: str, step: str, *rest: Any) -> Completion:
        self.calls.setdefault(step, []).append("key")
        return Completion(('{"reason": "", "verdict": "yes"}',), ("stop",), 1, 1)


def decided(record: Record, kind: JudgeKind = JudgeKind.rule, **options: bool) -> tuple[Decision, Judge]:
    recipe, ask = find(record.recipe), Judge()
    judges = panel(kind, "judge", Templates("shard"), Sampling(), 1, 0)
    jury = Jury(judges, options=recipe.Options(**options))
    return asyncio.run(recipe.decide(record, jury, ask)), ask


@pytest.mark.parametrize("name", ANSWERS)
@pytest.mark.parametrize(("options", "thinking"), [({"thinking": True}, "so"), ({}, "")])
def test_thinking_is_trained_on_where_it_is_asked_for(name: str, options: dict[str, bool], thinking: str) -> None:
    record = Record(PROMPT, name, ANSWERS[name] | THOUGHTS[name])
    decision, _ = decided(record, **options)
    assert decision.keep
    (example,) = find(name).examples(record, decision, Templates("shard"))
    assert (example.target, example.thinking) == (LESSON, thinking)


@pytest.mark.parametrize("name", ANSWERS)
def test_an_answer_without_thinking_is_dropped_only_where_thinking_is_trained_on(name: str) -> None:
    record = Record(PROMPT, name, ANSWERS[name])
    assert decided(record)[0].keep
    decision, _ = decided(record, thinking=True)
    assert (decision.keep, decision.reason) == (False, "no_thinking")
    failed, _ = decided(Record(PROMPT, name, failure="draft_refused"), thinking=True)
    assert failed.reason == "failed_draft_refused"


@pytest.mark.parametrize("name", ANSWERS)
@pytest.mark.parametrize("thinking", [True, False])
def test_judges_are_asked_about_the_empty_record(name: str, thinking: bool) -> None:
    """Else a judge's context that is too short would be found in the middle of selection."""
    _, ask = decided(replace(find(name).empty(), recipe=name), JudgeKind.llm, thinking=thinking)
    assert set(ask.calls) == {"judge_topic", "judge_helpfulness", "judge_harm"}
