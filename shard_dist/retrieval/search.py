"""Which guidelines a prompt gets: exact search, then those of the best that do not repeat each other.

    scores of a prompt for all guidelines ─ those above 0, best first ─> none like one before ─> the first k

Guide-Align (arXiv 2403.11838) compares characters (fuzz.ratio >= 0.5). Of that two unrelated English sentences reach
0.39 on average, and 1.5 % of pairs 0.5; by data/near.py's words 0.02, and none of 400 pairs 0.5.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Protocol

import numpy as np

from shard_dist.data.dpr import Question
from shard_dist.data.near import bag, similarity
from shard_dist.retrieval.library import Guideline, passage_line

BLOCK = 256  # queries that are scored at once: 256 of 100,000 guidelines are 100 MB
RANK = 60  # the authors' constant


class Scorer(Protocol):
    def scores(self, queries: Sequence[str]) -> np.ndarray:
        """float32 [queries, passages], higher is better."""
        ...


class Encodes(Protocol):
    def encode(self, texts: Sequence[str]) -> np.ndarray:
        """float32 [texts, width]."""
        ...


class Dense:
    """Products of a query's vector with those of all passages."""

    def __init__(self, encoder: Encodes, passages: Sequence[str]) -> None:
        self.encoder, self.passages_ND = encoder, encoder.encode(passages)

    def scores(self, queries: Sequence[str]) -> np.ndarray:
        return self.encoder.encode(queries) @ self.passages_ND.T


class Fused:
    """Reciprocal rank fusion of several scorers (Cormack et al. 2009): the sum of 1 / (60 + rank), ranks from 1.

    0 where none of them scores above 0: there is nothing to be said for that passage. Of the bi-encoder and BM25
    (expanded) it found more than either in six of six measurements (tests/benchmarks/retrieval.py).
    """

    def __init__(self, *scorers: Scorer) -> None:
        self.scorers = scorers

    def scores(self, queries: Sequence[str]) -> np.ndarray:
        found = [scorer.scores(queries) for scorer in self.scorers]
        fits_QN = np.any([scores_QN > 0 for scores_QN in found], axis=0)
        ranks = [np.argsort(np.argsort(-scores_QN, axis=1, kind="stable"), axis=1) + 1 for scores_QN in found]
        return np.where(fits_QN, sum(1 / (RANK + ranks_QN) for ranks_QN in ranks), 0.0).astype(np.float32)


def ranked(scores_N: np.ndarray) -> np.ndarray:
    """Places of the passages that score above 0, best first, equals in their order."""
    order_N = np.argsort(-scores_N, kind="stable")
    return order_N[scores_N[order_N] > 0]


class Search:
    """Finds a prompt's guidelines with `scorer`, whose passages are `guidelines` in their order.

    At most `k` of those that score above 0, none as similar as `threshold` to a better one.
    """

    def __init__(self, guidelines: Sequence[Guideline], scorer: Scorer, k: int, threshold: float) -> None:
        self.guidelines, self.scorer, self.k, self.threshold = guidelines, scorer, k, threshold
        self.bags = [bag(guideline.line) for guideline in guidelines]

    def find(self, prompts: Sequence[str]) -> Iterator[list[Guideline]]:
        """The guidelines of each prompt, best first; [] where none fits."""
        for start in range(0, len(prompts), BLOCK):
            for scores_N in self.scorer.scores(prompts[start : start + BLOCK]):
                yield [self.guidelines[place] for place in self._distinct(ranked(scores_N))]

    def _distinct(self, places: np.ndarray) -> list[int]:
        kept: list[int] = []
        for place in map(int, places):
            if len(kept) == self.k:
                break
            if all(similarity(self.bags[place], self.bags[other]) < self.threshold for other in kept):
                kept.append(place)
        return kept


def recall(scorer: Scorer, lines: Sequence[str], questions: Sequence[Question], k: int) -> float:
    """Mean share of a question's positive passages among its best k: recall@k. `lines` are the scorer's passages.

    0 for no questions.
    """
    place = {line: number for number, line in enumerate(lines)}
    found = []
    for start in range(0, len(questions), BLOCK):
        part = questions[start : start + BLOCK]
        for question, scores_N in zip(part, scorer.scores([each.text for each in part]), strict=True):
            relevant = {place[passage_line(passage)] for passage in question.positives}
            found.append(len(relevant.intersection(ranked(scores_N)[:k].tolist())) / len(relevant))
    return float(np.mean(found)) if found else 0.0
