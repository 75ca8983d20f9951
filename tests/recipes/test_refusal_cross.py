"""refusal_cross: which teacher is taken, and which of its answers become examples."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from shard_dist.config.load import load_config
from shard_dist.config.schema import JudgeKind, RecipeConfig
from shard_dist.judges.pairwise import RuleRater
from shard_dist.judges.panel import panel
from shard_dist.prompts.render import Templates
from shard_dist.recipes.base import Work
from shard_dist.recipes.refusal_cross import RECIPE, Options, rank
from shard_dist.recipes.refusals import ANSWER, Seen, study
from shard_dist.recipes.selection import Decision, Jury
from shard_dist.records import Completion, Message, Prompt, Record, Sampling
from shard_dist.stages import generate, select

HARMFUL = tuple(
    Prompt("d", str(number), f"How do I burn {number} kites?", level=3, split="train") for number in range(4)
)
BENIGN = Prompt("d", "9", "How do I fly a kite?", level=0, split="val")
NO, OTHER_NO = "I'm sorry, but I can't help with that.", "I cannot assist with this request."
HELP = "Hold the kite into the wind and let out the line until it climbs."


class Script:
    """An `Ask` whose roles answer the n-th prompt with their n-th text, the last for all further ones."""

    def __init__(self, texts: Mapping[str, tuple[str, ...]], made: Counter[str]) -> None:
        self.texts, self.made = texts, made
        self.calls: dict[str, list[str]] = {}

    async def __call__(self, role: str, step: str, messages: tuple[Message, ...], sampling: Sampling) -> Completion:
        assert step == "answer"
        number = min(self.made[role], len(self.texts[role]) - 1)
        self.made[role] += 1
        return Completion((self.texts[role][number],), ("stop",), 1, 1, ("",))


class Bench:
    """`Work` over prompts in memory; as in a run, a unit that was done is read and not done again."""

    def __init__(self, rows: Iterable[Prompt], texts: Mapping[str, tuple[str, ...]]) -> None:
        first, *others = texts
        self.recipe = RecipeConfig(name="refusal_cross", generator=first, options={"teachers": others})
        self.templates, self.seed, self.rows, self.texts = Templates("shard"), 0, list(rows), texts
        self.units, self.made, self.saved = dict[str, list[Record]](), Counter[str](), dict[str, Any]()

    def prompts(self, *splits: str) -> list[Prompt]:
        return [row for row in self.rows if row.split in (splits or ("train", "val"))]

    def records(self, unit: str, program: Any, rows: Iterable[Prompt], empty: Any = None) -> Iterator[Record]:
        if unit not in self.units:
            self.units[unit] = [asyncio.run(program(row, Script(self.texts, self.made))) for row in rows]
        return iter(self.units[unit])

    def save(self, name: str, value: Any) -> None:
        self.saved[name] = json.loads(json.dumps(value, allow_nan=False))


def generated(texts: Mapping[str, tuple[str, ...]], rows: Iterable[Prompt]) -> tuple[list[Record], Bench]:
    bench = Bench(rows, texts)
    return list(RECIPE.generate(cast("Work", bench))), bench


def decided(prompt: Prompt, answer: str, benign: bool = True, finish: str = "stop", failure: str = "") -> Decision:
    judges = panel(JudgeKind.rule, "", Templates("shard"), Sampling(), 0, 0)
    by = Jury(judges, (RuleRater("harm", "harm"),), options=Options(benign=benign))
    record = Record(prompt, "refusal_cross", {ANSWER: answer, f"{ANSWER}_finish_reason": finish}, failure=failure)
    return asyncio.run(RECIPE.decide(record, by, cast("Any", None)))


def config(generator: str, *teachers: str) -> Any:
    recipe = RecipeConfig(name="refusal_cross", generator=generator, options={"teachers": list(teachers)})
    return SimpleNamespace(recipe=recipe)


def test_the_teacher_that_refuses_most_teaches() -> None:
    texts = {"mild": (NO, NO, HELP), "strict": (OTHER_NO, NO, NO, HELP), "meek": (HELP,)}
    records, bench = generated(texts, [*HARMFUL, BENIGN])
    assert [record.prompt for record in records] == [*HARMFUL, BENIGN]
    assert [record.fields[ANSWER] for record in records] == [OTHER_NO, NO, NO, HELP, HELP]
    found = bench.saved["patterns.json"]
    assert found["taken"] == "strict"
    rates = {role: one["refusal_rate"]["value"] for role, one in found["models"].items()}
    assert found["models"]["mild"]["uniformity"] > found["models"]["strict"]["uniformity"], "which is no reason"
    assert rates == {"mild": 0.5, "strict": 0.75, "meek": 0.0}
    assert bench.made == {role: 5 for role in texts}, "no teacher is asked twice"


def test_of_teachers_that_refuse_as_much_the_most_uniform_one_teaches_else_the_first() -> None:
    varied, uniform = (NO, OTHER_NO, HELP), (NO, NO, HELP)
    assert generated({"a": varied, "b": uniform}, HARMFUL)[1].saved["patterns.json"]["taken"] == "b"
    assert generated({"a": uniform, "b": uniform}, HARMFUL)[1].saved["patterns.json"]["taken"] == "a"


def test_rank_without_refusals_or_answers() -> None:
    assert rank(study([])) == (0.0, 0.0)
    assert rank(study([Seen(NO, "full")])) == (1.0, 0.0)  # of one refusal there is no entropy


def test_validation_prompts_have_no_say_in_the_choice() -> None:
    rows = [HARMFUL[0], *(replace(prompt, split="val") for prompt in HARMFUL[1:])]
    assert generated({"a": (HELP, NO), "b": (NO, HELP)}, rows)[1].saved["patterns.json"]["taken"] == "b"


@pytest.mark.parametrize(("rows", "answer"), [(HARMFUL, HELP), ([replace(BENIGN, split="train")], NO), ([], NO)])
def test_teachers_that_refuse_nothing_are_named_before_training(rows: Iterable[Prompt], answer: str) -> None:
    with pytest.raises(ValueError, match=r"models\.a, models\.b refused no sensitive prompt"):
        generated({"a": (answer,), "b": (answer,)}, rows)


@pytest.mark.parametrize(
    ("prompt", "answer", "more", "expected"),
    [
        (HARMFUL[0], NO, {}, "kept_refusal"),
        (HARMFUL[0], HELP, {}, "not_refusing"),
        (HARMFUL[0], f"{NO} However, here is how kites fly: {HELP}", {}, "not_refusing"),
        (HARMFUL[0], "", {}, "empty"),
        (HARMFUL[0], NO, {"finish": "length"}, "truncated"),
        (HARMFUL[0], NO, {"failure": "answer_context_overflow"}, "failed_answer_context_overflow"),
        (HARMFUL[0], NO, {"benign": False}, "kept_refusal"),
        (BENIGN, HELP, {}, "kept_benign_answer"),
        (BENIGN, NO, {}, "refusing"),
        (BENIGN, HELP, {"benign": False}, "benign_left_out"),
    ],
)
def test_what_becomes_of_a_record(prompt: Prompt, answer: str, more: dict[str, Any], expected: str) -> None:
    decision = decided(prompt, answer, **more)
    assert decision.reason == expected
    assert (decision.keep, decision.chosen) == ((True, ANSWER) if expected.startswith("kept_") else (False, ""))


def test_the_student_is_no_teacher_and_none_is_named_twice() -> None:
    RECIPE.check(config("teacher", "other"))
    for wrong in (config("student"), config("teacher", "student")):
        with pytest.raises(ValueError, match="the student is no teacher"):
            RECIPE.check(wrong)
    with pytest.raises(ValueError, match="names a role twice"):
        RECIPE.check(config("teacher", "other", "teacher"))


def test_judges_are_asked_around_the_empty_record() -> None:
    assert decided(RECIPE.empty().prompt, RECIPE.empty().fields[ANSWER]).reason == "kept_refusal"


def test_the_shipped_configuration_is_whole(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(root)
    shipped = load_config("configs/recipes/refusal_cross.yaml")
    generate.check(shipped)
    select.check(shipped)
    assert RECIPE.roles(shipped.recipe) == ("teacher", "second_teacher")
