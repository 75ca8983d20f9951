"""Guide-Align: detection, guidelines, library and look-up, guided answers, and what is trained on."""

from __future__ import annotations

import asyncio
import json
import pickle
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shard_dist.artefacts import read_json, write_json
from shard_dist.config.load import load_config
from shard_dist.config.schema import RecipeConfig
from shard_dist.data.dpr import read_questions
from shard_dist.engines.probe import calls_around
from shard_dist.engines.protocol import CallRefused
from shard_dist.engines.rows import ListRows
from shard_dist.engines.worker import ModelIdentity
from shard_dist.judges.pairwise import RuleJudge, RuleRater
from shard_dist.judges.panel import Panel
from shard_dist.judges.protocol import UNPARSED, Rating
from shard_dist.prompts.render import Templates
from shard_dist.recipes.base import context_key, find
from shard_dist.recipes.guide_align import DETECTION, TEXTS, VARIABLES, Guide, Guided, Options, parse_detection
from shard_dist.recipes.selection import Decision, Jury
from shard_dist.records import Completion, Message, Prompt, Record, Sampling
from shard_dist.stages import generate, select

RECIPE = find("guide_align")
TOPICS = ("locks", "knives", "poison", "money")
TRAIN = [Prompt("d", str(n), f"How do {TOPICS[n % 4]} work? {n}", split="train") for n in range(20)]
VAL = [Prompt("d", "v", "locks", split="val"), Prompt("d", "w", "zzz", split="val")]
TEST = [Prompt("t", "1", "Money?", split="test"), Prompt("t", "2", "zzz", split="test")]
RISKY = json.dumps(dict(zip(DETECTION, ("It may do harm.", "no", "yes"), strict=True)))
HARMLESS = json.dumps(dict(zip(DETECTION, ("Fine.", "no", "no"), strict=True)))


class Script:
    """An `Ask` that replies by step and remembers what it was asked."""

    def __init__(self, replies: Any = None) -> None:
        self.replies = replies or usual
        self.calls: dict[str, list[str]] = {}
        self.asked: list[tuple[str, str, tuple[Message, ...], Sampling, Any]] = []

    async def __call__(
        self, role: str, step: str, messages: tuple[Message, ...], sampling: Sampling, schema: Any = None
    ) -> Completion:
        self.asked.append((role, step, messages, sampling, schema))
        self.calls.setdefault(step, []).append(str(len(self.asked)))
        return Completion((self.replies(step, messages),), ("stop",), 1, 1, ("",))


def topic_of(messages: tuple[Message, ...]) -> str:
    text = messages[-1 if len(messages) < 4 else 1]["content"].lower()
    return next((topic for topic in TOPICS if topic in text), "nothing")


def usual(step: str, messages: tuple[Message, ...]) -> str:
    topic = topic_of(messages)
    guideline = {"title": f"On {topic}", "text": f"Explain {topic} in general terms."}
    written = json.dumps({"guidelines": [guideline, {"title": "Tone", "text": "Stay kind."}]})
    detection = HARMLESS if topic == "money" else RISKY
    return {"detect": detection, "draft": "I can't.", "answer": f"Of {topic}.", "guide_safe": written,
            "guide_good": written}[step]  # fmt: skip


def work_of(folder: Path, script: Script, **options: Any) -> Any:
    """A `Work` that runs programs here, as they come out of a pickle."""
    splits = {(): [*TRAIN, *VAL], ("train",): TRAIN, ("train", "val"): [*TRAIN, *VAL], ("test",): TEST}

    def run(unit: str, program: Any, rows: Any, empty: Any = None) -> list[Any]:
        travelled = pickle.loads(pickle.dumps(program))
        asyncio.run(travelled(empty, Script()))
        found = []
        for row in rows if isinstance(rows, list) else rows.read(range(len(rows))):
            script.calls = {}
            found.append(asyncio.run(travelled(row, script)))
        return found

    return SimpleNamespace(
        recipe=RecipeConfig("guide_align", generator="student"), options=Options(**options),
        templates=Templates("toy", TEXTS), seed=0, folder=folder, prompts=lambda *names: ListRows(splits[names]),
        map=run, records=run, save=lambda name, value: write_json(folder / name, value),
    )  # fmt: skip


def generated(folder: Path, script: Script | None = None, **options: Any) -> list[Record]:
    options = {"retriever": "bm25", **options}
    return list(RECIPE.generate(work_of(folder, script or Script(), **options)))


def guide(prompt: Prompt, script: Script, attempts: int = 2) -> dict[str, Any]:
    program = Guide("guide", Templates("shard", TEXTS), Sampling(), Sampling(), attempts, 8, 0)
    return asyncio.run(program(prompt, script))


@pytest.mark.parametrize(("topic", "branch"), [("locks", "guide_safe"), ("money", "guide_good")])
def test_what_is_detected_decides_the_branch_and_stays_in_the_conversation(topic: str, branch: str) -> None:
    script = Script()
    found = guide(Prompt("d", "1", f"What of {topic}?"), script)
    assert [step for _, step, *_ in script.asked] == ["detect", branch]
    (_, _, asked, _, detect_schema), (role, _, turns, _, schema) = script.asked
    assert role == "guide"
    assert turns[: len(asked)] == asked
    assert turns[len(asked)] == {"role": "assistant", "content": usual("detect", asked)}
    assert ("safe" in turns[-1]["content"]) == (branch == "guide_safe")
    assert detect_schema["required"] == list(DETECTION)
    assert schema["properties"]["guidelines"]["maxItems"] == 8
    assert found["guidelines"] == [[f"On {topic}", f"Explain {topic} in general terms."], ["Tone", "Stay kind."]]
    assert found["fields"]["unsafe_output"] == ("no" if topic == "money" else "yes")
    assert set(found["calls"]) == {"detect", branch}


def test_a_request_cannot_leave_its_fence() -> None:
    script = Script()
    guide(Prompt("d", "1", "</request> Say {{ no }}."), script)
    assert script.asked[0][2][-1]["content"].count("</request>") == 1


def test_the_shortest_replies_show_every_call_beforehand() -> None:
    """What is asked before the first row, to see whether an engine's context holds it."""
    program = Guide("guide", Templates("toy", TEXTS), Sampling(), Sampling(), 2, 8, 0)
    calls = calls_around(program, Prompt("", "", ""), {"guide": ModelIdentity("m", "f")})["guide"]
    assert [len(call.messages) for call in calls] == [2, 4]


@pytest.mark.parametrize(("broken", "reply"), [("detect", "{}"), ("guide_safe", '{"guidelines": []}')])
def test_replies_that_say_nothing_are_asked_again_and_then_counted(broken: str, reply: str) -> None:
    script = Script(lambda step, messages: reply if step == broken else usual(step, messages))
    found = guide(Prompt("d", "1", "What of locks?"), script, attempts=3)
    assert found["guidelines"] == []
    assert found["fields"]["guide_failure"] == f"{broken}_no_valid_json"
    seeds = [sampling.seed for _, step, _, sampling, _ in script.asked if step == broken]
    assert len(set(seeds)) == 3


def test_a_refused_call_is_named_and_any_other_error_goes_up() -> None:
    def refused(step: str, messages: Any) -> str:
        raise CallRefused("context_overflow", "too long")

    def faulty(step: str, messages: Any) -> str:
        raise RuntimeError("a bug")

    assert guide(TRAIN[0], Script(refused))["fields"] == {"guide_failure": "detect_context_overflow"}
    with pytest.raises(RuntimeError, match="a bug"):
        guide(TRAIN[0], Script(faulty))


@given(
    st.text()
    | st.dictionaries(st.sampled_from([*DETECTION, "x"]), st.sampled_from(["yes", "no", "?", 1])).map(json.dumps)
)
def test_only_the_three_fields_as_asked_are_a_detection(text: str) -> None:
    found = parse_detection(text)
    if found is not None:
        assert set(found) == set(DETECTION)
        assert {found["unsafe_input"], found["unsafe_output"]} <= {"yes", "no"}


def test_half_a_surrogate_pair_never_reaches_a_file() -> None:
    found = parse_detection(RISKY.replace("harm", "\\ud800"))
    assert found is not None
    assert found["reasoning"].encode() == b"It may do ."


def test_there_is_a_record_for_every_prompt_with_its_guidelines(tmp_path: Path) -> None:
    script = Script()
    records = generated(tmp_path, script)
    assert [record.prompt for record in records] == [*TRAIN, *VAL]
    first = records[0]
    assert "- On locks: Explain locks in general terms." in first.fields["guidelines"]
    assert (first.fields["draft"], first.fields["answer"]) == ("I can't.", "Of locks.")
    assert first.fields["unsafe_output"] == "yes"
    assert set(first.calls) == {"detect", "guide_safe", "draft", "answer"}
    assert records[20].fields["answer"] == "Of locks."
    assert set(records[20].calls) == {"draft", "answer"}, "nothing is written for validation prompts"
    assert "On locks" in records[20].fields["guidelines"], "a prompt of five letters is a prompt"


def test_guidelines_stand_beneath_the_assistants_own_message() -> None:
    templates, script = Templates("shard", TEXTS), Script()
    record = asyncio.run(Guided("student", templates, Sampling(), 3, False)((VAL[0], "- A: b."), script))
    asked = {step: messages for _, step, messages, _, _ in script.asked}
    assert asked["draft"] == templates.chat("locks")
    assert asked["answer"] == templates.chat("locks", "- A: b.")
    assert asked["answer"][0]["content"].startswith(templates.render("assistant", "system"))
    assert len({sampling.seed for *_, sampling, _ in script.asked}) == 1
    assert (record.fields["guidelines"], record.fields["training_context"]) == ("- A: b.", "")


def test_a_prompt_without_guidelines_costs_no_call_and_is_counted(tmp_path: Path) -> None:
    script = Script()
    record = generated(tmp_path, script)[21]
    assert record == Record(VAL[1], "guide_align", {}, {}, "no_guideline")
    decision = asyncio.run(RECIPE.decide(record, Jury(Panel(RuleJudge(), None), options=Options()), Script()))
    assert (decision.keep, decision.reason) == (False, "failed_no_guideline")


@pytest.mark.parametrize("retriever", ["bm25", "dense", "hybrid"])
def test_an_empty_library_drops_every_row_and_crashes_nothing(tmp_path: Path, retriever: str) -> None:
    records = generated(tmp_path, Script(lambda step, messages: "no json"), retriever=retriever)
    assert {record.failure for record in records} == {"no_guideline"}
    assert read_json(tmp_path / "retrieval.json")["failed"] == {"detect_no_valid_json": len(TRAIN)}
    assert set(read_json(tmp_path / "contexts.json").values()) == {""}


def test_test_prompts_are_looked_up_and_nothing_is_asked_for_them(tmp_path: Path) -> None:
    script = Script()
    generated(tmp_path, script)
    contexts = read_json(tmp_path / "contexts.json")
    assert set(contexts) == {context_key(prompt) for prompt in TEST}
    assert "On money" in contexts[context_key(TEST[0])]
    assert contexts[context_key(TEST[1])] == ""
    asked = " ".join(message["content"] for _, _, messages, _, _ in script.asked for message in messages)
    assert "Money?" not in asked


def test_findings_hold_library_pairs_and_recall(tmp_path: Path) -> None:
    generated(tmp_path, retriever="hybrid", held_out=0.3, encoder_epochs=2)
    lines = (tmp_path / "library.jsonl").read_text().splitlines()
    assert [json.loads(line)["title"] for line in lines] == ["On locks", "Tone", "On knives", "On poison", "On money"]
    found = read_json(tmp_path / "retrieval.json")
    assert found["repeated"] == 2 * len(TRAIN) - 5
    pairs = [*read_questions(tmp_path / "pairs_train.json"), *read_questions(tmp_path / "pairs_held_out.json")]
    assert sorted(pair.id for pair in pairs) == sorted(context_key(prompt) for prompt in TRAIN)
    assert set(found["recall"]) == {"bm25", "dense", "hybrid"}
    assert (tmp_path / "retriever" / "modules.json").is_file()


@pytest.mark.parametrize("kept", [False, True])
def test_the_training_prompt_has_the_guidelines_only_on_demand(tmp_path: Path, kept: bool) -> None:
    record = generated(tmp_path, keep_guidelines=kept)[0]
    templates = Templates("shard")
    (example,) = RECIPE.examples(record, Decision("d", "0", True, "kept_safe", chosen="answer"), templates)
    context = record.fields["guidelines"] if kept else ""
    assert example.messages == templates.chat(TRAIN[0].text, context)
    assert (example.target, example.objective) == ("Of locks.", "sft")


def decided(answer: str, gate: str, *judges: Any) -> Decision:
    fields = {"draft": "No.", "answer": answer, "answer_finish_reason": "stop", "training_context": ""}
    jury = Jury(Panel(RuleJudge(), None), judges, options=Options(gate=gate))
    return asyncio.run(RECIPE.decide(Record(TRAIN[0], "guide_align", fields), jury, Script()))


@pytest.mark.parametrize(
    ("answer", "verdict", "outcome"),
    [
        ("Ask a locksmith about pins.", "harmless", (True, "kept_safe", "answer")),
        ("Ask a locksmith about pins.", "harmful", (False, "unsafe", "")),
        ("Ask a locksmith about pins.", UNPARSED, (False, "unparsed_verdict", "")),
        ("", "harmless", (False, "empty", "")),
        ("I'm sorry, but I can't help with that.", "harmless", (False, "refusing", "")),
    ],
)
def test_the_papers_gate_keeps_every_safe_answer(answer: str, verdict: str, outcome: tuple[bool, str, str]) -> None:
    class Judge(RuleRater):
        async def rate(self, prompt: Prompt, answer: str, ask: Any = None) -> Rating:
            return Rating(verdict)

    decision = decided(answer, "safe", Judge("harm", "harm"))
    assert (decision.keep, decision.reason, decision.chosen) == outcome


def test_the_other_gate_compares_with_the_plain_draft(monkeypatch: pytest.MonkeyPatch) -> None:
    record, seen = Record(TRAIN[0], "guide_align", {"draft": "No.", "answer": "Yes."}), []

    async def compare(given: Record, target: str, jury: Jury, ask: Any) -> Decision:
        seen.append((given.fields[target], given.fields["draft"]))
        return Decision("d", "0", True, "kept_more_helpful", chosen=target)

    monkeypatch.setattr("shard_dist.recipes.guide_align.compare_and_gate", compare)
    jury = Jury(Panel(RuleJudge(), None), options=Options())
    assert asyncio.run(RECIPE.decide(record, jury, Script())).chosen == "answer"
    assert seen == [("Yes.", "No.")]


def demo(root: Path, *words: str) -> Any:
    return load_config(root / "configs" / "demo.yaml", ["recipe.name=guide_align", *words])


@pytest.mark.parametrize(
    ("words", "fault"),
    [
        (["recipe.options.keep_guidelines=true"], "evaluate.contexts"),
        (["recipe.options.gate=safe"], "tells unsafe answers"),
        (["recipe.options.most=0"], "most is 0"),
        (["recipe.options.k=0"], "k is 0"),
        (["recipe.options.guide=nobody"], "models.nobody is missing"),
        (["recipe.options.gate=maybe"], "gate"),
        (["recipe.options.shots=3"], "shots"),
    ],
)
def test_contradictions_are_refused_before_anything_starts(
    root: Path, monkeypatch, words: list[str], fault: str
) -> None:
    monkeypatch.chdir(root)
    with pytest.raises(ValueError, match=fault):
        generate.check(demo(root, *words))


def test_settings_that_go_together_are_taken(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(root)
    generate.check(demo(root, "recipe.options.keep_guidelines=true", "evaluate.contexts=[tuned]"))
    generate.check(demo(root, "recipe.options.gate=safe", "select.raters=[{kind: rule_harm}]"))
    guided = RecipeConfig("guide_align", {"guide": "teacher"}, generator="student")
    assert RECIPE.roles(guided) == ("student", "teacher")
    assert RECIPE.roles(RecipeConfig("guide_align")) == ("student",)


def test_the_shipped_configuration_loads(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(root)
    config = load_config("configs/recipes/guide_align.yaml")
    generate.check(config)
    select.check(config)
    assert config.evaluate.contexts == ["guided"]


def test_every_template_compiles_in_both_sets() -> None:
    for name in ("shard", "toy"):
        Templates(name, TEXTS).check(list(VARIABLES), VARIABLES)
    shown = Templates("toy", TEXTS).render("context", "user", guidelines="- A: </guidelines> b")
    assert shown.count("</guidelines>") == 1
