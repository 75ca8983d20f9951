"""Training examples in and out, in the file formats of other trainers.

    shard          our own Parquet (data/examples.py)                     every example, the only one with thinking
    trl            JSON lines, conversational rows of TRL                 sft, dpo
    open_instruct  JSON lines, rows of open-instruct                      sft, dpo
    alpaca         a JSON list, LLaMA-Factory's alpaca format             sft, dpo; requests and answers in turn
    sharegpt       a JSON list, LLaMA-Factory's sharegpt format           sft, dpo; requests and answers in turn
    derta          JSON lines, rows of DeRTa's authors                    sft, derta; one request

What is written reads back as it was; what a format cannot hold is a ValueError, and then nothing is written. Rows carry
the example's dataset and id in two columns more, which those trainers ignore. Rows from elsewhere that lack them get
the file's name and their number in it, from 1. The row shapes are in data/conversations.py and data/derta.py.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from shard_dist.artefacts import stream_rows
from shard_dist.data import conversations
from shard_dist.data.conversations import ROLES, Row, check_text
from shard_dist.data.derta import derta, read_derta
from shard_dist.data.examples import stream_examples, write_examples
from shard_dist.data.jsonl import read_objects, write_objects
from shard_dist.data.read import did_you_mean
from shard_dist.records import Example

Placed = tuple[str, Example]  # an example and where it is, for messages: "pairs.jsonl, line 12"
OWN = "shard"


@dataclass(frozen=True)
class Format:
    """Rows of an example, and examples of a file's rows. `suffix` is what its files are called, .json for a JSON list;
    `mixed` whether they hold examples of several objectives."""

    rows: Callable[[Example], list[Row]]
    examples: Callable[[Iterable[tuple[str, Row]]], Iterator[Placed]]
    suffix: str
    mixed: bool = False


def one_to_one(write: Callable[[Example], Row], read: Callable[[Row], Example], suffix: str) -> Format:
    """The format whose rows are examples."""

    def examples(rows: Iterable[tuple[str, Row]]) -> Iterator[Placed]:
        for where, row in rows:
            try:
                yield where, read(row)
            except ValueError as error:
                raise ValueError(f"{where}: {error}") from error

    return Format(lambda example: [write(example)], examples, suffix)


FORMATS = {
    "trl": one_to_one(conversations.trl, conversations.read_trl, ".jsonl"),
    "open_instruct": one_to_one(conversations.open_instruct, conversations.read_open_instruct, ".jsonl"),
    "alpaca": one_to_one(conversations.alpaca, conversations.read_alpaca, ".json"),
    "sharegpt": one_to_one(conversations.sharegpt, conversations.read_sharegpt, ".json"),
    "derta": Format(derta, read_derta, ".jsonl", mixed=True),
}
NAMES = (OWN, *FORMATS)


def read_examples(path: Path, format: str) -> Iterator[Example]:
    """The examples of a file, in its order; of DeRTa's rows, in the order in which pairs are complete.

    Whether the file is JSON lines or one JSON list is told by its content; a .parquet is read by its rows, as data sets
    on the hub have them. All are streamed, but for the text of a JSON list.
    Raises ValueError with file, line and reason for what is no row of the format or cannot be held.
    """
    return (example for _, example in read_placed(path, format))


def write(path: Path, format: str, examples: Iterable[Example]) -> int:
    """Write a file of examples, streamed, whole or not at all; how many.

    alpaca and sharegpt become one JSON list, whatever the file's name: of JSON lines the trainer's loader takes the
    types from the first 10 MB and then fails at the first history that is not empty.
    Raises ValueError with file, example and reason for what the format cannot hold: nothing is written then.
    """
    places = ((f"{path}, example {number} {(e.dataset, e.id)!r:.80}", e) for number, e in enumerate(examples, start=1))
    return write_placed(path, format, places)


def convert(source: Path, source_format: str, target: Path, target_format: str) -> int:
    """One file of examples as another; how many. Raises ValueError with file and line of the row that does not go."""
    return write_placed(target, target_format, read_placed(source, source_format))


def read_placed(path: Path, format: str) -> Iterator[Placed]:
    """Examples with their places; see read_examples."""
    if not path.is_file():
        raise ValueError(f"cannot read {path}: no such file")
    try:
        if format == OWN:
            own = enumerate(stream_examples(path), start=1)
            yield from checked((f"{path}, row {number}", example) for number, example in own)
        else:
            yield from checked(known(format).examples(_identified(path, _rows(path))))
    except (OSError, pa.ArrowException, UnicodeDecodeError) as error:
        raise ValueError(f"cannot read {path}: {error}") from error


def write_placed(path: Path, format: str, examples: Iterable[Placed]) -> int:
    """Examples with the places that messages shall name; see write."""
    count = 0

    def counted() -> Iterator[Placed]:
        nonlocal count
        for placed in checked(examples):
            count += 1
            yield placed

    try:
        if format == OWN:
            write_examples(path, (example for _, example in counted()))
        else:
            form = known(format)
            write_objects(path, _encoded(format, form, counted()), as_list=form.suffix == ".json")
    except OSError as error:
        raise ValueError(f"cannot write {path}: {error.strerror}") from error
    return count


def known(format: str) -> Format:
    """Raises ValueError for a format that is none."""
    if format not in FORMATS:
        raise ValueError(f"no format {format!r} of examples{did_you_mean(format, NAMES)}")
    return FORMATS[format]


def checked(examples: Iterable[Placed]) -> Iterator[Placed]:
    """The examples as they are. Raises ValueError for one without messages, for a role that is none, and for text with
    half a surrogate pair, which is no text to any file format."""
    for where, example in examples:
        try:
            if not example.messages:
                raise ValueError("it has no message to answer")
            if example.rejected and example.objective == "sft":
                raise ValueError("it has a rejected answer, which the objective sft has no use for")
            if example.thinking and example.objective != "sft":
                raise ValueError(f"it has thinking, which the objective {example.objective} has no use for")
            for name in ("dataset", "id", "target", "rejected", "thinking"):
                check_text(f"its {name}", getattr(example, name))
            for number, message in enumerate(example.messages, start=1):
                if message["role"] not in ROLES:
                    raise ValueError(
                        f"message {number} has the role {message['role']!r:.40}; one of {', '.join(ROLES)}"
                    )
                check_text(f"its message {number}", message["content"])
        except ValueError as error:
            raise ValueError(f"{where}: {error}") from error
        yield where, example


def _rows(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    if path.suffix == ".parquet":
        return ((f"{path}, row {number}", row) for number, row in enumerate(stream_rows(path), start=1))
    return read_objects(path)


def _identified(path: Path, rows: Iterable[tuple[str, dict[str, Any]]]) -> Iterator[tuple[str, Row]]:
    """Rows without fields that are null, each with a dataset and an id."""
    for number, (where, values) in enumerate(rows, start=1):
        row = {name: value for name, value in values.items() if value is not None}
        if type(row.get("id")) is int:  # True is one, too, and no id
            row["id"] = str(row["id"])
        yield where, {"dataset": path.stem, "id": str(number), **row}


def _encoded(format: str, form: Format, examples: Iterable[Placed]) -> Iterator[Row]:
    objective = ""
    for where, example in examples:
        objective = objective or example.objective
        try:
            if example.thinking:
                raise ValueError(f"{format} has no place for what a model thought before its answer; {OWN} has")
            rows = form.rows(example)
        except ValueError as error:
            raise ValueError(f"{where}: {error}") from error
        if not form.mixed and example.objective != objective:
            raise ValueError(
                f"{where}: it is for {example.objective}, those before are for {objective}; a file of {format} holds "
                "one kind. Write them to a file each"
            )
        yield from ({**row, "dataset": example.dataset, "id": example.id} for row in rows)
