"""Every kind of judge by its settings."""

import asyncio
import hashlib
from pathlib import Path

import pytest

from shard_dist.config.schema import Backend, ModelConfig, RaterConfig, RaterKind
from shard_dist.engines.fake import FakeEngine
from shard_dist.engines.worker import ModelIdentity, RowAsk, RowState
from shard_dist.judges.guards import FORMATS_VARIABLE, formats
from shard_dist.judges.protocol import UNPARSED, Rating
from shard_dist.judges.registry import rater
from shard_dist.judges.rubric import RUBRICS
from shard_dist.prompts.render import Templates
from shard_dist.records import Call, Completion, Prompt, Sampling

NO_MODELS = (RaterKind.refusal, RaterKind.rule_helpfulness, RaterKind.rule_harm)
SETTINGS = (Templates("shard"), Sampling(temperature=0.0), 3, 7)


@pytest.fixture
def texts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder with a text of ours for each wire text."""
    monkeypatch.setenv(FORMATS_VARIABLE, str(tmp_path))
    for name, entry in formats()["texts"].items():
        text = f"{entry['starts']} {name} {{prompt}} {{response}} {{behavior}} {{generation}} {entry['ends']}"
        (tmp_path / f"{name}.txt").write_text(text)
        digest = hashlib.sha256(text.encode()).hexdigest()
        monkeypatch.setitem(formats()["texts"], name, {**entry, "file": f"{name}.txt", "sha256": digest})


@pytest.mark.parametrize("kind", RaterKind)
def test_every_kind_has_a_judge_with_classes_of_its_own(kind: RaterKind, texts: None) -> None:
    judge = rater(RaterConfig(kind=kind, role="judge"), *SETTINGS)
    assert judge.name == kind
    assert len(set(judge.classes)) == len(judge.classes) > 0
    assert judge.refused | judge.unsafe <= set(judge.classes)
    assert UNPARSED not in judge.classes


@pytest.mark.parametrize("kind", RaterKind)
def test_name_and_role_are_the_settings(kind: RaterKind, texts: None) -> None:
    judge = rater(RaterConfig(kind=kind, role="critic", name="mine"), *SETTINGS)
    assert judge.name == "mine"
    assert kind in NO_MODELS or (judge.llm if kind in RUBRICS else judge).role == "critic"


def test_rubrics_are_asked_as_the_stage_says() -> None:
    llm = rater(RaterConfig(kind=RaterKind.xstest, role="judge"), *SETTINGS).llm
    assert (llm.templates, llm.sampling, llm.attempts, llm.seed) == SETTINGS


def test_a_template_set_without_the_rubric_is_an_error_before_anything_is_asked() -> None:
    with pytest.raises(ValueError, match=r"the set 'toy' lacks rate_xstest\.user\.j2"):
        rater(RaterConfig(kind=RaterKind.xstest, role="judge"), Templates("toy"), *SETTINGS[1:])


def test_version_threshold_and_policies_reach_their_guards(texts: None) -> None:
    llama = rater(RaterConfig(kind=RaterKind.llama_guard, role="g", version="1", threshold=0.3), *SETTINGS)
    assert (llama.version, llama.threshold) == ("1", 0.3)
    assert rater(RaterConfig(kind=RaterKind.llama_guard, role="g"), *SETTINGS).version == "3"
    shield = rater(RaterConfig(kind=RaterKind.shieldgemma, role="g", policies=["harassment"]), *SETTINGS)
    assert [name for name, _ in shield.policies] == ["harassment"]
    every = rater(RaterConfig(kind=RaterKind.shieldgemma, role="g", threshold=0.7), *SETTINGS)
    assert [name for name, _ in every.policies] == formats()["shieldgemma"]["policies"]
    assert (len({text for _, text in every.policies}), every.threshold) == (4, 0.7)


@pytest.mark.parametrize("kind", [RaterKind.shieldgemma, RaterKind.wildguard, RaterKind.harmbench])
def test_a_guard_without_its_wire_text_is_an_error_before_anything_is_asked(kind, monkeypatch) -> None:
    monkeypatch.delenv(FORMATS_VARIABLE, raising=False)
    with pytest.raises(ValueError, match=rf"{kind}.*\${FORMATS_VARIABLE} is not set"):
        rater(RaterConfig(kind=kind, role="g"), *SETTINGS)


def test_the_refusal_rules_ask_nobody(finish) -> None:
    judge = rater(RaterConfig(kind=RaterKind.refusal), *SETTINGS)
    rating = finish(judge.rate(Prompt("d", "1", "How?"), "I'm sorry, but I can't help with that.", None))
    assert rating.verdict in judge.refused


class Fake:
    """The fake engine behind a row's `ask`."""

    async def complete(self, key: str, call: Call, row: RowState) -> Completion:
        return await FakeEngine(ModelConfig(backend=Backend.fake, model="m")).generate(call)


@pytest.mark.parametrize("kind", [kind for kind in RaterKind if kind not in NO_MODELS])
def test_every_kind_judges_with_the_engine_that_ships_for_tests(kind: RaterKind, texts: None) -> None:
    """Its replies are drawn from the call: over 20 answers every judge gives more than one verdict or score."""

    async def ratings() -> list[Rating]:
        judge = rater(RaterConfig(kind=kind, role="judge"), *SETTINGS)
        ask = RowAsk({"judge": Fake()}, {"judge": ModelIdentity("m", "f")})
        return [await judge.rate(Prompt("d", "1", "How?"), f"Answer {number}.", ask) for number in range(20)]

    found = asyncio.run(ratings())
    assert all(rating.parsed for rating in found)
    assert len({(rating.verdict, rating.score) for rating in found}) > 1
