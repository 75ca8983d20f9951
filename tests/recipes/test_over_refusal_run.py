"""Over-refusal from harmful prompts to a model: borderline prompts of the seed model's own, voted on and answered."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from shard_dist.artefacts import file_hash, stream_rows
from shard_dist.data.examples import stream_examples
from shard_dist.export import export_examples

pytestmark = [pytest.mark.vllm, pytest.mark.zero, pytest.mark.e2e]


def test_the_seed_model_is_tuned_on_prompts_that_it_wrote(seed_run, root: Path, tmp_path: Path) -> None:
    run = seed_run(
        "over_refusal", "recipe.options={rewrites: 2, moderators: [student, moderator]}",
        "recipe.rewrite_sampling={temperature: 0.3, max_tokens: 360}", "select.raters=[{kind: rule_harm}]",
        roles=("moderator",),
    )  # fmt: skip
    records = list(stream_rows(run / "records" / "part-00000.parquet"))
    assert all((row["level"] == 0) == (row["failure"] == "benign_seed") for row in records)
    taught = {}
    decisions = list(stream_rows(run / "decisions.parquet"))
    for record, decision in zip(records, decisions, strict=True):
        fields = json.loads(record["fields"])
        for number in (number for number in ("1", "2") if f"answer_{number}" in fields):
            assert fields[f"moderation_{number}"] == "safe"
            assert json.loads(fields[f"votes_{number}"]) == ["safe", "safe"]
            if json.loads(decision["scores"])[f"answer_{number}"]:
                taught[fields[f"prompt_{number}"]] = (record["id"], fields[f"answer_{number}"])
        assert decision["keep"] == (record["id"] in [seed for seed, _ in taught.values()])
    examples = [e for split in ("train", "val") for e in stream_examples(run / f"examples/{split}.parquet")]
    assert taught
    assert {e.messages[-1]["content"]: (e.id, e.target) for e in examples} == taught
    assert {(e.objective, e.dataset) for e in examples} == {("sft", "demo")}
    assert sum(export_examples(run.path, tmp_path / "out", "trl").values()) == len(examples)
    assert file_hash(run / "model/model.safetensors") != file_hash(
        root / "shard_dist/demo/seed_model/model.safetensors"
    )
