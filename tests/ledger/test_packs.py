"""Packs: damage is found and never believed, reads stay small, and what a kill leaves lying counts once."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from calls import completion, fill, key, put, texts
from hypothesis import given
from hypothesis import strategies as st

from shard_dist.ledger import packs
from shard_dist.ledger.compact import compact
from shard_dist.ledger.entry import NewerFormat
from shard_dist.ledger.packs import PackInfo, PackWriter
from shard_dist.ledger.store import Ledger

ALL = range(300)  # three row groups


@pytest.fixture(scope="module")
def pack(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    directory = tmp_path_factory.mktemp("pack")
    fill(directory, *ALL)
    return next(directory.glob("*.parquet")).read_bytes()


@given(cut=st.floats(0, 1, exclude_max=True))
@pytest.mark.filterwarnings("ignore:.*damaged")
def test_a_pack_cut_at_any_byte_is_no_error_and_no_wrong_answer(
    cut: float, pack: bytes, tmp_path_factory: pytest.TempPathFactory
) -> None:
    directory = tmp_path_factory.mktemp("cut")
    (directory / "a.parquet").write_bytes(pack[: int(cut * len(pack))])
    ledger = Ledger(directory)
    assert ledger.stats.damaged_packs == 1
    assert [ledger.get(key(number)) for number in (0, 299)] == [None, None]


@given(place=st.floats(0, 1, exclude_max=True), flip=st.integers(1, 255))
@pytest.mark.filterwarnings("ignore:.*damaged")
def test_a_flipped_byte_among_the_answers_is_never_believed(
    place: float, flip: int, pack: bytes, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Anywhere before the footer, which has no checksum."""
    at = 4 + int(place * (len(pack) - 8 - int.from_bytes(pack[-8:-4], "little") - 4))
    directory = tmp_path_factory.mktemp("flipped")
    (directory / "a.parquet").write_bytes(pack[:at] + bytes([pack[at] ^ flip]) + pack[at + 1 :])
    ledger = Ledger(directory)
    for number in (0, 150, 299):
        assert ledger.get(key(number)) in (None, completion(f"text {number}"))


@pytest.mark.filterwarnings("ignore:.*damaged")
def test_a_damaged_answer_counts_as_torn_and_is_made_again(tmp_path: Path) -> None:
    fill(tmp_path, *ALL)
    path = next(tmp_path.glob("*.parquet"))
    ledger = Ledger(tmp_path)
    path.write_bytes(path.read_bytes()[:200])
    assert ledger.get(key(0)) is None
    assert (ledger.stats.entries, ledger.stats.lines, ledger.stats.torn_lines) == (299, 299, 1)
    put(ledger, 0, "again")
    assert ledger.get(key(0)) == completion("again")
    assert ledger.stats.entries == 300


def test_a_pack_of_a_newer_format_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(packs, "FORMAT", 3)
        writer = PackWriter(tmp_path / "new.parquet")
        writer.finish(PackInfo(0))
        writer.close()
    with pytest.raises(NewerFormat, match=r"new\.parquet: a ledger file of format 3.*update shard_dist"):
        Ledger(tmp_path)


def test_a_kill_between_pack_and_removal_repeats_nothing(tmp_path: Path) -> None:
    """Entries and lines count once, and lines that came behind what the pack holds count, too."""
    writer = Ledger(tmp_path)
    put(writer, 1)
    put(writer, 2)
    segment = next(tmp_path.glob("*.jsonl"))
    copy = segment.read_bytes()
    writer.close()
    segment.write_bytes(copy)
    stats = Ledger(tmp_path).stats
    assert (stats.entries, stats.lines) == (2, 2)
    with segment.open("ab") as stream:
        stream.write(copy.splitlines(keepends=True)[1].replace(key(1).encode(), key(3).encode()))
    ledger = Ledger(tmp_path)
    assert (ledger.stats.entries, ledger.stats.lines) == (3, 3)
    assert ledger.get(key(3)) == completion("text 1")


def test_row_groups_in_memory_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packs, "CACHE_BYTES", 20_000)
    monkeypatch.setattr(packs, "OPEN_PACKS", 2)
    for start in range(0, 1500, 300):
        fill(tmp_path, *range(start, start + 300))
    ledger = Ledger(tmp_path)
    for number in [*range(0, 1500, 50), *range(1450, -1, -50)]:
        assert ledger.get(key(number)) == completion(f"text {number}")
        assert len(ledger._packs._files) <= 2
        assert ledger._packs._held == sum(size for *_, size in ledger._packs._groups.values()) <= 40_000


def test_keys_with_zeros_at_their_end_are_found(tmp_path: Path) -> None:
    """NumPy strips them from its strings."""
    wanted = ["ab" * 31 + "00", "ab" * 30 + "0000", "00" * 32, "ab" * 32]
    ledger = Ledger(tmp_path)
    put(ledger, 1)
    entry = next(tmp_path.glob("*.jsonl")).read_text().splitlines()[1]
    (tmp_path / "zeros.jsonl").write_text("".join(entry.replace(key(1), name) + "\n" for name in wanted[:3]))
    ledger.close()
    compact(tmp_path, everything=True)
    reader = Ledger(tmp_path)
    assert [reader.get(name) is not None for name in wanted] == [True, True, True, False]
    assert reader.stats.entries == 4


def test_a_pack_under_two_names_counts_its_entries_once(tmp_path: Path) -> None:
    fill(tmp_path, 1, 2)
    path = next(tmp_path.glob("*.parquet"))
    shutil.copy(path, tmp_path / "copy.parquet")
    assert Ledger(tmp_path).stats.entries == 2
    assert texts(tmp_path, 1, 2) == ["text 1", "text 2"]
