"""SIT from prompts to a model: n safety rows and the helpful rows of a file."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest

from shard_dist.artefacts import file_hash, stream_rows
from shard_dist.data.examples import stream_examples

pytestmark = [pytest.mark.vllm, pytest.mark.zero, pytest.mark.e2e]


def test_the_seed_model_is_tuned_on_safety_rows_among_helpful_ones(seed_run, root, tmp_path: Path) -> None:
    helpful = tmp_path / "helpful.json"
    words = ("red", "green", "blue", "white", "black", "grey")
    rows = [{"instruction": f"Say {word}.", "input": "", "output": f"{word}!"} for word in words]
    helpful.write_text(json.dumps(rows), encoding="utf-8")
    run = seed_run(
        "sit", "recipe.options.safety=8", "recipe.generator=teacher",
        f"recipe.mix=[{{path: {helpful}, format: alpaca}}]",
        "select.raters=[{kind: rule_harm}]", roles=("teacher",),
    )  # fmt: skip
    records = list(stream_rows(run / "records" / "part-00000.parquet"))
    asked = [row for row in records if row["failure"] != "not_drawn"]
    assert sum(row["split"] == "train" for row in asked) == 8
    assert all(row["level"] != 0 and json.loads(row["fields"])["answer_1"] for row in asked)
    assert run.manifest("generate")["counts"]["calls"] == len(asked)
    reasons = Counter(row["reason"] for row in stream_rows(run / "decisions.parquet"))
    assert reasons["failed_not_drawn"] == len(records) - len(asked)
    kept = reasons["kept_safe"] + reasons["kept_refusal"]
    assert kept > 0
    examples = [e for split in ("train", "val") for e in stream_examples(run / f"examples/{split}.parquet")]
    assert {example.objective for example in examples} == {"sft"}
    assert Counter(example.dataset for example in examples) == {"demo": kept, "mix/helpful": len(words)}
    assert file_hash(run / "model/model.safetensors") != file_hash(
        root / "shard_dist/demo/seed_model/model.safetensors"
    )
