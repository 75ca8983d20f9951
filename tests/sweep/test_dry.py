"""What a dry run foretells: counted against a count by hand, and nothing is started or written."""

from __future__ import annotations

import asyncio
import io
import json
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from shard_dist.data.load import load_prompts
from shard_dist.engines.fake import FakeEngine
from shard_dist.evaluation.arms import Answer
from shard_dist.ledger.key import call_key
from shard_dist.ledger.store import Ledger
from shard_dist.progress import Progress
from shard_dist.prompts.render import Templates
from shard_dist.records import Call, Completion, Sampling
from shard_dist.rundir import Run
from shard_dist.stages.roles import role_of
from shard_dist.sweep.dry import probe
from shard_dist.sweep.estimate import CHARS_PER_TOKEN, estimate, tables
from shard_dist.sweep.plan import Sweep, load_sweep

SweepFile = Callable[..., Path]
SMALL = ("data.sources[0].limit=30", "data.split.test=0.3")
RECIPE = {"self": {"recipe.generator": "student"}, "teacher": {"recipe.generator": "teacher"}}
AXES = {"recipe": RECIPE, "run.seed": [0, 1]}


def sizes(sweep: Sweep) -> tuple[int, int, int]:
    """Prompts with a record, categories among them, test prompts."""
    data = sweep.config.data
    prompts, _ = load_prompts(data.sources, data.split, seed=0, max_chars=data.max_chars)
    recorded = [prompt for prompt in prompts if prompt.split in ("train", "val")]
    return len(recorded), len({prompt.category for prompt in recorded}), sum(p.split == "test" for p in prompts)


def test_calls_are_those_of_a_count_by_hand(sweep_file: SweepFile, progress: Progress) -> None:
    """A draft, a rewrite and a reframed answer each, guidelines per category, both arms' answers to every test prompt;
    of one seed only the base's answers are shared, of two seeds nothing is."""
    sweep = load_sweep(sweep_file({"axes": AXES}), SMALL)
    records, categories, test = sizes(sweep)
    found = estimate(sweep, progress)
    own = 3 * records + categories + 2 * test
    assert [arm["calls"] for arm in found["arms"]] == [own] * 4
    assert [arm["shared"] for arm in found["arms"]] == [0, 0, test, test]
    assert found["total"]["new"] == 4 * own - 2 * test
    for row in [*found["arms"], found["comparison"], found["total"]]:
        assert row["calls"] == row["new"] + row["in_ledger"] + row["shared"]
    assert not sweep.path.exists()


def test_a_judges_calls_are_counted_and_those_of_the_comparison(sweep_file: SweepFile, progress: Progress) -> None:
    """Two questions in both orders of a pair, and whether each answer is on topic, as far as the judge is asked."""
    judged = {"judge": "llm", "judge_role": "judge"}
    path = sweep_file({"axes": {"recipe": RECIPE}}, select=judged, evaluate=judged)
    words = ["models.judge.backend=fake", "models.judge.model=some/judge", "recipe.templates=shard"]
    words += ["models.student.fake.refusal_rate=0", "models.teacher.fake.refusal_rate=0"]
    sweep = load_sweep(path, [*SMALL, *words])
    records, categories, test = sizes(sweep)
    found = estimate(sweep, progress)
    generated = 3 * records + categories
    for arm in found["arms"]:
        selected = arm["calls"] - generated - 2 * test - (4 + 2) * test
        assert records < selected <= 5 * records  # topic first, then four more for what is on it
    assert found["comparison"]["calls"] == 4 * test == found["comparison"]["new"]


class Kept:
    """An `Ask` that fills a ledger as a run would have."""

    def __init__(self, run: Run, ledger: Ledger) -> None:
        self.role, self.ledger, self.calls = role_of(run, "student"), ledger, dict[str, list[str]]()

    async def __call__(self, role: str, step: str, messages: Any, sampling: Sampling) -> Completion:
        call = Call(self.role.identity.model, self.role.identity.fingerprint, messages, sampling)
        key = call_key(call)
        completion = await FakeEngine(self.role.spec).generate(call)
        self.calls.setdefault(step, []).append(key)
        self.ledger.append(key, call, Completion(completion.texts, completion.finish_reasons, 10, 7))
        return completion


def test_what_the_ledger_has_is_neither_new_nor_shared(sweep_file: SweepFile, progress: Progress) -> None:
    """Half of the base's answers were asked before; their length is that of answers still to come."""
    sweep = load_sweep(sweep_file({"axes": {"recipe": RECIPE}}), SMALL)
    config, run = sweep.config, sweep.arms[0].run
    prompts, _ = load_prompts(config.data.sources, config.data.split, seed=0, max_chars=50_000)
    test = [prompt for prompt in prompts if prompt.split == "test"]
    sampling = config.recipe.answer_sampling.sampling()
    program = Answer("student", "base", Templates("toy"), sampling, config.run.seed)
    before = estimate(sweep, progress)
    with closing(Ledger(run.ledger)) as ledger:
        for prompt in test[: len(test) // 2]:
            asyncio.run(program(prompt, Kept(run, ledger)))
    found = estimate(sweep, progress)
    assert [arm["in_ledger"] for arm in found["arms"]] == [len(test) // 2] * 2
    assert [arm["shared"] for arm in found["arms"]] == [0, len(test) - len(test) // 2]
    assert found["total"]["new"] == before["total"]["new"] - len(test) // 2
    assert config.recipe.guideline_sampling.max_tokens == sampling.max_tokens  # so guidelines count as like answers
    longest, (records, categories, _) = sampling.max_tokens, sizes(sweep)
    written = 2 * records + categories
    spared = found["arms"][0]["completion_tokens"] - before["arms"][0]["completion_tokens"]
    # Of the student's calls with this limit; the trained model's are of another model, whose lengths nobody knows.
    assert spared == 7 * (written + len(test) - len(test) // 2) - longest * (written + len(test))


def test_hours_follow_from_stated_rates_and_are_unknown_without(sweep_file: SweepFile, progress: Progress) -> None:
    """Of engines and trainings that take GPUs."""
    gpus = ["models.student.gpus=1", "models.teacher.gpus=1", "train.gpus_per_worker=1"]
    rates = {"gpu_hour": 2.0, "generation_tokens_per_gpu_second": 10, "training_tokens_per_gpu_second": 5}
    stated = load_sweep(sweep_file({"axes": {"recipe": RECIPE}, "costs": rates}), [*SMALL, *gpus])
    found = estimate(stated, progress)
    longest, epochs = stated.config.recipe.answer_sampling.max_tokens, stated.config.train.epochs
    _, probes, _ = probe(stated, progress)
    for arm, each in zip(found["arms"], probes, strict=True):
        chars = sum(len(prompt.text) for prompt in each.learned)
        learned = epochs * (chars / CHARS_PER_TOKEN + len(each.learned) * longest)
        assert arm["gpu_hours"] == pytest.approx((arm["completion_tokens"] / 10 + learned / 5) / 3600, rel=1e-3)
        assert arm["cost"] == 2 * arm["gpu_hours"]
    unstated = load_sweep(sweep_file({"axes": {"recipe": RECIPE}}), [*SMALL, *gpus])
    assert estimate(unstated, progress)["total"]["gpu_hours"] is None
    on_cpus = load_sweep(sweep_file({"axes": {"recipe": RECIPE}}), SMALL)
    assert estimate(on_cpus, progress)["total"]["gpu_hours"] == 0


def test_what_it_says_is_json_and_fits_a_terminal(sweep_file: SweepFile, progress: Progress) -> None:
    found = estimate(load_sweep(sweep_file({"axes": AXES}), SMALL), progress)
    assert json.loads(json.dumps(found)) == found
    console = Console(width=80, record=True, file=io.StringIO())
    console.print(tables(found))
    text = console.export_text()
    for word in ("teacher-seed1", "recipe.generator=teacher run.seed=1", "comparison", f"{found['total']['new']:,}"):
        assert word in text
