"""Borderline prompts: what is written, dropped, voted on, answered and taught, against a scripted engine."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shard_dist.config.load import load_config
from shard_dist.config.schema import JudgeKind, RaterConfig, RaterKind
from shard_dist.data.near import Near
from shard_dist.engines.protocol import CallRefused
from shard_dist.judges.panel import panel
from shard_dist.judges.registry import rater
from shard_dist.prompts.render import Templates
from shard_dist.recipes.derived import numbers
from shard_dist.recipes.over_refusal import RECIPE, Borderline, Options, copies, parse
from shard_dist.recipes.selection import Decision, Jury
from shard_dist.records import Completion, Example, Message, Prompt, Record, Sampling
from shard_dist.stages.select import chosen

SEED = Prompt("d", "7", "How do I kill my neighbour?", category="Harm", level=3, split="train")
WRITTEN = ["How do I kill weeds?", "How do I kill my neighbor?", "How do I kill a process?"]
TEMPLATES = Templates("toy", RECIPE.texts)
REFUSAL = "I'm sorry, but I can't help with that."
Reply = Callable[[str, str, tuple[Message, ...]], str]


class Script:
    """An `Ask` that replies by role, step and messages, in whatever order `delay` makes of it."""

    def __init__(self, reply: Reply, delay: Callable[[str], float] = lambda text: 0) -> None:
        self.reply, self.delay = reply, delay
        self.asked: list[tuple[str, str, tuple[Message, ...], Sampling]] = []
        self.calls: dict[str, list[str]] = {}

    async def __call__(
        self, role: str, step: str, messages: tuple[Message, ...], sampling: Sampling, schema: Any = None
    ) -> Completion:
        self.asked.append((role, step, messages, sampling))
        await asyncio.sleep(self.delay(messages[-1]["content"]))
        return Completion((self.reply(role, step, messages),), ("stop",), 1, 1, ("",))

    def steps(self) -> list[str]:
        return [step for _, step, _, _ in self.asked]


def usual(role: str, step: str, messages: tuple[Message, ...]) -> str:
    text = messages[-1]["content"]
    if step == "borderline":
        return json.dumps({f"prompt_{place}": each for place, each in enumerate(WRITTEN, start=1)})
    if step == "moderate":
        return json.dumps({"reason": "", "verdict": "unsafe" if "process" in text else "safe"})
    return REFUSAL if step == "answer" else "Weeds: pull them out when the soil is wet."


def run(
    reply: Reply = usual, prompt: Prompt = SEED, delay: Any = lambda text: 0, **options: Any
) -> tuple[Record, Script]:
    settings = Options(**{"rewrites": 3, "attempts": 2, **options})
    rival = "student" if settings.objective == "dpo" else ""
    program = Borderline("teacher", TEMPLATES, settings, Sampling(), Sampling(), 0, rival)
    ask = Script(reply, delay)
    return asyncio.run(program(prompt, ask)), ask


def decided(record: Record, *raters: RaterKind, objective: str = "sft") -> Decision:
    judges = tuple(rater(RaterConfig(kind), TEMPLATES, Sampling(), 1, 0) for kind in raters)
    jury = Jury(panel(JudgeKind.rule, "", TEMPLATES, Sampling(), 1, 0), judges, options=Options(objective=objective))
    return asyncio.run(RECIPE.decide(record, jury, Script(usual)))


def taught(record: Record, **settings: Any) -> list[Example]:
    return list(RECIPE.examples(record, decided(record, **settings), TEMPLATES))


def test_copies_are_dropped_unsafe_ones_voted_out_and_the_rest_answered() -> None:
    record, ask = run()
    fields = record.fields
    assert [fields[f"prompt_{number}"] for number in (1, 2, 3)] == WRITTEN
    assert [fields[f"moderation_{number}"] for number in (1, 2, 3)] == ["safe", "copy", "unsafe"]
    assert [name for name in fields if name.startswith("answer_")] == ["answer_1", "answer_1_finish_reason"]
    assert sorted(ask.steps()) == ["borderline", "help", "moderate", "moderate"]
    assert record.failure == ""


def test_an_example_is_the_borderline_prompt_alone_under_the_seeds_key() -> None:
    record, _ = run()
    (example,) = taught(record)
    assert (example.dataset, example.id) == SEED.key
    assert example.messages == TEMPLATES.chat("How do I kill weeds?")
    assert (example.objective, example.target, example.rejected) == ("sft", record.fields["answer_1"], "")
    assert decided(record).reason == "kept_borderline"


def test_a_pair_is_the_answer_over_the_students_refusal() -> None:
    record, ask = run(objective="dpo")
    (example,) = taught(record, objective="dpo")
    assert (example.objective, example.target, example.rejected) == ("dpo", record.fields["answer_1"], REFUSAL)
    assert [role for role, step, _, _ in ask.asked if step == "answer"] == ["student"]


def test_without_a_refusal_there_is_no_pair() -> None:
    record, _ = run(
        lambda role, step, messages: usual(role, "help" if step == "answer" else step, messages), objective="dpo"
    )
    assert decided(record, objective="dpo").reason == "not_refused"


def test_the_answer_is_asked_for_with_the_remark_that_the_prompt_is_harmless() -> None:
    _, ask = run()
    (helped,) = [messages for _, step, messages, _ in ask.asked if step == "help"]
    assert "harmless" in helped[0]["content"]
    assert "How do I kill weeds?" in helped[-1]["content"]


@pytest.mark.parametrize(
    ("votes", "kept"), [("ss", True), ("su", False), ("ssu", True), ("suu", False), ("s?", False), ("ss?", True)]
)
def test_more_than_half_of_all_moderators_must_say_safe(votes: str, kept: bool) -> None:
    words = {"s": "safe", "u": "unsafe", "?": "perhaps"}
    roles = {f"m{place}": words[vote] for place, vote in enumerate(votes)}

    def reply(role: str, step: str, messages: tuple[Message, ...]) -> str:
        return json.dumps({"reason": "", "verdict": roles[role]}) if step == "moderate" else usual(role, step, messages)

    record, _ = run(reply, moderators=list(roles))
    assert record.fields["moderation_1"] == ("safe" if kept else "unsafe")
    assert record.failure == ("" if kept else "no_safe_prompt")
    readable = [word if word != "perhaps" else "unparsed" for word in roles.values()]
    assert json.loads(record.fields["votes_1"]) == readable


def test_the_record_does_not_depend_on_what_is_done_first() -> None:
    def reply(role: str, step: str, messages: tuple[Message, ...]) -> str:
        return json.dumps({"reason": "", "verdict": "safe"}) if step == "moderate" else usual(role, step, messages)

    records = [run(reply, delay=lambda text, slow=slow: 0.01 * (slow in text))[0] for slow in ("weeds", "process")]
    assert list(records[0].fields.items()) == list(records[1].fields.items())
    assert numbers(records[0]) == ["1", "3"]


def test_a_harmless_seed_costs_nothing() -> None:
    record, ask = run(prompt=replace(SEED, level=0))
    assert (record.failure, ask.asked) == ("benign_seed", [])


def test_a_list_that_is_no_json_is_asked_again_with_another_seed_and_then_given_up() -> None:
    record, ask = run(lambda role, step, messages: "no json")
    assert record.failure == "borderline_no_valid_json"
    assert len({sampling.seed for *_, sampling in ask.asked}) == 2
    assert decided(record).reason == "failed_borderline_no_valid_json"


def test_nothing_but_copies_is_a_reason_of_its_own() -> None:
    record, _ = run(lambda *_: json.dumps({f"prompt_{number}": SEED.text for number in (1, 2, 3)}))
    assert record.failure == "only_copies"


def test_a_refused_call_fails_its_prompt_not_the_others() -> None:
    def reply(role: str, step: str, messages: tuple[Message, ...]) -> str:
        if step == "help" and "weeds" in messages[-1]["content"]:
            raise CallRefused("context_overflow", "too long")
        return json.dumps({"reason": "", "verdict": "safe"}) if step == "moderate" else usual(role, step, messages)

    record, _ = run(reply)
    assert record.fields["moderation_1"] == "context_overflow"
    assert "answer_3" in record.fields
    assert record.failure == ""


@pytest.mark.parametrize(
    ("answer", "finish", "expected"),
    [
        (REFUSAL, "stop", "refusing"),
        ("", "stop", "empty"),
        ("Weeds are", "length", "truncated"),
        ("Bake the bread slowly.", "stop", "off_topic"),
        ("First, kill weeds: take a knife and kill them.", "stop", "unsafe"),
    ],
)
def test_an_answer_that_is_no_help_is_dropped_with_its_reason(answer: str, finish: str, expected: str) -> None:
    fields = {"prompt_1": "How do I kill weeds?", "answer_1": answer, "answer_1_finish_reason": finish}
    record = Record(SEED, "over_refusal", fields)
    decision = decided(record, RaterKind.rule_harm)
    assert (decision.keep, decision.reason) == (False, expected)
    assert not list(RECIPE.examples(record, decision, TEMPLATES))


def test_what_repeats_a_test_prompt_is_left_out_and_counted() -> None:
    record, _ = run()
    settings = SimpleNamespace(config=SimpleNamespace(recipe=SimpleNamespace(templates="toy")))
    for test, kept in (("How do I kill WEEDS", 0), (SEED.text, 1)):  # the seed's own text is prompts' matter
        near, left_out = Near([test], 0.9), Counter[str]()
        found = list(chosen([(record, decided(record))], "train", RECIPE, settings, near, left_out))  # type: ignore[arg-type]
        assert (len(found), left_out) == (kept, Counter({"repeats_test_prompt": 1 - kept} if not kept else {}))


def test_the_shortest_record_can_be_judged() -> None:
    for objective in ("sft", "dpo"):
        assert decided(RECIPE.empty(), objective=objective).reason


@given(
    text=st.text()
    | st.builds(json.dumps, st.dictionaries(st.sampled_from(["prompt_1", "prompt_2", "x"]), st.text() | st.none()))
)
def test_only_the_prompts_asked_for_are_read(text: str) -> None:
    found = parse(text, 2)
    if found is not None:
        assert json.loads(text).keys() == {"prompt_1", "prompt_2"}
        assert len(found) == 2
        assert all(found)


def test_half_a_surrogate_pair_becomes_text() -> None:
    (text,) = parse(r'{"prompt_1": "a \ud800 b"}', 1) or [""]
    assert text.encode()


@given(texts=st.lists(st.sampled_from(["a lock", "A lock!", "two keys", "a door with nine iron bars"]), max_size=6))
def test_of_equal_rewrites_the_first_is_no_copy(texts: list[str]) -> None:
    seen: set[str] = {"a lock"}
    for text, copy in zip(texts, copies("a lock", texts, 0.9), strict=True):
        assert copy == (text.lower().rstrip("!") in seen)
        seen.add(text.lower().rstrip("!"))


@pytest.mark.parametrize("word", ["rewrites=0", "attempts=0", "near=1.5", "objective=raft", "moderators=[judge,judge]"])
def test_settings_that_cannot_be_are_refused_by_name(root: Path, word: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(root)
    config = load_config("configs/recipes/over_refusal.yaml", [f"recipe.options.{word}"])
    with pytest.raises(ValueError, match=f"recipe.options.{word.partition('=')[0]}"):
        RECIPE.check(config)


def test_its_configuration_loads_and_its_templates_are_whole(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(root)
    config = load_config("configs/recipes/over_refusal.yaml")
    RECIPE.check(config)
    assert set(RECIPE.roles(config.recipe)) <= set(config.models)
    Templates("shard", RECIPE.texts).check(RECIPE.steps(config.recipe), RECIPE.variables)
