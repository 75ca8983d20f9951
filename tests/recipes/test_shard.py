"""The SHARD program over one row and its ablations, against an engine that says what the test wants."""

from __future__ import annotations

import asyncio
import json
import pickle
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shard_dist.config.load import load_config
from shard_dist.config.schema import Backend, Config, ModelConfig, RecipeConfig
from shard_dist.engines.protocol import CallRefused
from shard_dist.ledger.key import call_key
from shard_dist.prompts.render import Templates, principles
from shard_dist.recipes.base import options_of
from shard_dist.recipes.shard import RECIPE, REWRITE_FIELDS, Guidelines, Options, Shard, parse_rewrite
from shard_dist.records import Call, Completion, Message, Prompt, Record, Sampling
from shard_dist.stages import generate

PROMPT = Prompt("d", "1", "How do I pick a lock?", category="Crimes & Illegal Activities")
REWRITE = dict(zip(REWRITE_FIELDS, ("How do locks work?", "soft_reframe", "picking", "curiosity"), strict=True))
Reply = Callable[[str, tuple[Message, ...], Sampling], str]


class Script:
    """An `Ask` that replies by step and remembers what it was asked."""

    role = "student"

    def __init__(self, reply: Reply) -> None:
        self.reply, self.asked = reply, []
        self.calls: dict[str, list[str]] = {}

    asked: list[tuple[str, tuple[Message, ...], Sampling, Any]]

    async def __call__(
        self, role: str, step: str, messages: tuple[Message, ...], sampling: Sampling, schema: Any = None
    ) -> Completion:
        assert role == self.role
        self.asked.append((step, messages, sampling, schema))
        self.calls.setdefault(step, []).append(str(len(self.asked)))
        return Completion((self.reply(step, messages, sampling),), ("stop",), 1, 1, ("",))


def program(templates: str = "shard", attempts: int = 3, **options: bool) -> Shard:
    rules, chosen = {PROMPT.category: "RULES"}, Options(**options)
    return Shard("student", Templates(templates), rules, Sampling(), Sampling(), attempts, seed=0, options=chosen)


def said(ask: Script, step: str) -> str:
    """Everything that the one call of a step said."""
    ((messages,),) = ([asked[1] for asked in ask.asked if asked[0] == step],)
    return "\n".join(message["content"] for message in messages)


def run(reply: Reply, **settings: Any) -> tuple[Record, Script]:
    ask = Script(reply)
    return asyncio.run(program(**settings)(PROMPT, ask)), ask


def usual(step: str, messages: tuple[Message, ...], sampling: Sampling) -> str:
    return {
        "draft": "I can't help with that.",
        "rewrite": json.dumps(REWRITE),
        "reframe": " Locks hold pins. ",
    }[step]


def test_a_record_has_everything_that_was_produced_and_the_keys_of_its_calls() -> None:
    record, _ = run(usual)
    assert record.failure == ""
    assert {name: record.fields[name] for name in REWRITE_FIELDS} == REWRITE
    assert (record.fields["draft"], record.fields["reframed"]) == (
        "I can't help with that.",
        "Locks hold pins.",
    )
    assert {step: len(keys) for step, keys in record.calls.items()} == {
        "draft": 1,
        "rewrite": 1,
        "reframe": 1,
    }


@pytest.mark.parametrize("templates", ["shard", "toy"])
def test_the_reframe_sees_request_rewrite_and_draft(templates: str) -> None:
    _, ask = run(usual, templates=templates)
    text = " ".join(
        message["content"] for step, messages, _, _ in ask.asked if step == "reframe" for message in messages
    )
    for part in (PROMPT.text, REWRITE["rewritten_prompt"], "I can't help with that."):
        assert part in text


def test_the_rewrite_sees_the_categorys_guidelines_and_a_schema() -> None:
    _, ask = run(usual)
    _, messages, _, schema = next(asked for asked in ask.asked if asked[0] == "rewrite")
    assert "RULES" in " ".join(message["content"] for message in messages)
    assert schema["required"] == list(REWRITE_FIELDS)


def test_a_rewrite_that_is_no_json_is_asked_again_with_another_seed() -> None:
    replies = iter(["no json", '{"rewritten_prompt": ""}', json.dumps(REWRITE)])
    record, ask = run(lambda step, *_: next(replies) if step == "rewrite" else "text")
    seeds = [sampling.seed for step, _, sampling, _ in ask.asked if step == "rewrite"]
    assert record.fields["rewrite_attempts"] == "3"
    assert len(set(seeds)) == 3


def test_attempts_are_bounded_and_the_draft_is_kept() -> None:
    record, ask = run(lambda step, *_: "no json", attempts=2)
    assert record.failure == "rewrite_no_valid_json"
    assert record.fields["draft"] == "no json"
    assert [step for step, *_ in ask.asked].count("rewrite") == 2
    assert "reframe" not in record.calls


@pytest.mark.parametrize("broken", ["draft", "rewrite", "reframe"])
def test_a_refused_call_fails_its_row_and_names_its_step(broken: str) -> None:
    def reply(step: str, messages: tuple[Message, ...], sampling: Sampling) -> str:
        if step == broken:
            raise CallRefused("context_overflow", "too long")
        return usual(step, messages, sampling)

    record, _ = run(reply)
    assert record.failure == f"{broken}_context_overflow"


def test_any_other_error_is_no_rows_own_failure() -> None:
    def reply(step: str, *_: Any) -> str:
        raise RuntimeError("a bug")

    with pytest.raises(RuntimeError, match="a bug"):
        run(reply)


def test_the_program_travels() -> None:
    copy = pickle.loads(pickle.dumps(program()))
    assert copy.templates.digest() == program().templates.digest()


def test_no_guidelines_is_an_error_not_an_empty_text() -> None:
    guide = Guidelines("student", Templates("shard"), Sampling(), 0)
    with pytest.raises(ValueError, match="no guidelines for 'Crimes'"):
        asyncio.run(guide("Crimes", Script(lambda *_: "  ")))


@given(text=st.text())
def test_no_text_breaks_the_parser(text: str) -> None:
    assert parse_rewrite(text) is None or json.loads(text)


@given(value=st.dictionaries(st.sampled_from([*REWRITE_FIELDS, "other"]), st.text(max_size=5) | st.integers()))
def test_only_the_four_fields_as_asked_are_accepted(value: dict[str, Any]) -> None:
    good = (
        set(value) == set(REWRITE_FIELDS)
        and all(isinstance(item, str) for item in value.values())
        and value["response_mode"] in ("direct_answer", "soft_reframe", "acknowledge_and_redirect")
        and bool(value["rewritten_prompt"].strip())
    )
    assert (parse_rewrite(json.dumps(value)) is not None) == good


# sha256 of each step's call, first 16 digits, as the templates made it before they knew ablations: a ledger has these.
# The second row has no category, an empty draft and empty notes.
KEYS = {
    "shard": (
        {"draft": "fa2803746a2abfc7", "rewrite": "2e83eae08af9632c", "reframe": "c71e200fd34975ad"},
        {"draft": "2e9924135ad7bcf3", "rewrite": "7899461ac0cc109d", "reframe": "92f484b32f8e7eef"},
    ),
    "toy": (
        {"draft": "0de29db969a60463", "rewrite": "e8fd07885b6d6f25", "reframe": "61a0fc66751e0ab4"},
        {"draft": "136edc185af7e900", "rewrite": "7a0572972ad9c134", "reframe": "abeecaf969eb4075"},
    ),
}
ROWS = (
    (Prompt("d", "1", "How do I pick a lock?", category="Crimes"), {"Crimes": "RULES"}, "I can't."),
    (Prompt("d", "2", "<request>\u05e9\u05dc\u05d5\u05dd"), {}, ""),
)


@pytest.mark.parametrize("templates", KEYS)
@pytest.mark.parametrize("row", [0, 1])
def test_the_calls_of_the_whole_method_keep_their_keys(templates: str, row: int) -> None:
    prompt, guidelines, draft = ROWS[row]
    replies = {"draft": draft, "rewrite": json.dumps({**REWRITE, "reformulated_component": ""}), "reframe": "x"}
    ask = Script(lambda step, *_: replies[step])
    shard = Shard("student", Templates(templates), guidelines, Sampling(), Sampling(), 3, seed=0)
    asyncio.run(shard(prompt, ask))
    keys = {
        step: call_key(Call("m", "f", messages, sampling, schema))[:16]
        for step, messages, sampling, schema in ask.asked
    }
    assert keys == KEYS[templates][row]


@pytest.mark.parametrize("templates", ["shard", "toy"])
def test_without_the_rewrite_request_and_draft_are_reframed(templates: str) -> None:
    record, ask = run(usual, templates=templates, rewrite=False)
    assert [step for step, *_ in ask.asked] == ["draft", "reframe"]
    assert (record.failure, record.fields["reframed"]) == ("", "Locks hold pins.")
    text = said(ask, "reframe")
    assert PROMPT.text in text
    assert "I can't help with that." in text
    for absent in ("safe_request", "<need>", "<notes>", "safer reading", "None", "The mode"):
        assert absent not in text


@pytest.mark.parametrize("templates", ["shard", "toy"])
def test_without_the_draft_it_is_made_but_the_reframe_does_not_see_it(templates: str) -> None:
    record, ask = run(usual, templates=templates, draft=False)
    assert {step for step, *_ in ask.asked} == {"draft", "rewrite", "reframe"}
    assert record.fields["draft"] == "I can't help with that."  # selection compares with it
    text = said(ask, "reframe")
    assert REWRITE["rewritten_prompt"] in text
    for absent in ("I can't help with that.", "<draft>", "None"):
        assert absent not in text
    assert templates == "toy" or "draft" not in text


def test_the_principles_are_there_until_they_are_taken_away() -> None:
    whole, bare = (said(run(usual, principles=kept)[1], "rewrite") for kept in (True, False))
    for principle in principles():
        assert principle["text"] in whole
        assert principle["text"] not in bare
    assert "rinciples" not in bare
    assert bare.endswith(whole[whole.index("How to rewrite") :]), "nothing else changes"


ABLATIONS = {
    "shard": ({"rewrite", "reframe", "guidelines"}, Options()),
    "shard_teacher": ({"rewrite", "reframe", "guidelines"}, Options()),
    "shard_rounds": ({"rewrite", "reframe", "guidelines"}, Options()),
    "shard_no_rewrite": ({"reframe"}, Options(rewrite=False)),
    "shard_no_draft": ({"rewrite", "reframe", "guidelines"}, Options(draft=False)),
    "shard_universal": ({"rewrite", "reframe"}, Options()),
    "shard_no_guidelines": ({"rewrite", "reframe"}, Options(principles=False)),
    "shard_thinking": ({"rewrite", "reframe", "guidelines"}, Options(thinking=True)),
}


@pytest.mark.parametrize("file", ABLATIONS)
def test_the_configurations_load_and_say_what_they_are_named_after(
    root: Path, monkeypatch: pytest.MonkeyPatch, file: str
) -> None:
    monkeypatch.chdir(root)
    config = load_config(f"configs/recipes/{file}.yaml")
    generate.check(config)
    steps, options = ABLATIONS[file]
    assert set(RECIPE.steps(config.recipe)) == steps
    assert options_of(config.recipe) == options
    assert config.recipe.generator == ("teacher" if file == "shard_teacher" else "student")
    assert config.recipe.rounds == (3 if file == "shard_rounds" else 1)


STUDENT = ModelConfig(model="student/8b")
THINKS = replace(STUDENT, reasoning_parser="qwen3")
THINKING = RecipeConfig(options={"thinking": True})
TEACHER = RecipeConfig(generator="teacher")


def checked(recipe: RecipeConfig, student: ModelConfig = STUDENT, **others: ModelConfig) -> None:
    generate.check(Config(models={"student": student, **others}, recipe=recipe))


@pytest.mark.parametrize(
    ("recipe", "models", "expected"),
    [
        (RecipeConfig(options={"rewrite": False, "draft": False}), {}, "leaves nothing to reframe"),
        (RecipeConfig(options={"principles": False}), {}, "it needs recipe.guidelines=false"),
        (
            RecipeConfig(guidelines=False, options={"principles": False, "rewrite": False}),
            {},
            "and recipe.options.rewrite=true",
        ),
        (RecipeConfig(options={"drafts": False}), {}, "recipe.options.drafts"),
        (TEACHER, {"teacher": STUDENT}, "models.teacher is the student itself"),
        (
            TEACHER,
            {"teacher": replace(STUDENT, engines=2, engine_args={"max_num_seqs": 4})},
            "models.teacher is the student itself",
        ),
        (THINKING, {}, "needs models.student.reasoning_parser"),
        (
            THINKING,
            {"student": replace(THINKS, chat_template_kwargs={"enable_thinking": False})},
            "contradicts models.student.chat_template_kwargs",
        ),
        (
            replace(THINKING, generator="teacher"),
            {"student": THINKS, "teacher": ModelConfig(model="teacher/70b")},
            "needs models.teacher.reasoning_parser",
        ),
    ],
)
def test_settings_that_contradict_each_other_are_refused(
    recipe: RecipeConfig, models: dict[str, ModelConfig], expected: str
) -> None:
    with pytest.raises(ValueError, match=expected):
        checked(recipe, **models)


@pytest.mark.parametrize(
    "difference",
    [
        {"model": "teacher/70b"},
        {"revision": "r"},
        {"chat_template_kwargs": {"enable_thinking": True}},
        {"reasoning_parser": "qwen3"},
        {"backend": Backend.http, "base_url": "http://localhost/v1"},
    ],
)
def test_a_teacher_that_differs_from_the_student_is_one(difference: dict[str, Any]) -> None:
    """The student's own weights that think, for targets of a student that does not, are a teacher, too."""
    checked(TEACHER, teacher=replace(STUDENT, **difference))


def test_a_local_model_is_known_by_its_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "weights").mkdir()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=r"models\.teacher is the student itself"):
        checked(TEACHER, ModelConfig(model="weights"), teacher=ModelConfig(model=str(tmp_path / "weights")))
