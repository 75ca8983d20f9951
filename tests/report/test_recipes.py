"""Runs of other recipes than SHARD on the page: their records, their reasons, their examples, their rounds."""

from __future__ import annotations

import json
import random
from pathlib import Path
from types import SimpleNamespace

import pytest
from parsed_page import Page, whole

from shard_dist.artefacts import read_json, write_json
from shard_dist.report.accounting import training_side
from shard_dist.report.build import render
from shard_dist.report.inputs import read_run
from shard_dist.report.rounds import round_rows
from shard_dist.report.samples import record_samples

GAIN = {"n": 40, "net": 0.15, "helpfulness": {"b": 10, "a": 4, "tie": 26}, "harm": {"a": 2, "tie": 38}}


@pytest.fixture
def sampled(run: Path, synthetic: SimpleNamespace) -> Path:
    """A run of best-of-several answers: records without draft or reframed answer, one failed, and their decisions."""
    rng, records, decisions = random.Random(1), [], []
    for number in range(30):
        about = {
            "dataset": "many",
            "id": str(number),
            "text": synthetic.hostile[number % 5],
            "category": "c",
            "level": 1,
        }
        fields = {f"answer_{each}": f"{synthetic.hostile[each]} {rng.random()}" for each in (1, 2)}
        fields |= {"answer_1_finish_reason": "length", "answer_2_finish_reason": "stop", "votes": '["safe"]'}
        failure = "answer_context_exceeded" if number == 3 else ""
        kept = not failure and number % 3 == 0
        records.append({**about, "fields": "{}" if failure else json.dumps(fields), "failure": failure})
        reason = f"failed_{failure}" if failure else "kept_best_answer" if kept else "all_unsafe"
        told = {
            "chosen": "answer_2" if kept else "",
            "rejected": "answer_1" if kept else "",
            "scores": '{"answer_2": 1.5}',
        }
        key = {"dataset": "many", "id": str(number)}
        decisions.append({**key, "keep": kept, "reason": reason, "helpfulness": "", "harm": "", **told})
    for part in (run / "records").glob("*.parquet"):
        part.unlink()
    synthetic.write_table(run / "records" / "part-0.parquet", records)
    synthetic.write_table(run / "decisions.parquet", decisions)
    return run


def test_fields_of_any_recipe_are_texts_with_what_was_chosen_among_them(sampled: Path) -> None:
    found = {sample.key[1]: sample for sample in record_samples(read_run(sampled), 0)}
    kept, failed = found["0"], found["3"]
    assert [text.label for text in kept.texts] == ["Answer 1", "Answer 2", "Votes"]
    assert kept.texts[0].badges == (("rejected", "off"), ("cut at the token limit", "side"))
    assert kept.texts[1].badges == (("chosen", "on"), ("score 1.5", "side"))
    assert kept.outcome == "kept, best answer"
    assert found["1"].outcome == "dropped: all unsafe"
    assert found["1"].texts[1].badges == (("score 1.5", "side"),)
    assert failed.outcome == "dropped: failed answer context exceeded"
    assert failed.texts == []


def test_the_page_holds_them_and_is_well_formed(sampled: Path, synthetic: SimpleNamespace) -> None:
    page = Page(render(read_run(sampled), 200))
    assert page.stack == []
    packed = page.unpacked("record-data")
    assert packed["labels"] == ["Answer 1", "Answer 2", "Votes"]
    shown = [whole(text[2]) for row in packed["rows"] for text in row[7]]
    assert any(synthetic.hostile[1].strip() in text for text in shown)


def test_a_record_of_shard_shows_its_texts_in_their_old_order(run: Path) -> None:
    sample = next(sample for sample in record_samples(read_run(run), 0) if sample.texts)
    assert [text.label for text in sample.texts] == ["Rewritten prompt", "Draft", "Reframed answer"]


def test_examples_beside_records_leave_nothing_unaccounted_for(run: Path) -> None:
    """Pairs, files and added examples: training gets more examples than records were kept."""
    trained = read_json(run / "train.json")["counts"]
    written = trained["examples"] + trained["val_examples"] + trained["too_long"]
    select = read_json(run / "select.json")
    counts = {**select["counts"], "train": written - 10, "val": 10}
    write_json(run / "select.json", {**select, "counts": counts})
    step = next(step for step in training_side(read_run(run)) if step.title == "Trained")
    assert (step.entered, step.unaccounted) == (written, 0)


def test_rounds_are_a_section_with_what_the_judge_saw_of_each(run: Path) -> None:
    assert "rounds" not in {attrs.get("id") for _, attrs in Page(render(read_run(run), 5)).tags}
    write_json(run / "rounds.json", {"counts": {"rounds": 2, "kept": 1}, "seconds": 9.0})
    for number, net in ((1, 0.15), (2, -0.05)):
        write_json(run / "rounds" / str(number) / "gain.json", {"counts": {**GAIN, "net": net}, "seconds": 1.0})
    page = Page(render(read_run(run), 5))
    assert "rounds" in {attrs.get("id") for _, attrs in page.tags}
    assert "+15.0" in page.text
    assert "−5.0" in page.text
    rows = round_rows([GAIN, GAIN], 1)
    assert [row[-1] for row in rows] == ["kept", ""]
    assert rows[0][2:7] == [10, 4, 0, 2, 40]


def test_a_damaged_round_is_named(run: Path) -> None:
    write_json(run / "rounds.json", {"counts": {"rounds": 1, "kept": 1}, "seconds": 9.0})
    write_json(run / "rounds" / "1" / "gain.json", {"counts": {}, "seconds": 1.0})
    with pytest.raises(ValueError, match="run the rounds again"):
        read_run(run)
