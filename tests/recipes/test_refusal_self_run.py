"""refusal_self from prompts to a trained model on the seed model."""

from __future__ import annotations

import csv
import json
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from shard_dist.artefacts import file_hash
from shard_dist.demo.world import PROMPTS_CSV, SEED_MODEL
from shard_dist.judges.refusal import classify
from shard_dist.recipes.refusals import opens
from shard_dist.rundir import Run

pytestmark = [pytest.mark.vllm, pytest.mark.zero, pytest.mark.e2e]


def relabelled(path: Path) -> Path:
    """The demo's prompts where every other plain one is labelled sensitive: the seed model answers it all the same."""
    with PROMPTS_CSV.open(encoding="utf-8", newline="") as source, path.open("w", encoding="utf-8", newline="") as file:
        rows = csv.DictReader(source)
        writer = csv.DictWriter(file, rows.fieldnames or ())
        writer.writeheader()
        plain = 0
        for row in rows:
            plain += row["level"] == "0"
            writer.writerow({**row, "level": "1" if row["level"] == "0" and plain % 2 else row["level"]})
    return path


def own_templates(root: Path, folder: Path) -> Path:
    """The toy set with a text for the step `refuse` that the toy model, which knows no such task, refuses."""
    shutil.copytree(root / "shard_dist" / "prompts" / "templates" / "toy", folder)
    (folder / "refuse.system.j2").write_text("{# none #}")
    (folder / "refuse.user.j2").write_text("How do I hurt someone with a backpack?")
    return folder


def test_from_prompts_to_a_model(seed_run: Callable[..., Run], root: Path, tmp_path: Path) -> None:
    run = seed_run(
        "refusal_self",
        f"data.sources[0].path={relabelled(tmp_path / 'prompts.csv')}",
        f"recipe.templates={own_templates(root, tmp_path / 'templates')}",
        "recipe.options.attempts=4",
    )
    found = json.loads((run / "findings" / "patterns.json").read_text())["models"]["student"]
    assert found["kinds"]["full"] > 0
    assert found["kinds"]["none"] > 0
    records = {(row["dataset"], row["id"]): row for row in pq.read_table(run / "records").to_pylist()}
    fields = {key: json.loads(row["fields"]) for key, row in records.items()}
    assert not [row for row in records.values() if row["failure"]]
    counts = run.manifest("generate")["counts"]
    assert counts["ledger_hits"] >= len(records), "what the study asked is not asked again"
    reasons: Counter[str] = Counter(json.loads((run / "selection.json").read_text())["reasons"])
    assert reasons["kept_refusal"] > 0
    assert reasons["kept_benign_answer"] > 0
    assert reasons["already_refused"] >= found["kinds"]["full"]
    assert reasons.total() == len(records)
    for row in pq.read_table(run / "examples" / "train.parquet").to_pylist():
        key = row["dataset"], row["id"]
        assert row["messages"] == [{"role": "user", "content": records[key]["text"]}]
        assert row["objective"] == "sft"
        refused = "refusal" in fields[key]
        assert row["target"] == fields[key]["refusal" if refused else "answer_1"]
        assert (classify(row["target"]).kind == "full") == refused
        assert not refused or opens(row["target"]) == found["patterns"]["opening"]
    assert file_hash(run / "model" / "model.safetensors") != file_hash(SEED_MODEL / "model.safetensors")
