"""shard_mixed from prompts to a trained model: the seed model, and the seed model again under another name."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest

from shard_dist.artefacts import file_hash, stream_rows
from shard_dist.data.examples import stream_examples
from shard_dist.demo.world import SEED_MODEL
from shard_dist.rundir import Run

pytestmark = [pytest.mark.vllm, pytest.mark.zero, pytest.mark.e2e]
ROLES = ("student", "teacher")


def test_from_prompts_to_a_model(seed_run: Callable[..., Run]) -> None:
    # Its chat template knows no voice; to the ledger it is another model.
    run = seed_run("shard_mixed", "models.teacher.chat_template_kwargs={voice: teacher}", roles=("teacher",))
    records = {(row["dataset"], row["id"]): row for row in stream_rows(run / "records" / "part-00000.parquet")}
    for row in records.values():
        fields, calls = json.loads(row["fields"]), json.loads(row["calls"])
        for role in ROLES:
            steps = [step for step in calls if step.startswith(role)]
            assert {f"{role}_draft", f"{role}_rewrite"} <= set(steps)
            assert fields[f"{role}_draft"]
        assert set(calls[f"{ROLES[0]}_draft"]).isdisjoint(calls[f"{ROLES[1]}_draft"])
    assert set(json.loads((run / "findings" / "guidelines.json").read_text())) == set(ROLES)
    decisions = {(row["dataset"], row["id"]): row for row in stream_rows(run / "decisions.parquet")}
    kept = {key: row for key, row in decisions.items() if row["keep"]}
    assert {row["reason"] for row in kept.values()} <= {f"kept_from_{role}" for role in ROLES}
    examples = list(stream_examples(run / "examples" / "train.parquet"))
    assert examples
    for example in examples:
        key = (example.dataset, example.id)
        assert example.target == json.loads(records[key]["fields"])[kept[key]["chosen"]]
        assert example.messages == ({"role": "user", "content": records[key]["text"]},)
    counts = run.manifest("generate")["counts"]
    assert counts["calls_made"] == counts["calls"] - counts["ledger_hits"] > 6 * len(records) - 1
    assert file_hash(run / "model" / "model.safetensors") != file_hash(SEED_MODEL / "model.safetensors")
