"""The same measurement with several seeds: means over prompts and seeds, and what both say of their spread.

A column is (prompts, seeds), NaN where a metric does not apply. An interval redraws prompts and seeds, each on its own
(the pigeonhole bootstrap: Owen 2007, Annals of Applied Statistics 1:386), so it is wide where seeds disagree: with two
of them about as wide as to hold the means of both. 95 % intervals over 200 prompts cover, simulated, where seeds vary
much (standard deviation .1): .86 with 2 of them, .89 with 3, .93 with 5; one seed's, of prompts alone, .54. Where they
vary by .03: .97 and more, one seed's .88. A p is that of sign flips of the prompts' means over seeds: it takes the
models as they are and asks about further prompts.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any, TypeVar

import numpy as np

from shard_dist.evaluation.resampling import Design, Floats, bounds, replicates, sign_flips
from shard_dist.evaluation.statistics import RESAMPLES, share, unvaried, wilson

Name = TypeVar("Name", bound=Hashable)
Row = dict[str, Any]


def stacked(columns: Sequence[Floats]) -> Floats:
    """Columns of the seeds side by side, without those that hold no value: (prompts, seeds)."""
    held = [column for column in columns if not np.isnan(column).all()]
    return np.column_stack(held) if held else np.empty((len(columns[0]) if columns else 0, 0))


def estimates(
    columns: Mapping[Name, Floats], design: Design, confidence: float = 0.95, seed: int = 0, resamples: int = RESAMPLES
) -> dict[Name, Row]:
    """{value, low, high, n, seeds} of every column: the mean over seeds of means over prompts, and the seeds' means.

    `n` counts the prompts. Bounds are None where there is nothing to estimate from.
    """
    filled = {name: column for name, column in columns.items() if column.size}
    result: dict[Name, Row] = {
        name: {"value": None, "low": None, "high": None, "n": 0, "seeds": []} for name in columns
    }
    if not filled:
        return result
    drawn = replicates(np.column_stack(list(filled.values())), design, seed, resamples)
    generator, start = np.random.default_rng([seed, 1]), 0
    for name, column in filled.items():
        means, seeds = np.nanmean(column, axis=0), column.shape[1]
        draws = _over_seeds(drawn[:, start : start + seeds], generator)
        start += seeds
        low, high = bounds(draws, design.degrees, confidence)
        n = int((~np.isnan(column)).any(axis=1).sum())
        result[name] = {"value": float(means.mean()), "low": low, "high": high, "n": n, "seeds": means.tolist()}
    return result


def _over_seeds(draws: Floats, generator: np.random.Generator) -> Floats:
    """Replicates (resamples, seeds) -> (resamples,): seeds - 1 of the seeds drawn, which leaves the variance unbiased.

    Rao and Wu's rule, as resampling.py has it for prompts.
    """
    seeds = draws.shape[1]
    if seeds == 1:
        return draws[:, 0]
    weights = generator.multinomial(seeds - 1, np.full(seeds, 1 / seeds), size=len(draws)) / (seeds - 1)
    total: Floats = np.where(weights > 0, weights * draws, 0.0).sum(axis=1)
    return total


def rates(
    columns: Mapping[Name, Floats], design: Design, confidence: float = 0.95, seed: int = 0, resamples: int = RESAMPLES
) -> dict[Name, Row]:
    """`estimates` of shares: Wilson's interval where there is one seed, or where every answer of all seeds agrees."""
    result = estimates(columns, design, confidence, seed, resamples)
    for name, column in columns.items():
        found = result[name]
        if column.shape[1] == 1:
            result[name] = {**found, **share(column[:, 0], confidence)}
        elif found["value"] in (0.0, 1.0):
            result[name] = {**found, **wilson(round(found["value"] * found["n"]), found["n"], confidence)}
    return result


def differences(
    columns: Mapping[Name, Floats], design: Design, confidence: float = 0.95, seed: int = 0, resamples: int = RESAMPLES
) -> dict[Name, Row]:
    """`estimates` of paired differences, with `permutation_p`."""
    result = estimates(columns, design, confidence, seed, resamples)
    tested = [name for name, column in columns.items() if column.size]
    if not tested:
        return result
    means = np.column_stack([_prompt_means(columns[name]) for name in tested])
    for name, p in zip(tested, sign_flips(means, design, seed, resamples), strict=True):
        found, held = result[name], columns[name][~np.isnan(columns[name])]
        found["permutation_p"] = float(p)
        if found["value"] in (0.0, 1.0, -1.0) and np.ptp(held) == 0:
            found["low"], found["high"] = unvaried(found["value"], found["n"], confidence)
    return result


def _prompt_means(column: Floats) -> Floats:
    """(prompts,): the mean over the seeds that have a value, NaN where none has."""
    held = (~np.isnan(column)).sum(axis=1)
    return np.where(held > 0, np.nansum(column, axis=1) / np.maximum(held, 1), np.nan)
