"""Files of examples: what is written is read, older files too, and other files are refused."""

from dataclasses import asdict, replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from shard_dist.data.examples import EXAMPLE_SCHEMA, stream_examples, write_examples
from shard_dist.records import Example

ONE = Example("d", "1", ({"role": "system", "content": "be kind"}, {"role": "user", "content": "hi"}), "hello")
PAIR = replace(ONE, id="2", target="שלום\n", objective="dpo", rejected="לא")
THOUGHT = replace(ONE, id="3", thinking="They greet.\n\nI greet back.")


def test_examples_survive_the_round_trip(tmp_path: Path) -> None:
    path = tmp_path / "e.parquet"
    write_examples(path, [ONE, PAIR, THOUGHT])
    assert list(stream_examples(path)) == [ONE, PAIR, THOUGHT]
    write_examples(path, [])
    assert list(stream_examples(path)) == []


@pytest.mark.parametrize("lacks", [["thinking"], ["rejected", "thinking"]])
def test_a_file_from_before_there_were_pairs_or_thinking_still_loads(tmp_path: Path, lacks: list[str]) -> None:
    path = tmp_path / "old.parquet"
    old = pa.Table.from_pylist([asdict(ONE)], schema=EXAMPLE_SCHEMA).drop_columns(lacks)
    pq.write_table(old, path)
    assert list(stream_examples(path)) == [ONE]


def test_other_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="run the select stage first"):
        list(stream_examples(tmp_path / "absent.parquet"))
    pq.write_table(pa.table({"prompt": ["hi"], "target": ["x"]}), tmp_path / "prompts.parquet")
    with pytest.raises(ValueError, match=r"lacks the columns \['dataset', 'id', 'messages', 'objective'\]"):
        list(stream_examples(tmp_path / "prompts.parquet"))
    (tmp_path / "text.parquet").write_text("no parquet")
    with pytest.raises(ValueError, match=r"text\.parquet"):
        list(stream_examples(tmp_path / "text.parquet"))


def test_more_columns_and_empty_cells_do_no_harm(tmp_path: Path) -> None:
    """A table that someone has worked on: a column of theirs, and null where an sft row has nothing to reject."""
    path = tmp_path / "e.parquet"
    table = pa.Table.from_pylist([{**asdict(ONE), "rejected": None}], schema=EXAMPLE_SCHEMA)
    pq.write_table(table.append_column("note", pa.array(["mine"])), path)
    assert list(stream_examples(path)) == [ONE]
