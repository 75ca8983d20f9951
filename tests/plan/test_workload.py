"""The work that a plan foretells: against a count by hand, against a run that was made, and how it grows."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from contextlib import closing
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from shard_dist.config.load import load_config
from shard_dist.config.schema import Config
from shard_dist.data.load import load_prompts
from shard_dist.engines.fake import FakeEngine
from shard_dist.evaluation.arms import Answer
from shard_dist.ledger.key import call_key
from shard_dist.ledger.store import Ledger
from shard_dist.plan import workload as module
from shard_dist.plan.workload import Workload, workload
from shard_dist.prompts.render import Templates
from shard_dist.records import Call, Completion, Sampling
from shard_dist.stages.roles import identify

Configure = Callable[..., Config]
FAKE = ("models.student.backend=fake", "models.student.model=some/student", "models.student.engine_args={}")
JUDGED = ("recipe.templates=shard", "select.judge=llm", "evaluate.judge=llm", "models.judge.backend=fake")
HUB = ("data.sources=[{kind: do_not_answer}]",)


@pytest.fixture
def configure(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Configure:
    """`configure(*words)`: the demo's configuration with them, in a directory of its own."""
    monkeypatch.chdir(root)

    def config(*words: str) -> Config:
        return load_config(root / "configs" / "demo.yaml", [f"run.dir={tmp_path / 'run'}", *words])

    return config


def total(work: Workload, stage: str, name: str = "calls") -> float:
    return sum(getattr(asked, name) for asked in work.asked if asked.stage == stage)


def test_calls_are_those_of_a_run_that_was_made(configure: Configure, monkeypatch: pytest.MonkeyPatch) -> None:
    """Golden values: `shard-dist run configs/demo.yaml` with vLLM and the seed model wrote 806 calls into generate.json
    and 198 into evaluate.json, over 267 records, 208 of them of train."""
    monkeypatch.setattr(module, "PROBED", 1000)
    work = workload(configure())
    assert work.prompts == 366
    assert (total(work, "generate"), total(work, "select"), total(work, "evaluate")) == (806, 0, 198)
    assert {(each.part, each.role, each.calls) for each in work.asked if each.stage == "evaluate"} == {
        ("answers of base", "student", 99),
        ("answers of tuned", "tuned", 99),
    }
    # All that could be kept: the run's gate left 208 of train and val together, and it had 3 epochs.
    assert work.training.examples == pytest.approx(3 * 225)


def test_a_judge_is_asked_about_answers_of_their_length(configure: Configure) -> None:
    """Two answers to a prompt, two questions in both orders; whether each is on topic."""
    words = ("data.sources[0].limit=40", "models.student.fake.refusal_rate=0", "models.judge.model=some/judge")
    config = configure(*FAKE, *JUDGED, *words, "recipe.answer_sampling.max_tokens=1000")
    work = workload(config)
    prompts, _ = load_prompts(config.data.sources, config.data.split, seed=0, max_chars=50_000)
    test = sum(prompt.split == "test" for prompt in prompts)
    (judged,) = [each for each in work.asked if (each.stage, each.role) == ("evaluate", "judge")]
    assert judged.calls == (4 + 2) * test
    assert judged.prompt_tokens > 4 * test * 2 * 300  # 30 % of 1,000 tokens each
    assert judged.completion_tokens == pytest.approx(judged.calls * 0.3 * config.evaluate.judge_sampling.max_tokens)


def test_a_sample_tells_what_all_tell(configure: Configure, monkeypatch: pytest.MonkeyPatch) -> None:
    """But for the guidelines of categories: prompts of each split are scaled by themselves."""
    works = []
    for probed in (60, 1000):
        monkeypatch.setattr(module, "PROBED", probed)
        works.append(workload(configure(*FAKE, "recipe.guidelines=false")))
    sample, whole = works
    for stage in ("generate", "evaluate"):
        assert total(sample, stage) == pytest.approx(total(whole, stage))
    assert sample.training.tokens == pytest.approx(whole.training.tokens, rel=0.1)
    assert any("60 prompts, scaled to 366" in said for said in sample.assumptions)
    assert not any("scaled" in said for said in whole.assumptions)


def test_of_prompts_on_the_hub_the_number_must_be_given(configure: Configure) -> None:
    with pytest.raises(ValueError, match=r"do_not_answer would come from the hub.*say how many.*--prompts N"):
        workload(configure(*HUB))
    with pytest.raises(ValueError, match="a plan for 0 prompts"):
        workload(configure(*HUB), 0)


def test_more_prompts_and_longer_answers_are_more_work(configure: Configure, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PROBED", 30)
    works = [workload(configure(*FAKE, *HUB), number) for number in (7, 300, 3000, 60_000)]
    works.append(workload(configure(*FAKE, *HUB, "recipe.answer_sampling.max_tokens=2000"), 60_000))
    for less, more in pairwise(works):
        for stage in ("generate", "evaluate"):
            assert total(less, stage, "completion_tokens") < total(more, stage, "completion_tokens")
        assert less.training.tokens < more.training.tokens
    assert total(works[3], "generate") == pytest.approx(20 * total(works[2], "generate"))
    assert any("not read; 60,000 prompts" in said for said in works[3].assumptions)


def test_rounds_repeat_all_but_the_evaluation(configure: Configure) -> None:
    """And look at each round's model on the validation prompts."""
    words = (*FAKE, *JUDGED, "models.judge.model=some/judge", "data.sources[0].limit=30", "data.split.val=0.3")
    one, three = (workload(configure(*words, f"recipe.rounds={rounds}")) for rounds in (1, 3))
    for stage in ("generate", "select"):
        assert total(three, stage) == pytest.approx(3 * total(one, stage))
    assert three.training.tokens == pytest.approx(3 * one.training.tokens)
    assert total(three, "evaluate") == total(one, "evaluate")
    parts = [(each.part, each.role) for each in three.asked if each.stage == "gain"]
    # The student's answers to them are its drafts.
    assert parts == [("answers of tuned", "tuned"), ("verdicts", "judge")]
    assert not total(one, "gain")


class Kept:
    """An `Ask` that fills a ledger as a run would have."""

    def __init__(self, config: Config, ledger: Ledger) -> None:
        self.spec, self.ledger, self.calls = config.models["student"], ledger, dict[str, list[str]]()

    async def __call__(self, role: str, step: str, messages: Any, sampling: Sampling) -> Completion:
        identity = identify(self.spec)
        call = Call(identity.model, identity.fingerprint, messages, sampling)
        key, found = call_key(call), await FakeEngine(self.spec).generate(call)
        self.calls.setdefault(step, []).append(key)
        self.ledger.append(key, call, Completion(found.texts, found.finish_reasons, 10, 7))
        return found


def test_what_the_ledger_has_is_not_asked_again(configure: Configure) -> None:
    """Half of the base's answers; the others are taken to be as long as they are."""
    config = configure(*FAKE, "data.sources[0].limit=40", "data.split.test=0.5")
    before = workload(config)
    prompts, _ = load_prompts(config.data.sources, config.data.split, seed=0, max_chars=50_000)
    test = [prompt for prompt in prompts if prompt.split == "test"]
    program = Answer("student", "base", Templates("toy"), config.recipe.answer_sampling.sampling(), config.run.seed)
    with closing(Ledger(str(Path(config.run.dir) / "ledger"))) as ledger:
        for prompt in test[: len(test) // 2]:
            asyncio.run(program(prompt, Kept(config, ledger)))
    after = workload(config)
    assert total(after, "evaluate") == total(before, "evaluate") - len(test) // 2
    assert total(after, "generate") == total(before, "generate")
    base = next(each for each in after.asked if each.part == "answers of base")
    assert base.completion_tokens == 7 * base.calls
    assert any(f"{len(test) // 2} calls are in the ledger" in said for said in after.assumptions)


def examples(path: Path, **answers: str) -> Path:
    """A hundred of them, in trl format."""
    said = {name: [{"role": "assistant", "content": text}] for name, text in answers.items()}
    asked = ([{"role": "user", "content": f"Question {number}?"}] for number in range(100))
    path.write_text("".join(json.dumps({"prompt": prompt, **said}) + "\n" for prompt in asked))
    return path


def test_examples_of_files_are_trained_on_too(configure: Configure, tmp_path: Path) -> None:
    path = examples(tmp_path / "pairs.jsonl", chosen="x" * 400, rejected="y" * 400)
    words = (*FAKE, "data.sources[0].limit=30", "train.epochs=2")
    plain = workload(configure(*words)).training
    mixed = workload(configure(*words, f"recipe.mix=[{{path: {path}, format: trl}}]")).training
    pairs = (mixed.examples - plain.examples) / 2
    assert 70 <= pairs <= 100  # those of val are not trained on
    assert mixed.tokens - plain.tokens > 2 * pairs * 200
    assert (plain.objective, mixed.objective) == ("sft", "dpo")


def test_a_recipe_that_wants_more_prompts_than_a_sample_has_gets_all(
    configure: Configure, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    path = examples(tmp_path / "helpful.jsonl", completion="x")
    monkeypatch.setattr(module, "PROBED", 12)
    rater = ("select.raters=[{kind: harmlessness, role: judge}]", "models.judge.model=some/judge")
    words = (
        *FAKE,
        *JUDGED,
        *rater,
        "data.sources[0].limit=60",
        "recipe.name=sit",
        f"recipe.mix=[{{path: {path}, format: trl}}]",
    )
    work = workload(configure(*words, "recipe.options={safety: 20}"))
    assert not any("scaled" in said for said in work.assumptions)
    with pytest.raises(ValueError, match=r"recipe\.options\.safety"):
        workload(configure(*words, "recipe.options={safety: 4000}"))
