"""Rows of CSV, JSONL and Parquet files and of hub data sets, each with the place it came from.

Everything that is wrong with a source is a ValueError that names the file and the line, byte or row.
"""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from shard_dist.config.schema import SourceConfig


@dataclass(frozen=True)
class Row:
    """One row as read. `where` is for messages: "questions.csv, line 12"."""

    values: dict[str, Any]
    where: str

    def text(self, column: str) -> str:
        """The value as text without outer white space, "" where there is none. A number becomes its digits.

        A column of whole numbers with gaps comes out of pandas as 12.0 and NaN; it reads as "12" and "".
        """
        value = self.values.get(column)
        if value is None or (isinstance(value, float) and math.isnan(value)):
            return ""
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        if isinstance(value, bool) or not isinstance(value, str | int | float):
            raise ValueError(f"{self.where}: column {column!r} holds {type(value).__name__}, expected text")
        text = str(value).strip()
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise ValueError(
                f"{self.where}: column {column!r} holds half a surrogate pair at character {error.start}, "
                "which is no valid text; repair the row"
            ) from error
        return text

    def level(self, column: str) -> int | None:
        """LinguaSafe's severity 0..3, None where the value is empty."""
        text = self.text(column).removesuffix(".0")
        if text not in ("", "0", "1", "2", "3"):
            raise ValueError(f"{self.where}: column {column!r} holds {text!r}; levels are 0 (benign) to 3, or nothing")
        return int(text) if text else None


def rows(
    source: SourceConfig, *, required: tuple[str, ...], optional: tuple[str, ...] = (), hub: str = ""
) -> Iterator[Row]:
    """Rows of the source's file or hub data set (`hub`: the id where the source names neither), in order.

    Columns outside `required` and `optional` are not read where the format allows that.
    Raises ValueError for a source that is missing, unreadable, of unknown format or lacks a required column.
    """
    wanted = {*required, *optional}
    place = source.path or source.hub or hub
    if source.path:
        path = Path(source.path).expanduser()
        if path.suffix.lower() not in FORMATS:
            raise ValueError(f"data source {path}: unknown format; known endings: {', '.join(FORMATS)}")
        columns, found = FORMATS[path.suffix.lower()](path, wanted)
    else:
        columns, found = read_hub(place, source.hub_split, wanted)
    for column in required:
        if column not in columns:
            raise ValueError(f"data source {place}: no column {column!r}{did_you_mean(column, columns)}")
    yield from found


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """The tail of a message about an unknown name: what is known, and the nearest of it."""
    names = list(known)
    near = get_close_matches(name, names, n=1)
    return f"; there are {names}" + (f"; did you mean {near[0]!r}?" if near else "")


def decoded(path: Path) -> str:
    """The file's text without a byte order mark."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ValueError(f"data source {path}: {error.strerror}; check path and permissions") from error
    try:
        return data.decode("utf-8").removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise ValueError(
            f"data source {path}, line {line}: invalid UTF-8 at byte {error.start}; convert the file to UTF-8"
        ) from error


def read_csv(path: Path, wanted: set[str]) -> tuple[list[str], Iterator[Row]]:
    records = csv_records(path)
    _, header = next(records, (0, []))
    if not header:
        raise ValueError(f"data source {path}: empty; the first line must name the columns")
    repeated = sorted({column for column in header if header.count(column) > 1})
    if repeated:
        raise ValueError(f"data source {path}: the header names {repeated} more than once")
    return header, csv_rows(path, header, records)


def csv_records(path: Path) -> Iterator[tuple[int, list[str]]]:
    """(number of its first line, fields) for every record that is not blank; a record may span lines."""
    text = decoded(path)
    csv.field_size_limit(max(csv.field_size_limit(), len(text)))  # csv's own limit is 128 KB a field
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    line = 1
    try:
        for fields in reader:
            if fields:
                yield line, fields
            line = reader.line_num + 1
    except csv.Error as error:
        raise ValueError(f"data source {path}, line {line}: {error}; check that record's quotes") from error


def csv_rows(path: Path, header: list[str], records: Iterator[tuple[int, list[str]]]) -> Iterator[Row]:
    for line, fields in records:
        if len(fields) != len(header):
            raise ValueError(
                f"data source {path}, line {line}: {len(fields)} fields, but the header names {len(header)}; "
                "a field with a comma, a quote or a line break must be quoted"
            )
        yield Row(dict(zip(header, fields, strict=True)), f"{path}, line {line}")


def read_jsonl(path: Path, wanted: set[str]) -> tuple[list[str], Iterator[Row]]:
    found: list[Row] = []
    columns: dict[str, None] = {}
    # Not splitlines(): that also splits at U+2028 and others, which JSON strings may contain as they are.
    for number, line in enumerate(decoded(path).split("\n"), start=1):
        if not line.strip():
            continue
        try:
            value = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"data source {path}, line {number}: no valid JSON ({error})") from error
        if not isinstance(value, dict):
            kind = type(value).__name__
            raise ValueError(f"data source {path}, line {number}: expected a JSON object, not {kind}")
        columns |= dict.fromkeys(value)
        found.append(Row({key: value[key] for key in wanted & value.keys()}, f"{path}, line {number}"))
    return list(columns), iter(found)


def read_parquet(path: Path, wanted: set[str]) -> tuple[list[str], Iterator[Row]]:
    try:
        columns = pq.read_schema(path).names
        table = pq.read_table(path, columns=[column for column in columns if column in wanted])
        table.validate(full=True)  # finds invalid UTF-8
    except (OSError, pa.ArrowException) as error:
        raise ValueError(f"data source {path}: no readable Parquet file ({error})") from error
    return columns, arrow_rows(table, str(path))


def read_hub(name: str, split: str, wanted: set[str]) -> tuple[list[str], Iterator[Row]]:
    """A data set of the Hugging Face hub or a local directory of data files. Its code is never run."""
    import datasets

    try:
        dataset = datasets.load_dataset(name, split=split)
    except (OSError, ValueError, RuntimeError, datasets.exceptions.DatasetsError) as error:
        raise ValueError(
            f"hub data set {name!r}, split {split!r}: {error}; without a network, give the path of a copy"
        ) from error
    table = dataset.select_columns([column for column in dataset.column_names if column in wanted])
    return dataset.column_names, arrow_rows(table.with_format("arrow")[:], f"{name} [{split}]")


def arrow_rows(table: pa.Table, name: str) -> Iterator[Row]:
    number = 0
    for batch in table.to_batches(max_chunksize=10_000):
        for values in batch.to_pylist():
            yield Row(values, f"{name}, row {number} (from 0)")
            number += 1


FORMATS = {".csv": read_csv, ".jsonl": read_jsonl, ".parquet": read_parquet}
