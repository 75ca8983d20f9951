"""A run's examples for other trainers: complete provenance, a card that tells the truth, all or nothing."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from shard_dist.artefacts import read_json, write_json, write_rows
from shard_dist.data.examples import write_examples
from shard_dist.data.interchange import NAMES, read_examples
from shard_dist.export import export_examples
from shard_dist.ledger.key import call_key
from shard_dist.ledger.queries import find_entry
from shard_dist.ledger.store import Ledger
from shard_dist.records import Call, Completion, Example, Prompt, Record, Sampling
from shard_dist.stages.generate import RECORD_SCHEMA, RECORDS, record_row
from shard_dist.stages.select import Decision, summarise

STUDENT, JUDGE = "5" * 64, "9" * 64
HOSTILE = "</script>\u2028\x00`| 'x'"


def called(ledger: Ledger, step: str, number: int, model: str, fingerprint: str) -> list[str]:
    """One call of a step, kept in the ledger."""
    messages = ({"role": "user", "content": f"{step} {number}"},)
    call = Call(model, fingerprint, messages, Sampling(seed=number))
    ledger.append(call_key(call), call, Completion((f"{step} of {number}",), ("stop",), 3, 4))
    return [call_key(call)]


def rows(ledger: Ledger, size: int) -> Iterator[tuple[Record, Decision, dict[str, list[str]]]]:
    """Every fifth record validates, every third is dropped."""
    for n in range(size):
        prompt = Prompt(
            "d", str(n), f"q{n} {HOSTILE}", ("Privacy", "Crimes")[n % 2], split="val" if n % 5 == 4 else "train"
        )
        steps = {step: called(ledger, step, n, "local", STUDENT) for step in ("draft", "reframe")}
        judged = {"judge_harm": called(ledger, "judge_harm", n, "vendor/judge", JUDGE)}
        keep = n % 3 != 2
        decision = Decision(
            "d", str(n), keep, "kept_more_helpful" if keep else "off_topic", "yes", "b", "tie", "r", HOSTILE
        )
        yield Record(prompt, "shard", {"reframed": f"answer {n}"}, steps), decision, judged


def make_run(home: Path, size: int = 30) -> Path:
    """What generate and select leave behind."""
    run = home / "run"
    ledger = Ledger(str(run / "ledger"))
    made = list(rows(ledger, size))
    ledger.close()
    write_rows(run / RECORDS, (record_row(record) for record, _, _ in made), RECORD_SCHEMA)
    decisions = [{**asdict(decision), "calls": json.dumps(judged)} for _, decision, judged in made]
    pq.write_table(pa.Table.from_pylist(decisions), run / "decisions.parquet")
    for split in ("train", "val"):
        chosen = [record for record, decision, _ in made if decision.keep and record.prompt.split == split]
        examples = [
            Example(*r.prompt.key, ({"role": "user", "content": r.prompt.text},), r.fields["reframed"]) for r in chosen
        ]
        write_examples(run / "examples" / f"{split}.parquet", examples)
    summary = summarise([(record, decision) for record, decision, _ in made], "llm:judge")
    write_json(run / "selection.json", summary)
    write_json(run / "run.json", {"name": "bench"})
    stage = {"config_hash": "c" * 64, "git_commit": "a" * 40, "git_dirty": False, "counts": {"calls": size}}
    write_json(run / "generate.json", {**stage, "inputs": {"generator": STUDENT}})
    write_json(run / "select.json", {**stage, "inputs": {"judge": [JUDGE, "t"]}, "git_dirty": True})
    config = {
        "recipe": {"name": "shard", "generator": "student"},
        "select": {"judge_role": "judge"},
        "models": {"student": {"model": "/models/seed"}, "judge": {"model": "vendor/judge"}},
    }
    (run / "config.yaml").write_text(yaml.safe_dump(config))
    return run


def provenance(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "provenance.jsonl").read_text().splitlines()]


def table(path: Path) -> list[dict[str, Any]]:
    """The rows of a file, without our own reader."""
    if path.suffix == ".parquet":
        return pq.read_table(path).to_pylist()
    text = path.read_text()
    return json.loads(text) if path.suffix == ".json" else [json.loads(line) for line in text.splitlines()]


def test_every_example_has_its_calls_its_judge_and_its_reason(tmp_path: Path) -> None:
    """And every key is a call in the run's ledger, made for that example."""
    run, out = make_run(tmp_path), tmp_path / "out"
    assert export_examples(run, out, "trl") == {"train": 16, "val": 4}
    examples = [e for split in ("train", "val") for e in read_examples(out / f"{split}.jsonl", "trl")]
    lines = provenance(out)
    assert [(line["dataset"], line["id"]) for line in lines] == [(e.dataset, e.id) for e in examples]
    for line in lines:
        assert set(line["calls"]) == {"draft", "reframe", "judge_harm"}
        for step, (key,) in line["calls"].items():
            assert find_entry(str(run), key)["call"]["messages"][0]["content"] == f"{step} {line['id']}"
        assert (line["judge"], line["reason"], line["recipe"]) == ("llm:judge", "kept_more_helpful", "shard")
        assert (line["helpfulness"], line["harm"], line["harm_reason"]) == ("b", "tie", HOSTILE)
        assert line["split"] == ("val" if int(line["id"]) % 5 == 4 else "train")


def test_the_card_counts_what_was_exported_and_what_made_it(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    export_examples(run, tmp_path / "out", "alpaca", "val")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["README.md", "provenance.jsonl", "val.json"]
    card = (tmp_path / "out" / "README.md").read_text().splitlines()
    for line in (
        "# `bench`: 4 training examples",
        f"- Model `seed`: fingerprint `{STUDENT}`",
        f"- Model `vendor/judge`: fingerprint `{JUDGE}`",
        "- Step `draft`: 4 calls to `seed`, `555555555555`",
        "- Step `judge_harm`: 4 calls to `vendor/judge`, `999999999999`",
        "- Kept, `kept_more_helpful`: 20",
        "- Dropped, `off_topic`: 10",
        "- `Crimes`: 2 examples; 10 of the run's records kept, 5 dropped",
        f"- Commit that ran `select`: `{'a' * 40} (changed since)`",
    ):
        assert line in card


@pytest.mark.parametrize("format", NAMES)
def test_the_hubs_loader_reads_an_export_by_its_card(format: str, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    export_examples(make_run(tmp_path), tmp_path / "out", format)
    loaded = datasets.load_dataset(str(tmp_path / "out"))
    assert {split: len(table) for split, table in loaded.items()} == {"train": 16, "validation": 4}
    (path,) = (tmp_path / "out").glob("train.*")
    assert list(loaded["train"]) == table(path)


def test_trl_takes_the_rows_as_conversations(tmp_path: Path) -> None:
    data_utils = pytest.importorskip("trl.data_utils")
    export_examples(make_run(tmp_path), tmp_path / "out", "trl")
    row = json.loads((tmp_path / "out" / "train.jsonl").read_text().splitlines()[0])
    assert data_utils.is_conversational(row)


def test_calls_that_were_pruned_are_counted(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    for path in (run / "ledger").iterdir():
        path.unlink()
    export_examples(run, tmp_path / "out", "trl")
    assert "60 of these calls are no longer in the ledger." in (tmp_path / "out" / "README.md").read_text()


def test_a_run_that_did_not_note_the_judges_calls_says_so(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    table = pq.read_table(run / "decisions.parquet")
    pq.write_table(table.drop_columns(["calls"]), run / "decisions.parquet")
    export_examples(run, tmp_path / "out", "trl")
    assert set(provenance(tmp_path / "out")[0]["calls"]) == {"draft", "reframe"}
    assert "The judge's own calls are not among them" in (tmp_path / "out" / "README.md").read_text()


def test_a_split_without_examples_gets_no_file(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    write_examples(run / "examples" / "val.parquet", [])
    assert export_examples(run, tmp_path / "out", "trl") == {"train": 16}
    assert not (tmp_path / "out" / "val.jsonl").exists()
    with pytest.raises(ValueError, match=r"run has no examples of the split val to export"):
        export_examples(run, tmp_path / "other", "trl", "val")


def test_nothing_is_left_where_an_export_fails(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    path = run / "examples" / "val.parquet"
    examples = list(read_examples(path, "shard"))
    write_examples(path, [replace(examples[0], messages=({"role": "system", "content": "x"},))])
    with pytest.raises(ValueError, match=r"val\.parquet, row 1: sharegpt holds .* message 1 of 1"):
        export_examples(run, tmp_path / "out", "sharegpt")
    write_examples(path, [replace(examples[0], id="unknown")])
    with pytest.raises(ValueError, match=r"val\.parquet, row 1: no record of \('d', 'unknown'\)"):
        export_examples(run, tmp_path / "out", "trl")
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_faults_are_named_before_anything_is_made(tmp_path: Path) -> None:
    run, out = make_run(tmp_path), tmp_path / "out"
    for format, split, message in (
        ("trll", "", "no format 'trll'.*did you mean 'trl'"),
        ("trl", "test", "no split 'test' of examples; there are train, val"),
    ):
        with pytest.raises(ValueError, match=message):
            export_examples(run, out, format, split)
    with pytest.raises(ValueError, match=r"run is there and not empty"):
        export_examples(run, run, "trl")
    (run / "select.json").unlink()
    with pytest.raises(ValueError, match=r"select\.json is missing: .* no run that has selected its examples"):
        export_examples(run, out, "trl")
    assert not out.exists()
    out.mkdir()  # an empty directory is as good as none
    assert export_examples(make_run(tmp_path / "again"), out, "trl") == {"train": 16, "val": 4}
    assert read_json(run / "run.json") == {"name": "bench"}
