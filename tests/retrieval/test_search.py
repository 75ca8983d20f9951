"""Which guidelines a prompt gets, and how often they are the right ones."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shard_dist.data.dpr import Passage, Question
from shard_dist.data.near import bag, similarity
from shard_dist.retrieval.bm25 import BM25
from shard_dist.retrieval.library import Guideline
from shard_dist.retrieval.search import BLOCK, Dense, Fused, Search, ranked, recall

GUIDELINES = [
    Guideline("Locks", "Explain how locks work."),
    Guideline("Locks", "Explain how the locks worked."),
    Guideline("Tone", "Stay kind."),
    Guideline("Sources", "Name books."),
]


class Fixed:
    """The same scores for every query."""

    def __init__(self, *scores: float) -> None:
        self.row = np.array(scores, np.float32)

    def scores(self, queries: Sequence[str]) -> np.ndarray:
        return np.tile(self.row, (len(queries), 1))


def found(search: Search, prompt: str = "x") -> list[Guideline]:
    (one,) = search.find([prompt])
    return one


def test_the_best_come_first_and_repetitions_do_not_come() -> None:
    search = Search(GUIDELINES, Fixed(0.1, 0.9, 0.5, 0.4), k=2, threshold=0.5)
    assert found(search) == [GUIDELINES[1], GUIDELINES[2]]
    everything = Search(GUIDELINES, Fixed(0.1, 0.9, 0.5, 0.4), k=9, threshold=0.5)
    assert found(everything) == [GUIDELINES[1], GUIDELINES[2], GUIDELINES[3]]


def test_what_scores_too_little_does_not_fit() -> None:
    assert found(Search(GUIDELINES, Fixed(0.0, -1.0, 0.2, 0.0), 6, 0.5)) == [GUIDELINES[2]]
    assert found(Search(GUIDELINES, Fixed(0.0, -1.0, 0.0, 0.0), 6, 0.5)) == []


def test_an_empty_library_finds_nothing() -> None:
    assert found(Search([], BM25([]), 6, 0.5)) == []


def test_short_prompts_and_many_prompts_are_all_answered_in_order() -> None:
    search = Search(GUIDELINES, BM25([each.line for each in GUIDELINES]), 1, 0.5)
    prompts = ["Locks?", "Books", "x", ""] * BLOCK
    assert list(search.find(prompts)) == [[GUIDELINES[0]], [GUIDELINES[3]], [], []] * BLOCK


@given(st.lists(st.floats(0.125, 1, width=32), min_size=4, max_size=4), st.integers(1, 5), st.floats(0, 1))
def test_a_result_is_short_sorted_and_without_likeness(scores: list[float], k: int, threshold: float) -> None:
    chosen = [GUIDELINES.index(each) for each in found(Search(GUIDELINES, Fixed(*scores), k, threshold))]
    values = [np.float32(scores[place]) for place in chosen]
    assert len(chosen) <= k
    assert values == sorted(values, reverse=True)
    assert int(np.argmax(np.array(scores, np.float32))) == chosen[0]
    bags = [bag(GUIDELINES[place].line) for place in chosen]
    assert all(similarity(one, two) < threshold for i, one in enumerate(bags) for two in bags[:i])


def test_equal_scores_keep_the_librarys_order() -> None:
    assert ranked(np.array([1, 2, 2, 1], np.float32)).tolist() == [1, 2, 0, 3]


def test_dense_scores_are_products_of_vectors() -> None:
    class Letters:
        def encode(self, texts: Sequence[str]) -> np.ndarray:
            return np.array([[text.count(letter) for letter in "abc"] for text in texts], np.float32)

    assert Dense(Letters(), ["ab", "cc"]).scores(["aab", "c"]).tolist() == [[3, 0], [0, 2]]


def test_fused_scores_are_those_of_ranks() -> None:
    fused = Fused(Fixed(0.9, 0.1, 0.0, -1.0), Fixed(2.0, 3.0, 0.0, 0.0)).scores(["x"])
    assert fused[0] == pytest.approx([1 / 61 + 1 / 62, 1 / 62 + 1 / 61, 0, 0])
    lower = Fused(Fixed(0.9, 0.1, 0.2, 0.3), Fixed(0.0, 0.0, 0.0, 5.0)).scores(["x", "y"])
    assert lower[1] == pytest.approx([1 / 61 + 1 / 62, 1 / 64 + 1 / 63, 1 / 63 + 1 / 64, 1 / 62 + 1 / 61])
    assert Fused(BM25([])).scores(["x"]).shape == (1, 0)


def test_recall_is_the_share_of_positives_among_the_first_k() -> None:
    lines = [each.line for each in GUIDELINES]
    passages = [Passage(each.title, each.text) for each in GUIDELINES]
    asked = [Question("1", "x", (passages[0], passages[1])), Question("2", "y", (passages[3],))]
    scorer = Fixed(0.9, 0.1, 0.5, 0.8)
    assert recall(scorer, lines, asked, 1) == pytest.approx((0.5 + 0) / 2)
    assert recall(scorer, lines, asked, 2) == pytest.approx((0.5 + 1) / 2)
    assert recall(scorer, lines, asked, 4) == 1
    assert recall(scorer, lines, [], 4) == 0
