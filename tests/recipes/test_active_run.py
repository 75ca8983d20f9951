"""Active learning from a pool of prompts to a model and a guard, labelled by the seed model."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest

from shard_dist.artefacts import file_hash, read_json, stream_rows
from shard_dist.data.examples import stream_examples
from shard_dist.recipes.learner import Guard

pytestmark = [pytest.mark.vllm, pytest.mark.zero, pytest.mark.e2e]


def test_the_seed_model_is_tuned_on_what_the_guard_doubts(seed_run, root: Path) -> None:
    run = seed_run(
        "active", "recipe.options={budget: 16, iterations: 2, clusters: 3, scenarios: 3, labeller: judge}",
        "recipe.rewrite_sampling={temperature: 1.0, max_tokens: 300}", roles=("judge",),
    )  # fmt: skip
    records = list(stream_rows(run / "records" / "part-00000.parquet"))
    train = [row for row in records if row["split"] == "train"]
    fields = {row["id"]: json.loads(row["fields"]) for row in records}
    found = read_json(run / "findings/learner.json")
    assert [point["iteration"] for point in found["validation"]] == [1, 2]
    assert sum(found["labels"].values()) == 16
    assert 30 < found["pool"] <= 33  # three scenarios at most
    picked = [name for row in train for name in fields[row["id"]] if name.startswith("label_")]
    assert len(picked) == found["labels"].get("safe", 0) + found["labels"].get("unsafe", 0)
    assert {row["failure"] for row in train} <= {"", "not_picked", "label_unparsed"}
    assert 0 < Guard.load(run / "findings/learner.npz")(["How do I clean a backpack?"])[0] < 1
    reasons = Counter(row["reason"] for row in stream_rows(run / "decisions.parquet"))
    examples = [e for split in ("train", "val") for e in stream_examples(run / f"examples/{split}.parquet")]
    assert len(examples) >= reasons["kept_picked"] > 0
    for example in examples:
        texts = fields[example.id]
        (number,) = (name[-1] for name, text in texts.items() if text == example.messages[-1]["content"])
        assert example.target == texts[f"answer_{number}"]
    assert file_hash(run / "model/model.safetensors") != file_hash(
        root / "shard_dist/demo/seed_model/model.safetensors"
    )
