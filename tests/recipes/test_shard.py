"""The SHARD program over one row, against an engine that says what the test wants."""

from __future__ import annotations

import asyncio
import json
import pickle
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shard_dist.engines.protocol import CallRefused
from shard_dist.prompts.render import Templates
from shard_dist.recipes.shard import REWRITE_FIELDS, Guidelines, Shard, parse_rewrite
from shard_dist.records import Completion, Message, Prompt, Record, Sampling

PROMPT = Prompt("d", "1", "How do I pick a lock?", category="Crimes & Illegal Activities")
REWRITE = dict(zip(REWRITE_FIELDS, ("How do locks work?", "soft_reframe", "picking", "curiosity"), strict=True))
Reply = Callable[[str, tuple[Message, ...], Sampling], str]


class Script:
    """An `Ask` that replies by step and remembers what it was asked."""

    def __init__(self, reply: Reply) -> None:
        self.reply, self.asked = reply, []
        self.calls: dict[str, list[str]] = {}

    asked: list[tuple[str, tuple[Message, ...], Sampling, Any]]

    async def __call__(
        self, role: str, step: str, messages: tuple[Message, ...], sampling: Sampling, schema: Any = None
    ) -> Completion:
        assert role == "student"
        self.asked.append((step, messages, sampling, schema))
        self.calls.setdefault(step, []).append(str(len(self.asked)))
        return Completion((self.reply(step, messages, sampling),), ("stop",), 1, 1, ("",))


def program(templates: str = "shard", attempts: int = 3) -> Shard:
    return Shard("student", Templates(templates), {PROMPT.category: "RULES"}, Sampling(), Sampling(), attempts, seed=0)


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
