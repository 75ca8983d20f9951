"""Means over prompts and seeds: what one seed gives, how wide an interval is where seeds disagree, how it covers."""

from __future__ import annotations

import numpy as np
import pytest

from shard_dist.evaluation.resampling import by_category, by_prompt, sign_flips
from shard_dist.evaluation.seeds import differences, estimates, rates, stacked
from shard_dist.evaluation.statistics import bootstrap, unvaried, wilson

NAN = float("nan")


def test_one_seed_is_the_bootstrap_over_prompts() -> None:
    column = np.random.default_rng(3).normal(size=80)
    design = by_category([str(number % 4) for number in range(80)])
    one = bootstrap({"x": column}, design, 0.95, 7, 500)["x"]
    found = estimates({"x": column[:, None]}, design, 0.95, 7, 500)["x"]
    assert {key: found[key] for key in one} == pytest.approx(one)
    assert found["seeds"] == pytest.approx([column.mean()])


def test_the_interval_holds_the_means_of_two_seeds_that_disagree() -> None:
    noise = np.random.default_rng(5).normal(0, 0.1, size=(300, 2))
    apart, alike = noise + np.array([0.0, 0.4]), noise + 0.2
    found = estimates({"apart": apart, "alike": alike}, by_prompt(300), resamples=2000)
    wide, narrow = found["apart"], found["alike"]
    assert wide["low"] <= min(wide["seeds"]) < max(wide["seeds"]) <= wide["high"]
    assert wide["high"] - wide["low"] > 8 * (narrow["high"] - narrow["low"])
    assert wide["value"] == pytest.approx(0.2, abs=0.02)


@pytest.mark.parametrize(("seeds", "least"), [(2, 0.78), (5, 0.86)])
def test_intervals_cover_what_further_seeds_and_prompts_would_give(seeds: int, least: float) -> None:
    """A hundred made-up sweeps; over 300 of them .86 and .93 were covered. `least` is that less its own error."""
    rng, n = np.random.default_rng(seeds), 200
    made = {
        number: 0.1 + rng.normal(0, 0.1, seeds) + rng.normal(0, 0.3, (n, 1)) + rng.normal(0, 0.4, (n, seeds))
        for number in range(100)
    }
    found = estimates(made, by_prompt(n), 0.95, 1, 500)
    assert np.mean([one["low"] <= 0.1 <= one["high"] for one in found.values()]) >= least


def test_a_seed_without_a_value_and_prompts_without_one_are_left_out() -> None:
    column = stacked([np.array([1.0, NAN, 0.0, 1.0]), np.full(4, NAN), np.array([1.0, NAN, NAN, 0.0])])
    assert column.shape == (4, 2)
    found = estimates({"x": column, "nothing": stacked([np.full(4, NAN)])}, by_prompt(4), resamples=200)
    assert found["x"]["value"] == pytest.approx((2 / 3 + 1 / 2) / 2)
    assert found["x"]["n"] == 3
    assert found["nothing"] == {"value": None, "low": None, "high": None, "n": 0, "seeds": []}


def test_rates_have_wilsons_interval_for_one_seed_and_where_all_seeds_agree() -> None:
    single, same = np.array([1.0, 0.0, 1.0, NAN])[:, None], np.ones((40, 2))
    found = rates({"single": single}, by_prompt(4), resamples=200)["single"]
    assert {key: found[key] for key in ("value", "low", "high", "n")} == wilson(2, 3)
    found = rates({"same": same}, by_prompt(40), resamples=200)["same"]
    assert (found["low"], found["high"]) == (wilson(40, 40)["low"], 1.0)
    assert found["n"] == 40


def test_differences_are_tested_by_flipping_the_signs_of_prompts_means_over_seeds() -> None:
    rng = np.random.default_rng(11)
    column = rng.integers(-1, 2, size=(60, 3)).astype(np.float64)
    found = differences({"x": column, "none": np.zeros((60, 2))}, by_prompt(60), seed=2, resamples=999)
    both = np.column_stack([column.mean(axis=1), np.zeros(60)])
    assert found["x"]["permutation_p"] == pytest.approx(sign_flips(both, by_prompt(60), 2, 999)[0])
    assert found["none"]["permutation_p"] == 1.0
    assert (found["none"]["low"], found["none"]["high"]) == unvaried(0.0, 60)


def test_nothing_measured_is_nothing_estimated() -> None:
    assert estimates({}, by_prompt(0)) == {}
    assert differences({"x": np.empty((3, 0))}, by_prompt(3))["x"]["value"] is None
