"""Which engine runs which row next. Pure bookkeeping of indices, in a process of its own (`pool.py` makes it an actor).

Order. Rows of one group (a category: they share its guidelines) go to the same engine while there are enough of them,
so that its prefix cache serves; within a group long rows first. Once the rest fits the engines' windows, the longest
go first from whatever group. An engine that has run dry gets rows back from the fullest one, with the answers that they
have so far; in the last per cent, rows that take far too long are run a second time elsewhere.

Faults. An engine that dies by itself may have died of a row. One that can still tell names the rows whose calls it had:
that counts one death for each. One whose process is gone names nobody: every row that was out becomes a suspect, and
its next death counts. Suspects come back in small company; after two deaths a row runs alone in an engine, which
narrows the blame to it; the third is the last: its program runs once more with every new call refused. A process that
went without a word may have been killed from outside even then, so it takes one death more to convict a row by those.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace

import numpy as np

from shard_dist.engines.rows import Rows
from shard_dist.records import Completion

CHUNK = 16_384  # rows looked ahead, to be grouped and sorted
DEATHS = 3  # in whose company a row may be before it is quarantined
HEDGED_SHARE = 0.01  # of all rows, at the very end
PATIENCE = 3  # a row is hedged after this many times the longest of the last durations


@dataclass(frozen=True)
class Lease:
    """A row to run: `known` are answers from an engine that gave it back; `refused` says why no new call."""

    index: int
    suspect: bool = False
    deaths: int = 0
    known: dict[str, Completion] = field(default_factory=dict)
    refused: str = ""
    again: bool = False  # has run elsewhere: the ledger may know more by now


@dataclass
class Reply:
    """What a worker is told: new rows, how many to give back, which to drop, whether all is over."""

    leases: list[Lease] = field(default_factory=list)
    give_back: int = 0
    drop: list[int] = field(default_factory=list)
    over: bool = False


@dataclass
class Status:
    """For the driver: rows done and waiting; events (kind, worker, detail) since the last look."""

    done: int
    waiting: int
    events: list[tuple[str, str, str]]


class RowQueue:
    """`missing`: the indices to run, rising. Workers join by their name with the rows that they run at once."""

    def __init__(self, rows: Rows, missing: np.ndarray, clock: Callable[[], float] = time.monotonic) -> None:
        self.rows, self.clock = rows, clock
        self.total, self.done = len(missing), 0
        self.chunks = self._chunks(missing)
        self.ahead = 0  # indices in `groups`
        self.unread = len(missing)
        self.groups: dict[str, deque[tuple[int, int]]] = {}  # group -> (length, index), long first
        self.last: dict[str, str] = {}  # worker -> the group that it is at
        self.returned: deque[Lease] = deque()
        self.window: dict[str, int] = {}
        self.out: dict[str, dict[int, tuple[Lease, float]]] = {}
        self.asked: dict[str, int] = {}  # worker -> rows that it shall give back
        self.blamed: dict[str, list[int]] = {}  # worker -> rows that its dead engine named
        self.cell = ""  # the worker that runs rows one by one, or runs dry to do so
        self.dropped: dict[str, list[int]] = {}
        self.hedged: set[int] = set()
        self.durations: deque[float] = deque(maxlen=1000)
        self.events: list[tuple[str, str, str]] = []

    def _chunks(self, missing: np.ndarray) -> Iterator[list[tuple[str, int, int]]]:
        for start in range(0, len(missing), CHUNK):
            chunk = missing[start : start + CHUNK]
            groups, lengths = self.rows.outline(chunk.tolist())
            yield list(zip(groups, lengths, chunk.tolist(), strict=True))

    @property
    def waiting(self) -> int:
        return self.unread + self.ahead + len(self.returned)

    def join(self, worker: str, window: int) -> None:
        assert worker not in self.out, "a life of an engine joins once"
        self.out[worker], self.window[worker], self.dropped[worker] = {}, window, []

    def exchange(self, worker: str, finished: list[int], returned: list[Lease], room: int) -> Reply:
        """A worker's whole conversation: rows that ended, rows that it gives back, and how many more it could run."""
        if worker not in self.out:  # given up for dead, and being killed
            return Reply(over=True)
        now = self.clock()
        for index in finished:
            self._end(worker, index, now)
        for lease in returned:
            if self.out[worker].pop(lease.index, None):
                self.returned.appendleft(lease)
        leases = self._lease(worker, min(room, self._fair() - len(self.out[worker])))
        self.out[worker].update({lease.index: (lease, now) for lease in leases})
        if not self.out[worker] and self.cell == worker:
            self.cell = ""
        if room and not leases and self.done < self.total:
            leases = self._hedge(worker, now)
            if not leases and len(self.out[worker]) < self._fair():
                self._ask_the_fullest(worker)
        drop, self.dropped[worker] = self.dropped[worker], []
        return Reply(leases, self.asked.pop(worker, 0), drop, self.done == self.total)

    def _end(self, worker: str, index: int, now: float) -> None:
        lease = self.out[worker].pop(index, None)
        if lease is None:  # it was given up for dead or hedged, and ended elsewhere
            return
        self.done += 1
        self.durations.append(now - lease[1])
        for other, rows in self.out.items() if index in self.hedged else ():
            if index in rows:
                del rows[index]
                self.dropped[other].append(index)

    def _fair(self) -> int:
        """A worker's even share of the rows that are left: else whoever is first takes all of a small run, and whoever
        gives rows back has room for them and takes them again."""
        return -(-(self.total - self.done) // len(self.out))

    def _lease(self, worker: str, most: int) -> list[Lease]:
        if any(_alone(lease) for lease, _ in self.out[worker].values()):
            return []
        if self.cell in (worker, "") and any(map(_alone, self.returned)):
            return self._isolate(worker)
        leases: list[Lease] = []
        for _ in range(len(self.returned)):
            lease = self.returned.popleft()
            if len(leases) < most and self._may_run(worker, lease, leases):
                leases.append(lease)
            else:
                self.returned.append(lease)
        while len(leases) < most and self._fill():
            leases.append(Lease(self._pop(worker)))
        return leases

    def _may_run(self, worker: str, lease: Lease, company: list[Lease]) -> bool:
        """Suspects keep small company, so that the next death tells more: window/8 of them."""
        if not lease.suspect or lease.refused:
            return True
        beside = [other for other, _ in self.out[worker].values()] + company
        return not _alone(lease) and sum(other.suspect for other in beside) < max(1, self.window[worker] // 8)

    def _isolate(self, worker: str) -> list[Lease]:
        """One engine runs dry and takes the rows with two deaths one by one."""
        self.cell = worker
        if self.out[worker]:
            return []
        lease = next(filter(_alone, self.returned))
        self.returned.remove(lease)
        return [lease]

    def _fill(self) -> bool:
        """Look ahead; whether a row is waiting."""
        while self.unread and self.ahead < CHUNK // 2:
            chunk = next(self.chunks)
            for group, length, index in chunk:
                self.groups.setdefault(group, deque()).append((length, index))
            self.unread, self.ahead = self.unread - len(chunk), self.ahead + len(chunk)
            for group, rows in self.groups.items():
                self.groups[group] = deque(sorted(rows, key=lambda row: (-row[0], row[1])))
        return self.ahead > 0

    def _pop(self, worker: str) -> int:
        ending = not self.unread and self.ahead <= 2 * sum(self.window.values())
        group = self.last.get(worker, "")
        if ending:
            group = max(self.groups, key=lambda name: self.groups[name][0][0])
        elif group not in self.groups:
            taken = set(self.last.values())
            group = max(self.groups, key=lambda name: (name not in taken, len(self.groups[name])))
            self.last[worker] = group
        _, index = self.groups[group].popleft()
        if not self.groups[group]:
            del self.groups[group]
        self.ahead -= 1
        return index

    def _hedge(self, worker: str, now: float) -> list[Lease]:
        """The row that is out for the longest, again, if it is of the last per cent and takes far too long."""
        left = self.total - self.done
        if self.waiting or left > max(1, HEDGED_SHARE * self.total) or len(self.durations) < 10:
            return []
        twice = {index for rows in self.out.values() for index, (lease, _) in rows.items() if lease.again}
        late = PATIENCE * max(self.durations)
        for other, rows in self.out.items():
            for index, (lease, since) in rows.items():
                if other != worker and index not in twice and now - since > late:
                    copy = replace(lease, again=True)
                    self.out[worker][index] = (copy, now)
                    self.hedged.add(index)
                    self.events.append(("hedged", worker, f"row {index}, {now - since:.1f} s at {other}"))
                    return [copy]
        return []

    def _ask_the_fullest(self, worker: str) -> None:
        victim = max(self.out, key=lambda name: len(self.out[name]))
        surplus = len(self.out[victim]) - len(self.out[worker])
        if victim != worker and not self.waiting and surplus > 1:
            self.asked[victim] = surplus // 2

    def blame(self, worker: str, indices: list[int]) -> None:
        """The worker's engine died with calls of these rows inside."""
        self.blamed[worker] = indices

    def leave(self, worker: str, suspicious: bool, why: str) -> None:
        """A worker's life ended: its rows come back; suspects where the engine died by itself."""
        blamed = self.blamed.pop(worker, None)
        self.cell = "" if self.cell == worker else self.cell
        self.window.pop(worker, None)
        self.asked.pop(worker, None)
        self.dropped.pop(worker, None)
        self.last.pop(worker, None)
        for index, (lease, _) in self.out.pop(worker, {}).items():
            if any(index in rows for rows in self.out.values()):
                continue  # a hedged copy goes on elsewhere
            accused = suspicious and (blamed is None or index in blamed)
            deaths = lease.deaths + (accused and (lease.suspect or blamed is not None))
            refused = lease.refused
            if accused and deaths >= DEATHS + (blamed is None) and not refused:
                refused = f"{deaths} engines died with this row at work; the last: {why}"
                self.events.append(("quarantined", worker, f"row {index}: {refused}"))
            self.returned.append(Lease(index, lease.suspect or accused, deaths, lease.known, refused, again=True))

    def status(self) -> Status:
        events, self.events = self.events, []
        return Status(self.done, self.waiting, events)


def _alone(lease: Lease) -> bool:
    """Whether the row must run alone in its engine."""
    return lease.deaths >= 2 and not lease.refused
