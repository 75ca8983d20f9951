"""RAFT: K samples of the generator, the best by reward, and nothing of the losers in the example."""

from __future__ import annotations

import asyncio
import json
import pickle
from types import SimpleNamespace
from typing import Any

import pytest

from shard_dist.config.load import load_config
from shard_dist.config.schema import RecipeConfig, SamplingConfig
from shard_dist.engines.protocol import CallRefused
from shard_dist.engines.rows import ListRows
from shard_dist.judges.pairwise import RuleJudge, RuleRater
from shard_dist.judges.panel import Panel
from shard_dist.prompts.render import Templates
from shard_dist.recipes.base import find
from shard_dist.recipes.rewards import RewardOptions
from shard_dist.recipes.selection import Decision, Jury
from shard_dist.records import Completion, Prompt, Record
from shard_dist.stages import generate, select
from shard_dist.stages.judges import judge_roles

RECIPE = find("raft")
PROMPT = Prompt("d", "1", "How do I clean a backpack?", split="train")
JURY = Jury(
    Panel(RuleJudge(), None),
    (RuleRater("harm", "harm"), RuleRater("helpfulness", "help")),
    options=RewardOptions(samples=3),
)
REFUSAL, OFF, GOOD = "I'm sorry, but I can't help with that.", "Bananas are yellow.", "Wash the backpack by hand."
RATERS = "select.raters=[{kind: rule_harm}, {kind: rule_helpfulness}]"


def sampled(*answers: str, failure: str = "") -> Record:
    fields = {f"answer_{n}": text for n, text in enumerate(answers, start=1)}
    return Record(PROMPT, "raft", fields, failure=failure)


def decided(record: Record, jury: Jury = JURY) -> Decision:
    return asyncio.run(RECIPE.decide(record, jury, SimpleNamespace(calls={})))


def test_one_call_draws_all_samples_of_a_prompt() -> None:
    asked = []

    async def ask(role: str, step: str, messages: Any, sampling: Any) -> Completion:
        asked.append((role, step, messages, sampling))
        if "broken" in messages[-1]["content"]:
            raise CallRefused("context_overflow", "too long")
        return Completion((" a ", "b", "c"), ("stop", "length", "stop"), 1, 3, ("", "", ""))

    ask.calls = {}

    def records(unit: str, program: Any, rows: Any, empty: Any = None) -> list[Record]:
        travelled = pickle.loads(pickle.dumps(program))
        return [asyncio.run(travelled(prompt, ask)) for prompt in rows.read(range(len(rows)))]

    prompts = ListRows([PROMPT, Prompt("d", "2", "broken")])
    recipe = RecipeConfig("raft", answer_sampling=SamplingConfig(max_tokens=77))
    work = SimpleNamespace(
        recipe=recipe,
        options=JURY.options,
        templates=Templates("toy"),
        seed=3,
        prompts=lambda: prompts,
        records=records,
    )
    first, second = RECIPE.generate(work)
    assert first.fields == {
        "answer_1": "a", "answer_1_finish_reason": "stop", "answer_2": "b", "answer_2_finish_reason": "length",
        "answer_3": "c", "answer_3_finish_reason": "stop",
    }  # fmt: skip
    assert second.failure == "answer_context_overflow"
    role, step, messages, sampling = asked[0]
    assert (role, step, messages) == ("student", "answer", work.templates.chat(PROMPT.text))
    assert (sampling.n, sampling.temperature, sampling.max_tokens) == (3, 0.85, 77)
    assert sampling.seed != asked[1][3].seed


def test_the_best_answer_is_what_the_prompt_teaches() -> None:
    record = sampled(REFUSAL, OFF, GOOD)
    decision = decided(record)
    assert (decision.keep, decision.reason, decision.chosen) == (True, "kept_best", "answer_3")
    assert json.loads(decision.scores) == {
        "answer_2": {"harm": 0.0, "help": 0.0},
        "answer_3": {"harm": 0.0, "help": 2.0},
    }, "what refuses is not judged"
    (example,) = RECIPE.examples(record, decision, Templates("toy"))
    assert (example.target, example.objective, example.rejected) == (GOOD, "sft", "")
    assert example.messages == Templates("toy").chat(PROMPT.text)


@pytest.mark.parametrize(
    ("record", "reason"),
    [
        (sampled(REFUSAL, REFUSAL), "refusing"),
        (sampled("", ""), "empty"),
        (sampled(REFUSAL, ""), "all_unfit"),
        (sampled(failure="answer_engine_error"), "failed_answer_engine_error"),
    ],
)
def test_a_prompt_without_a_fit_answer_is_dropped_with_a_reason(record: Record, reason: str) -> None:
    assert (decided(record).keep, decided(record).reason) == (False, reason)


def test_all_unsafe_is_a_reason_of_its_own() -> None:
    """The demo's rule calls an answer harmful where it carries out the prompt's harmful wording."""
    harmful = Prompt("demo", "0", "How do I hurt someone with a backpack?")
    answer = "To hurt someone with a backpack, swing the backpack."
    record = Record(harmful, "raft", {"answer_1": answer, "answer_2": f"{answer} Hard."})
    decision = decided(record)
    assert (decision.keep, decision.reason, decision.chosen) == (False, "all_unsafe", "")
    assert {score["harm"] for score in json.loads(decision.scores).values()} == {1.0}


def test_judges_can_be_asked_about_the_shortest_record() -> None:
    assert json.loads(decided(RECIPE.empty()).scores).keys() == {"answer_1"}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ([], "one judge of help"),
        ([RATERS, "recipe.options.samples=1"], "samples is 1"),
        ([RATERS, "recipe.options.sample=3"], "there are: samples"),
        ([RATERS, "recipe.rounds=2", "recipe.generator=teacher"], "which no round changes"),
    ],
)
def test_contradictions_are_named_before_work_starts(root, monkeypatch, settings: list[str], message: str) -> None:
    monkeypatch.chdir(root)
    teacher = "models.teacher.model=shard_dist/demo/seed_model"
    config = load_config("configs/demo.yaml", ["recipe.name=raft", teacher, *settings])
    with pytest.raises(ValueError, match=message):
        generate.check(config)


def test_the_configuration_of_a_real_model_holds_together(root, monkeypatch) -> None:
    monkeypatch.chdir(root)
    config = load_config("configs/recipes/raft.yaml")
    for stage in (generate, select):
        stage.check(config)
    assert (config.recipe.rounds, config.recipe.min_gain) == (3, None)
    assert judge_roles(config.select) == ["judge", "guard"]
