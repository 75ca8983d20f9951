"""Compaction: beside readers and writers, killed anywhere, nothing is lost and nothing counts twice."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from calls import completion, fill, key, put, texts

from shard_dist.ledger import compact as compaction
from shard_dist.ledger import sealing, store
from shard_dist.ledger.compact import compact
from shard_dist.ledger.location import Local
from shard_dist.ledger.store import Ledger

ANSWERS = [f"text {number}" for number in range(6)]


def files(directory: Path) -> tuple[int, int]:
    """How many segments and packs."""
    return len(list(directory.glob("*.jsonl"))), len(list(directory.glob("*.parquet")))


def test_small_packs_become_one_without_repeated_calls(tmp_path: Path) -> None:
    fill(tmp_path, 0, 1, 2)
    fill(tmp_path, 2, 3)
    done = compact(tmp_path)
    assert (done.merged, done.made, done.dropped, files(tmp_path)) == (2, 1, 1, (0, 1))
    stats = Ledger(tmp_path).stats
    assert (stats.entries, stats.lines) == (4, 5)
    assert texts(tmp_path, *range(4)) == ANSWERS[:4]
    assert compact(tmp_path).made == 0


def test_full_packs_are_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compaction, "FULL_ENTRIES", 3)
    fill(tmp_path, 0, 1, 2)
    full = next(tmp_path.glob("*.parquet"))
    fill(tmp_path, 2, 3)
    fill(tmp_path, 4, 5)
    done = compact(tmp_path)
    assert (done.merged, done.made, done.dropped) == (2, 1, 1)
    assert full.exists()
    assert texts(tmp_path, *range(6)) == ANSWERS


def test_a_segment_that_may_have_a_writer_is_left_alone(tmp_path: Path) -> None:
    put(Ledger(tmp_path), 0)
    old = Ledger(tmp_path)
    put(old, 1)
    os.utime(old._own.segment.path, (0, 0))
    assert compact(tmp_path).merged == 1
    assert files(tmp_path) == (1, 1)
    assert compact(tmp_path, everything=True).merged == 2
    assert files(tmp_path) == (0, 1)
    assert texts(tmp_path, 0, 1) == ANSWERS[:2]


def test_a_writer_whose_segment_was_compacted_away_goes_on_in_another(tmp_path: Path) -> None:
    writer = Ledger(tmp_path)
    put(writer, 0)
    compact(tmp_path, everything=True)
    put(writer, 1)
    assert [writer.get(key(number)) for number in (0, 1)] == [completion(text) for text in ANSWERS[:2]]
    assert texts(tmp_path, 0, 1) == ANSWERS[:2]
    writer.close()
    assert texts(tmp_path, 0, 1) == ANSWERS[:2]


def test_a_writer_that_paused_starts_a_new_segment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    writer = Ledger(tmp_path)
    put(writer, 0)
    first = writer._own
    monkeypatch.setattr(store, "PAUSE_SECONDS", -1.0)
    put(writer, 1)
    assert writer._own is not first
    writer.close()
    assert texts(tmp_path, 0, 1) == ANSWERS[:2]


def test_a_reader_finds_what_was_sealed_and_compacted_under_it(tmp_path: Path) -> None:
    writer = Ledger(tmp_path)
    for number in range(3):
        put(writer, number)
    reader = Ledger(tmp_path)  # knows the segment
    writer.close()
    fill(tmp_path, 3, 4)
    late = Ledger(tmp_path)  # knows both packs
    assert reader.get(key(0)) == completion("text 0")
    compact(tmp_path)
    for ledger in (reader, late):
        assert [ledger.get(key(number)) for number in range(5)] == [completion(text) for text in ANSWERS[:5]]
        assert (ledger.stats.entries, ledger.stats.lines) == (5, 5)


def test_a_damaged_pack_is_said_and_left(tmp_path: Path) -> None:
    for start in (0, 2, 4):
        fill(tmp_path, start, start + 1)
    damaged, other, _ = tmp_path.glob("*.parquet")
    damaged.write_bytes(damaged.read_bytes()[:-1])
    whole = other.read_bytes()
    at = len(whole) // 4  # among the pages
    other.write_bytes(whole[:at] + bytes(byte ^ 255 for byte in whole[at : at + 40]) + whole[at + 40 :])
    with pytest.warns(UserWarning, match="is damaged"):
        assert compact(tmp_path, everything=True).damaged in (1, 2)
    assert damaged.exists()


class Killed(BaseException):
    """Ends a compaction like a kill: nothing tidies up."""


@pytest.mark.parametrize("step", range(12))
def test_a_compaction_killed_at_any_step_loses_and_repeats_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: int
) -> None:
    """Every change of the directory is a step: a write to a pack, its publication, each removal."""
    fill(tmp_path, 0, 1, 2)
    fill(tmp_path, 2, 3)
    put(Ledger(tmp_path), 4)
    put(Ledger(tmp_path), 5)
    taken = 0

    def dying(work):  # type: ignore[no-untyped-def]
        def step_or_die(*arguments: object) -> object:
            nonlocal taken
            taken += 1
            if taken > step:
                raise Killed
            return work(*arguments)

        return step_or_die

    with monkeypatch.context() as patch:
        patch.setattr(sealing.PackWriter, "write", dying(sealing.PackWriter.write))
        patch.setattr(sealing.PackWriter, "finish", dying(sealing.PackWriter.finish))
        patch.setattr(Local, "publish", dying(Local.publish))
        patch.setattr(sealing, "load_pack", dying(sealing.load_pack))
        patch.setattr(Local, "remove", dying(Local.remove))
        try:
            compact(tmp_path, everything=True)
            assert step >= 11, "all steps are covered"
        except Killed:
            pass
    for _ in range(2):
        stats = Ledger(tmp_path).stats
        assert (stats.entries, stats.lines, stats.damaged_packs) == (6, 7, 0)
        assert texts(tmp_path, *range(6)) == ANSWERS
        compact(tmp_path, everything=True)
    assert files(tmp_path) == (0, 1)
