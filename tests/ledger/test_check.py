"""Faults of a ledger are said before anything is spent, in words that help."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest
from calls import fill

from shard_dist.ledger import packs
from shard_dist.ledger.check import check_ledger
from shard_dist.ledger.packs import PackInfo, PackWriter


def test_a_sound_ledger_is_left_as_it_was(tmp_path: Path) -> None:
    fill(tmp_path / "ledger", 1)
    before = sorted((tmp_path / "ledger").iterdir())
    assert check_ledger(tmp_path / "ledger") == 0
    assert sorted((tmp_path / "ledger").iterdir()) == before


def test_a_file_is_no_directory(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for location in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(ValueError, match=r"run\.ledger: cannot write to .*no directory; choose another"):
            check_ledger(location)


def failing(number: int) -> object:
    def fail(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    return fail


@pytest.mark.parametrize(
    ("number", "words"),
    [(errno.ENOSPC, "the disk is full"), (errno.EDQUOT, "the disk is full"), (errno.EACCES, "change its permissions")],
)
def test_a_full_or_read_only_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, words: str) -> None:
    monkeypatch.setattr(os, "fsync", failing(number))
    with pytest.raises(ValueError, match=words):
        check_ledger(tmp_path)
    assert not list(tmp_path.glob(".*.probe"))


def test_no_permission(tmp_path: Path) -> None:
    if os.geteuid() == 0:
        pytest.skip("root may write anywhere")
    tmp_path.chmod(0o500)
    with pytest.raises(ValueError, match="change its permissions"):
        check_ledger(tmp_path)


def test_a_segment_of_a_newer_format(tmp_path: Path) -> None:
    (tmp_path / "new.jsonl").write_text('{"shard_dist_ledger": 3}\n')
    with pytest.raises(ValueError, match=r"new\.jsonl: a ledger file of format 3.*update shard_dist"):
        check_ledger(tmp_path)


def test_a_pack_of_a_newer_format(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(packs, "FORMAT", 3)
        writer = PackWriter(tmp_path / "new.parquet")
        writer.finish(PackInfo(0))
        writer.close()
    with pytest.raises(ValueError, match="update shard_dist"):
        check_ledger(tmp_path)


def test_damaged_packs_are_warned_of_and_counted(tmp_path: Path) -> None:
    (tmp_path / "a.parquet").write_bytes(b"PAR1 nothing PAR1")
    with pytest.warns(UserWarning, match="a.parquet is damaged"):
        assert check_ledger(tmp_path) == 1
