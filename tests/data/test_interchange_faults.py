"""What no format can hold and what no format is: refused with file, line and reason, and nothing is written."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from shard_dist.data.interchange import NAMES, convert, read_examples, write
from shard_dist.records import Example

USER, BOT, SYSTEM = ({"role": role, "content": "x"} for role in ("user", "assistant", "system"))
SFT = Example("d", "7", (USER,), "t")
DPO = replace(SFT, objective="dpo", rejected="n")
DERTA = replace(SFT, objective="derta", rejected="a b c d")
PREFIX = "[INST] q [\\INST]"


@pytest.mark.parametrize(
    ("format", "example", "reason"),
    [
        *((name, DERTA, "no place for the objective 'derta'") for name in NAMES[1:-1]),
        ("derta", DPO, "no place for the objective 'dpo'"),
        ("derta", replace(DERTA, messages=(SYSTEM, USER)), "one request, without a system prompt"),
        ("derta", replace(SFT, messages=(USER, BOT, USER)), "one request, without .* earlier turns"),
        ("derta", replace(SFT, messages=({"role": "user", "content": "a [\\INST] b"},)), "which ends the request"),
        *(
            (name, replace(SFT, messages=messages), reason)
            for name in ("alpaca", "sharegpt")
            for messages, reason in (
                ((USER, SYSTEM, USER), "message 2 of 3 is out of this order"),
                ((USER, USER), "message 2 of 2 is out of this order"),
                ((USER, BOT), "message 2 of 2 is out of this order"),
                ((SYSTEM,), "message 1 of 1 is out of this order"),
                (({"role": "system", "content": ""}, USER), "its system prompt is empty"),
            )
        ),
        *((name, replace(SFT, target="a\ud800"), "its target has half a surrogate .* 1; repair") for name in NAMES),
        *((name, replace(SFT, id="\udfff"), "its id has half a surrogate pair") for name in NAMES),
        *((name, replace(SFT, messages=()), "no message to answer") for name in NAMES),
        *((name, replace(SFT, messages=({**USER, "role": "tool"},)), "the role 'tool'") for name in NAMES),
        *((name, replace(SFT, rejected="n"), "a rejected answer, which the objective sft") for name in NAMES),
        ("trl", replace(SFT, objective="kto"), "no place for the objective 'kto'"),
        *((name, replace(SFT, thinking="so"), f"{name} has no place for what a model thought") for name in NAMES[1:]),
        *((name, replace(DPO, thinking="so"), "thinking, which the objective dpo has no use") for name in NAMES),
        (NAMES[0], replace(SFT, thinking="\ud800"), "its thinking has half a surrogate pair"),
    ],
)
def test_what_a_format_cannot_hold_is_named_and_nothing_is_written(
    format: str, example: Example, reason: str, tmp_path: Path
) -> None:
    path = tmp_path / "out" / "x"
    fine = [replace(SFT, id="1")] * 3
    with pytest.raises(ValueError, match=rf"x, example 4 \('d', .+\): .*{reason}"):
        write(path, format, [*fine, example])
    assert list((tmp_path / "out").iterdir()) == []


def test_an_older_file_stays_where_the_new_one_fails(tmp_path: Path) -> None:
    write(tmp_path / "x", "trl", [SFT])
    with pytest.raises(ValueError, match="objective 'derta'"):
        write(tmp_path / "x", "trl", [SFT, DERTA])
    assert list(read_examples(tmp_path / "x", "trl")) == [SFT]


@pytest.mark.parametrize("format", ["trl", "open_instruct", "alpaca", "sharegpt"])
def test_a_file_holds_one_kind_of_row(format: str, tmp_path: Path) -> None:
    """A table has the same columns in every row."""
    with pytest.raises(ValueError, match=r"example 2 \('d', '7'\): it is for dpo, those before are for sft"):
        write(tmp_path / "x", format, [SFT, DPO])


def test_a_conversion_names_the_line_of_the_source(tmp_path: Path) -> None:
    write(tmp_path / "in.jsonl", "trl", [SFT, replace(SFT, messages=(USER, USER))])
    with pytest.raises(ValueError, match=r"in\.jsonl, line 2: alpaca holds .* message 2 of 2"):
        convert(tmp_path / "in.jsonl", "trl", tmp_path / "out.json", "alpaca")
    assert not (tmp_path / "out.json").exists()


HUMAN, GPT = {"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}
MALFORMED: list[tuple[str, Any, str]] = [
    ("trl", {"completion": [BOT]}, "no field 'prompt'; rows of whole conversations are the format open_instruct"),
    ("trl", {"prompt": "q", "completion": "a"}, "'prompt' holds str, expected a list of messages"),
    ("trl", {"prompt": [USER]}, "'completion' holds nothing, expected a list"),
    ("trl", {"prompt": [USER], "completion": []}, "'completion' is empty"),
    ("trl", {"prompt": [USER], "completion": [BOT, BOT]}, "'completion' is no single answer"),
    ("trl", {"prompt": [USER], "completion": [USER]}, "'completion' is no single answer"),
    ("trl", {"prompt": [USER], "chosen": [BOT]}, "it has 'chosen' alone"),
    ("trl", {"prompt": [USER], "chosen": [BOT], "rejected": None}, "it has 'chosen' alone"),
    ("trl", {"prompt": [], "completion": [BOT]}, "no message to answer"),
    ("trl", {"prompt": ["q"], "completion": [BOT]}, "a message is no object of 'role' and 'content'"),
    ("trl", {"prompt": [{"role": "user"}], "completion": [BOT]}, "a message is no object"),
    ("trl", {"prompt": [{**USER, "content": [{"type": "text"}]}], "completion": [BOT]}, "a message is no object"),
    ("trl", {"prompt": [{**USER, "tool_calls": [1]}], "completion": [BOT]}, "a message is no object"),
    ("trl", {"prompt": [{**USER, "role": "tool"}], "completion": [BOT]}, "'role' is 'tool'; an example knows"),
    ("trl", {"prompt": [{**USER, "role": [1]}], "completion": [BOT]}, "a message is no object"),
    ("trl", {"prompt": [USER], "completion": [BOT], "tools": [{"name": "f"}]}, "'tools' is set"),
    ("trl", {"prompt": [USER], "completion": [BOT], "label": False}, "'label' is set"),
    ("trl", {"prompt": [USER], "completion": [BOT], "id": 1.5}, "'id' holds float, expected text"),
    ("trl", {"prompt": [{**USER, "content": "a\ud800"}], "completion": [BOT]}, "message 1 has half a surrogate"),
    ("open_instruct", {"messages": [USER]}, "'messages' does not end with an answer"),
    ("open_instruct", {"messages": [BOT]}, "no message to answer"),
    ("open_instruct", {"chosen": [USER, BOT], "rejected": [SYSTEM, BOT]}, "answers to different conversations"),
    ("alpaca", {"instructions": "q", "output": "a"}, "no field 'instruction'.*did you mean 'instructions'"),
    ("alpaca", {"instruction": 3, "output": "a"}, "'instruction' holds int, expected text"),
    ("alpaca", {"instruction": "q", "output": None}, "no field 'output'"),
    ("alpaca", {"instruction": "q", "output": "a", "history": "no"}, "'history' holds str"),
    ("alpaca", {"instruction": "q", "output": "a", "history": [["q"]]}, "other than pairs of texts"),
    ("alpaca", {"instruction": "q", "output": "a", "history": [["q", None]]}, "other than pairs of texts"),
    ("alpaca", {"instruction": "q", "output": "a", "kto_tag": True}, "'kto_tag' is set"),
    ("sharegpt", {"conversations": [HUMAN]}, "'conversations' is no single answer"),
    ("sharegpt", {"conversations": []}, "'conversations' is empty"),
    ("sharegpt", {"conversations": [GPT, GPT]}, "message 1 of 1 is out of this order"),
    ("sharegpt", {"conversations": [HUMAN, HUMAN, GPT]}, "message 2 of 2 is out of this order"),
    ("sharegpt", {"conversations": [{**HUMAN, "from": "observation"}, GPT]}, "'from' is 'observation'"),
    ("sharegpt", {"conversations": [HUMAN], "chosen": GPT, "rejected": HUMAN}, "'rejected' is no single answer"),
    ("sharegpt", {"conversations": [HUMAN], "chosen": "a", "rejected": "b"}, "no object of 'from' and 'value'"),
    ("sharegpt", {"conversations": [{"from": "system", "value": "a"}, HUMAN, GPT], "system": "b"}, "two system"),
    ("sharegpt", {"conversations": [HUMAN, GPT], "images": ["a.png"]}, "'images' is set"),
    ("derta", {"prefix": PREFIX, "text": " a<|end_of_text|>"}, "no field 'safe'"),
    ("derta", {"prefix": PREFIX, "text": " a<|end_of_text|>", "safe": True}, "'safe' holds bool"),
    ("derta", {"prefix": PREFIX, "text": " a<|end_of_text|>", "safe": "no"}, "its safe is 'no'"),
    ("derta", {"prefix": "q", "text": " a<|end_of_text|>", "safe": "true"}, "its prefix is not"),
    ("derta", {"prefix": PREFIX + "x", "text": " a<|end_of_text|>", "safe": "true"}, "its prefix is not"),
    ("derta", {"prefix": PREFIX, "text": "a<|end_of_text|>", "safe": "true"}, "its text is not a space"),
    ("derta", {"prefix": PREFIX, "text": " a", "safe": "true"}, "its text is not a space"),
    ("derta", {"prefix": PREFIX + " a", "text": " a<|end_of_text|>", "safe": "true"}, "no piece of an answer"),
]


@pytest.mark.parametrize("as_list", [False, True])
@pytest.mark.parametrize(("format", "row", "reason"), MALFORMED)
def test_malformed_rows_are_named_by_line(format: str, row: Any, reason: str, as_list: bool, tmp_path: Path) -> None:
    """The row is on line 3, as a line and as an element that begins there."""
    path = tmp_path / "x.json"
    path.write_text(f"[\n\n{json.dumps(row)}\n]" if as_list else f"\n\n{json.dumps(row)}\n")
    with pytest.raises(ValueError, match=rf"x\.json, line 3: .*{reason}"):
        list(read_examples(path, format))


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (b'{"prompt": [}', r"line 1: no valid JSON"),
        (b"{}\n\n{\xff}", r"line 1: no field 'prompt'"),
        (b"\n{\xff}", r"line 2: invalid UTF-8 at its byte 1"),
        (b"\n[1]", r"line 2: .* found int"),
        (b'\n"x"', r"line 2: expected a JSON object, found str"),
        (b"[\n1]", r"line 2: expected a JSON object, found int"),
        (b"[\n{},\n]", r"line 2: no field 'prompt'"),
        (b"[\n,{}]", r"line 2: no valid JSON"),
        (b"[", r"line 1: no valid JSON"),
        (b'[\n{"a": "', r"line 2: no valid JSON \(Unterminated string"),
        (b"[] []", r"line 1: there is more after the list's end"),
        (b"[\n\xff]", r"line 2: invalid UTF-8"),
        (b"\n" + b"[" * 100_000, r"line \d: no valid JSON"),
        (b'{"a": ' * 100_000, r"line 1: no valid JSON"),
    ],
)
def test_what_is_no_json_is_named_by_line(text: bytes, reason: str, tmp_path: Path) -> None:
    (tmp_path / "x.json").write_bytes(text)
    with pytest.raises(ValueError, match=rf"x\.json, {reason}"):
        list(read_examples(tmp_path / "x.json", "trl"))


def test_a_fault_after_sound_elements_of_a_list_is_named_by_line(tmp_path: Path) -> None:
    sound = json.dumps({"prompt": [USER], "completion": [BOT]}, indent=1)
    lines = sound.count("\n") + 1
    for text, line in ((f"[\n{sound},\n{{}}\n]", lines + 2), (f"[\n{sound}\n{sound}\n]", lines + 2)):
        (tmp_path / "x.json").write_text(text)
        with pytest.raises(ValueError, match=rf"x\.json, line {line}: "):
            list(read_examples(tmp_path / "x.json", "trl"))


def test_rows_without_a_partner_are_named(tmp_path: Path) -> None:
    write(tmp_path / "x.json", "derta", [replace(DERTA, id=str(n)) for n in range(9)])
    lines = (tmp_path / "x.json").read_text().splitlines()
    (tmp_path / "x.json").write_text("\n".join([*lines[:2], *lines[2::2]]))
    with pytest.raises(ValueError, match=r"x\.json, line 3; .*line 4; .*line 7 and 3 more: no row to pair with"):
        list(read_examples(tmp_path / "x.json", "derta"))


def test_a_piece_of_another_answer_is_no_partner(tmp_path: Path) -> None:
    rows = [
        {"prefix": PREFIX, "text": " a b<|end_of_text|>", "safe": "true"},
        {"prefix": PREFIX + " c", "text": " s<|end_of_text|>", "safe": "false"},
    ]
    (tmp_path / "x.json").write_text("\n".join(map(json.dumps, rows)))
    with pytest.raises(ValueError, match=r"x\.json, line 1; .*x\.json, line 2: no row to pair with"):
        list(read_examples(tmp_path / "x.json", "derta"))


def test_a_format_that_is_none_and_files_that_are_not_there(tmp_path: Path) -> None:
    write(tmp_path / "x", "trl", [SFT])
    for format in ("shard", "trl"):
        with pytest.raises(ValueError, match=r"cannot read .*absent: no such file"):
            list(read_examples(tmp_path / "absent", format))
    with pytest.raises(ValueError, match=r"no format 'trll'.*did you mean 'trl'"):
        list(read_examples(tmp_path / "x", "trll"))
    with pytest.raises(ValueError, match=r"no format 'jsonl'"):
        write(tmp_path / "y", "jsonl", [])
    with pytest.raises(ValueError, match=r"cannot write .*: "):
        write(tmp_path, "trl", [SFT])


def test_parquet_that_is_none_or_holds_no_text(tmp_path: Path) -> None:
    (tmp_path / "no.parquet").write_text("text")
    for format in ("shard", "trl"):
        with pytest.raises(ValueError, match=r"no\.parquet"):
            list(read_examples(tmp_path / "no.parquet", format))
    write(tmp_path / "x.parquet", "shard", [SFT])
    row = pq.read_table(tmp_path / "x.parquet").to_pylist()[0]
    for change, reason in (
        ({"messages": [{"role": "user", "content": None}]}, "row 1: its message 1 holds NoneType"),
        ({"messages": None}, "row 1: it has no message"),
    ):
        schema = pq.read_schema(tmp_path / "x.parquet")
        pq.write_table(pa.Table.from_pylist([{**row, **change}], schema), tmp_path / "y.parquet")
        with pytest.raises(ValueError, match=reason):
            list(read_examples(tmp_path / "y.parquet", "shard"))
