"""BM25 against its formula written out, and what it finds."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shard_dist.retrieval.bm25 import BM25, K1, B

WORDS = st.lists(st.sampled_from(["apple", "river", "stone", "cloud", "horse"]), max_size=6)


def by_the_formula(query: list[str], passage: list[str], passages: list[list[str]]) -> float:
    mean = max(1.0, sum(map(len, passages)) / len(passages))
    total = 0.0
    for word in query:
        having = sum(word in each for each in passages)
        times = passage.count(word)
        idf = math.log(1 + (len(passages) - having + 0.5) / (having + 0.5))
        total += idf * times * (K1 + 1) / (times + K1 * (1 - B + B * len(passage) / mean)) if times else 0.0
    return total


@given(query=WORDS, passages=st.lists(WORDS, min_size=1, max_size=6))
def test_scores_are_the_formulas(query: list[str], passages: list[list[str]]) -> None:
    found = BM25([" ".join(words) for words in passages]).scores([" ".join(query)])
    assert found[0] == pytest.approx([by_the_formula(query, each, passages) for each in passages], rel=1e-5)


def test_a_number_worked_out_by_hand() -> None:
    # Two passages of 2 and 4 words, one has "apple" twice: idf ln(1 + 1.5/1.5), tf part 2 * 2.2 / (2 + 1.2 * 1.25).
    found = BM25(["river stone", "apple apple cloud horse"]).scores(["the Apples"])
    assert found[0] == pytest.approx([0.0, math.log(2) * 4.4 / 3.5], rel=1e-6)


def test_inflections_are_one_word_and_function_words_none() -> None:
    bm25 = BM25(["killing processes", "to be or not"])
    assert bm25.scores(["how do I kill a process"])[0][0] > 0
    assert not bm25.scores(["to be or the"])[0].any()


@pytest.mark.parametrize("query", ["", "?!", "\ud800", "x" * 100_000])
def test_any_query_has_scores(query: str) -> None:
    assert not BM25(["apple", ""]).scores([query]).any()


def test_nothing_has_no_scores() -> None:
    assert BM25([]).scores(["apple"]).shape == (1, 0)
    assert BM25(["apple"]).scores([]).shape == (0, 1)
    assert BM25([""]).scores(["apple"]).dtype == np.float32
