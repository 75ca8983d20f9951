"""Which checkpoint a training goes on from, on plain files."""

from dataclasses import asdict
from pathlib import Path

import pytest

from shard_dist.artefacts import write_json
from shard_dist.training.checkpoint import MARKER, Marker, complete, newest, remove_old, tag


def put(directory: Path, step: int, marker: bool = True, identity: str = "a", ranks: int = 2) -> None:
    (directory / tag(step)).mkdir(parents=True)
    (directory / tag(step) / "rank0.pt").write_bytes(b"x")
    if marker:
        write_json(directory / tag(step) / MARKER, asdict(Marker(step, identity, ranks)))


def test_the_newest_complete_checkpoint_wins_over_a_newer_torn_one(tmp_path: Path) -> None:
    for step in (5, 100, 20):
        put(tmp_path, step)
    put(tmp_path, 105, marker=False)
    assert newest(tmp_path, "a", 2) == Marker(100, "a", 2)


def test_a_fresh_or_wholly_torn_directory_starts_from_the_beginning(tmp_path: Path) -> None:
    assert newest(tmp_path / "absent", "a", 2) is None
    put(tmp_path, 5, marker=False)
    assert newest(tmp_path, "a", 2) is None


def test_checkpoints_of_another_training_are_refused(tmp_path: Path) -> None:
    put(tmp_path, 5)
    with pytest.raises(ValueError, match="of another training"):
        newest(tmp_path, "b", 2)
    with pytest.raises(ValueError, match=r"set train\.workers=2"):
        newest(tmp_path, "a", 4)


def test_the_newest_k_stay_and_torn_ones_go(tmp_path: Path) -> None:
    for step in (5, 10, 15):
        put(tmp_path, step)
    put(tmp_path, 12, marker=False)
    remove_old(tmp_path, 2)
    assert [marker.step for marker in complete(tmp_path)] == [10, 15]
    assert sorted(path.name for path in tmp_path.iterdir()) == [tag(10), tag(15)]
