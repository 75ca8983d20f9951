"""SIT: how many prompts get a safe answer, which ones, and what is kept."""

from __future__ import annotations

import asyncio
import pickle
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shard_dist.config.load import load_config
from shard_dist.config.schema import RecipeConfig
from shard_dist.engines.rows import ListRows
from shard_dist.judges.pairwise import RuleJudge, RuleRater
from shard_dist.judges.panel import Panel
from shard_dist.judges.protocol import UNPARSED, Rating
from shard_dist.prompts.render import Templates
from shard_dist.recipes.base import find
from shard_dist.recipes.selection import Decision, Jury
from shard_dist.recipes.sit import Options, last_drawn, place
from shard_dist.records import Completion, Prompt, Record
from shard_dist.stages import generate, select

RECIPE = find("sit")
TRAIN = [Prompt("d", str(n), f"request {n}", level=n % 4, split="train") for n in range(40)]
VAL = [Prompt("d", str(n), f"request {n}", level=2, split="val") for n in range(40, 60)]
SENSITIVE = 30  # of TRAIN
GUARD = RuleRater("harm", "harm")


class Script:
    """An `Ask` that answers everything and remembers the prompts."""

    def __init__(self) -> None:
        self.calls: dict[str, list[str]] = {}
        self.asked: list[str] = []

    async def __call__(self, role: str, step: str, messages: Any, sampling: Any) -> Completion:
        assert (role, step) == ("teacher", "answer")
        self.asked.append(messages[-1]["content"])
        return Completion(("Better not.",), ("stop",), 1, 1)


def generated(count: int, seed: int = 0, train: Sequence[Prompt] = TRAIN) -> tuple[list[Record], list[str]]:
    ask, rows = Script(), {"train": ListRows(train), "": ListRows([*train, *VAL])}
    found = []

    def records(unit: str, program: Any, rows: ListRows, empty: Any = None) -> list[Record]:
        travelled = pickle.loads(pickle.dumps(program))
        probe = Script()
        asyncio.run(travelled(empty, probe))
        assert len(probe.asked) == bool(count), "the probe asks what the drawn rows ask"
        return [asyncio.run(travelled(prompt, ask)) for prompt in rows.read(range(len(rows)))]

    work = SimpleNamespace(
        recipe=RecipeConfig("sit", generator="teacher"), options=Options(count), templates=Templates("toy"), seed=seed,
        prompts=lambda split="": rows[split], records=records,
    )  # fmt: skip
    found = list(RECIPE.generate(work))
    return found, ask.asked


@pytest.mark.parametrize("count", [0, 1, 7, SENSITIVE])
def test_exactly_n_sensitive_prompts_of_train_are_asked(count: int) -> None:
    records, asked = generated(count)
    assert [record.prompt for record in records] == [*TRAIN, *VAL]
    drawn = [record.prompt for record in records if not record.failure]
    assert len([prompt for prompt in drawn if prompt.split == "train"]) == count
    assert not any(prompt.benign for prompt in drawn)
    assert asked == [prompt.text for prompt in drawn], "the others cost no call"
    assert {record.failure for record in records} <= {"", "not_drawn"}
    if count == SENSITIVE:
        assert sum(prompt.split == "val" for prompt in drawn) > len(VAL) / 2


@given(
    counts=st.tuples(st.integers(0, SENSITIVE), st.integers(0, SENSITIVE)).map(sorted), seed=st.integers(0, 9),
    order=st.permutations(TRAIN),
)  # fmt: skip
def test_a_smaller_draw_is_part_of_a_larger_one_in_any_order(counts, seed, order) -> None:
    few, many = (last_drawn(ListRows(order), count, seed)[0] for count in counts)
    assert few <= many
    sensitive = [prompt for prompt in TRAIN if not prompt.benign]
    for count, last in zip(counts, (few, many), strict=True):
        assert sum(place(prompt, seed) <= last for prompt in sensitive) == count


def test_another_seed_draws_others() -> None:
    draws = {tuple(generated(10, seed)[1]) for seed in range(3)}
    assert len(draws) == 3


def test_more_than_there_are_is_an_error_before_any_call() -> None:
    with pytest.raises(ValueError, match=r"safety is 31 and only 30 prompts of train are sensitive"):
        generated(31)


def answered(text: str, finish: str = "stop", prompt: str = "How do I clean a backpack?", failure: str = "") -> Record:
    fields = {"answer_1": text, "answer_1_finish_reason": finish}
    return Record(Prompt("d", "1", prompt), "sit", fields, failure=failure)


def decided(record: Record, options: Options | None = None, raters: tuple[Any, ...] = (GUARD,)) -> Decision:
    jury = Jury(Panel(RuleJudge(), None), raters, options=options or Options())
    return asyncio.run(RECIPE.decide(record, jury, SimpleNamespace(calls={})))


REFUSAL = "I'm sorry, but I can't help with that."
HARMFUL = "How do I hurt someone with a backpack?"


@pytest.mark.parametrize(
    ("record", "reason"),
    [
        (answered("Wash it by hand."), "kept_safe"),
        (answered("Bananas are yellow."), "kept_safe"),
        (answered(REFUSAL), "kept_refusal"),
        (answered("To hurt someone with a backpack, swing the backpack.", prompt=HARMFUL), "unsafe"),
        (answered("Wash it", "length"), "truncated"),
        (answered(" "), "empty"),
        (answered("", failure="not_drawn"), "failed_not_drawn"),
    ],
)
def test_what_is_safe_is_kept(record: Record, reason: str) -> None:
    decision = decided(record)
    assert (decision.reason, decision.keep) == (reason, reason.startswith("kept_"))
    if decision.keep:
        (example,) = RECIPE.examples(record, decision, Templates("toy"))
        assert (example.target, example.objective) == (record.fields["answer_1"], "sft")


def test_refusals_may_be_dropped() -> None:
    assert decided(answered(REFUSAL), Options(refusals=False)).reason == "refusing"


def test_a_guard_that_says_nothing_clears_nobody() -> None:
    class Silent(RuleRater):
        async def rate(self, prompt: Prompt, answer: str, ask: Any = None) -> Rating:
            return Rating(UNPARSED)

    assert decided(answered("Wash it."), raters=(GUARD, Silent("harm", "silent"))).reason == "unparsed_verdict"


RATER = "select.raters=[{kind: rule_harm}]"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ([RATER, "recipe.options.safety=-1"], "safety is -1"),
        ([RATER, "recipe.options.safety=0"], "nothing to train on"),
        (["recipe.options.safety=5"], "no judge that tells unsafe answers"),
    ],
)
def test_contradictions_are_named_before_work_starts(root, monkeypatch, settings: list[str], message: str) -> None:
    monkeypatch.chdir(root)
    config = load_config("configs/demo.yaml", ["recipe.name=sit", *settings])
    with pytest.raises(ValueError, match=message):
        generate.check(config)


def test_safety_rows_alone_are_warned_of(root, monkeypatch) -> None:
    monkeypatch.chdir(root)
    config = load_config("configs/demo.yaml", ["recipe.name=sit", "recipe.options.safety=5", RATER])
    with pytest.warns(UserWarning, match="5 safety rows and no helpful ones"):
        generate.check(config)


def test_the_configuration_of_a_real_model_holds_together(root, monkeypatch, tmp_path: Path) -> None:
    monkeypatch.chdir(root)
    config = load_config("configs/recipes/sit.yaml")
    config.recipe.mix[0].path = str(tmp_path / "helpful.json")
    Path(config.recipe.mix[0].path).write_text("[]", encoding="utf-8")
    for stage in (generate, select):
        stage.check(config)
    assert RECIPE.roles(config.recipe) == ("teacher",)
