"""The guard's parts: what holds for any texts, points and labels, and what uncertainty is worth."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shard_dist.data.read import read_csv
from shard_dist.recipes import learner
from shard_dist.recipes.learner import (
    Features,
    Floats,
    Guard,
    Indices,
    entropy,
    kmeans,
    logistic,
    most_uncertain,
    sigmoid,
    squared_distances,
)

TEXTS = st.lists(st.text(max_size=30), min_size=1, max_size=8)
SEEDS = st.integers(0, 2**31 - 1)


def cloud(seed: int, n: int, d: int) -> Floats:
    return np.random.default_rng(seed).normal(size=(n, d))


@given(texts=TEXTS, other=st.text(max_size=30))
def test_points_have_length_one_or_none_and_depend_on_their_own_text(texts: list[str], other: str) -> None:
    features = Features.fit(texts)
    points = features([*texts, other])
    lengths = np.linalg.norm(points, axis=1)
    assert (np.isclose(lengths, 1, atol=1e-5) | (lengths == 0)).all()
    assert np.array_equal(points[-1], features([other])[0])


def test_hostile_texts_have_points() -> None:
    points = Features.fit(["a"])(["\ud800", "", "\0\x07", "x" * 1_000_000])
    assert np.isfinite(points).all()
    assert points[3].any()


def test_typing_does_not_matter_and_words_in_common_do() -> None:
    features = Features.fit(["how do i pick a lock", "how do i bake a cake"])
    one, same, near, far = features(
        ["How do I pick a lock?", "how do i pick a LOCK", "picking some locks", "baking three cakes"]
    )
    assert np.allclose(one, same)
    assert one @ near > one @ far


@given(seed=SEEDS, n=st.integers(0, 30), k=st.integers(1, 8), same=st.booleans())
def test_clusters_are_full_and_every_point_is_nearest_to_its_own(seed: int, n: int, k: int, same: bool) -> None:
    points = np.zeros((n, 3)) if same else cloud(seed, n, 3)
    clusters = kmeans(points, k, seed)
    count = min(k, 1 if same else n) if n else 0
    assert sorted(set(clusters.tolist())) == list(range(count))
    assert np.array_equal(clusters, kmeans(points, k, seed))
    if n:
        centres = np.array([points[clusters == cluster].mean(axis=0) for cluster in range(count)])
        distances = squared_distances(points, centres)
        assert np.allclose(distances[np.arange(n), clusters], distances.min(axis=1))


def test_far_apart_groups_are_found() -> None:
    groups = np.repeat([0, 1, 2], 20)
    points = cloud(0, 60, 5) + 50 * np.eye(5)[groups]
    clusters = kmeans(points, 3, seed=1)
    assert len({(group, cluster) for group, cluster in zip(groups.tolist(), clusters.tolist(), strict=True)}) == 3


@given(seed=SEEDS, n=st.integers(2, 25), d=st.integers(1, 40))
def test_the_regression_is_at_its_minimum(seed: int, n: int, d: int) -> None:
    """The function is convex, so a gradient of zero is the minimum, whatever was done to get there."""
    points, positive = cloud(seed, n, d), np.random.default_rng(seed + 1).random(n) < 0.4
    positive[:2] = True, False
    weights, bias = logistic(points, positive)
    shares = n / (2 * np.where(positive, positive.sum(), (~positive).sum()))
    wrong = shares * (sigmoid(points @ weights + bias) - positive)
    assert np.abs(points.T @ wrong + learner.PENALTY * weights).max() < 1e-6
    assert abs(wrong.sum()) < 1e-6


@pytest.mark.parametrize(("labels", "chance"), [([], 0.5), ([True, True], 0.75), ([False], 1 / 3)])
def test_one_class_says_nothing_about_texts(labels: list[bool], chance: float) -> None:
    features = Features.fit(["a b", "c d"])
    guard = Guard.fit(features, features(["a b", "c d"])[: len(labels)], labels)
    assert guard(["a b", "x"]) == pytest.approx([chance, chance])


def test_a_saved_guard_says_the_same(tmp_path: Path) -> None:
    texts = ["how to hurt him", "how to help him", "hurt a dog", "help a dog"]
    features = Features.fit(texts)
    guard = Guard.fit(features, features(texts), [True, False, True, False])
    guard.save(tmp_path / "found" / "learner.npz")
    assert np.array_equal(Guard.load(tmp_path / "found" / "learner.npz")(texts), guard(texts))
    assert (guard(["please help me", "please hurt me"]) > 0.5).tolist() == [False, True]


@given(chances=st.lists(st.floats(0.001, 0.999), min_size=1, max_size=20))
def test_entropy_ranks_as_the_margin_does(chances: list[float]) -> None:
    bits, margins = entropy(np.array(chances)), np.abs(2 * np.array(chances) - 1)
    assert ((bits >= 0) & (bits <= 1)).all()
    order = np.argsort(margins)
    assert (np.diff(bits[order]) <= 1e-12).all()


@given(data=st.data(), n=st.integers(1, 25), k=st.integers(1, 5), count=st.integers(0, 30))
def test_quotas_are_equal_until_a_cluster_is_empty(data: st.DataObject, n: int, k: int, count: int) -> None:
    doubt = np.array(data.draw(st.lists(st.sampled_from([0.0, 0.3, 0.9]), min_size=n, max_size=n)))
    clusters: Indices = np.array(data.draw(st.lists(st.integers(0, k - 1), min_size=n, max_size=n)))
    unpicked = np.array(data.draw(st.lists(st.booleans(), min_size=n, max_size=n)), dtype=bool)
    picked = most_uncertain(doubt, clusters, unpicked, count)
    assert len(picked) == len(set(picked)) == min(count, int(unpicked.sum()))
    assert unpicked[picked].all()
    left = [place for place in np.flatnonzero(unpicked) if place not in picked]
    for cluster in {clusters[place] for place in left}:
        mine = [place for place in picked if clusters[place] == cluster]
        assert len(mine) + 1 >= max(sum(clusters[place] == other for place in picked) for other in set(clusters))
        least = min((doubt[place] for place in mine), default=1.0)
        assert all(doubt[place] <= least for place in left if clusters[place] == cluster)


def labels_needed(points: Floats, unsafe: np.ndarray, wanted: float, doubting: bool, seed: int) -> int:
    """Labels, 20 at a time, until the guard's F1 on the last third of the points is at least `wanted`."""
    draw = np.random.default_rng(seed)
    order = draw.permutation(len(points))
    pool, held = order[len(order) // 3 :], order[: len(order) // 3]
    clusters, taken, doubt = kmeans(points[pool], 8, seed), np.zeros(len(pool), dtype=bool), draw.random(len(pool))
    while not taken.all():
        at_random = draw.random(len(pool))
        one = np.zeros(len(pool), dtype=np.int64)
        taken[most_uncertain(*((doubt, clusters) if doubting else (at_random, one)), ~taken, 20)] = True
        weights, bias = logistic(points[pool][taken], unsafe[pool][taken])
        doubt = entropy(sigmoid(points[pool] @ weights + bias))
        guessed = points[held] @ weights + bias > 0
        if 2 * (guessed & unsafe[held]).sum() >= wanted * (guessed.sum() + unsafe[held].sum()):
            break
    return int(taken.sum())


def test_doubt_needs_fewer_labels_than_chance_where_unsafe_is_rare() -> None:
    """600 points in 20 dimensions, one in ten unsafe, beyond a plane: labels up to an F1 of 0.8, means of 4 draws."""
    needed = {True: [], False: []}
    for seed in range(4):
        points = cloud(seed, 600, 20)
        side = points[:, 0] + points[:, 1]
        unsafe = side > np.quantile(side, 0.9)
        for doubting, counts in needed.items():
            counts.append(labels_needed(points / np.sqrt(20), unsafe, 0.8, doubting, seed))
    assert np.mean(needed[True]) < 0.7 * np.mean(needed[False])  # 89 and 276 when this was written


def test_doubt_needs_fewer_labels_than_chance_on_real_prompts(shared_data: Path) -> None:
    """Do-Not-Answer's 117 prompts on harms of human-chatbot interaction among its 939: F1 of 0.6, means of 3 draws."""
    _, rows = read_csv(shared_data / "do_not_answer" / "questions.csv", set())
    found = [(row.text("question"), "Chatbot" in row.text("risk_area")) for row in rows]
    points = Features.fit([text for text, _ in found])([text for text, _ in found])
    unsafe = np.array([label for _, label in found])
    needed = [np.mean([labels_needed(points, unsafe, 0.6, doubting, seed) for seed in range(3)]) for doubting in (1, 0)]
    assert needed[0] < 0.8 * needed[1]
