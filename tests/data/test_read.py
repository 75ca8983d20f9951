"""Files as people have them, whole and broken: what is read, and what the error says."""

import csv
import io
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shard_dist.config.schema import SourceConfig, SourceKind
from shard_dist.data.read import Row, csv_records, rows

ANY_TEXT = st.text(st.characters(exclude_categories=("Cs",)))


def texts(path: Path, column: str = "prompt") -> list[str]:
    source = SourceConfig(kind=SourceKind.table, path=str(path))
    return [row.text(column) for row in rows(source, required=(column,))]


def test_csv_keeps_quotes_line_breaks_and_every_script(tmp_path):
    path = tmp_path / "p.csv"
    path.write_text('id,prompt\n1,"a ""b"", c\nd"\n2,\u202eمرحبا שלום\n\n3,日本語 😀\n', encoding="utf-8")
    assert texts(path) == ['a "b", c\nd', "\u202eمرحبا שלום", "日本語 😀"]


@given(st.lists(ANY_TEXT.map(str.strip), min_size=1))
def test_csv_returns_any_text_that_the_csv_module_wrote(tmp_path_factory, values):
    """Round trip, NUL, carriage returns and U+2028 included."""
    buffer = io.StringIO(newline="")
    writer = csv.writer(buffer, quoting=csv.QUOTE_ALL)
    writer.writerows([["prompt"], *([value] for value in values)])
    path = tmp_path_factory.mktemp("csv") / "p.csv"
    path.write_bytes(buffer.getvalue().encode())
    assert texts(path) == values


@given(st.lists(ANY_TEXT.map(str.strip), min_size=1))
def test_jsonl_returns_any_text_that_the_json_module_wrote(tmp_path_factory, values):
    path = tmp_path_factory.mktemp("jsonl") / "p.jsonl"
    lines = [json.dumps({"prompt": value}, ensure_ascii=False) for value in values]
    path.write_bytes("\n".join(lines).encode())
    assert texts(path) == values


def test_a_field_above_the_csv_modules_own_limit_is_read(tmp_path):
    path = tmp_path / "p.csv"
    path.write_text(f"id,prompt\n1,{'x' * 300_000}\n")
    assert [len(text) for text in texts(path)] == [300_000]


@pytest.mark.parametrize("ending", [".csv", ".jsonl"])
def test_a_byte_order_mark_is_no_part_of_the_first_column(tmp_path, ending):
    path = tmp_path / f"p{ending}"
    content = "prompt\nhello\n" if ending == ".csv" else '{"prompt": "hello"}\n'
    path.write_text(content, encoding="utf-8-sig")
    assert texts(path) == ["hello"]


def test_only_outer_white_space_goes():
    row = Row({"t": " \u00a0 a  b\u200b\u3000", "none": None, "gap": float("nan"), "id": 12.0, "n": 7}, "here")
    assert row.text("t") == "a  b\u200b"
    assert [row.text(column) for column in ("none", "gap", "absent", "id", "n")] == ["", "", "", "12", "7"]


@pytest.mark.parametrize("value", [True, b"bytes", ["list"], {"a": 1}])
def test_a_value_that_is_no_text_is_named(value):
    with pytest.raises(ValueError, match=r"p\.jsonl, line 3: column 't' holds .*, expected text"):
        Row({"t": value}, "p.jsonl, line 3").text("t")


def test_half_a_surrogate_pair_is_refused_before_it_breaks_a_file():
    with pytest.raises(ValueError, match=r"line 1: column 't' holds half a surrogate pair at character 1"):
        Row(json.loads('{"t": "a\\ud83d"}'), "p.jsonl, line 1").text("t")


@pytest.mark.parametrize(("value", "level"), [("0", 0), (3, 3), ("2.0", 2), (1.0, 1), ("", None), (None, None)])
def test_levels_are_whole_numbers_from_0_to_3_or_nothing(value, level):
    assert Row({"level": value}, "here").level("level") == level


@pytest.mark.parametrize("value", ["4", "-1", "1.5", "high", "٣", "inf"])
def test_another_level_is_refused(value):
    with pytest.raises(ValueError, match=r"line 9: column 'level' holds .*levels are 0 \(benign\) to 3"):
        Row({"level": value}, "line 9").level("level")


def test_a_missing_column_is_named_with_those_there_and_the_nearest(tmp_path):
    path = tmp_path / "p.csv"
    path.write_text("id,promt\n1,hi\n")
    with pytest.raises(ValueError, match=r"no column 'prompt'; there are \['id', 'promt'\]; did you mean 'promt'\?"):
        texts(path)


def test_invalid_utf8_is_found_by_line_and_byte(tmp_path):
    path = tmp_path / "p.csv"
    path.write_bytes(b"id,prompt\n1,fine\n2,caf\xe9\n")
    with pytest.raises(ValueError, match=r"p\.csv, line 3: invalid UTF-8 at byte 22"):
        texts(path)
    assert path.read_bytes()[22:23] == b"\xe9"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "empty; the first line must name the columns"),
        ("id,prompt,id\n", r"names \['id'\] more than once"),
        ('id,prompt\n1,"two\nlines"\n2,a,b\n', r"line 4: 3 fields, but the header names 2"),
        ("id,prompt\n1\n", r"line 2: 1 fields"),
        ('id,prompt\n1,ok\n2,"never closed\n3,x\n', r"line 3: unexpected end of data"),
        ('id,prompt\n1,"a"b\n', r"line 2: ',' expected after"),
    ],
)
def test_a_broken_csv_file_says_what_and_where(tmp_path, content, message):
    path = tmp_path / "p.csv"
    path.write_text(content)
    with pytest.raises(ValueError, match=message):
        texts(path)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"prompt": "cut off', r"line 3: no valid JSON \(Unterminated string"),
        ("[" * 200_000, r"line 3: no valid JSON"),
        ('["prompt"]', r"line 3: expected a JSON object, not list"),
    ],
)
def test_a_broken_jsonl_line_is_named_by_its_number(tmp_path, line, message):
    path = tmp_path / "p.jsonl"
    path.write_text('{"prompt": "a"}\n\n' + line + "\n")
    with pytest.raises(ValueError, match=message):
        texts(path)


def test_csv_records_know_their_first_line(tmp_path):
    path = tmp_path / "p.csv"
    path.write_text('a\n"1\n2"\n\n3\n')
    assert list(csv_records(path)) == [(1, ["a"]), (2, ["1\n2"]), (5, ["3"])]


def test_parquet_reads_wanted_columns_and_says_what_it_cannot_read(tmp_path):
    good, bad, not_utf8 = tmp_path / "good.parquet", tmp_path / "bad.parquet", tmp_path / "latin.parquet"
    pq.write_table(pa.table({"prompt": ["a", None, "c\x00d"], "big": [[1], [2], [3]]}), good)
    assert texts(good) == ["a", "", "c\x00d"]
    bad.write_text("prompt\n")
    with pytest.raises(ValueError, match=r"bad\.parquet: no readable Parquet file"):
        texts(bad)
    raw = pa.array([b"caf\xe9"]).view(pa.string())
    pq.write_table(pa.table({"prompt": raw}), not_utf8)
    with pytest.raises(ValueError, match=r"latin\.parquet: no readable Parquet file \(.*UTF8"):
        texts(not_utf8)


@pytest.mark.parametrize("name", ["none.csv", "none.jsonl", "none.parquet"])
def test_a_missing_file_is_named(tmp_path, name):
    with pytest.raises(ValueError, match=rf"{name}: .*(No such file|does not exist)"):
        texts(tmp_path / name)


@pytest.mark.parametrize("ending", [".csv", ".jsonl", ".parquet"])
def test_a_directory_in_place_of_a_file_is_named(tmp_path, ending):
    path = tmp_path / f"folder{ending}"
    path.mkdir()
    with pytest.raises(ValueError, match=rf"folder\{ending}: "):
        texts(path)


def test_an_unknown_ending_names_the_known_ones(tmp_path):
    with pytest.raises(ValueError, match=r"unknown format; known endings: \.csv, \.jsonl, \.parquet"):
        texts(tmp_path / "p.xlsx")
