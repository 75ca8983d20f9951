"""Faults of shared storage, made on purpose: what is not shared, renames that show parts, locks that do not hold."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from shard_dist.config.cluster import ClusterConfig, StorageConfig
from shard_dist.doctor import storage as rooms
from shard_dist.doctor.asked import Asked
from shard_dist.doctor.finding import Finding, Level
from shard_dist.doctor.machines import Here, NoAnswer, Node
from shard_dist.doctor.resources import GIB, Disk, disk


def mounted(elsewhere: Mapping[str, Path], place: Path) -> Any:
    """Machines a, b, c: what these find at `place` lies somewhere else, as under another mount."""
    here = Here()

    def ask(function: Callable[..., Any], calls: Mapping[str, tuple[Any, ...]], seconds: float) -> dict[str, Any]:
        answers: dict[str, Any] = {}

        def one(name: str) -> None:
            moved = [
                word.replace(str(place), str(elsewhere[name])) if isinstance(word, str) and name in elsewhere else word
                for word in calls[name]
            ]
            answers.update(here.ask(function, {name: tuple(moved)}, seconds))

        threads = [threading.Thread(target=one, args=(name,)) for name in calls]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return answers

    return SimpleNamespace(nodes=[Node(name) for name in "abc"], silent=(), gcs="", dashboard="", ask=ask)


@pytest.fixture(autouse=True)
def _short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rooms, "MOST", 3 << 20)
    monkeypatch.setattr(rooms, "WAIT", 0.5)
    monkeypatch.setattr(rooms, "READING", 0.1)


def told(findings: list[Finding], check: str) -> dict[str, Level]:
    return {finding.node: finding.level for finding in findings if finding.check == check}


def test_one_directory_for_all_is_shared_and_left_as_it_was(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    findings = rooms.storage(mounted({}, tmp_path), Asked(storage=str(tmp_path / "run")))
    assert told(findings, "shared storage") == dict.fromkeys("abc", Level.ok)
    assert told(findings, "rename") == dict.fromkeys("abc", Level.ok)
    # Threads of one process stand for nodes here; flock holds against another opening of the file all the same.
    assert told(findings, "locks") == dict.fromkeys("abc", Level.ok)
    assert "MB/s from 3 nodes at once (3 MB" in next(f.found for f in findings if f.check == "write speed")
    assert list(tmp_path.iterdir()) == [tmp_path / "run"]
    assert not list((tmp_path / "run").iterdir())


def test_a_local_directory_of_the_same_name_is_found_out(tmp_path: Path) -> None:
    for name in ("shared", "local"):
        (tmp_path / name).mkdir()
    machines = mounted({"c": tmp_path / "local"}, tmp_path / "shared")
    findings = rooms.storage(machines, Asked(storage=str(tmp_path / "shared")))
    assert told(findings, "shared storage") == {"a": Level.ok, "b": Level.ok, "c": Level.fail}
    assert set(told(findings, "rename")) == {"a", "b"}
    assert "not to be seen" in next(f.found for f in findings if f.node == "c")
    assert not list((tmp_path / "local").iterdir())


def test_files_that_do_not_show_elsewhere_are_found_out(tmp_path: Path) -> None:
    """Two mounts, on both of which the driver's directory seems to be there, as with copies made at start-up."""
    seen = rooms.judge_sharing("b", str(tmp_path / "made"), "", ["a", "c"], {"1": 0.0})
    assert (seen.level, "files of a, c do not show" in seen.found) == (Level.fail, True)


def test_a_place_that_cannot_be_written_to_is_told(scripted: Callable[..., Any]) -> None:
    machines = scripted({rooms.make: {"a": NoAnswer("Permission denied: '/data'")}})
    findings = rooms.storage(machines, Asked(storage="/data"))
    assert [(finding.node, finding.level) for finding in findings] == [("a", Level.fail)]
    assert "Permission denied" in findings[0].found


def test_runs_that_are_not_there_yet_are_looked_at_above(tmp_path: Path) -> None:
    made = Path(rooms.make(str(tmp_path / "runs" / "deep")))
    assert made.parent == tmp_path
    rooms.remove(str(made))
    assert not made.exists()


def test_a_file_that_is_written_in_place_shows_its_parts(tmp_path: Path) -> None:
    """What an object store under a mount does: the reader sees a beginning. An atomic rename shows none."""
    path = tmp_path / "file"
    path.write_bytes(b"a" * rooms.PIECE)
    stop = threading.Event()

    def rewrite() -> None:
        while not stop.is_set():
            with path.open("wb") as stream:
                stream.write(b"b" * (rooms.PIECE // 2))
                stream.flush()
                time.sleep(0.001)
                stream.write(b"b" * (rooms.PIECE // 2))

    writer = threading.Thread(target=rewrite)
    writer.start()
    seen = rooms.read_often(str(path), 0.2)
    stop.set()
    writer.join()
    assert seen["part"] > 0
    assert rooms.judge_renames("a", seen).level == Level.fail
    assert rooms.judge_renames("a", {"whole": 10, "missing": 1}).level == Level.fail
    assert rooms.judge_renames("a", {"whole": 1, "stale": 9}).level == Level.warn


def test_locks_of_one_node_alone_are_found_out(scripted: Callable[..., Any]) -> None:
    """The same call on the driver: taken first, held against itself; b gets it too."""
    calls = iter([{"a": True}, {"a": False, "b": True}, {}])
    machines = scripted({})
    machines.ask = lambda function, names, seconds: next(calls)
    assert told(rooms.locks(machines, "/data", ["a", "b"]), "locks") == {"a": Level.ok, "b": Level.warn}


def test_too_little_space_fails_where_it_was_stated(scripted: Callable[..., Any]) -> None:
    free = {disk: {"a": Disk("/data", 1000 * GIB, 5 * GIB)}, rooms.mount: {"a": ("srv:/x", "nfs4", "rw")}}
    for size, level in ((2000.0, Level.fail), (0.0, Level.warn), (4.0, Level.ok)):
        asked = Asked(ClusterConfig(storage=StorageConfig("/data", size)))
        assert told(rooms.room(scripted(free, "a"), asked, "/data", ["a"]), "storage's room") == {"": level}


@pytest.mark.parametrize(
    ("device", "kind", "options", "word"),
    [
        ("server:/runs", "nfs4", "rw,hard,vers=4.2", ""),
        ("server:/runs", "nfs4", "rw,soft", "times out"),
        ("server:/runs", "nfs", "rw,hard,nolock", "one node only"),
        ("s3fs", "fuse.s3fs", "rw", "object store"),
        ("10.0.0.1@o2ib:/lustre", "lustre", "rw", "without flock"),
        ("10.0.0.1@o2ib:/lustre", "lustre", "rw,flock", ""),
        ("overlay", "overlay", "rw", "container"),
    ],
)
def test_kinds_of_file_systems_that_make_trouble(device: str, kind: str, options: str, word: str) -> None:
    finding = rooms.judge_mount("a", (device, kind, options), several=True)
    assert finding.level == (Level.warn if word else Level.ok)
    assert word in finding.found


def test_the_longest_mount_decides_and_a_space_in_its_name_is_read(tmp_path: Path) -> None:
    table = tmp_path / "mounts"
    table.write_text(
        "/dev/vda / ext4 rw 0 0\nserver:/a /data nfs4 rw 0 0\nserver:/b /data/with\\040space nfs4 rw,soft 0 0\n",
        encoding="utf-8",
    )
    assert rooms.mount("/data/with space/runs", str(table)) == ("server:/b", "nfs4", "rw,soft")
    assert rooms.mount("/data/without", str(table))[0] == "server:/a"
    assert rooms.mount("/database", str(table))[0] == "/dev/vda"
