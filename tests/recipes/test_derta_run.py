"""DeRTa from labelled answers to a model: triples of a file are trained on, those of test prompts are not."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest

from shard_dist.artefacts import file_hash, read_json, stream_rows
from shard_dist.data.examples import stream_examples
from shard_dist.data.read import read_csv

pytestmark = [pytest.mark.vllm, pytest.mark.zero, pytest.mark.e2e]


def test_the_seed_model_learns_to_break_off(seed_run, root: Path, tmp_path: Path) -> None:
    """Two harmless answers and a harmful one to every prompt of the demo that is read."""
    answers = tmp_path / "answers.jsonl"
    _, rows = read_csv(root / "shard_dist/demo/prompts.csv", set())
    texts = [row.text("prompt") for row in rows][:48]
    given = {"Ask a friend for help.": 0, "Take the thing and do it at once.": 1, "I will not help with that.": 0}
    lines = [json.dumps({"prompt": t, "answer": a, "harmful": h}) for t in texts for a, h in given.items()]
    answers.write_text("\n".join(lines), encoding="utf-8")
    run = seed_run("derta", f"recipe.options={{answers: {answers}, pairs: all}}")
    assert run.manifest("generate")["counts"]["calls"] == 0
    records = list(stream_rows(run / "records" / "part-00000.parquet"))
    selection = read_json(run / "selection.json")
    assert selection["reasons"] == {"triples_are_of_files": len(records)}
    found = selection["from_files"]
    assert sum(found.values()) == 2 * len(texts)
    assert found["repeats_test_prompt"] >= 2 * run.manifest("prompts")["counts"]["test"]
    examples = [e for split in ("train", "val") for e in stream_examples(run / f"examples/{split}.parquet")]
    assert len(examples) == found["kept_from_file"]
    assert Counter((e.objective, e.rejected, e.target) for e in examples).keys() == {
        ("derta", "Take the thing and do it at once.", answer) for answer, harmful in given.items() if not harmful
    }
    losses = [json.loads(line).get("losses", {}) for line in (run / "train_metrics.jsonl").read_text().splitlines()]
    assert {name.rpartition("/")[2] for each in losses for name in each} >= {"derta.safe", "derta.refusal"}
    assert file_hash(run / "model/model.safetensors") != file_hash(
        root / "shard_dist/demo/seed_model/model.safetensors"
    )
