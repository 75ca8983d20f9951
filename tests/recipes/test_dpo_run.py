"""DPO from prompts to a model: pairs of real samples, and beside them pairs of a file."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from shard_dist.artefacts import file_hash, stream_rows
from shard_dist.data.examples import stream_examples
from shard_dist.training.loop import read_metrics

pytestmark = [pytest.mark.vllm, pytest.mark.zero, pytest.mark.e2e]
RATERS = "select.raters=[{kind: rule_harm}, {kind: rule_helpfulness}]"


def test_the_seed_model_learns_to_prefer_its_better_samples(seed_run, root, tmp_path: Path) -> None:
    mixed = tmp_path / "pairs.jsonl"
    rows = [
        {"prompt": [{"role": "user", "content": f"Say {word}."}],
         "chosen": [{"role": "assistant", "content": f"{word}!"}],
         "rejected": [{"role": "assistant", "content": "I will not."}]}
        for word in ("red", "green", "blue", "white")
    ]  # fmt: skip
    mixed.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    run = seed_run(
        "dpo", "recipe.options={samples: 12, temperature: 1.5}", f"recipe.mix=[{{path: {mixed}, format: trl}}]", RATERS
    )
    texts = {
        (row["dataset"], row["id"]): json.loads(row["fields"])
        for row in stream_rows(run / "records" / "part-00000.parquet")
    }
    kept = {(row["dataset"], row["id"]): row for row in stream_rows(run / "decisions.parquet") if row["keep"]}
    assert kept
    examples = [e for split in ("train", "val") for e in stream_examples(run / f"examples/{split}.parquet")]
    assert {example.objective for example in examples} == {"dpo"}
    sampled = {(e.dataset, e.id): e for e in examples if not e.dataset.startswith("mix/")}
    assert len(examples) - len(sampled) == 4
    assert sampled.keys() == kept.keys()
    for key, example in sampled.items():
        chosen, rejected = (texts[key][kept[key][name]] for name in ("chosen", "rejected"))
        assert (example.target, example.rejected) == (chosen, rejected)
    losses = [line for line in read_metrics(run / "train_metrics.jsonl") if "dpo_margin" in line]
    assert losses[0]["loss"] == pytest.approx(math.log(2), abs=1e-5), "the policy begins as the reference"
    assert file_hash(run / "model/model.safetensors") != file_hash(
        root / "shard_dist/demo/seed_model/model.safetensors"
    )
