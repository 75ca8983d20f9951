"""Two generators side by side: what is recorded, which answer is taken and why, and that no call is made twice."""

from __future__ import annotations

import asyncio
import json
import pickle
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from shard_dist.config.load import load_config
from shard_dist.config.schema import Config, ModelConfig, RecipeConfig
from shard_dist.engines.protocol import CallRefused, PutOff
from shard_dist.judges.panel import PairVerdict
from shard_dist.ledger.key import call_key
from shard_dist.prompts.render import Templates
from shard_dist.recipes.base import find
from shard_dist.recipes.selection import Decision, Jury
from shard_dist.recipes.shard import REWRITE_FIELDS
from shard_dist.recipes.shard_mixed import RECIPE, Mixed, Options
from shard_dist.records import Call, Completion, Message, Prompt, Record, Sampling
from shard_dist.stages import generate

PROMPT = Prompt("d", "1", "How do I pick a lock?", category="Crimes")
REWRITE = dict(zip(REWRITE_FIELDS, ("How do locks work?", "soft_reframe", "picking", "curiosity"), strict=True))


class Two:
    """An `Ask` of two models, which say who they are; calls named in `broken` raise."""

    def __init__(self, **broken: Exception) -> None:
        self.broken, self.keys, self.answered = broken, [], []
        self.calls: dict[str, list[str]] = {}

    keys: list[str]
    answered: list[str]

    async def __call__(
        self, role: str, step: str, messages: tuple[Message, ...], sampling: Sampling, schema: Any = None
    ) -> Completion:
        self.keys.append(call_key(Call(role, role, messages, sampling, schema)))
        self.calls.setdefault(step, []).append(self.keys[-1])
        if step in self.broken:
            raise self.broken[step]
        for _ in range(5):  # a refusal comes sooner
            await asyncio.sleep(0)
        self.answered.append(step)
        text = (
            json.dumps({**REWRITE, "preserved_benign_need": role})
            if schema
            else f"{role}: {step.removeprefix(f'{role}_')}"
        )
        return Completion((text,), ("stop",), 1, 1, (f"{role} thinks",))


class Work:
    """What recipes see of a run; programs run in this process. `keys` are those of all calls."""

    def __init__(self, name: str, **recipe: Any) -> None:
        self.recipe = RecipeConfig(name=name, **recipe)
        self.options = generate.options_of(self.recipe)
        self.templates, self.seed, self.keys, self.saved = Templates("shard"), 7, [], {}

    keys: list[str]
    saved: dict[str, Any]

    def prompts(self, *splits: str) -> list[Prompt]:
        return [PROMPT, replace(PROMPT, id="2", text="And a safe?")]

    def categories(self) -> list[str]:
        return ["Crimes"]

    def map(self, unit: str, program: Any, rows: list[Any], empty: Any = None) -> Iterator[Any]:
        for row in rows:
            ask = Two()
            yield asyncio.run(pickle.loads(pickle.dumps(program))(row, ask))
            self.keys += ask.keys

    records = map

    def save(self, name: str, value: Any) -> None:
        self.saved[name] = value


def made(name: str, **recipe: Any) -> tuple[list[Record], Work]:
    work = Work(name, **recipe)
    return list(find(name).generate(work)), work


def test_its_calls_are_those_of_a_run_with_either_generator() -> None:
    """The sweep's promise: beside those two arms it generates nothing."""
    _, mixed = made("shard_mixed")
    alone = [key for generator in ("student", "teacher") for key in made("shard", generator=generator)[1].keys]
    assert sorted(mixed.keys) == sorted(alone)
    assert len(set(alone)) == len(alone) == 2 * (1 + 2 * 3)  # guidelines, and three steps for each of two prompts


def test_an_ablation_shares_its_drafts_with_the_whole_method_and_makes_no_call_for_nothing() -> None:
    whole, bare = (made("shard", options={"rewrite": kept})[1].keys for kept in (True, False))
    assert len(bare) == 2 * 2  # draft and reframe for each of two prompts, and no guidelines
    assert len(set(whole) & set(bare)) == 2


def test_a_record_holds_what_both_wrote_under_their_names() -> None:
    (record, _), work = made("shard_mixed")
    for role in ("student", "teacher"):
        (alone, _), _ = made("shard", generator=role)
        own = {name.removeprefix(f"{role}_"): text for name, text in record.fields.items() if name.startswith(role)}
        assert own == alone.fields
        calls = {name.removeprefix(f"{role}_"): keys for name, keys in record.calls.items() if name.startswith(role)}
        assert {step: len(keys) for step, keys in calls.items()} == {"draft": 1, "rewrite": 1, "reframe": 1}
    assert (record.recipe, record.failure) == ("shard_mixed", "")
    assert work.saved["guidelines.json"] == {role: {"Crimes": f"{role}: guidelines"} for role in ("student", "teacher")}


def record_of(**broken: Exception) -> Record:
    programs = tuple(RECIPE.program(Work("shard_mixed", guidelines=False), role, role) for role in Options().generators)
    return asyncio.run(Mixed(programs)(PROMPT, Two(**broken)))


REFUSED = CallRefused("context_overflow", "too long")


def test_one_generators_failure_leaves_the_others_record() -> None:
    record = record_of(teacher_rewrite=REFUSED)
    assert (record.failure, record.fields["teacher_failure"]) == ("", "rewrite_context_overflow")
    assert record.fields["student_reframed"] == "student: reframe"
    record = record_of(student_reframe=REFUSED)
    assert (record.failure, record.fields["student_failure"]) == ("", "reframe_context_overflow")


@pytest.mark.parametrize(
    ("broken", "failure"),
    [
        (("student_draft",), "student_draft_context_overflow"),
        (("student_rewrite", "teacher_draft"), "student_rewrite_context_overflow"),
    ],
)
def test_without_the_students_draft_or_any_answer_the_record_fails(broken: tuple[str, ...], failure: str) -> None:
    assert record_of(**dict.fromkeys(broken, REFUSED)).failure == failure


def test_a_role_that_has_its_turn_later_puts_the_row_off_when_the_other_is_done() -> None:
    ask = Two(teacher_draft=PutOff(), teacher_rewrite=PutOff())
    programs = tuple(RECIPE.program(Work("shard_mixed", guidelines=False), role, role) for role in Options().generators)
    with pytest.raises(PutOff):
        asyncio.run(Mixed(programs)(PROMPT, ask))
    assert ask.answered[-1] == "student_reframe"


FIELDS = {
    "student_draft": "I can't help with that.",
    "student_reframed": "A student's answer about locks and pins.",
    "teacher_reframed": "A teacher's answer about locks and pins.",
}


class Panel:
    """Judges whose verdicts are given: (question, first, second) -> verdict, tie where nothing is said."""

    asks = True

    def __init__(self, **verdicts: str) -> None:
        self.verdicts, self.asked = verdicts, []

    asked: list[tuple[str, str, str]]

    async def on_topic(self, prompt: Prompt, answer: str, ask: Any) -> str:
        return "yes"

    async def compare(self, question: str, prompt: Prompt, a: str, b: str, ask: Any) -> PairVerdict:
        names = [next(name.partition("_")[0] for name, text in FIELDS.items() if text == each) for each in (a, b)]
        against_draft = a == FIELDS["student_draft"]
        usual = "b" if against_draft and question == "helpfulness" else "tie"
        self.asked.append((question, names[0] if not against_draft else "draft", names[1]))
        verdict = self.verdicts.get("_".join(self.asked[-1]), usual)
        return PairVerdict(question, verdict, verdict, verdict, "so")


def decided(fields: dict[str, str] = FIELDS, failure: str = "", **verdicts: str) -> tuple[Decision, Panel]:
    panel = Panel(**verdicts)
    record = Record(PROMPT, "shard_mixed", fields, failure=failure)
    return asyncio.run(RECIPE.decide(record, Jury(panel, options=Options()), Two())), panel


HARM, HELP = "harm_student_teacher", "helpfulness_student_teacher"


@pytest.mark.parametrize(
    ("verdicts", "role"),
    [
        ({}, "student"),  # a tie
        ({HELP: "a"}, "student"),
        ({HELP: "b"}, "teacher"),
        ({HELP: "unparsed"}, "student"),
        ({HARM: "a"}, "teacher"),  # the student's is the more harmful one
        ({HARM: "a", HELP: "a"}, "teacher"),
        ({HARM: "b", HELP: "b"}, "student"),
        ({HARM: "unparsed", HELP: "b"}, "student"),
    ],
)
def test_of_two_good_answers_the_less_harmful_then_the_more_helpful_is_taken(
    verdicts: dict[str, str], role: str
) -> None:
    decision, _ = decided(**verdicts)
    assert (decision.keep, decision.reason) == (True, f"kept_from_{role}")
    assert decision.chosen == f"{role}_reframed"
    (example,) = RECIPE.examples(Record(PROMPT, "shard_mixed", FIELDS), decision, Templates("shard"))
    assert example.target == FIELDS[f"{role}_reframed"]


@pytest.mark.parametrize(("good", "bad"), [("student", "teacher"), ("teacher", "student")])
def test_an_answer_that_fails_the_gate_leaves_the_other(good: str, bad: str) -> None:
    decision, panel = decided(**{f"harm_draft_{bad}": "b"})
    assert (decision.reason, decision.chosen) == (f"kept_from_{good}", f"{good}_reframed")
    assert not [asked for asked in panel.asked if "draft" not in asked], "the two are not compared"


@pytest.mark.parametrize(("good", "bad"), [("student", "teacher"), ("teacher", "student")])
def test_a_generator_that_failed_leaves_the_other(good: str, bad: str) -> None:
    fields = {name: text for name, text in FIELDS.items() if name != f"{bad}_reframed"}
    assert decided({**fields, f"{bad}_failure": "rewrite_no_valid_json"})[0].reason == f"kept_from_{good}"


def test_where_neither_passes_the_reason_is_the_students() -> None:
    assert decided(helpfulness_draft_student="tie", harm_draft_teacher="b")[0].reason == "tie"
    assert decided(helpfulness_draft_student="a", helpfulness_draft_teacher="a")[0].reason == "not_more_helpful"
    assert decided({}, failure="student_draft_context_overflow")[0].reason == "failed_student_draft_context_overflow"
    lone = {"student_draft": "x", "student_failure": "rewrite_no_valid_json"}
    assert decided(lone)[0].reason == "failed_rewrite_no_valid_json"


def test_its_configuration_has_the_calls_of_the_two_others(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(root)
    mixed = load_config("configs/recipes/shard_mixed.yaml")
    generate.check(mixed)
    assert RECIPE.roles(mixed.recipe) == ("student", "teacher")
    for other in ("shard", "shard_teacher"):
        config = load_config(f"configs/recipes/{other}.yaml")
        for name in ("answer_sampling", "rewrite_sampling", "guideline_sampling", "guidelines", "rewrite_attempts"):
            assert getattr(config.recipe, name) == getattr(mixed.recipe, name)
        assert config.models[config.recipe.generator] == mixed.models[config.recipe.generator]


MODELS = {"student": ModelConfig(model="student/8b"), "teacher": ModelConfig(model="teacher/70b")}


@pytest.mark.parametrize(
    ("recipe", "models", "expected"),
    [
        ({"options": {"generators": ["student"]}}, {}, "it is the student and one other role"),
        ({"options": {"generators": ["student", "student"]}}, {}, "it is the student and one other role"),
        ({"options": {"generators": ["teacher", "other"]}}, {"other": MODELS["teacher"]}, "it is the student and one"),
        ({"options": {"generators": ["student", "nobody"]}}, {}, "models.nobody is missing"),
        ({"generator": "teacher"}, {}, "recipe.generator has no effect"),
        ({}, {"teacher": MODELS["student"]}, "models.teacher is the student itself"),
        ({"options": {"rewrite": False, "draft": False}}, {}, "leaves nothing to reframe"),
        ({"options": {"thinking": True}}, {}, "needs models.student.reasoning_parser"),
    ],
)
@pytest.mark.filterwarnings("ignore:models.teacher is used by nothing")
def test_settings_that_contradict_each_other_are_refused(
    recipe: dict[str, Any], models: dict[str, ModelConfig], expected: str
) -> None:
    config = Config(models=MODELS | models, recipe=RecipeConfig(name="shard_mixed", **recipe))
    with pytest.raises(ValueError, match=expected):
        generate.check(config)
