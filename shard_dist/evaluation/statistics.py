"""Intervals and tests for shares and means over prompts. Nothing here knows what was measured.

Where there is nothing to estimate from (n = 0), value, low and high are None: valid JSON, and no NaN.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import NormalDist
from typing import TypedDict

import numpy as np

RESAMPLES = 10_000  # the Monte Carlo error of a 95 % bound's level is then about .0016


class Estimate(TypedDict):
    """A value with its interval and the number of prompts that it rests on."""

    value: float | None
    low: float | None
    high: float | None
    n: int


def _check(confidence: float) -> None:
    if not 0 < confidence < 1:
        raise ValueError(f"confidence must lie between 0 and 1, found {confidence}; 0.95 is usual")


def wilson(successes: int, n: int, confidence: float = 0.95) -> Estimate:
    """Wilson's score interval of a share (Wilson 1927, JASA 22:209, no continuity correction).

    Unlike value +- z * se it stays inside [0, 1] and does not collapse at 0 or n successes. Raises
    ValueError where 0 <= successes <= n or 0 < confidence < 1 does not hold.
    """
    _check(confidence)
    if not 0 <= successes <= n:
        raise ValueError(f"{successes} successes in {n} trials")
    if n == 0:
        return Estimate(value=None, low=None, high=None, n=0)
    z = NormalDist().inv_cdf((1 + confidence) / 2)
    share = successes / n
    centre = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    # At the ends the exact bounds are 0 and 1; rounding would leave them beside the value.
    low = 0.0 if successes == 0 else max(0.0, centre - half)
    high = 1.0 if successes == n else min(1.0, centre + half)
    return Estimate(value=share, low=low, high=high, n=n)


def bootstrap_mean(
    values: Sequence[float], confidence: float = 0.95, seed: int = 0, resamples: int = RESAMPLES
) -> Estimate:
    """Mean of `values`, one per prompt, with its percentile bootstrap interval.

    Source: Efron and Tibshirani 1993, An Introduction to the Bootstrap, chapter 13. The order of the values
    has no say: they are resampled from their sorted list.
    """
    _check(confidence)
    n = len(values)
    if n == 0:
        return Estimate(value=None, low=None, high=None, n=0)
    distinct, counts = np.unique(np.asarray(values, dtype=np.float64), return_counts=True)
    generator = np.random.default_rng(seed)
    means = np.empty(resamples)
    # Drawing how often each distinct value comes up is the same as drawing n values; one count costs some
    # 20 draws. Shares and their differences have 2 or 3 distinct values, lengths thousands.
    by_count = 20 * len(distinct) < n
    ordered = np.repeat(distinct, counts)
    chunk = max(1, 2**22 // (len(distinct) if by_count else n))  # 32 MiB at a time
    for start in range(0, resamples, chunk):
        size = min(chunk, resamples - start)
        if by_count:
            means[start : start + size] = generator.multinomial(n, counts / n, size=size) @ distinct / n
        else:
            means[start : start + size] = ordered[generator.integers(n, size=(size, n))].mean(axis=1)
    low, high = np.quantile(means, [(1 - confidence) / 2, (1 + confidence) / 2])
    return Estimate(value=float(distinct @ counts / n), low=float(low), high=float(high), n=n)


def paired_bootstrap(
    first: Sequence[float],
    second: Sequence[float],
    confidence: float = 0.95,
    seed: int = 0,
    resamples: int = RESAMPLES,
) -> Estimate:
    """Mean of second - first, prompt by prompt, with its bootstrap interval over prompts.

    Prompts are resampled, never arms: what makes a prompt hard is hard for both arms and cancels. Raises
    ValueError where the lengths differ.
    """
    differences = [after - before for before, after in zip(first, second, strict=True)]
    return bootstrap_mean(differences, confidence, seed, resamples)


def mcnemar(first_only: int, second_only: int) -> float:
    """Two-sided exact p of McNemar's test (McNemar 1947; exact form: Fay 2010, Biostatistics 11:373).

    The arguments count the prompts on which one arm alone succeeds; under the null each of them falls
    either way with probability 1/2, so p = min(1, 2 P(X <= min)), X ~ Binomial(first_only + second_only,
    1/2). Applied to wins and losses it is the sign test. 1.0 where there are none. Integers throughout: no
    rounding before the last division.
    """
    if first_only < 0 or second_only < 0:
        raise ValueError(f"counts must not be negative: {first_only}, {second_only}")
    n, least = first_only + second_only, min(first_only, second_only)
    term = tail = 1
    for k in range(1, least + 1):
        term = term * (n - k + 1) // k
        tail += term
    return min(1.0, 2 * tail / 2**n)


def shares(counts: dict[str, int], confidence: float = 0.95) -> dict[str, Estimate]:
    """Every class's share of all counts with its Wilson interval; the n of each is the total."""
    total = sum(counts.values())
    return {name: wilson(count, total, confidence) for name, count in counts.items()}


def win_tie_loss(wins: int, ties: int, losses: int, unparsed: int, confidence: float = 0.95) -> dict[str, Estimate]:
    """win, tie, loss and unparsed as shares of all comparisons; decisive_win as share of wins and losses.

    Unparsed comparisons stay in the denominator: leaving them out would let a judge's failures move the
    shares.
    """
    parts = shares({"win": wins, "tie": ties, "loss": losses, "unparsed": unparsed}, confidence)
    return {**parts, "decisive_win": wilson(wins, wins + losses, confidence)}
