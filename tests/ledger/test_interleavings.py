"""What was appended is what is read, whatever else happens to the ledger in between."""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
from pathlib import Path
from tempfile import mkdtemp

import pytest
from calls import call, completion, key
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test

from shard_dist.ledger import store
from shard_dist.ledger.compact import compact
from shard_dist.ledger.store import Ledger

NUMBERS, WRITERS = st.integers(0, 9), st.integers(0, 1)


class TwoWriters(RuleBasedStateMachine):
    """Two writers on one directory, sealing, compaction and restarts between any of their appends."""

    def __init__(self) -> None:
        super().__init__()
        self.directory = Path(mkdtemp())
        self.ledgers = [Ledger(self.directory), Ledger(self.directory)]
        self.written: dict[int, set[str]] = {}
        self.own: list[set[int]] = [set(), set()]
        self.lines = 0

    @rule(writer=WRITERS, number=NUMBERS, text=st.text(max_size=20))
    def append(self, writer: int, number: int, text: str) -> None:
        self.ledgers[writer].append(key(number), call(number), completion(text))
        self.written.setdefault(number, set()).add(text)
        self.own[writer].add(number)
        self.lines += 1

    @rule(writer=WRITERS)
    def seal(self, writer: int) -> None:
        self.ledgers[writer].close()

    @rule(writer=WRITERS)
    def refresh(self, writer: int) -> None:
        self.ledgers[writer].refresh()
        self.own[writer] = set(self.written)
        stats = self.ledgers[writer].stats
        assert (stats.entries, stats.lines, stats.torn_lines) == (len(self.written), self.lines, 0)

    @rule(writer=WRITERS)
    def die_and_restart(self, writer: int) -> None:
        self.ledgers[writer] = Ledger(self.directory)
        self.own[writer] = set(self.written)

    @rule()
    def compact(self) -> None:
        compact(self.directory)

    @invariant()
    def every_writer_reads_what_it_knows(self) -> None:
        for ledger, own in zip(self.ledgers, self.own, strict=True):
            for number, texts in self.written.items():
                found = ledger.get(key(number))
                assert found is not None or number not in own
                assert found is None or found.text in texts

    @invariant()
    def a_new_reader_reads_everything(self) -> None:
        reader = Ledger(self.directory)
        assert {number for number in range(10) if reader.get(key(number))} == set(self.written)
        assert (reader.stats.entries, reader.stats.lines) == (len(self.written), self.lines)
        reader.close()

    def teardown(self) -> None:
        for ledger in self.ledgers:
            ledger.close()
        shutil.rmtree(self.directory)


def test_any_interleaving_of_two_writers_reads_what_was_appended() -> None:
    run_state_machine_as_test(TwoWriters, settings=settings(max_examples=40, stateful_step_count=15, deadline=None))


KILLED = """
import sys
sys.path.insert(0, sys.argv[1])
from calls import put
from shard_dist.ledger import store
store.SEAL_BYTES = 1_500
ledger = store.Ledger(sys.argv[2])
for number in range(100_000):
    put(ledger, number)
    print(number, flush=True)
"""


@pytest.mark.parametrize("calls", [1, 40, 300])
def test_a_process_killed_between_any_append_and_any_seal_loses_nothing(tmp_path: Path, calls: int) -> None:
    """It seals every fourth call, so the kill meets packs in every state."""
    command = [sys.executable, "-c", KILLED, str(Path(__file__).parent), str(tmp_path / "ledger")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for _ in range(calls):
            assert process.stdout.readline()
        process.send_signal(signal.SIGKILL)
        told = calls + len(process.stdout.readlines())
    ledger = Ledger(tmp_path / "ledger")
    assert all(ledger.get(key(number)) == completion(f"text {number}") for number in range(told))
    assert ledger.stats.lines == ledger.stats.entries in (told, told + 1)


@pytest.mark.parametrize("size", [300, 1500])
def test_sealing_in_the_middle_of_appends_loses_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: int
) -> None:
    monkeypatch.setattr(store, "SEAL_BYTES", size)
    one, two = Ledger(tmp_path), Ledger(tmp_path)
    for number in range(60):
        for ledger in (one, two):
            ledger.append(key(number), call(number), completion(f"{number}"))
        if number % 20 == 10:
            compact(tmp_path)
    for ledger in (one, two, Ledger(tmp_path)):
        assert all(ledger.get(key(number)) == completion(f"{number}") for number in range(60))
        ledger.close()
    assert (Ledger(tmp_path).stats.entries, Ledger(tmp_path).stats.lines) == (60, 120)
