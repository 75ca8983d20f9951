"""Records on their way to files."""

from __future__ import annotations

from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from shard_dist.artefacts import read_rows, write_rows
from shard_dist.records import Prompt, Record
from shard_dist.stages.generate import RECORD_SCHEMA, record_of, record_row

PROMPT = Prompt("d", "1", "How does a saw work?")


@given(st.dictionaries(st.text(max_size=5), st.text(max_size=20), max_size=3))
def test_a_record_is_read_as_it_was_written(fields: dict[str, str]) -> None:
    record = Record(PROMPT, "shard", fields, {"draft": ["k"]}, "rewrite_refused")
    assert record_of(record_row(record)) == record


def test_half_a_character_of_a_models_json_stops_no_run(tmp_path: Path) -> None:
    row = record_row(Record(PROMPT, "shard", {"reframed": "a \ud800 b"}))
    write_rows(tmp_path / "records.parquet", [row], RECORD_SCHEMA)
    assert record_of(read_rows(tmp_path / "records.parquet")[0]).fields == {"reframed": "a ? b"}
