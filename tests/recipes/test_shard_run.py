"""SHARD without the rewrite, from prompts to a trained model on the demo's seed model."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest

from shard_dist.artefacts import file_hash, stream_rows
from shard_dist.data.examples import stream_examples
from shard_dist.demo.world import SEED_MODEL
from shard_dist.rundir import Run

pytestmark = [pytest.mark.vllm, pytest.mark.zero, pytest.mark.e2e]


def test_an_ablation_makes_fewer_calls_and_a_model_all_the_same(seed_run: Callable[..., Run]) -> None:
    run = seed_run("shard", "recipe.options.rewrite=false")
    records = [
        {**row, "fields": json.loads(row["fields"]), "calls": json.loads(row["calls"])}
        for row in stream_rows(run / "records" / "part-00000.parquet")
    ]
    assert records
    for record in records:
        assert not record["failure"]
        assert record["fields"]["reframed"]
        assert {step: len(keys) for step, keys in record["calls"].items()} == {"draft": 1, "reframe": 1}
    generated = run.manifest("generate")
    assert generated is not None
    assert generated["counts"]["calls"] == 2 * len(records), "no guidelines were asked for"
    texts = {(record["dataset"], record["id"]): record for record in records}
    for example in stream_examples(run / "examples" / "train.parquet"):
        record = texts[example.dataset, example.id]
        assert example.messages == ({"role": "user", "content": record["text"]},)
        assert example.target == record["fields"]["reframed"]
        assert (example.objective, example.thinking) == ("sft", "")
    assert file_hash(run / "model" / "model.safetensors") != file_hash(SEED_MODEL / "model.safetensors")
