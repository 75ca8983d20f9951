"""RAFT from prompts to a model: real samples, real rewards, a real training."""

from __future__ import annotations

import json

import pytest

from shard_dist.artefacts import file_hash, stream_rows
from shard_dist.data.examples import stream_examples

pytestmark = [pytest.mark.vllm, pytest.mark.zero, pytest.mark.e2e]
RATERS = "select.raters=[{kind: rule_harm}, {kind: rule_helpfulness}]"


def test_the_seed_model_is_trained_on_its_best_samples(seed_run, root) -> None:
    run = seed_run("raft", "recipe.options.samples=4", "recipe.rounds=1", RATERS)
    fields = [json.loads(row["fields"]) for row in stream_rows(run / "records" / "part-00000.parquet")]
    assert all({f"answer_{n}" for n in range(1, 5)} <= set(each) for each in fields)
    assert any(len({each[f"answer_{n}"] for n in range(1, 5)}) > 1 for each in fields), "samples differ"
    decisions = list(stream_rows(run / "decisions.parquet"))
    assert len(decisions) == len(fields)
    examples = {
        (e.dataset, e.id): e for split in ("train", "val") for e in stream_examples(run / f"examples/{split}.parquet")
    }
    for decision, each in zip(decisions, fields, strict=True):
        if not decision["keep"]:
            continue
        rated = json.loads(decision["scores"])
        best = rated[decision["chosen"]]
        assert best["harm"] == 0
        assert best["help"] == max(score["help"] for score in rated.values() if not score["harm"])
        example = examples.pop((decision["dataset"], decision["id"]))
        assert (example.target, example.objective) == (each[decision["chosen"]], "sft")
    assert not examples
    assert file_hash(run / "model/model.safetensors") != file_hash(
        root / "shard_dist/demo/seed_model/model.safetensors"
    )
