"""The queue: every row ends once whatever happens to engines; order, stealing, hedging, quarantine."""

from __future__ import annotations

import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shard_dist.engines.queue import DEATHS, Lease, RowQueue
from shard_dist.engines.rows import ListRows


class Outlined(ListRows):
    """Rows are (group, length)."""

    def outline(self, indices):  # type: ignore[no-untyped-def]
        return [self.rows[index][0] for index in indices], [self.rows[index][1] for index in indices]


def queue_of(rows: list[tuple[str, int]], clock: list[float] | None = None) -> RowQueue:
    return RowQueue(Outlined(rows), np.arange(len(rows)), clock=lambda: clock[0] if clock else 0.0)


def drain(queue: RowQueue, worker: str, room: int = 5) -> list[int]:
    """Run everything that is left at one worker."""
    ended: list[int] = []
    while not (reply := queue.exchange(worker, ended[-room:] if ended else [], [], room)).over:
        ended += [lease.index for lease in reply.leases]
    return ended


@given(rows=st.integers(0, 60), seed=st.integers(0, 10**6))
@settings(max_examples=150)
def test_every_row_ends_once_over_deaths_returns_and_idle_engines(rows: int, seed: int) -> None:
    """A random history of workers that finish, give back, die and join; then one worker finishes the rest."""
    chance = random.Random(seed)
    clock = [0.0]
    queue = queue_of([(f"g{chance.randint(0, 3)}", chance.randint(0, 9)) for _ in range(rows)], clock)
    held: dict[str, dict[int, Lease]] = {}
    number = 0
    for _ in range(60):
        clock[0] += chance.random()
        if not held or chance.random() < 0.1:
            number += 1
            held[f"w{number}"] = {}
            queue.join(f"w{number}", 4)
        worker = chance.choice(list(held))
        mine = held[worker]
        if chance.random() < 0.1:
            del held[worker]
            queue.leave(worker, chance.random() < 0.5, "injected")
            continue
        finished = chance.sample(sorted(mine), chance.randint(0, len(mine)))
        returned = [mine.pop(index) for index in [i for i in mine if i not in finished][: chance.choice([0, 0, 1])]]
        for index in finished:
            del mine[index]
        reply = queue.exchange(worker, finished, returned, chance.randint(0, 6))
        for index in reply.drop:
            mine.pop(index, None)
        mine.update({lease.index: lease for lease in reply.leases})
        dropped = {(name, index) for name, indices in queue.dropped.items() for index in indices}  # not told yet
        out = [index for name, mine in held.items() for index in mine if (name, index) not in dropped]
        assert queue.done + queue.waiting + len(set(out)) == rows
    for worker in list(held):
        queue.leave(worker, False, "end")
    queue.join("last", 100)
    drain(queue, "last", 100)
    assert queue.done == rows
    assert not queue.waiting


def test_a_group_stays_with_an_engine_and_its_long_rows_go_first() -> None:
    rows = [(group, length) for length in range(40) for group in ("a", "b")]
    queue = queue_of(rows)
    queue.join("one", 4)
    queue.join("two", 4)
    first = [rows[lease.index] for lease in queue.exchange("one", [], [], 10).leases]
    second = [rows[lease.index] for lease in queue.exchange("two", [], [], 10).leases]
    assert len({group for group, _ in first}) == len({group for group, _ in second}) == 1
    assert first[0][0] != second[0][0]
    assert [length for _, length in first] == list(range(39, 29, -1))


def test_at_the_end_the_longest_rows_go_first_from_any_group() -> None:
    queue = queue_of([("a", 1), ("b", 5), ("a", 3), ("c", 4)])
    queue.join("w", 10)
    assert [lease.index for lease in queue.exchange("w", [], [], 9).leases] == [1, 3, 2, 0]


def test_an_idle_engine_gets_rows_back_with_their_answers() -> None:
    queue = queue_of([("", 0)] * 8)
    queue.join("full", 8)
    leases = queue.exchange("full", [], [], 8).leases
    queue.join("idle", 8)
    assert queue.exchange("idle", [], [], 8).leases == []
    asked = queue.exchange("full", [], [], 0).give_back
    assert asked == 4
    given = [Lease(lease.index, known={"key": None}) for lease in leases[:asked]]  # type: ignore[dict-item]
    queue.exchange("full", [], given, 0)
    assert queue.exchange("idle", [], [], 8).leases == given[::-1]


def test_whoever_gives_rows_back_does_not_take_them_again() -> None:
    """Although it has room: its worker's open rows are more than a small run has in all."""
    queue = queue_of([("", 0)] * 100)
    queue.join("full", 64)
    leases = queue.exchange("full", [], [], 256).leases
    queue.join("idle", 64)
    queue.exchange("idle", [], [], 256)
    asked = queue.exchange("full", [], [], 156).give_back
    assert queue.exchange("full", [], leases[:asked], 156 + asked).leases == []
    assert len(queue.exchange("idle", [], [], 256).leases) == asked == 50


@given(rows=st.integers(1, 300), workers=st.integers(1, 9))
def test_engines_that_are_there_share_a_small_run_evenly(rows: int, workers: int) -> None:
    queue = queue_of([("", 0)] * rows)
    for number in range(workers):
        queue.join(str(number), 64)
    sizes = [len(queue.exchange(str(number), [], [], 256).leases) for number in range(workers)]
    assert sum(sizes) == min(rows, 256 * workers)
    assert max(sizes) <= -(-rows // workers)


def test_a_row_far_too_late_at_the_end_is_run_twice_and_counted_once() -> None:
    clock = [0.0]
    queue = queue_of([("", 0)] * 100, clock)
    queue.join("slow", 100)
    taken = [lease.index for lease in queue.exchange("slow", [], [], 100).leases]
    queue.join("quick", 100)
    clock[0] = 1.0
    queue.exchange("slow", taken[1:], [], 0)
    assert queue.exchange("quick", [], [], 5).leases == []  # not late yet
    clock[0] = 3.5
    copy = queue.exchange("quick", [], [], 5).leases
    assert [lease.index for lease in copy] == taken[:1]
    assert queue.exchange("quick", [], [], 5).leases == []  # once is enough
    queue.exchange("quick", taken[:1], [], 0)
    assert queue.done == 100
    assert queue.exchange("slow", [], [], 0).drop == taken[:1]
    assert queue.exchange("slow", taken[:1], [], 0).over
    assert queue.done == 100
    assert [kind for kind, *_ in queue.status().events] == ["hedged"]


@pytest.mark.parametrize("named", [True, False])
def test_a_poison_row_is_found_and_no_other_is_refused(named: bool) -> None:
    """An engine dies whenever it has row 17; it takes three deaths if it can name its rows, five if it just goes."""
    queue = queue_of([("", 0)] * 100)
    deaths, life, refused = 0, 0, []
    while queue.done < 100:
        life += 1
        worker = f"life{life}"
        queue.join(worker, 32)
        mine: list[Lease] = []
        while queue.done < 100:
            reply = queue.exchange(worker, [lease.index for lease in mine], [], 32)
            mine = reply.leases
            refused += [lease.index for lease in mine if lease.refused]
            if any(lease.index == 17 and not lease.refused for lease in mine):
                deaths += 1
                if named:
                    queue.blame(worker, [*[lease.index for lease in mine][:8], 17])
                queue.leave(worker, True, "boom")
                break
    assert (deaths, refused) == (DEATHS if named else DEATHS + 2, [17])
    assert [kind for kind, *_ in queue.status().events] == ["quarantined"]


def test_two_kills_and_a_poisoned_neighbour_convict_no_row() -> None:
    """A row that sat beside a poison row once, and whose engine was then killed twice, the last time alone."""
    queue = queue_of([("", 0)] * 20)
    for life, named in enumerate((True, False, False)):
        queue.join(f"w{life}", 16)
        out = [lease.index for lease in queue.exchange(f"w{life}", [], [], 16).leases]
        if named:
            queue.blame(f"w{life}", out[:2])
        else:
            assert out[0] in (0, 1)
        queue.leave(f"w{life}", True, "gone")
    assert not queue.status().events


def test_deaths_from_outside_accuse_no_row() -> None:
    queue = queue_of([("", 0)] * 10)
    for life in range(10):
        queue.join(f"w{life}", 10)
        assert not any(lease.refused for lease in queue.exchange(f"w{life}", [], [], 10).leases)
        queue.leave(f"w{life}", False, "the node is gone")


def test_an_engine_given_up_for_dead_is_told_to_stop() -> None:
    queue = queue_of([("", 0)] * 3)
    queue.join("zombie", 3)
    queue.exchange("zombie", [], [], 3)
    queue.leave("zombie", True, "silent")
    assert queue.exchange("zombie", [0], [], 3).over
    assert queue.done == 0
