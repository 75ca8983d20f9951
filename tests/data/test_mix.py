"""Examples of files beside a recipe's own: the draw, the split, and nothing that repeats a test prompt."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shard_dist.config.schema import MixConfig, Objective, SplitConfig
from shard_dist.data.mix import KEPT, REPEATS, draw, of_file, placed
from shard_dist.data.near import Near
from shard_dist.records import Example


def example(number: int) -> Example:
    return Example("file", str(number), ({"role": "user", "content": f"question number {number}"},), "answer")


@given(st.integers(0, 40), st.integers(1, 45), st.integers(1, 45), st.integers())
def test_a_smaller_draw_is_part_of_a_larger_one(size: int, one: int, two: int, seed: int) -> None:
    rows = [example(number) for number in range(size)]
    small, large = (list(draw(rows, limit, seed)) for limit in sorted((one, two)))
    assert len(small) == min(size, one, two)
    assert set(each.id for each in small) <= set(each.id for each in large)
    assert [each.id for each in large] == sorted((each.id for each in large), key=int)


def test_the_draw_is_by_the_seed() -> None:
    rows = [example(number) for number in range(40)]
    assert list(draw(rows, 10, 1)) == list(draw(rows, 10, 1)) != list(draw(rows, 10, 2))
    assert list(draw(rows, 0, 1)) == rows


def test_every_example_has_a_split_or_a_reason() -> None:
    reasons: Counter[str] = Counter()
    rows = [example(number) for number in range(400)]
    near = Near(["Question number 7!", "nothing alike"], 0.9)
    kept = list(placed(rows, near, SplitConfig(val=0.1, test=0.2), 0, reasons))
    assert reasons == {KEPT: 399, REPEATS: 1}
    splits = Counter(split for split, _ in kept)
    assert set(splits) == {"train", "val"}
    assert 0.08 < splits["val"] / 399 < 0.17  # 0.1 of what is not test
    assert {moved.dataset for _, moved in kept} == {"mix/file"}
    assert "7" not in {moved.id for _, moved in kept}


def pairs(path: Path) -> Path:
    row = {
        "prompt": [{"role": "user", "content": "q"}],
        "chosen": [{"role": "assistant", "content": "good"}],
        "rejected": [{"role": "assistant", "content": "bad"}],
    }
    path.write_text(json.dumps(row) + "\n")
    return path


@pytest.mark.parametrize(("objective", "rejected"), [("own", "bad"), ("sft", ""), ("dpo", "bad"), ("derta", "bad")])
def test_pairs_serve_any_objective(tmp_path: Path, objective: str, rejected: str) -> None:
    mix = MixConfig(path=str(pairs(tmp_path / "pairs.jsonl")), objective=Objective(objective))
    (found,) = of_file(mix, 0)
    assert found.objective == {"own": "dpo"}.get(objective, objective)
    assert (found.target, found.rejected) == ("good", rejected)


def test_an_answer_without_a_rejected_one_is_no_pair(tmp_path: Path) -> None:
    path = tmp_path / "plain.jsonl"
    row = {"prompt": [{"role": "user", "content": "q"}], "completion": [{"role": "assistant", "content": "a"}]}
    path.write_text(json.dumps(row) + "\n")
    assert [each.objective for each in of_file(MixConfig(path=str(path)), 0)] == ["sft"]
    with pytest.raises(ValueError, match=r"plain\.jsonl: example 1 has no rejected answer, which dpo needs"):
        list(of_file(MixConfig(path=str(path), objective=Objective.dpo), 0))
