"""Triples from answers that people labelled: which, how many, what is refused; and safe answers of the model's own."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shard_dist.config.load import load_config
from shard_dist.config.schema import Config, JudgeKind, RaterConfig, RaterKind
from shard_dist.engines.rows import ListRows
from shard_dist.judges.panel import panel
from shard_dist.judges.registry import rater
from shard_dist.prompts.render import Templates
from shard_dist.recipes.derta import RECIPE, Options
from shard_dist.recipes.selection import Jury
from shard_dist.records import Completion, Example, Prompt, Record, Sampling

TEMPLATES = Templates("shard")
LABELLED = [
    ("How do I pick a lock?", "I will not say.", 0),
    ("How do I pick a lock?", "Take a hook and pick the lock.", 1),
    ("How do I pick a lock?", "Ask a locksmith about the lock.", 0),
    ("How do I pick a lock?", "Break the lock.", 1),
    ("Is it wrong?", "Yes, do it.", 1),
    ("Who are you?", "Nobody.", 0),
    ("Who are you?", "", 1),
]


@pytest.fixture
def answers(tmp_path: Path) -> str:
    path = tmp_path / "answers.jsonl"
    rows = (dict(zip(("prompt", "answer", "harmful"), row, strict=True)) for row in LABELLED)
    path.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    return str(path)


def triples(seed: int = 0, **options: Any) -> list[Example]:
    return list(RECIPE.added(Options(**options), seed, TEMPLATES))


@pytest.fixture
def config(root: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Config]:
    monkeypatch.chdir(root)
    return lambda *words: load_config("configs/demo.yaml", ["recipe.name=derta", *words])


def test_every_harmful_answer_is_paired_with_one_or_all_harmless_ones_to_its_prompt(answers: str) -> None:
    one, all_ = triples(answers=answers), triples(answers=answers, pairs="all")
    harmful = {answer for prompt, answer, mark in LABELLED if mark and prompt == LABELLED[0][0]}
    assert [example.rejected for example in one] == ["Take a hook and pick the lock.", "Break the lock."]
    assert {(example.target, example.rejected) for example in all_} == {
        (safe, bad) for safe in ("I will not say.", "Ask a locksmith about the lock.") for bad in harmful
    }
    assert {example.objective for example in one + all_} == {"derta"}
    assert all(example.messages == TEMPLATES.chat(LABELLED[0][0]) for example in all_)


def test_the_draw_belongs_to_the_seed_and_a_smaller_limit_is_part_of_a_larger(answers: str) -> None:
    drawn = {tuple(example.id for example in triples(seed, answers=answers)) for seed in range(20)}
    assert len(drawn) > 1
    assert triples(3, answers=answers) == triples(3, answers=answers)
    few, more = (triples(answers=answers, pairs="all", limit=limit) for limit in (1, 3))
    assert (len(few), len(more)) == (1, 3)
    assert few[0] in more


def test_plain_teaches_the_safe_answers_alone(answers: str) -> None:
    plain, pairs = (triples(answers=answers, plain=plain) for plain in (True, False))
    assert [(each.target, each.messages) for each in plain] == [(each.target, each.messages) for each in pairs]
    assert {(example.objective, example.rejected) for example in plain} == {("sft", "")}


@given(
    rows=st.lists(
        st.tuples(st.sampled_from("pqr"), st.sampled_from(["", "a", "b", "c"]), st.sampled_from(["0", "1", "?", True])),
        max_size=12,
    )
)
def test_all_pairs_are_the_product_of_the_two_kinds(rows: list[tuple[str, str, Any]], tmp_path_factory: Any) -> None:
    path = tmp_path_factory.mktemp("rows") / "rows.jsonl"
    path.write_text("\n".join(json.dumps({"prompt": p, "answer": a, "harmful": h}) for p, a, h in rows))
    if not rows:
        return
    options = {"answers": str(path), "harmful": ["1", "true"]}
    wanted = Counter(
        (prompt, safe, bad)
        for prompt, safe, kind in rows
        for other, bad, mark in rows
        if prompt == other and kind == "0" and mark in ("1", True) and safe and bad and safe != bad
    )
    every = triples(pairs="all", **options)
    assert Counter((example.messages[-1]["content"], example.target, example.rejected) for example in every) == wanted
    assert len({example.id for example in every}) == len(every)
    assert {example.rejected for example in triples(**options)} == {bad for _, _, bad in wanted}


def test_do_not_answers_labels_give_the_known_numbers(shared_data: Path) -> None:
    """Counted from the file: 193 harmful rows, and 805 pairs over 136 questions."""
    path = str(shared_data / "do_not_answer" / "answers_human.csv")
    options = {"answers": path, "columns": {"prompt": "question", "answer": "response"}}
    every, one = triples(pairs="all", **options), triples(**options)
    assert len(every) == 805
    assert len({example.messages[-1]["content"] for example in every}) == 136
    assert len(one) == len({example.id.split("-")[0] for example in every})  # harmful rows with a harmless one


class Work:
    """Answers every prompt with the same text, without engines."""

    def __init__(self, prompts: list[Prompt], answer: str, **options: Any) -> None:
        self.rows, self.answer, self.asked = prompts, answer, 0
        self.recipe = SimpleNamespace(generator="student", answer_sampling=SimpleNamespace(sampling=Sampling))
        self.options, self.templates, self.seed = Options(**options), TEMPLATES, 0

    def prompts(self) -> ListRows:
        return ListRows(self.rows)

    def records(self, unit: str, program: Any, rows: list[Prompt], empty: Any) -> Iterator[Record]:
        return (asyncio.run(program(prompt, self)) for prompt in rows)

    calls: dict[str, list[str]] = {}  # noqa: RUF012

    async def __call__(self, role: str, step: str, messages: Any, sampling: Sampling) -> Completion:
        self.asked += 1
        assert messages == TEMPLATES.chat(messages[-1]["content"])
        return Completion((self.answer,) * sampling.n, ("stop",), 1, 1)


PROMPTS = [Prompt("d", "1", "how do I PICK a lock", split="train"), Prompt("d", "2", "Why?", split="train")]


def decided(work: Work) -> list[tuple[str, list[Example]]]:
    judges = (rater(RaterConfig(RaterKind.rule_harm), TEMPLATES, Sampling(), 1, 0),)
    jury = Jury(panel(JudgeKind.rule, "", TEMPLATES, Sampling(), 1, 0), judges, options=work.options)
    found = []
    for record in RECIPE.generate(work):
        decision = asyncio.run(RECIPE.decide(record, jury, work))
        found.append((decision.reason, list(RECIPE.examples(record, decision, TEMPLATES)) if decision.keep else []))
    return found


def test_from_files_nothing_is_asked_and_the_prompts_are_left_to_the_test(answers: str) -> None:
    work = Work(PROMPTS, "", answers=answers)
    assert decided(work) == [("triples_are_of_files", [])] * 2
    assert work.asked == 0


@pytest.mark.parametrize("answer", ["I'm sorry, but I can't help with that.", "A locksmith can pick the lock for you."])
def test_a_generated_safe_answer_is_paired_with_every_harmful_one_even_a_refusal(answers: str, answer: str) -> None:
    work = Work(PROMPTS, answer, answers=answers, safe="generated")
    (reason, pairs), (missing, none) = decided(work)
    assert (reason, missing, none, work.asked) == ("kept_safe_answer", "failed_no_harmful_answer", [], 1)
    assert [(pair.objective, pair.target, pair.rejected) for pair in pairs] == [
        ("derta", answer, "Take a hook and pick the lock."),
        ("derta", answer, "Break the lock."),
    ]
    assert all(pair.messages == TEMPLATES.chat(PROMPTS[0].text) for pair in pairs)
    assert not triples(answers=answers, safe="generated")


def test_no_file_and_no_mixed_triples_is_found_before_anything_is_spent(config: Callable[..., Config]) -> None:
    with pytest.raises(ValueError, match=r"answers is empty and no file of recipe\.mix"):
        RECIPE.check(config())
    RECIPE.check(config("recipe.mix=[{path: x, format: derta}]"))
    RECIPE.check(config("recipe.mix=[{path: x, format: trl, objective: derta}]"))


def test_a_file_without_a_triple_says_what_it_has(config: Callable[..., Config], answers: str) -> None:
    RECIPE.check(config(f"recipe.options.answers={answers}"))
    with pytest.raises(ValueError, match=r"of 3 prompts 0 have answers labelled \['bad'\] and 2 some labelled \['0'\]"):
        RECIPE.check(config(f"recipe.options.answers={answers}", "recipe.options.harmful=[bad]"))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["safe=made"], "safe is 'made'"),
        (["pairs=two"], "pairs is 'two'"),
        (["limit=-1"], "limit is -1"),
        (["columns={question: q}"], "no field 'question'"),
        (["columns={answer: reply}"], "no column 'reply'"),
        (["harmful=['0']"], "labels of two kinds"),
        (["answers=nowhere.csv"], "recipe.options.answers"),
        (["safe=generated"], "no judge that tells unsafe answers"),
        (["safe=generated", "pairs=all"], "no meaning"),
    ],
)
def test_contradictions_are_named(config: Callable[..., Config], answers: str, words: list[str], message: str) -> None:
    file = f"recipe.options.answers={answers}"
    with pytest.raises(ValueError, match=message):
        RECIPE.check(config(file, *(f"recipe.options.{word}" for word in words)))


def test_its_configuration_loads(root: Path, monkeypatch: pytest.MonkeyPatch, shared_data: Path) -> None:
    monkeypatch.chdir(root)
    loaded = load_config("configs/recipes/derta.yaml")
    loaded.recipe.options["answers"] = str(shared_data / "do_not_answer" / "answers_human.csv")
    RECIPE.check(loaded)
    assert RECIPE.roles(loaded.recipe) == ()
