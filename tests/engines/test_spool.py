"""The spool: a result that was appended is there after any kill, once, in order."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shard_dist.engines.spool import Spool, SpoolWriter

VALUES = st.dictionaries(st.integers(0, 30), st.text(st.characters(codec=None), max_size=8), max_size=31)


@given(values=VALUES, writers=st.integers(1, 3), data=st.data())
@settings(max_examples=60)
def test_what_was_appended_is_what_is_read(
    values: dict[int, str], writers: int, data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    directory = tmp_path_factory.mktemp("spool")
    hands = [SpoolWriter(directory, f"w{number}") for number in range(writers)]
    for index, value in values.items():
        for _ in range(data.draw(st.integers(1, 2))):  # a hedged row ends twice
            hands[data.draw(st.integers(0, writers - 1))].append(index, {"text": value})
    for hand in hands:
        hand.close()
    spool = Spool(directory, 31)
    assert set(spool.missing.tolist()) == set(range(31)) - set(values)
    for index in set(range(31)) - set(values):
        SpoolWriter(directory, "rest").append(index, {"text": ""})
    assert list(Spool(directory, 31).ordered()) == [{"text": values.get(index, "")} for index in range(31)]


@given(cut=st.integers(0, 200))
@settings(max_examples=60)
def test_a_torn_line_costs_its_row_and_no_other(cut: int, tmp_path_factory: pytest.TempPathFactory) -> None:
    directory = tmp_path_factory.mktemp("spool")
    writer = SpoolWriter(directory, "w")
    for index in range(5):
        writer.append(index, "y" * 20)
    writer.close()
    text = writer.path.read_bytes()
    writer.path.write_bytes(text[:cut])
    whole = text[:cut].count(b"\n")
    assert Spool(directory, 5).missing.tolist() == list(range(min(whole, 5), 5))


def test_a_full_disk_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    writer = SpoolWriter(tmp_path, "w")
    writer.append(0, "a")
    writer.stream.close()
    with Path("/dev/full").open("wb", buffering=0) as writer.stream, pytest.raises(ValueError, match="no space left"):
        writer.append(1, "b")
    assert json.loads(writer.path.read_text()) == [0, "a"]
