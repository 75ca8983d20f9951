"""Guide-Align from prompts to a model: a library in the seed model's words, look-ups, training on guided answers."""

from __future__ import annotations

import json
from collections import Counter

import pytest

from shard_dist.artefacts import file_hash, read_json, stream_rows
from shard_dist.data.examples import stream_examples
from shard_dist.data.jsonl import read_objects
from shard_dist.data.load import prompt_rows
from shard_dist.prompts.render import Templates
from shard_dist.recipes.base import context_key

pytestmark = [pytest.mark.vllm, pytest.mark.zero, pytest.mark.e2e]


def test_the_seed_model_is_tuned_on_guided_answers(seed_run, root) -> None:
    # Under a schema the seed model is lost, and most of all in white space, where it stays at a low temperature.
    lost = "{temperature: 1.2, max_tokens: 300}"
    run = seed_run(
        "guide_align", "recipe.options={gate: safe, most: 1, k: 1, keep_guidelines: true, held_out: 0.2}",
        "evaluate.contexts=[tuned]", "select.raters=[{kind: rule_harm}]", "recipe.rewrite_attempts=4",
        f"recipe.rewrite_sampling={lost}", f"recipe.guideline_sampling={lost}", "data.sources[0].limit=24",
    )  # fmt: skip
    library = [row for _, row in read_objects(run / "findings" / "library.jsonl")]
    found = read_json(run / "findings" / "retrieval.json")
    assert found["guidelines"] == len(library) > 0
    assert found["prompts"] == found["pairs"]["train"] + found["pairs"]["held_out"] + sum(found["failed"].values())
    assert (run / "findings" / "retriever" / "model.safetensors").is_file()
    records = list(stream_rows(run / "records" / "part-00000.parquet"))
    asked = Counter(step for row in records for step in json.loads(row["calls"]))
    assert asked["detect"] == found["prompts"] == sum(row["split"] == "train" for row in records)
    assert asked["draft"] == asked["answer"] == sum(row["failure"] != "no_guideline" for row in records)
    test = prompt_rows(run / "prompts.parquet", ("test",))
    contexts = read_json(run / "findings" / "contexts.json")
    assert set(contexts) == {context_key(prompt) for prompt in test.read(range(len(test)))}
    reasons = Counter(row["reason"] for row in stream_rows(run / "decisions.parquet"))
    examples = [e for split in ("train", "val") for e in stream_examples(run / f"examples/{split}.parquet")]
    assert len(examples) == reasons["kept_safe"] > 0
    shown = {(row["dataset"], row["id"]): (row["text"], json.loads(row["fields"])) for row in records}
    for example in examples:
        text, fields = shown[example.dataset, example.id]
        assert example.messages == Templates("toy").chat(text, fields["guidelines"])
        assert (example.target, example.objective) == (fields["answer"], "sft")
    assert file_hash(run / "model/model.safetensors") != file_hash(
        root / "shard_dist/demo/seed_model/model.safetensors"
    )
