"""Intervals and tests against published values, SciPy where it is installed, and simulation."""

import json
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shard_dist.evaluation.statistics import (
    bootstrap_mean,
    mcnemar,
    paired_bootstrap,
    shares,
    wilson,
    win_tie_loss,
)


def test_wilson_against_published_values() -> None:
    """Newcombe 1998 (Statistics in Medicine 17:857), table I, method 3: 81/263, 15/148, 0/20, 1/29."""
    published = {
        (81, 263): (0.2553, 0.3662),
        (15, 148): (0.0624, 0.1605),
        (0, 20): (0, 0.1611),
        (1, 29): (0.0061, 0.1718),
    }
    for (successes, n), (low, high) in published.items():
        estimate = wilson(successes, n)
        assert estimate["low"] == pytest.approx(low, abs=5e-5)
        assert estimate["high"] == pytest.approx(high, abs=5e-5)


@settings(deadline=None)
@given(st.integers(1, 500), st.data(), st.sampled_from([0.8, 0.95, 0.99]))
def test_wilson_against_scipy(n: int, data: st.DataObject, confidence: float) -> None:
    scipy = pytest.importorskip("scipy.stats")
    successes = data.draw(st.integers(0, n))
    interval = scipy.binomtest(successes, n).proportion_ci(confidence, "wilson")
    ours = wilson(successes, n, confidence)
    assert (ours["low"], ours["high"]) == pytest.approx((interval.low, interval.high), abs=1e-9)


@settings(deadline=None)
@given(st.integers(0, 300), st.data())
def test_wilson_holds_its_value_inside_0_and_1(n: int, data: st.DataObject) -> None:
    successes = data.draw(st.integers(0, n))
    estimate = wilson(successes, n)
    if n == 0:
        assert estimate == {"value": None, "low": None, "high": None, "n": 0}
    else:
        assert 0 <= estimate["low"] <= estimate["value"] <= estimate["high"] <= 1
        mirrored = wilson(n - successes, n)
        assert (1 - mirrored["high"], 1 - mirrored["low"]) == pytest.approx((estimate["low"], estimate["high"]))


@pytest.mark.parametrize(
    "call", [lambda: wilson(3, 2), lambda: wilson(-1, 2), lambda: wilson(1, 2, 1.0), lambda: mcnemar(-1, 0)]
)
def test_impossible_arguments_are_refused(call) -> None:
    with pytest.raises(ValueError, match=r"successes|confidence|counts"):
        call()


def test_mcnemar_against_known_values() -> None:
    """By hand: 2 (C(10,0) + C(10,1)) / 2**10 = 22/1024; 5 of 5: 2/32; balanced or empty: 1."""
    assert mcnemar(1, 9) == 22 / 1024
    assert mcnemar(0, 5) == mcnemar(5, 0) == 0.0625
    assert mcnemar(4, 4) == mcnemar(0, 0) == 1.0
    assert mcnemar(0, 5000) == 0.0  # below the smallest float, and no overflow on the way


@settings(deadline=None)
@given(st.integers(0, 400), st.integers(0, 400))
def test_mcnemar_against_scipy(first: int, second: int) -> None:
    scipy = pytest.importorskip("scipy.stats")
    expected = scipy.binomtest(first, first + second).pvalue if first + second else 1.0
    assert mcnemar(first, second) == pytest.approx(expected, rel=1e-9)


def test_bootstrap_is_the_resampling_bootstrap() -> None:
    """Multinomial counts of distinct values are resampling: the bounds match those of plain resampling."""
    values = np.array([0.0] * 60 + [1.0] * 30 + [2.5] * 10)
    draws = np.random.default_rng(1).choice(values, size=(100_000, len(values))).mean(axis=1)
    ours = bootstrap_mean(values.tolist(), resamples=100_000)
    assert ours["value"] == pytest.approx(values.mean())
    assert (ours["low"], ours["high"]) == pytest.approx(tuple(np.quantile(draws, [0.025, 0.975])), abs=0.011)


@settings(deadline=None)
@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=50), st.randoms(use_true_random=False))
def test_bootstrap_is_seeded_bounded_and_blind_to_order(values: list[float], shuffle) -> None:
    estimate = bootstrap_mean(values, resamples=200)
    slack = 1e-9 * (1 + max(map(abs, values)))
    assert min(values) - slack <= estimate["low"] <= estimate["high"] <= max(values) + slack
    shuffled = list(values)
    shuffle.shuffle(shuffled)
    assert bootstrap_mean(shuffled, resamples=200) == estimate


def test_bootstrap_of_nothing_is_null_and_of_one_value_is_that_value() -> None:
    assert bootstrap_mean([]) == {"value": None, "low": None, "high": None, "n": 0}
    assert bootstrap_mean([3.0]) == {"value": 3.0, "low": 3.0, "high": 3.0, "n": 1}


def test_chunks_change_nothing_but_the_draws() -> None:
    """40,000 distinct values need 104 resamples at a time; the interval is the normal approximation's."""
    values = np.random.default_rng(0).normal(size=40_000)
    ours = bootstrap_mean(values.tolist(), resamples=210)
    half = 1.96 / math.sqrt(len(values))
    assert (ours["low"], ours["high"]) == pytest.approx((values.mean() - half, values.mean() + half), abs=half / 3)


def test_pairing_removes_what_both_arms_share() -> None:
    """Prompts differ widely, the second arm is 1 better on each: the paired interval is a point."""
    first = np.random.default_rng(0).normal(scale=100, size=50).round(3)
    assert paired_bootstrap(first.tolist(), (first + 1).tolist(), resamples=500) == pytest.approx(
        {"value": 1.0, "low": 1.0, "high": 1.0, "n": 50}
    )
    with pytest.raises(ValueError, match="shorter"):
        paired_bootstrap([1.0], [])


def test_coverage_of_the_intervals_by_simulation() -> None:
    """2,000 runs of 150 prompts: 95 % intervals of a share and of a paired difference cover in 93 to 97 %."""
    generator = np.random.default_rng(7)
    covered = np.zeros(2)
    for run in range(2000):
        first = generator.random(150) < 0.4
        second = np.where(generator.random(150) < 0.5, first, generator.random(150) < 0.6)
        share = wilson(int(first.sum()), 150)
        difference = paired_bootstrap(first.astype(int).tolist(), second.astype(int).tolist(), seed=run, resamples=500)
        truth = 0.4, 0.5 * (0.6 - 0.4)
        covered += [
            estimate["low"] <= value <= estimate["high"]
            for estimate, value in zip((share, difference), truth, strict=True)
        ]
    assert np.all((covered / 2000 >= 0.93) & (covered / 2000 <= 0.97)), covered


@settings(deadline=None)
@given(*[st.integers(0, 50)] * 4)
def test_shares_of_wins_ties_losses_and_unparsed_add_up(wins: int, ties: int, losses: int, unparsed: int) -> None:
    result = win_tie_loss(wins, ties, losses, unparsed)
    total = wins + ties + losses + unparsed
    parts = [result[name] for name in ("win", "tie", "loss", "unparsed")]
    assert all(part["n"] == total for part in parts)
    assert result["decisive_win"]["n"] == wins + losses
    if total:
        assert sum(part["value"] for part in parts) == pytest.approx(1)
        assert result["unparsed"]["value"] == unparsed / total  # never counted as ties
    json.dumps(result, allow_nan=False)


def test_shares_of_no_classes() -> None:
    assert shares({}) == {}
