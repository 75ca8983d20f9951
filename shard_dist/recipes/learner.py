"""A guard that a person can retrain in a second: hashed n-grams, logistic regression, and what to label next.

    texts ─ Features ─> points [n, d] ─┬─ kmeans ──> clusters ──┐
                                       └─ Guard ──> entropy ────┴─ most_uncertain ──> whom to ask about

Numpy alone; the same texts and seed give the same guard. Points are float32: 4 * BUCKETS bytes a text.
Legend: n texts or points, d = BUCKETS dimensions, k clusters.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from shard_dist.artefacts import replacing
from shard_dist.data.near import folded

Floats = npt.NDArray[np.floating[Any]]
Indices = npt.NDArray[np.int64]

BUCKETS = 2048
SIGN = 1 << 31  # the bit of a hash that gives a feature its sign; its bucket comes from the low ones
READ = 2000  # characters of a text that are read: a prompt of 50,000 would cost what 25 others do
GRAMS = (3, 4, 5)  # characters in a row, within words
PENALTY = 0.2  # L2; the inverse of the C = 5 that is usual for TF-IDF of short texts
ROUNDS = 100  # of k-means and of Newton's method at most; some ten are usual


def tokens(text: str) -> Iterator[str]:
    """Words, pairs of words, and character n-grams of words with their edges marked."""
    words = folded(text[:READ]).split()
    yield from words
    yield from (f"{one} {two}" for one, two in pairwise(words))
    for word in words:
        edged = f"<{word}>"
        for size in GRAMS:
            yield from (edged[start : start + size] for start in range(len(edged) - size + 1))


def hashed(texts: Sequence[str]) -> Floats:
    """Signed counts [n, d] of the texts' tokens (the hashing trick: Weinberger et al. 2009, arXiv 0902.2206)."""
    counts = np.zeros((len(texts), BUCKETS), np.float32)
    for row, text in enumerate(texts):
        codes = np.array([zlib.crc32(token.encode("utf-8", "surrogatepass")) for token in tokens(text)], np.int64)
        np.add.at(counts[row], codes % BUCKETS, np.where(codes & SIGN, -1.0, 1.0))
    return counts


@dataclass(frozen=True)
class Features:
    """TF-IDF of hashed tokens with sublinear term frequencies, rows of length 1. `idf` is [d]."""

    idf: Floats

    @classmethod
    def fit(cls, texts: Sequence[str]) -> Features:
        """Smooth inverse document frequencies of these texts, so that a token of no text has one too."""
        having = (hashed(texts) != 0).sum(axis=0)
        return cls((np.log((1 + len(texts)) / (1 + having)) + 1).astype(np.float32))

    def __call__(self, texts: Sequence[str]) -> Floats:
        """[n, d]; the row of a text without tokens is zero."""
        counts = hashed(texts)
        weighted = np.sign(counts) * np.log1p(np.abs(counts)) * self.idf
        length = np.linalg.norm(weighted, axis=1, keepdims=True)
        return np.divide(weighted, length, out=np.zeros_like(weighted), where=length > 0)


def squared_distances(points: Floats, centres: Floats) -> Floats:
    """[n, k], without the table of all differences."""
    own, theirs = (np.einsum("nd,nd->n", each, each) for each in (points, centres))
    return np.maximum(own[:, None] - 2 * points @ centres.T + theirs, 0.0)


def kmeans(points: Floats, k: int, seed: int) -> Indices:
    """The cluster of each of the points [n, d], [n] of 0..k-1: Lloyd's algorithm from k-means++'s centres
    (Arthur and Vassilvitskii 2007). At most as many clusters as there are different points; none is empty.
    """
    if not len(points):
        return np.zeros(0, np.int64)
    draw = np.random.default_rng(seed)
    centres = points[[draw.integers(len(points))]]
    while len(centres) < k:
        nearest = squared_distances(points, centres).min(axis=1)
        if nearest.sum() <= 1e-9 * len(points):  # every point is a centre
            break
        centres = np.vstack([centres, points[[draw.choice(len(points), p=nearest / nearest.sum())]]])
    clusters = np.full(len(points), -1)
    for _ in range(ROUNDS):
        distances = squared_distances(points, centres)
        moved = distances.argmin(axis=1)
        for empty in np.setdiff1d(np.arange(len(centres)), moved):  # takes the point that its centre serves worst
            alone = np.bincount(moved, minlength=len(centres))[moved] == 1
            worst = int(np.where(alone, -1.0, distances.min(axis=1)).argmax())
            moved[worst], distances[worst] = empty, 0.0
        if (moved == clusters).all():
            break
        clusters = moved
        centres = np.array([points[clusters == cluster].mean(axis=0) for cluster in range(len(centres))])
    return clusters


def sigmoid(x: Floats) -> Floats:
    return 0.5 * (1 + np.tanh(0.5 * x))  # no overflow


def logistic(points: Floats, positive: npt.NDArray[np.bool_]) -> tuple[Floats, float]:
    """Weights [d] and bias of L2-regularised logistic regression, both classes weighing the same.

    Minimises sum_i c_i log(1 + exp(-s_i (w x_i + b))) + PENALTY / 2 |w|^2 by Newton's method, c_i = n / (2 n of the
    class), s_i = +-1. At the minimum w = sum_i a_i x_i, so n + 1 numbers are sought (kernel logistic regression: Zhu
    and Hastie 2005). With one class there is nothing to tell apart: w = 0, and b are the log odds of Laplace's rule.
    """
    n, points = len(positive), points.astype(np.float64)
    if not 0 < positive.sum() < n:
        return np.zeros(points.shape[1]), float(np.log((positive.sum() + 1) / ((~positive).sum() + 1)))
    weight = n / (2 * np.where(positive, positive.sum(), (~positive).sum()))
    sign, kernel = np.where(positive, 1.0, -1.0), points @ points.T

    def loss(at: Floats) -> float:
        pull = kernel @ at[:-1]
        return float(weight @ np.logaddexp(0, -sign * (pull + at[-1])) + 0.5 * PENALTY * at[:-1] @ pull)

    found, one = np.zeros(n + 1), np.ones((n, 1))
    for _ in range(ROUNDS):
        logit = kernel @ found[:-1] + found[-1]
        chance = sigmoid(logit)
        bend = np.maximum(weight * chance * (1 - chance), 1e-12)
        target = logit - weight * (chance - positive) / bend
        system = np.block([[kernel + np.diag(PENALTY / bend), one], [one.T, np.zeros((1, 1))]])
        step = np.linalg.solve(system, np.append(target, 0.0)) - found
        while loss(found + step) > loss(found) and np.abs(step).max() > 1e-12:
            step /= 2
        found = found + step
        if np.abs(step).max() < 1e-10:
            break
    return points.T @ found[:-1], float(found[-1])


@dataclass(frozen=True)
class Guard:
    """Tells unsafe texts from safe ones. `weights` is [d]."""

    features: Features
    weights: Floats
    bias: float

    @classmethod
    def fit(cls, features: Features, points: Floats, unsafe: Sequence[bool]) -> Guard:
        """`points` are the features [n, d] of labelled texts, `unsafe` their labels."""
        return cls(features, *logistic(points, np.array(unsafe, dtype=bool)))

    def chances(self, points: Floats) -> Floats:
        """The probability [n] that each is unsafe."""
        return sigmoid(points @ self.weights + self.bias)

    def __call__(self, texts: Sequence[str]) -> Floats:
        """The same of texts."""
        return self.chances(self.features(texts))

    def save(self, path: Path) -> None:
        """An .npz with idf [d], weights [d] and bias."""
        with replacing(path) as partial, partial.open("wb") as stream:
            np.savez_compressed(stream, idf=self.features.idf, weights=self.weights, bias=self.bias)

    @classmethod
    def load(cls, path: Path) -> Guard:
        with np.load(path, allow_pickle=False) as stored:
            return cls(Features(stored["idf"]), stored["weights"], float(stored["bias"]))


def entropy(chance: Floats) -> Floats:
    """Bits, 1 at 0.5 and 0 at 0 and 1. Of two classes: the margin |2p - 1| ranks the same, the other way round."""
    p = np.clip(chance, 1e-12, 1 - 1e-12)
    return np.asarray(-(p * np.log2(p) + (1 - p) * np.log2(1 - p)))


def most_uncertain(uncertainty: Floats, clusters: Indices, open_: npt.NDArray[np.bool_], count: int) -> list[int]:
    """At most `count` of the open points, by the clusters in turn: each one's most uncertain, then each one's second.

    So clusters have equal quotas, and what one cannot fill goes to the others. Of equals the first.
    """
    order = np.lexsort((np.arange(len(uncertainty)), -uncertainty))
    order = order[open_[order]]
    turns: dict[Any, int] = {}
    ranked = []
    for index in order:
        turns[clusters[index]] = turn = turns.get(clusters[index], 0) + 1
        ranked.append((turn, -uncertainty[index], int(index)))
    return [index for _, _, index in sorted(ranked)[:count]]
