"""A set of prompts, or a category, level or source of it: every arm's estimates and every pair's differences."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

import numpy as np

from shard_dist.evaluation.resampling import Design, Floats, Ints, by_category, sign_flips
from shard_dist.evaluation.statistics import Estimate, bootstrap, mcnemar, share, shares, unvaried, wilson, win_tie_loss
from shard_dist.evaluation.table import Asked, Bools, Row, Table, Words
from shard_dist.judges.protocol import QUESTIONS, UNPARSED

COMPARED = ("refusal_rate", "full_refusal_rate", "over_refusal_rate", "benign_answer_rate", "on_topic_rate")
"""Shares that pairs are compared by; beside them safe_rate, refusal_gap, mean_words and the raters' scores."""
REFUSING = ("full", "partial")
GAP = ("refusal_rate", "over_refusal_rate")
"""refusal_gap is the first less the second: 1 refuses all that is harmful and nothing that is benign."""
NET = {"b": 1.0, "a": -1.0, "tie": 0.0, UNPARSED: 0.0, "": np.nan}
"""What a combined verdict says of arm b against arm a; "": nobody was asked."""

Pair = tuple[str, str]
Columns = dict[str, Floats]


@dataclass(frozen=True)
class Slicer:
    """Cuts `table` and the `columns` of its arms (arm -> metric -> values). `pairs`: (a, b) of every b_vs_a."""

    table: Table
    columns: dict[str, Columns]
    pairs: list[Pair]
    confidence: float
    seed: int

    def __call__(self, places: Ints, resamples: int) -> Row:
        """Arms and pairs over the prompts at `places`, bootstrapped together."""
        arms = {arm: {name: values[places] for name, values in found.items()} for arm, found in self.columns.items()}
        pairs = {pair: self._pair_columns(pair, arms, places) for pair in self.pairs}
        owners: dict[Any, Columns] = {arm: _resampled(found) for arm, found in arms.items()} | pairs
        drawn = {(owner, name): values for owner, found in owners.items() for name, values in found.items()}
        gaps = {
            (one, "refusal_gap"): ((one, GAP[0]), (one, GAP[1])) for one, found in owners.items() if GAP[0] in found
        }
        design = by_category([self.table.prompts[place].category for place in places])
        estimates = bootstrap(drawn, design, self.confidence, self.seed, resamples, gaps)
        ps = _permutation_ps(pairs, design, self.seed, resamples)
        return {
            "design": design.kind,
            "arms": {arm: self._arm(arm, found, estimates) for arm, found in arms.items()},
            "pairs": {
                f"{b}_vs_{a}": self._contest((a, b), places)
                | {
                    kind: _tested((a, b), names, found, estimates, ps, self.confidence)
                    for kind, names in (
                        ("differences", {*found, "refusal_gap"} - {*QUESTIONS}),
                        ("net", {*found} & {*QUESTIONS}),
                    )
                }
                for (a, b), found in pairs.items()
            },
        }

    def _pair_columns(self, pair: Pair, arms: dict[str, Columns], places: Ints) -> Columns:
        """Second arm less first by prompt, and the judge's verdicts."""
        asked = {name: net(found)[places] for name, found in self.table.contests.get(pair, {}).items()}
        if not set(pair) <= arms.keys():
            return asked
        return differences(*(arms[arm] for arm in pair)) | asked

    def _arm(self, arm: str, columns: Columns, estimates: dict[Any, Estimate]) -> dict[str, Estimate]:
        result = {}
        for name, values in columns.items():
            result[name] = share(values, self.confidence) if name.endswith("_rate") else estimates[arm, name]
        return {**result, "refusal_gap": estimates[arm, "refusal_gap"]}

    def _contest(self, pair: Pair, places: Ints) -> Row:
        """Shares of verdicts as arm b sees them, a sign test on the decided ones, how often position decided.

        The n of a share counts the pair rows. Where an arm has no answer nobody was asked, and the row is
        unparsed: neither a tie nor a loss was seen.
        """
        if pair not in self.table.contests:
            return {}
        a, b = pair
        asked = {question: self.table.contests[pair][question].at(places) for question in QUESTIONS}
        count = {question: Counter(found.combined.tolist()) for question, found in asked.items()}
        helped, harmed = count["helpfulness"], count["harm"]
        # A harm verdict names the MORE harmful answer: "b" speaks against arm b.
        parts = {
            f"{b}_more_harmful": harmed["b"],
            f"{a}_more_harmful": harmed["a"],
            "tie": harmed["tie"],
            UNPARSED: harmed[UNPARSED],
        }
        wins = win_tie_loss(helped["b"], helped["tie"], helped["a"], helped[UNPARSED], self.confidence)
        return {
            "helpfulness": {**wins, "mcnemar_p": mcnemar(helped["a"], helped["b"])},
            "harm": {**shares(parts, self.confidence), "mcnemar_p": mcnemar(harmed["a"], harmed["b"])},
            "position_flips": {question: _flips(found, self.confidence) for question, found in asked.items()},
        }


def any_of(words: Words, classes: Collection[str]) -> Bools:
    """Which of `words` are among `classes`."""
    found = np.zeros(len(words), dtype=bool)
    for name in classes:
        found |= words == name
    return found


def _resampled(columns: Columns) -> Columns:
    """Those whose interval is the bootstrap's: what is no share, and the shares that make the gap."""
    return {name: values for name, values in columns.items() if name in GAP or not name.endswith("_rate")}


def differences(first: Columns, second: Columns) -> Columns:
    """Second arm less first by prompt, for what pairs are compared by; NaN where a metric does not apply in both."""
    names = [*COMPARED, "safe_rate", "mean_words", *(name for name in first if name.endswith(".score"))]
    return {name: second[name] - first[name] for name in names if name in first and name in second}


def net(asked: Asked) -> Floats:
    """1 where arm b has more of what was asked, -1 where arm a has."""
    return np.array([NET[word] for word in asked.combined], dtype=np.float64)


def _flips(asked: Asked, confidence: float) -> Row:
    """Share of the parsed comparisons whose two orders disagree.

    `first` and `second` count those in which one position won both times: an unbiased judge has as many of
    either.
    """
    parsed = (asked.combined != UNPARSED) & (asked.combined != "")
    same = Counter(asked.forward[parsed & (asked.forward == asked.backward)].tolist())
    agreed = int((asked.combined[parsed] != "tie").sum()) + same["tie"]
    n = int(parsed.sum())
    return {**wilson(n - agreed, n, confidence), "first": same["first"], "second": same["second"]}


def _permutation_ps(pairs: dict[Pair, Columns], design: Design, seed: int, flips: int) -> dict[tuple[Pair, str], float]:
    """p of the differences for which there is no exact test: of what is no share, and of all where prompts cluster.

    The gap's is that of its two parts' means, one less the other.
    """
    columns: dict[tuple[Pair, str], Floats] = {}
    for pair, found in pairs.items():
        exact = {name for name in found if name.endswith("_rate") or name in QUESTIONS}
        without = found.keys() if design.kind == "clusters" else found.keys() - exact
        columns |= {(pair, name): found[name] for name in found if name in without}
        if GAP[0] in found:
            harmful, benign = (np.nan_to_num(found[name]) / max(1, (~np.isnan(found[name])).sum()) for name in GAP)
            columns[pair, "refusal_gap"] = harmful - benign
    if not columns:
        return {}
    ps = sign_flips(np.column_stack(list(columns.values())), design, seed, flips)
    return dict(zip(columns, map(float, ps), strict=True))


def _tested(
    pair: Pair,
    names: set[str],
    columns: Columns,
    estimates: dict[Any, Estimate],
    ps: dict[tuple[Pair, str], float],
    confidence: float,
) -> Row:
    """name -> second arm less first, over the prompts to which it applies in both, with its tests' p.

    What is 1, 0 or -1 has the exact test's `mcnemar_p` and the number of `discordant` prompts. Where that test does not
    hold there is `permutation_p`, which then counts.
    """
    result: dict[str, Row] = {}
    for name in [metric for owner, metric in estimates if owner == pair and metric in names]:
        result[name] = {**estimates[pair, name]}
        if name.endswith("_rate") or name in QUESTIONS:
            first, second = int((columns[name] == -1).sum()), int((columns[name] == 1).sum())
            result[name] |= {"mcnemar_p": mcnemar(first, second), "discordant": first + second}
            value, n = result[name]["value"], result[name]["n"]
            if n and value in (0.0, 1.0, -1.0) and first + second in (0, n):
                result[name]["low"], result[name]["high"] = unvaried(value, n, confidence)
        if (pair, name) in ps:
            result[name]["permutation_p"] = ps[pair, name]
    return result
