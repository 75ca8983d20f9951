"""BM25 (Robertson and Zaragoza 2009, equation 3.15): the baseline of every retriever, and one that needs no model.

score(q, d) = sum over words w of q:  idf(w) * tf * (k1 + 1) / (tf + k1 * (1 - b + b * |d| / mean |d|))
idf(w) = ln(1 + (N - n + 0.5) / (n + 0.5))      n of N passages have w; never negative, as in Lucene
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence

import numpy as np

from shard_dist.data.near import FUNCTION_WORDS, bag, stem

K1, B = 1.2, 0.75  # Lucene's defaults


def terms(text: str) -> Counter[str]:
    """Stems of the words that carry meaning, and how often each occurs."""
    found: Counter[str] = Counter()
    for word, count in bag(text).items():
        if word not in FUNCTION_WORDS:
            found[stem(word)] += count
    return found


class BM25:
    """Scores of passages for a query, by the words that they share."""

    def __init__(self, passages: Sequence[str]) -> None:
        counts = [terms(passage) for passage in passages]
        lengths_N = np.array([words.total() for words in counts], np.float32)
        self.size = len(passages)
        saturation_N = K1 * (1 - B + B * lengths_N / max(1.0, float(lengths_N.mean()) if self.size else 1.0))
        having: defaultdict[str, list[tuple[int, int]]] = defaultdict(list)
        for place, words in enumerate(counts):
            for word, count in words.items():
                having[word].append((place, count))
        self.postings: dict[str, tuple[np.ndarray, np.ndarray]] = {}
        for word, found in having.items():
            places, count = np.array(found, np.int64).T
            idf = np.log1p((self.size - len(found) + 0.5) / (len(found) + 0.5))
            self.postings[word] = places, (idf * count * (K1 + 1) / (count + saturation_N[places])).astype(np.float32)

    def scores(self, queries: Sequence[str]) -> np.ndarray:
        """float32 [queries, passages]; 0 where they share no word."""
        found_QN = np.zeros((len(queries), self.size), np.float32)
        for row_N, query in zip(found_QN, queries, strict=True):
            for word, times in terms(query).items():
                if word in self.postings:
                    places, weights = self.postings[word]
                    row_N[places] += times * weights
        return found_QN
