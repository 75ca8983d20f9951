"""A damaged file is an error that names it; odd but whole files are read."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
from parsed_page import Page

from shard_dist.artefacts import read_json, read_rows, write_json
from shard_dist.report.build import build_report
from shard_dist.report.inputs import read_run

JSON_FILES = ["run.json", "generate.json", "selection.json", "metrics.json", "findings/guidelines.json"]
TABLES = [
    "prompts.parquet",
    "records/part-1.parquet",
    "decisions.parquet",
    "answers/base.parquet",
    "verdicts/pairs.parquet",
]


@pytest.mark.parametrize("name", [*JSON_FILES, *TABLES])
@pytest.mark.parametrize("kept", [0.5, 0.0])
def test_a_truncated_file_is_named(run: Path, name: str, kept: float) -> None:
    whole = (run / name).read_bytes()
    (run / name).write_bytes(whole[: int(len(whole) * kept)])
    with pytest.raises(ValueError, match=name):
        build_report(run)
    assert not (run / "report").exists()


@pytest.mark.parametrize("name", [*JSON_FILES, "config.yaml"])
def test_a_file_that_is_no_mapping_or_no_utf8_is_named(run: Path, name: str) -> None:
    for content in (b"[1, 2]", b'{"a": "\xff\xfe"}'):
        (run / name).write_bytes(content)
        with pytest.raises(ValueError, match=name):
            read_run(run)


def test_a_table_without_a_column_is_named_with_the_column(run: Path, synthetic: SimpleNamespace) -> None:
    path = run / "answers" / "tuned.parquet"
    synthetic.write_table(path, [{key: row[key] for key in ("dataset", "id", "text")} for row in read_rows(path)])
    with pytest.raises(ValueError, match=r"tuned\.parquet has no column .*finish_reason"):
        read_run(run)


def test_a_torn_line_of_the_training_log_is_named_with_its_number(run: Path) -> None:
    path = run / "train_metrics.jsonl"
    path.write_text('{"step": 1, "loss": 2.0}\n{"step": 2, "lo')
    with pytest.raises(ValueError, match=r"train_metrics\.jsonl, line 2"):
        read_run(run)


def test_a_step_that_a_restart_repeated_counts_once_and_its_last_line_wins(run: Path) -> None:
    lines = [
        '{"step": 1, "loss": 9.0}',
        '{"step": 2, "loss": 8.0}',
        '{"step": 2, "val_loss": 7.5}',
        '{"step": 2, "loss": 3.0}',
    ]
    (run / "train_metrics.jsonl").write_text("\n".join(lines) + "\n")
    assert read_run(run).steps == [{"step": 1, "loss": 9.0}, {"step": 2, "loss": 3.0, "val_loss": 7.5}]


@pytest.mark.parametrize("value", ["0.5", 1.5, -0.1, float("nan"), float("inf"), [1]])
def test_a_rate_that_is_none_is_named(run: Path, value: object) -> None:
    metrics = read_json(run / "metrics.json")
    metrics["arms"]["tuned"]["refusal_rate"]["value"] = value
    (run / "metrics.json").write_text(json.dumps(metrics))
    with pytest.raises(ValueError, match=r"metrics\.json.*tuned\.refusal_rate"):
        build_report(run)


def test_rates_without_prompts_and_unknown_keys_are_shown_as_such(run: Path) -> None:
    metrics = read_json(run / "metrics.json")
    for arm in metrics["arms"].values():
        arm["benign_answer_rate"] = {"value": None, "low": None, "high": None, "n": 0, "note": "new"}
    none = {"value": None, "low": None, "high": None, "n": 0, "mcnemar_p": 1.0}
    metrics["pairs"]["tuned_vs_base"]["differences"]["benign_answer_rate"] = none
    metrics["pairs"]["tuned_vs_base"]["new_question"] = {"x": 1}
    write_json(run / "metrics.json", metrics)
    assert "Not measured" in build_report(run).read_text(encoding="utf-8")


def test_a_lone_surrogate_in_a_record_does_not_stop_the_page(run: Path, synthetic: SimpleNamespace) -> None:
    path = run / "records" / "part-0.parquet"
    rows = read_rows(path)
    rows[0]["fields"] = '{"draft": "odd \\ud800 text"}'
    synthetic.write_table(path, rows)
    assert "odd \ufffd text" in str(Page(build_report(run).read_text(encoding="utf-8")).unpacked("record-data"))
