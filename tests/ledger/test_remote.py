"""Ledgers behind a URL: no append there, so entries go through a mirror and become objects."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
import uuid
import warnings
from pathlib import Path

import pytest
from calls import completion, key, put, texts

from shard_dist.ledger import store
from shard_dist.ledger.check import check_ledger
from shard_dist.ledger.compact import compact
from shard_dist.ledger.location import locate
from shard_dist.ledger.store import Ledger


@pytest.fixture
def url() -> str:
    return f"memory://ledger-{uuid.uuid4().hex}/calls"


def objects(url: str) -> list[str]:
    place = locate(url)
    return [path.rpartition("/")[2] for path in place.filesystem.find(place.root)]


def elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """From here on the mirror is that of another machine."""
    monkeypatch.setattr(tempfile, "tempdir", tempfile.mkdtemp())


def test_own_entries_are_found_before_and_after_the_upload(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    ledger = Ledger(url)
    put(ledger, 1)
    assert ledger.get(key(1)) == completion("text 1")
    assert not objects(url)
    ledger.close()
    assert len(objects(url)) == 1
    elsewhere(monkeypatch)
    assert texts(url, 1) == ["text 1"]


def test_entries_are_uploaded_after_some_seconds_without_another_append(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store, "UPLOAD_SECONDS", 0.01)
    ledger = Ledger(url)
    put(ledger, 1)
    limit = time.monotonic() + 30
    while not objects(url) and time.monotonic() < limit:
        time.sleep(0.01)
    elsewhere(monkeypatch)
    assert texts(url, 1) == ["text 1"]
    ledger.close()


def test_an_upload_that_fails_is_tried_again(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    ledger = Ledger(url)
    put(ledger, 1)

    def broken(*_: object, **__: object) -> None:
        raise ConnectionError("no network")

    with monkeypatch.context() as patch:
        patch.setattr(type(ledger.location.filesystem), "open", broken)
        with pytest.warns(UserWarning, match="could not be sealed"):
            ledger.close()
    assert ledger.get(key(1)) == completion("text 1")
    ledger.close()
    elsewhere(monkeypatch)
    assert texts(url, 1) == ["text 1"]


def test_compaction_and_removal_reach_the_store_and_other_mirrors(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in (1, 2):
        ledger = Ledger(url)
        put(ledger, number)
        ledger.close()
    reader = Ledger(url)
    here = tempfile.gettempdir()
    elsewhere(monkeypatch)
    compact(url)
    assert len(objects(url)) == 1
    monkeypatch.setattr(tempfile, "tempdir", here)
    assert reader.get(key(1)) == completion("text 1")
    assert texts(url, 1, 2) == ["text 1", "text 2"]


WRITER = """
import sys, time
sys.path.insert(0, sys.argv[1])
from calls import put
from shard_dist.ledger.store import Ledger
ledger = Ledger(sys.argv[2])
for number in range(int(sys.argv[3]), int(sys.argv[3]) + 5):
    put(ledger, number)
if sys.argv[4] == "hang":
    print("ready", flush=True)
    time.sleep(600)
ledger.close()
"""


def start(url: str, first: int, end: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", WRITER, str(Path(__file__).parent), url, str(first), end]
    environment = {**os.environ, "TMPDIR": tempfile.gettempdir()}
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)


def test_two_processes_share_a_store_and_a_killed_one_loses_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """file:// is treated like any other store. Lines of the killed process are uploaded by the next ledger here."""
    url = f"file://{tmp_path}/store"
    calm, killed = start(url, 0, "close"), start(url, 5, "hang")
    assert killed.stdout is not None
    assert killed.stdout.readline() == "ready\n"
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    assert calm.wait() == 0
    assert texts(url, *range(10)) == [f"text {number}" for number in range(10)]
    elsewhere(monkeypatch)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert texts(url, *range(10)) == [f"text {number}" for number in range(10)]
    assert len(objects(url)) == 2


def test_a_store_that_is_not_known_is_said(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"run\.ledger: nonsense://x"):
        Ledger("nonsense://x/y")
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match="cannot write to file://"):
        check_ledger(f"file://{tmp_path}/file/below")
