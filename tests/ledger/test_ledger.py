"""The ledger: nothing finished is lost, nothing stale is found, nothing torn is believed."""

from __future__ import annotations

import json
import tracemalloc
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shard_dist.ledger import store
from shard_dist.ledger.key import call_key, request_seed
from shard_dist.ledger.store import Ledger
from shard_dist.records import Call, Completion, Sampling

CALL = Call("m", "f", ({"role": "user", "content": "hi"},), Sampling())
GOLDEN_KEY = "a7c68c3467bc243bd4a06be68803fdcfd219abe594bb9c84938a0af5502efdd6"
TEXT = st.text(max_size=40)


def completion(text: str) -> Completion:
    return Completion((text,), ("stop",), 3, 4, ("",))


@given(texts=st.lists(TEXT, max_size=8))
def test_what_was_appended_is_found_by_the_next_reader(
    texts: list[str], tmp_path_factory: pytest.TempPathFactory
) -> None:
    directory = tmp_path_factory.mktemp("ledger")
    writer = Ledger(directory)
    for number, text in enumerate(texts):
        writer.append(str(number), CALL, completion(text))
    reader = Ledger(directory)
    assert [reader.get(str(number)) for number in range(len(texts))] == [completion(text) for text in texts]
    assert (reader.stats.entries, reader.stats.torn_lines) == (len(texts), 0)


def test_a_line_cut_at_any_byte_loses_that_call_only(tmp_path: Path) -> None:
    writer = Ledger(tmp_path)
    writer.append("first", CALL, completion("one"))
    writer.append("second", CALL, completion("two ü"))
    segment = next(tmp_path.glob("*.jsonl"))
    whole = segment.read_bytes()
    start = whole.index(b"\n") + 1
    for cut in range(start + 1, len(whole) - 1):
        segment.write_bytes(whole[:cut])
        reader = Ledger(tmp_path)
        assert reader.get("first") == completion("one")
        assert reader.get("second") is None
        assert reader.stats.torn_lines == 1


@pytest.mark.parametrize("line", [b"\xff\xfe\n", b"{}\n", b"[1]\n", b"null\n", b'{"key": "k", "completion": 5}\n'])
def test_a_line_that_is_no_entry_is_counted_and_skipped(tmp_path: Path, line: bytes) -> None:
    (tmp_path / "x.jsonl").write_bytes(line)
    ledger = Ledger(tmp_path)
    assert (ledger.stats.entries, ledger.stats.torn_lines) == (0, 1)


def test_a_line_damaged_between_its_ends_is_made_again(tmp_path: Path) -> None:
    """Its ends look whole, so it shows only when it is asked for."""
    Ledger(tmp_path).append("first", CALL, completion("one"))
    segment = next(tmp_path.glob("*.jsonl"))
    segment.write_bytes(segment.read_bytes().replace(b'"texts"', b'"te\x00ts"'))
    reader = Ledger(tmp_path)
    assert reader.stats.entries == 1
    assert reader.get("first") is None
    assert (reader.stats.entries, reader.stats.lines, reader.stats.torn_lines) == (0, 0, 1)
    assert reader.get("first") is None
    assert reader.stats.torn_lines == 1
    reader.append("first", CALL, completion("again"))
    assert reader.get("first") == completion("again")


def test_answers_are_found_in_more_segments_than_are_held_open(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store, "OPEN_SEGMENTS", 3)
    for number in range(8):
        Ledger(tmp_path).append(str(number), CALL, completion(f"text {number}"))
    reader = Ledger(tmp_path)
    for number in [*range(8), *reversed(range(8))]:
        assert reader.get(str(number)) == completion(f"text {number}")
        assert len(reader._readers) <= 3
    reader.close()
    assert not reader._readers


def test_a_writer_finds_its_own_answers_between_those_of_others(tmp_path: Path) -> None:
    Ledger(tmp_path).append("old", CALL, completion("old"))
    ledger = Ledger(tmp_path)
    for number in range(5):
        ledger.append(str(number), CALL, completion("ü" * number))
        assert ledger.get(str(number)) == completion("ü" * number)
    assert ledger.get("old") == completion("old")
    assert ledger.get("0") == completion("")


def test_answers_are_not_kept_in_memory(tmp_path: Path) -> None:
    """A million entries have to fit beside an engine: keys and places only."""
    writer = Ledger(tmp_path)
    for number in range(50):
        writer.append(f"{number:064d}", CALL, completion("x" * 100_000))
    tracemalloc.start()
    reader = Ledger(tmp_path)
    held, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert reader.stats.entries == 50
    assert held < 100_000


def test_writers_have_segments_of_their_own_and_readers_have_none(tmp_path: Path) -> None:
    one, two = Ledger(tmp_path), Ledger(tmp_path)
    one.append("a", CALL, completion("a"))
    two.append("b", CALL, completion("b"))
    Ledger(tmp_path)
    assert len(list(tmp_path.glob("*.jsonl"))) == 2


def test_a_call_made_twice_shows_in_the_statistics(tmp_path: Path) -> None:
    one, two = Ledger(tmp_path), Ledger(tmp_path)
    one.append("a", CALL, completion("a"))
    two.append("a", CALL, completion("a"))
    stats = Ledger(tmp_path).stats
    assert (stats.entries, stats.lines) == (1, 2)


def test_a_full_disk_is_said_in_words(tmp_path: Path) -> None:
    full = Path("/dev/full")
    if not full.exists():
        pytest.skip("no /dev/full on this system")
    ledger = Ledger(tmp_path)
    with (
        full.open("wb", buffering=0) as ledger._segment,
        pytest.raises(ValueError, match="no space left for the ledger"),
    ):
        ledger.append("a", CALL, completion("a"))


def test_everything_that_changes_an_answer_changes_the_key() -> None:
    other_message = ({"role": "user", "content": "hi "},)
    variants = [
        CALL,
        replace(CALL, model="n"),
        replace(CALL, fingerprint="g"),
        replace(CALL, messages=other_message),
        replace(CALL, messages=({"role": "system", "content": "hi"},)),
        replace(CALL, schema={"type": "object"}),
        *(replace(CALL, sampling=replace(Sampling(), **change)) for change in (
            {"temperature": 0.5}, {"top_p": 0.5}, {"max_tokens": 5}, {"n": 2}, {"seed": 1})),
    ]  # fmt: skip
    assert len({call_key(call) for call in variants}) == len(variants)


def test_the_key_of_a_call_is_stable() -> None:
    """Golden: written when version 1 of the key was defined. A change would orphan every ledger on disk."""
    assert call_key(CALL) == GOLDEN_KEY
    assert call_key(replace(CALL, sampling=replace(Sampling(), top_p=1))) == GOLDEN_KEY  # 1 and 1.0 are one setting


def test_the_segment_is_readable_without_us(tmp_path: Path) -> None:
    Ledger(tmp_path).append("k", CALL, completion("x"))
    entry = json.loads(next(tmp_path.glob("*.jsonl")).read_text())
    assert entry["call"]["messages"] == [{"role": "user", "content": "hi"}]
    assert entry["completion"]["finish_reasons"] == ["stop"]


@given(seed=st.integers(0, 10), parts=st.lists(TEXT, max_size=3))
def test_request_seeds_fit_every_engine_and_repeat(seed: int, parts: list[str]) -> None:
    assert 0 <= request_seed(seed, *parts) < 2**31
    assert request_seed(seed, *parts) == request_seed(seed, *parts)


def test_request_seeds_tell_parts_apart() -> None:
    assert request_seed(0, "ab", "c") != request_seed(0, "a", "bc")
