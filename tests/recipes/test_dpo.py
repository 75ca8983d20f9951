"""DPO: pairs by raters, by the pairwise judge, or from files; no pair where nothing is preferred."""

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
from rich.console import Console

from shard_dist.config.load import load_config
from shard_dist.config.schema import MixConfig, Objective, RecipeConfig
from shard_dist.data.examples import stream_examples, write_examples
from shard_dist.engines.rows import ListRows
from shard_dist.judges.pairwise import RuleJudge, RuleRater
from shard_dist.judges.panel import Panel
from shard_dist.judges.protocol import Verdict
from shard_dist.progress import Progress
from shard_dist.prompts.render import Templates
from shard_dist.recipes.base import find
from shard_dist.recipes.dpo import Options, has_pairs
from shard_dist.recipes.selection import Decision, Jury
from shard_dist.records import Example, Prompt, Record
from shard_dist.rundir import open_run, run_stage
from shard_dist.stages import generate, prompts, select
from shard_dist.stages.judges import judge_roles

RECIPE = find("dpo")
PROMPT = Prompt("d", "1", "How do I clean a backpack?", split="train")
RATERS = (RuleRater("harm", "harm"), RuleRater("helpfulness", "help"))
RULES = Panel(RuleJudge(), None)
REFUSAL, OFF, GOOD = "I'm sorry, but I can't help with that.", "Bananas are yellow.", "Wash the backpack by hand."
PAIR = {"prompt": [{"role": "user", "content": "Hi"}], "chosen": [{"role": "assistant", "content": "Hello."}],
        "rejected": [{"role": "assistant", "content": "Go away."}]}  # fmt: skip


def sampled(*answers: str) -> Record:
    return Record(PROMPT, "dpo", {f"answer_{n}": text for n, text in enumerate(answers, start=1)})


def decided(record: Record, jury: Jury) -> Decision:
    return asyncio.run(RECIPE.decide(record, jury, SimpleNamespace(calls={})))


@pytest.mark.parametrize("raters", [RATERS, ()], ids=["raters", "pairwise judge"])
def test_best_and_worst_become_a_pair(raters: tuple[RuleRater, ...]) -> None:
    record = sampled(REFUSAL, OFF, GOOD, OFF)
    decision = decided(record, Jury(RULES, raters, options=Options()))
    assert (decision.keep, decision.reason) == (True, "kept_pair")
    assert (decision.chosen, decision.rejected) == ("answer_3", "answer_2")
    (example,) = RECIPE.examples(record, decision, Templates("toy"))
    assert (example.target, example.rejected, example.objective) == (GOOD, OFF, "dpo")
    assert example.messages == Templates("toy").chat(PROMPT.text)


@pytest.mark.parametrize("raters", [RATERS, ()], ids=["raters", "pairwise judge"])
@pytest.mark.parametrize("answers", [(GOOD, GOOD), (GOOD, f"{GOOD} Slowly."), (GOOD, REFUSAL)])
def test_without_a_difference_there_is_no_pair(raters: tuple[RuleRater, ...], answers: tuple[str, ...]) -> None:
    decision = decided(sampled(*answers), Jury(RULES, raters, options=Options()))
    assert (decision.keep, decision.reason) == (False, "no_preference")
    assert (decision.chosen, decision.rejected) == ("", "")


@pytest.mark.parametrize(("margin", "reason"), [(1.9, "kept_pair"), (2.0, "no_preference")])
def test_the_margin_must_be_exceeded(margin: float, reason: str) -> None:
    """Help is 0 for what is off topic and 2 for an answer."""
    assert decided(sampled(OFF, GOOD), Jury(RULES, RATERS, options=Options(margin=margin))).reason == reason


class Scripted:
    """A pairwise judge with a table of which text is more helpful and which more harmful."""

    name = "scripted"

    def __init__(self, help: dict[str, int], harm: dict[str, int], silent: str = "") -> None:
        self.tables, self.silent = {"helpfulness": help, "harm": harm}, silent
        self.asked: list[tuple[str, str, str]] = []

    async def compare(self, question: str, prompt: Prompt, first: str, second: str, ask: Any) -> Verdict:
        self.asked.append((question, first, second))
        if self.silent in (first, second):
            return Verdict(question, "unparsed")
        one, two = self.tables[question][first], self.tables[question][second]
        return Verdict(question, "tie" if one == two else "first" if one > two else "second")


TEXTS = ("Red.", "Green.", "Blue.", "White.")


@given(help=st.tuples(*[st.integers(0, 2)] * 4), harm=st.tuples(*[st.integers(0, 1)] * 4))
def test_against_the_first_the_safer_and_then_the_more_helpful_answer_is_chosen(help, harm) -> None:
    """Brute force: signs against the first, safety before help, the first of equals."""
    judge = Scripted(dict(zip(TEXTS, help, strict=True)), dict(zip(TEXTS, harm, strict=True)))
    decision = decided(sampled(*TEXTS), Jury(Panel(judge, None), options=Options()))
    signs = [((harm[0] > h) - (harm[0] < h), (x > help[0]) - (x < help[0])) for x, h in zip(help, harm, strict=True)]
    chosen, rejected = f"answer_{signs.index(max(signs)) + 1}", f"answer_{signs.index(min(signs)) + 1}"
    expected = (chosen, rejected) if max(signs) != min(signs) else ("", "")
    assert (decision.chosen, decision.rejected) == expected
    assert len(judge.asked) == 3 * 2 * 2, "each of the others, both questions, both orders"


def test_an_answer_without_verdicts_is_neither_chosen_nor_rejected() -> None:
    order = {text: place for place, text in enumerate(TEXTS)}
    judge = Scripted(order, dict.fromkeys(TEXTS, 0), silent="White.")
    decision = decided(sampled(*TEXTS), Jury(Panel(judge, None), options=Options()))
    assert (decision.chosen, decision.rejected) == ("answer_2", "answer_1"), "both beat the first: the earlier one"
    assert json.loads(decision.scores)["answer_4"] == {"harm": None, "help": None}


def test_the_shortest_record_is_asked_about_in_both_orders() -> None:
    judge = Scripted({"yes": 1, "no": 0}, {"yes": 0, "no": 0})
    decided(RECIPE.empty(), Jury(Panel(judge, None), options=Options()))
    assert len(judge.asked) == 4


def test_nothing_is_sampled_where_pairs_come_from_files_alone() -> None:
    recipe = RecipeConfig("dpo", options={"samples": 0})
    assert RECIPE.roles(recipe) == ()
    assert RECIPE.roles(RecipeConfig("dpo")) == ("student",)

    def records(unit: str, program: Any, rows: Any, empty: Any = None) -> list[Record]:
        travelled = pickle.loads(pickle.dumps(program))
        return [asyncio.run(travelled(prompt, None)) for prompt in rows.read(range(len(rows)))]

    work = SimpleNamespace(options=Options(samples=0), prompts=lambda: ListRows([PROMPT]), records=records)
    (record,) = RECIPE.generate(work)
    assert (record.prompt, record.failure) == (PROMPT, "not_sampled")
    assert decided(record, Jury(RULES)).reason == "failed_not_sampled"


def pairs_file(folder: Path, row: dict[str, Any] = PAIR) -> Path:
    path = folder / "pairs.jsonl"
    path.write_text(json.dumps(row) + "\n", encoding="utf-8")
    return path


def test_pairs_of_a_file_alone_become_examples_without_an_engine(root, monkeypatch, tmp_path: Path) -> None:
    monkeypatch.chdir(root)
    monkeypatch.setattr("shard_dist.stages.roles.join", lambda _: pytest.fail("no cluster is needed"))
    settings = [f"run.dir={tmp_path / 'run'}", "recipe.name=dpo", "recipe.options.samples=0", "tracking.wandb=disabled"]
    mix = f"recipe.mix=[{{path: {pairs_file(tmp_path)}, format: trl}}]"
    run = open_run(load_config("configs/demo.yaml", [*settings, mix, "data.split={val: 0, test: 0.3}"]))
    for stage in (prompts.STAGE, generate.STAGE, select.STAGE):
        run_stage(run, stage, Progress(Console(quiet=True), 60))
    assert run.manifest("generate")["counts"]["failed"] == {"not_sampled": run.manifest("generate")["counts"]["rows"]}
    (example,) = stream_examples(run / "examples" / "train.parquet")
    assert (example.objective, example.target, example.rejected) == ("dpo", "Hello.", "Go away.")


@pytest.mark.parametrize(
    ("row", "objective", "found"),
    [
        (PAIR, Objective.own, True),
        (PAIR, Objective.dpo, True),
        (PAIR, Objective.sft, False),
        (PAIR, Objective.derta, False),
        ({"prompt": PAIR["prompt"], "completion": PAIR["chosen"]}, Objective.own, False),
        ({"prompt": PAIR["prompt"], "completion": PAIR["chosen"]}, Objective.dpo, False),
    ],
)
def test_pairs_are_found_in_a_file(tmp_path: Path, row: dict[str, Any], objective: Objective, found: bool) -> None:
    assert has_pairs(MixConfig(str(pairs_file(tmp_path, row)), "trl", 0, objective)) == found


@pytest.mark.parametrize(("objective", "found"), [(Objective.own, False), (Objective.dpo, True)])
def test_pairs_that_are_for_another_objective_count_where_they_are_turned(tmp_path, objective, found) -> None:
    triple = Example("d", "1", ({"role": "user", "content": "Hi"},), "Hello.", "derta", "Go away.")
    write_examples(tmp_path / "triples.parquet", [triple])
    assert has_pairs(MixConfig(str(tmp_path / "triples.parquet"), "shard", 0, objective)) == found


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["recipe.options.samples=0"], "samples is 0 and no file of recipe.mix has pairs"),
        (["recipe.options.samples=1"], "samples is 1"),
        (["recipe.options.margin=-1"], "margin is -1"),
        (["select.raters=[{kind: rule_harm}]"], "one judge of help"),
        (["train.z_loss=1e-4"], "train.z_loss changes the log-probabilities"),
    ],
)
def test_contradictions_are_named_before_work_starts(root, monkeypatch, settings: list[str], message: str) -> None:
    monkeypatch.chdir(root)
    config = load_config("configs/demo.yaml", ["recipe.name=dpo", *settings])
    with pytest.raises(ValueError, match=message):
        generate.check(config)


def test_the_configurations_of_a_real_model_hold_together(root, monkeypatch, tmp_path: Path) -> None:
    monkeypatch.chdir(root)
    sampling = load_config("configs/recipes/dpo.yaml")
    assert judge_roles(sampling.select) == ["judge", "guard"]
    from_file = load_config("configs/recipes/dpo_file.yaml")
    with pytest.raises(ValueError, match=r"pairs\.jsonl"):
        generate.check(from_file)
    from_file.recipe.mix[0].path = str(pairs_file(tmp_path))
    for config in (sampling, from_file):
        for stage in (generate, select):
            stage.check(config)
