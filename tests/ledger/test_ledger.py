"""The ledger: nothing finished is lost, nothing stale is found, nothing torn is believed."""

from __future__ import annotations

import errno
import json
import os
import tracemalloc
from pathlib import Path

import pytest
from calls import CALL, completion, key, put, texts
from hypothesis import given
from hypothesis import strategies as st

from shard_dist.ledger import lines, store
from shard_dist.ledger.compact import compact
from shard_dist.ledger.lines import HEADER
from shard_dist.ledger.store import Ledger


@given(written=st.lists(st.text(max_size=40), max_size=8), sealed=st.booleans())
def test_what_was_appended_is_found_by_the_next_reader(
    written: list[str], sealed: bool, tmp_path_factory: pytest.TempPathFactory
) -> None:
    directory = tmp_path_factory.mktemp("ledger")
    writer = Ledger(directory)
    for number, text in enumerate(written):
        writer.append(key(number), CALL, completion(text))
    if sealed:
        writer.close()
    reader = Ledger(directory)
    assert [reader.get(key(number)) for number in range(len(written))] == [completion(text) for text in written]
    assert (reader.stats.entries, reader.stats.torn_lines) == (len(written), 0)


def test_a_line_cut_at_any_byte_loses_that_call_only(tmp_path: Path) -> None:
    writer = Ledger(tmp_path)
    put(writer, 1)
    put(writer, 2, "two ü")
    segment = next(tmp_path.glob("*.jsonl"))
    whole = segment.read_bytes()
    start = whole.rindex(b'{"key"')
    for cut in range(start + 1, len(whole)):
        segment.write_bytes(whole[:cut])
        reader = Ledger(tmp_path)
        assert reader.get(key(1)) == completion("text 1")
        assert reader.get(key(2)) is None
        assert reader.stats.torn_lines == 1
        reader.close()


def test_a_segment_cut_at_any_byte_is_no_error(tmp_path: Path) -> None:
    put(Ledger(tmp_path), 1)
    segment = next(tmp_path.glob("*.jsonl"))
    whole = segment.read_bytes()
    for cut in range(len(whole)):
        segment.write_bytes(whole[:cut])
        assert texts(tmp_path, 1) == [""]


@pytest.mark.parametrize("line", [b"\xff\xfe\n", b"{}\n", b"[1]\n", b"null\n", b'{"key": "k", "completion": 5}\n'])
def test_a_line_that_is_no_entry_is_counted_and_skipped(tmp_path: Path, line: bytes) -> None:
    (tmp_path / "x.jsonl").write_bytes(line)
    ledger = Ledger(tmp_path)
    assert (ledger.stats.entries, ledger.stats.torn_lines) == (0, 1)


def test_a_segment_of_version_1_is_read_and_sealed(tmp_path: Path) -> None:
    """No header, no time."""
    put(Ledger(tmp_path), 1)
    segment = next(tmp_path.glob("*.jsonl"))
    entry = json.loads(segment.read_bytes().splitlines()[1])
    old = {name: entry[name] for name in ("key", "completion", "call")}
    segment.write_text(json.dumps(old, separators=(",", ":")) + "\n")
    assert texts(tmp_path, 1) == ["text 1"]
    compact(tmp_path, everything=True)
    assert not list(tmp_path.glob("*.jsonl"))
    assert texts(tmp_path, 1) == ["text 1"]


def test_a_line_damaged_between_its_ends_is_made_again(tmp_path: Path) -> None:
    """Its ends look whole, so it shows only when it is asked for."""
    put(Ledger(tmp_path), 1)
    segment = next(tmp_path.glob("*.jsonl"))
    segment.write_bytes(segment.read_bytes().replace(b'"texts"', b'"te\x00ts"'))
    reader = Ledger(tmp_path)
    assert reader.stats.entries == 1
    assert reader.get(key(1)) is None
    assert (reader.stats.entries, reader.stats.lines, reader.stats.torn_lines) == (0, 0, 1)
    assert reader.get(key(1)) is None
    assert reader.stats.torn_lines == 1
    put(reader, 1, "again")
    assert reader.get(key(1)) == completion("again")
    assert reader.stats.entries == 1


def test_answers_are_found_in_more_segments_than_are_held_open(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lines, "OPEN_SEGMENTS", 3)
    for number in range(8):
        put(Ledger(tmp_path), number)
    reader = Ledger(tmp_path)
    for number in [*range(8), *reversed(range(8))]:
        assert reader.get(key(number)) == completion(f"text {number}")
        assert len(reader._lines._readers) <= 3
    reader.close()
    assert not reader._lines._readers


def test_a_writer_finds_its_own_answers_between_those_of_others(tmp_path: Path) -> None:
    put(Ledger(tmp_path), 9, "old")
    ledger = Ledger(tmp_path)
    for number in range(5):
        ledger.append(key(number), CALL, completion("ü" * number))
        assert ledger.get(key(number)) == completion("ü" * number)
    assert ledger.get(key(9)) == completion("old")
    assert ledger.get(key(0)) == completion("")


@pytest.mark.parametrize("sealed", [False, True])
def test_answers_are_not_kept_in_memory(tmp_path: Path, sealed: bool) -> None:
    """A million entries have to fit beside an engine: keys and places only."""
    writer = Ledger(tmp_path)
    for number in range(50):
        put(writer, number, "x" * 100_000)
    if sealed:
        writer.close()
    tracemalloc.start()
    reader = Ledger(tmp_path)
    held, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert reader.stats.entries == 50
    assert held < 200_000


def test_writers_have_segments_of_their_own_and_readers_have_none(tmp_path: Path) -> None:
    one, two = Ledger(tmp_path), Ledger(tmp_path)
    put(one, 1)
    put(two, 2)
    Ledger(tmp_path).close()
    assert len(list(tmp_path.glob("*.jsonl"))) == 2


def test_a_call_made_twice_shows_in_the_statistics(tmp_path: Path) -> None:
    one, two = Ledger(tmp_path), Ledger(tmp_path)
    put(one, 1)
    put(two, 1)
    stats = Ledger(tmp_path).stats
    assert (stats.entries, stats.lines) == (1, 2)
    one.close()
    two.close()
    stats = Ledger(tmp_path).stats
    assert (stats.entries, stats.lines) == (1, 2)


@pytest.mark.parametrize("full_by", ["error", "short write"])
def test_a_full_disk_is_said_in_words_and_spoils_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, full_by: str
) -> None:
    ledger = Ledger(tmp_path)
    put(ledger, 1)
    write = os.write

    def full(descriptor: int, data: bytes) -> int:
        if full_by == "error":
            raise OSError(errno.ENOSPC, "full")
        return write(descriptor, data[:20])

    with monkeypatch.context() as patch:
        patch.setattr(os, "write", full)
        with pytest.raises(ValueError, match="no space left for the ledger"):
            put(ledger, 2)
    assert ledger.get(key(2)) is None
    put(ledger, 2)
    assert (ledger.get(key(1)), ledger.get(key(2))) == (completion("text 1"), completion("text 2"))
    ledger.close()
    assert texts(tmp_path, 1, 2) == ["text 1", "text 2"]


def test_the_segment_is_readable_without_us(tmp_path: Path) -> None:
    put(Ledger(tmp_path), 1)
    header, line = next(tmp_path.glob("*.jsonl")).read_bytes().splitlines(keepends=True)
    assert header == HEADER
    entry = json.loads(line)
    assert entry["call"]["messages"] == [{"role": "user", "content": "hi"}]
    assert entry["completion"]["finish_reasons"] == ["stop"]


def test_what_is_no_key_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="hexadecimal"):
        Ledger(tmp_path).get("no key")


def test_a_full_segment_is_sealed_while_appends_go_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store, "SEAL_BYTES", 2_000)
    ledger = Ledger(tmp_path)
    for number in range(100):
        put(ledger, number)
        assert ledger.get(key(number // 2)) == completion(f"text {number // 2}")
    assert (ledger.stats.entries, ledger.stats.lines) == (100, 100)
    ledger.close()
    assert not list(tmp_path.glob("*.jsonl"))
    assert len(list(tmp_path.glob("*.parquet"))) > 10
    assert texts(tmp_path, *range(100)) == [f"text {number}" for number in range(100)]


def test_a_refresh_finds_what_others_wrote_and_finished_since(tmp_path: Path) -> None:
    """Also the rest of a line that was being written when the ledger was opened."""
    writer = Ledger(tmp_path)
    put(writer, 1)
    put(writer, 2)
    segment = next(tmp_path.glob("*.jsonl"))
    whole = segment.read_bytes()
    segment.write_bytes(whole[:-9])
    reader = Ledger(tmp_path)
    assert (reader.stats.entries, reader.stats.torn_lines) == (1, 1)
    segment.write_bytes(whole)
    put(Ledger(tmp_path), 3)
    reader.refresh()
    assert [reader.get(key(number)) for number in (1, 2, 3)] == [completion(f"text {number}") for number in (1, 2, 3)]
    assert (reader.stats.entries, reader.stats.lines, reader.stats.torn_lines) == (3, 3, 0)
