"""refusal_cross from prompts to a trained model on the seed model, which is both candidates for teacher too."""

from __future__ import annotations

import json
from collections.abc import Callable

import pyarrow.parquet as pq
import pytest

from shard_dist.artefacts import file_hash
from shard_dist.demo.world import SEED_MODEL
from shard_dist.judges.refusal import classify
from shard_dist.rundir import Run

pytestmark = [pytest.mark.vllm, pytest.mark.zero, pytest.mark.e2e]


def test_from_prompts_to_a_model(seed_run: Callable[..., Run]) -> None:
    run = seed_run(
        "refusal_cross",
        "recipe.generator=teacher",
        "recipe.options.teachers=[other]",
        "select.raters=[{kind: rule_harm}]",
        roles=("teacher", "other"),
    )
    found = json.loads((run / "findings" / "patterns.json").read_text())
    assert found["taken"] == "teacher"
    assert found["models"]["teacher"] == found["models"]["other"], "the same weights, seeds and prompts"
    assert found["models"]["teacher"]["refusal_rate"]["value"] > 0.5
    records = {(row["dataset"], row["id"]): row for row in pq.read_table(run / "records").to_pylist()}
    reasons = json.loads((run / "selection.json").read_text())["reasons"]
    assert reasons["kept_refusal"] > 0
    assert reasons["kept_benign_answer"] > 0
    examples = pq.read_table(run / "examples" / "train.parquet").to_pylist()
    for row in examples:
        record = records[row["dataset"], row["id"]]
        assert row["messages"] == [{"role": "user", "content": record["text"]}]
        assert row["target"] == json.loads(record["fields"])["answer_1"]
        assert (classify(row["target"]).kind == "full") == (record["level"] > 0)
    counts = run.manifest("generate")["counts"]
    assert counts["calls_made"] == len(records), "a model is asked once, under whichever role"
    assert file_hash(run / "model" / "model.safetensors") != file_hash(SEED_MODEL / "model.safetensors")
