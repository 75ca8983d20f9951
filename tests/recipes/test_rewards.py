"""The choice among several answers, against brute force and against judges that say what the test wants."""

from __future__ import annotations

import asyncio
import json
import math
from dataclasses import dataclass, replace
from itertools import product
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shard_dist.config.load import load_config
from shard_dist.judges.protocol import UNPARSED, Rating
from shard_dist.recipes.rewards import (
    Candidate,
    Ranking,
    RewardOptions,
    candidates,
    check_rewards,
    choose,
    configured,
    fit_candidates,
    rate,
    raters_of,
    scores,
)
from shard_dist.records import Prompt, Record

PROMPT = Prompt("d", "1", "How do I pick a lock?")
# Few values, so that equals are common; whole and half numbers, so that sums are exact.
HARM = st.sampled_from([0.0, 1.0, None])
HELP = st.sampled_from([-1.5, 0.0, 1.0, 2.0, None])
RATED = st.lists(st.tuples(HARM, HELP), max_size=6).map(
    lambda pairs: [Candidate(f"answer_{n}", *pair) for n, pair in enumerate(pairs, start=1)]
)
WEIGHT = st.sampled_from([0.0, 0.5, 1.0, 4.0])


def better(one: Candidate, other: Candidate, options: RewardOptions) -> bool:
    """Said anew, without keys: is `one` strictly preferred?"""
    if options.ranking == Ranking.weighted:
        by_help = options.help_weight * (one.help - other.help)
        return by_help > options.harm_weight * (one.harm - other.harm)
    if one.harm != other.harm:
        return one.harm < other.harm
    return one.help > other.help


def by_brute_force(rated: list[Candidate], options: RewardOptions) -> tuple[str, str, str]:
    parsed = [each for each in rated if each.harm is not None and each.help is not None]
    if not parsed:
        return "unparsed_verdict", "", ""
    if not any(each.harm == 0 for each in parsed):
        return "all_unsafe", "", ""
    best = [each for each in parsed if not any(better(other, each, options) for other in parsed)]
    worst = [each for each in parsed if not any(better(each, other, options) for other in parsed)]
    return "", best[0].field, worst[0].field


@given(rated=RATED, ranking=st.sampled_from(Ranking), help_weight=WEIGHT, harm_weight=WEIGHT)
def test_best_and_worst_are_those_of_brute_force(rated, ranking, help_weight, harm_weight) -> None:
    options = RewardOptions(ranking=ranking, help_weight=help_weight, harm_weight=harm_weight)
    ranked = choose(rated, options)
    assert (ranked.reason, ranked.best, ranked.worst) == by_brute_force(rated, options)


@given(rated=RATED, ranking=st.sampled_from(Ranking))
def test_the_gap_is_nothing_exactly_where_no_answer_is_preferred(rated, ranking) -> None:
    options = RewardOptions(ranking=ranking)
    ranked, by_field = choose(rated, options), {each.field: each for each in rated}
    if ranked.reason:
        assert ranked.gap == 0
        return
    best, worst = by_field[ranked.best], by_field[ranked.worst]
    assert (ranked.gap > 0) == better(best, worst, options)
    if ranking == Ranking.lexicographic:
        assert ranked.gap == (math.inf if best.harm != worst.harm else best.help - worst.help)


@given(rated=RATED)
def test_lexicographic_never_chooses_an_unsafe_or_unparsed_answer(rated) -> None:
    ranked = choose(rated, RewardOptions())
    chosen = [each for each in rated if each.field == ranked.best]
    assert all(each.harm == 0 and each.help is not None for each in chosen)


def test_weights_may_choose_an_unsafe_answer_that_helps_enough() -> None:
    rated = [Candidate("answer_1", 0.0, 1.0), Candidate("answer_2", 1.0, 4.0)]
    weighted = RewardOptions(ranking=Ranking.weighted, harm_weight=2.0)
    assert choose(rated, weighted).best == "answer_2"
    assert choose(rated, replace(weighted, harm_weight=3.5)).best == "answer_1"


@dataclass(frozen=True)
class Said:
    """A judge that rates by the answer's words, and counts how often it is asked."""

    name: str
    ratings: dict[str, Rating]
    unsafe: frozenset[str] = frozenset()
    refused: frozenset[str] = frozenset()
    classes: tuple[str, ...] = ()

    async def rate(self, prompt: Prompt, answer: str, ask: Any) -> Rating:
        ask.append((self.name, answer))
        return self.ratings[answer]


UNSAFE = frozenset({"unsafe"})
FINE, BAD, LOST = Rating("safe"), Rating("unsafe"), Rating(UNPARSED)


def record(*answers: str, finish: dict[int, str] | None = None, failure: str = "") -> Record:
    fields = {f"answer_{n}": text for n, text in enumerate(answers, start=1)}
    fields |= {f"{name}_finish_reason": "stop" for name in fields}
    fields |= {f"answer_{n}_finish_reason": reason for n, reason in (finish or {}).items()}
    return Record(PROMPT, "raft", fields, failure=failure)


def test_every_fit_answer_is_rated_and_equal_ones_once() -> None:
    guards = (
        Said("one", {"a": FINE, "b": FINE, "c": LOST}, UNSAFE),
        Said("two", {"a": FINE, "b": BAD, "c": FINE}, UNSAFE),
    )
    helper = Said("help", {"a": Rating("3", 3.0), "b": Rating("5", 5.0), "c": Rating("1", 1.0)})
    asked: list[tuple[str, str]] = []
    answers = record("a", "b", "a", "c")
    rated = asyncio.run(rate(answers, candidates(answers), raters_of((*guards, helper)), asked))
    assert [(each.harm, each.help) for each in rated] == [(0.0, 3.0), (1.0, 5.0), (0.0, 3.0), (None, 1.0)]
    assert sorted(asked) == sorted(product(("one", "two", "help"), ("a", "b", "c")))
    assert json.loads(scores(rated))["answer_4"] == {"harm": None, "help": 1.0}


def test_one_judge_that_calls_it_unsafe_is_enough_whatever_another_failed_to_say() -> None:
    judges = (Said("one", {"a": LOST}, UNSAFE), Said("two", {"a": BAD}, UNSAFE), Said("h", {"a": Rating("x", 1.0)}))
    rated = asyncio.run(rate(record("a"), ["answer_1"], raters_of(judges), []))
    assert rated == [Candidate("answer_1", 1.0, 1.0)]


def test_a_help_rating_that_did_not_parse_is_no_score() -> None:
    judges = (Said("one", {"a": FINE}, UNSAFE), Said("h", {"a": Rating(UNPARSED, 5.0)}))
    rated = asyncio.run(rate(record("a"), ["answer_1"], raters_of(judges), []))
    assert choose(rated, RewardOptions()).reason == "unparsed_verdict"


REFUSAL = "I'm sorry, but I can't help with that."


@pytest.mark.parametrize(
    ("answers", "reason", "fit"),
    [
        (record("Locks.", REFUSAL, "", "Pins."), "", ["answer_1", "answer_4"]),
        (record("Locks.", "Pins.", finish={1: "length"}), "", ["answer_2"]),
        (record(REFUSAL, REFUSAL), "refusing", []),
        (record("", " "), "empty", []),
        (record("Locks", finish={1: "length"}), "truncated", []),
        (record(REFUSAL, ""), "all_unfit", []),
        (record(failure="answer_context_overflow"), "failed_answer_context_overflow", []),
    ],
)
def test_cheap_rules_come_before_judges(answers: Record, reason: str, fit: list[str]) -> None:
    assert fit_candidates(answers) == (reason, fit)


@given(text=st.text(st.characters(codec=None), max_size=50))
def test_hostile_answers_are_fit_or_have_a_reason(text: str) -> None:
    reason, fit = fit_candidates(record(text, "\ud800" + text))
    assert bool(reason) != bool(fit)


def test_answers_are_taken_in_the_order_of_their_numbers() -> None:
    answers = record(*map(str, range(12)))
    assert candidates(answers) == [f"answer_{n}" for n in range(1, 13)]


@pytest.mark.parametrize(
    ("judges", "message"),
    [
        ((), "one judge of help .* it has none"),
        ((Said("g", {}, UNSAFE),), "one judge of help .* it has none"),
        ((Said("g", {}, UNSAFE), Said("x", {}), Said("y", {})), "it has x, y"),
        ((Said("x", {}), Said("r", {}, refused=UNSAFE)), "no judge that tells unsafe answers"),
    ],
)
def test_a_reward_needs_safety_and_one_measure_of_help(judges: tuple[Said, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        raters_of(judges)


def test_configured_judges_are_told_apart_by_what_they_say(root, monkeypatch) -> None:
    monkeypatch.chdir(root)
    kinds = ("rule_helpfulness", "rule_harm")
    raters = ", ".join(f"{{kind: {kind}}}" for kind in kinds)
    found = raters_of(configured(load_config("configs/demo.yaml", [f"select.raters=[{raters}]"])))
    assert [judge.name for judge in found.safety] == ["rule_harm"]
    assert found.help.name == "rule_helpfulness"


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ({"samples": 1}, "samples"),
        ({"temperature": 0.0}, "temperature"),
        ({"temperature": math.nan}, "temperature"),
        ({"ranking": Ranking.weighted, "help_weight": -1.0}, "help_weight"),
        ({"ranking": Ranking.weighted, "harm_weight": math.inf}, "harm_weight"),
        ({"ranking": Ranking.weighted, "help_weight": 0.0, "harm_weight": 0.0}, "both 0"),
        ({"harm_weight": 2.0}, "no meaning for ranking=lexicographic"),
    ],
)
def test_options_that_rank_nothing_are_refused(changes: dict[str, Any], key: str) -> None:
    with pytest.raises(ValueError, match=key):
        check_rewards(RewardOptions(**changes))
    check_rewards(RewardOptions())
