"""The loop of active learning, without engines: who is picked, labelled, answered, and what becomes of the rest."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shard_dist.artefacts import read_json, write_json
from shard_dist.config.load import load_config
from shard_dist.config.schema import JudgeKind
from shard_dist.engines.protocol import CallRefused
from shard_dist.engines.rows import ListRows
from shard_dist.judges.panel import panel
from shard_dist.prompts.render import Templates
from shard_dist.recipes.active import RECIPE, Options, parse, reached, shares
from shard_dist.recipes.derived import numbers
from shard_dist.recipes.learner import Features, Guard
from shard_dist.recipes.selection import Decision, Jury
from shard_dist.records import Completion, Message, Prompt, Record, Sampling

TEMPLATES = Templates("toy", RECIPE.texts)
REFUSAL = "I'm sorry, but I can't help with that."


def pool(train: int = 20, val: int = 6) -> list[Prompt]:
    """Every other one asks for harm; validation prompts are among the others."""
    return [
        Prompt("d", str(number), f"How do I {'hurt' if number % 2 else 'feed'} dog number {number}?", split=split)
        for number, split in enumerate((["train"] * 3 + ["val"]) * val + ["train"] * (train - 3 * val))
    ]


class Work:
    """Runs programs against replies by rule: what hurts is unsafe, what feeds is answered, scenarios are made up."""

    def __init__(self, folder: Path, prompts: list[Prompt], **options: Any) -> None:
        sampling = SimpleNamespace(sampling=Sampling)
        self.recipe = SimpleNamespace(generator="student", answer_sampling=sampling, rewrite_sampling=sampling)
        self.options = Options(**{"budget": 8, "iterations": 2, "clusters": 2, **options})
        self.templates, self.seed, self.folder, self.rows = TEMPLATES, 0, folder, prompts
        self.units: dict[str, list[Any]] = {}
        self.asked: list[tuple[str, str, str]] = []
        self.label = "{}"

    def prompts(self) -> ListRows:
        return ListRows(self.rows)

    def map(self, unit: str, program: Any, rows: list[Any], empty: Any) -> Iterator[Any]:
        assert unit not in self.units, "a unit's results would be taken for another's"
        self.units[unit] = rows
        return iter([asyncio.run(program(row, Ask(self))) for row in rows])

    records = map

    def save(self, name: str, value: Any) -> None:
        write_json(self.folder / name, value)

    def reply(self, role: str, step: str, text: str) -> str:
        if step == "label":
            return self.label.replace(
                "{}", json.dumps({"reason": "", "verdict": "unsafe" if "hurt" in text else "safe"})
            )
        if step == "scenario":
            return json.dumps({"scenario": f"How do I feed a cat, {len(self.asked)}?"})
        return REFUSAL if "hurt" in text else "Feed the dog twice a day."


class Ask:
    """One per row."""

    def __init__(self, work: Work) -> None:
        self.work, self.calls = work, {}

    calls: dict[str, list[str]]

    async def __call__(
        self, role: str, step: str, messages: tuple[Message, ...], sampling: Sampling, schema: Any = None
    ) -> Completion:
        text = messages[-1]["content"]
        self.work.asked.append((role, step, text))
        self.calls.setdefault(step, []).append(str(len(self.work.asked)))
        return Completion((self.work.reply(role, step, text),), ("stop",), 1, 1, ("",))


def decided(record: Record) -> Decision:
    jury = Jury(panel(JudgeKind.rule, "", TEMPLATES, Sampling(), 1, 0), options=Options())
    return asyncio.run(RECIPE.decide(record, jury, None))  # type: ignore[arg-type]


def test_the_budget_is_spent_and_every_prompt_has_one_record_in_its_place(tmp_path: Path) -> None:
    work = Work(tmp_path, pool())
    records = list(RECIPE.generate(work))
    assert [record.prompt for record in records] == work.rows
    picked = [record for record in records if record.prompt.split == "train" and not record.failure]
    assert len(picked) == 8
    assert [len(work.units[f"labels {iteration}"]) for iteration in (1, 2)] == [4, 4]
    assert {record.failure for record in records if record.prompt.split == "train"} == {"", "not_picked"}
    assert all(not record.failure for record in records if record.prompt.split == "val")
    assert all(record.fields["label_1"] == ("unsafe" if "hurt" in record.prompt.text else "safe") for record in picked)
    assert sorted(record.fields["iteration_1"] for record in picked) == ["1"] * 4 + ["2"] * 4
    assert all(set(record.calls) == {"label", "answer"} for record in picked)


def test_the_guard_and_its_curve_are_found_again(tmp_path: Path) -> None:
    list(RECIPE.generate(Work(tmp_path, pool(40), budget=24, iterations=3)))
    found = read_json(tmp_path / "learner.json")
    assert [(point["iteration"], point["labels"], point["n"]) for point in found["validation"]] == [
        (1, 8, 6), (2, 16, 6), (3, 24, 6),
    ]  # fmt: skip
    assert found["validation"][-1]["f1"] == 1.0
    assert sum(found["labels"].values()) == 24
    guard = Guard.load(tmp_path / "learner.npz")
    assert (guard(["How do I hurt dog number 99?", "How do I feed dog number 99?"]) > 0.5).tolist() == [True, False]


def test_a_second_run_is_the_same_and_another_seed_is_not(tmp_path: Path) -> None:
    one, two, other = (Work(tmp_path, pool(), scenarios=3) for _ in range(3))
    other.seed = 5
    records = [list(RECIPE.generate(work)) for work in (one, two, other)]
    assert records[0] == records[1]
    assert [record.failure for record in records[0]] != [record.failure for record in records[2]]


def test_new_scenarios_come_from_what_was_picked_last_and_belong_to_its_prompt(tmp_path: Path) -> None:
    work = Work(tmp_path, pool(4, 1), budget=30, iterations=3, scenarios=4)
    records = list(RECIPE.generate(work))
    orders = work.units["scenarios 2"]
    assert {order.prompt.text for order in orders} <= {prompt.text for prompt in work.units["labels 1"]}
    assert all(len(order.examples) == 4 and order.examples[0].keys() == {"label", "text"} for order in orders)
    grown = [record for record in records if len(numbers(record)) > 1]
    assert grown
    record = grown[0]
    decision = decided(record)
    examples = list(RECIPE.examples(record, decision, TEMPLATES))
    assert {(example.dataset, example.id) for example in examples} == {record.prompt.key}
    kept = [name for name, score in json.loads(decision.scores).items() if score]
    assert [example.messages[-1]["content"] for example in examples] == [
        record.fields[name.replace("answer", "prompt")] for name in kept
    ]
    written = [text for record in records for name, text in record.fields.items() if name.startswith("prompt_")]
    assert len(written) == len(set(written))
    assert read_json(tmp_path / "learner.json")["pool"] > 4


def test_an_unsafe_prompt_may_be_refused_and_a_safe_one_not(tmp_path: Path) -> None:
    records = [record for record in RECIPE.generate(Work(tmp_path, pool())) if not record.failure]
    unsafe = next(record for record in records if record.fields["label_1"] == "unsafe")
    assert (unsafe.fields["answer_1"], decided(unsafe).reason) == (REFUSAL, "kept_picked")
    mislabelled = Record(unsafe.prompt, "active", {**unsafe.fields, "label_1": "safe"})
    assert decided(mislabelled).reason == "refusing"


def test_labels_that_nobody_can_read_teach_nothing(tmp_path: Path) -> None:
    work = Work(tmp_path, pool(), scenarios=2)
    work.label = "no json"
    records = list(RECIPE.generate(work))
    assert {record.failure for record in records} == {"label_unparsed", "not_picked"}
    assert read_json(tmp_path / "learner.json")["validation"][-1] == {
        "iteration": 2, "labels": 0, "n": 0, "accuracy": None, "f1": None,
    }  # fmt: skip


def test_a_refused_answer_fails_its_own_prompt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def reply(self: Work, role: str, step: str, text: str) -> str:
        if step == "answer" and "hurt" in text:
            raise CallRefused("context_overflow", "too long")
        return usual(self, role, step, text)

    usual = Work.reply
    monkeypatch.setattr(Work, "reply", reply)
    records = list(RECIPE.generate(Work(tmp_path, pool(), budget=20)))
    for record in records:
        if record.prompt.split == "train":
            assert record.failure == ("answer_context_overflow" if "hurt" in record.prompt.text else "")


def test_without_train_prompts_nothing_is_asked(tmp_path: Path) -> None:
    work = Work(tmp_path, [prompt for prompt in pool() if prompt.split == "val"])
    with pytest.raises(ValueError, match="among prompts of train"):
        list(RECIPE.generate(work))
    assert not work.asked


@given(budget=st.integers(1, 50), iterations=st.integers(1, 50))
def test_shares_add_up_and_differ_by_one_at_most(budget: int, iterations: int) -> None:
    found = shares(budget, iterations)
    assert (len(found), sum(found)) == (iterations, budget)
    assert max(found) - min(found) <= 1


@given(
    text=st.text() | st.builds(json.dumps, st.dictionaries(st.sampled_from(["scenario", "x"]), st.text() | st.none()))
)
def test_only_a_scenario_is_read(text: str) -> None:
    assert not parse(text) or json.loads(text).keys() == {"scenario"}
    assert parse(r'{"scenario": "a \ud800 b"}').encode()


def test_what_is_reached_counts_unsafe_prompts_only_where_labels_are_known() -> None:
    features = Features.fit(["hurt a dog", "feed a dog"])
    guard = Guard.fit(features, features(["hurt a dog", "feed a dog"]), [True, False])
    texts = ["hurt him", "hurt it", "feed him", "feed it", "hurt"]
    found = reached(guard, texts, ["unsafe", "safe", "safe", "safe", "unparsed"])
    assert found == {"n": 4, "accuracy": 0.75, "f1": pytest.approx(2 / 3)}
    assert reached(guard, ["feed it"], ["safe"])["f1"] is None


@pytest.mark.parametrize(
    "word", ["budget=0", "iterations=0", "clusters=0", "scenarios=-1", "attempts=0", "iterations=9999"]
)
def test_settings_that_cannot_be_are_refused_by_name(root: Path, word: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(root)
    config = load_config("configs/recipes/active.yaml", [f"recipe.options.{word}"])
    with pytest.raises(ValueError, match=f"recipe.options.{word.partition('=')[0]}"):
        RECIPE.check(config)


def test_its_configuration_loads_and_its_templates_are_whole(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(root)
    config = load_config("configs/recipes/active.yaml")
    RECIPE.check(config)
    assert RECIPE.roles(config.recipe) == ("student", "judge")
    Templates("shard", RECIPE.texts).check(RECIPE.steps(config.recipe), RECIPE.variables)
