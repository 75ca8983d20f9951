"""Makespans of SHARD rows on one engine, by discrete-event simulation. Pure arithmetic: seconds for 20,000 rows.

A row is the steps (tokens) of its rewrite, its draft and its reframed answer; the last starts when the first two are
finished. `slots` calls run at once, each takes one step per token.
"""

from __future__ import annotations

import heapq
import itertools
import math
import random
from collections.abc import Callable, Sequence
from typing import Any

from shard_dist.engines.fake import SIGMA

REWRITE, DRAFT, REFRAME = range(3)
Row = tuple[int, int, int]
Priority = Callable[[int, int], tuple[int, ...]]  # of a call (its kind, its row); the smallest goes first

# Rows and slots: Do-Not-Answer's prompts, then LinguaSafe's English ones and a corpus.
SHAPES = ((939, 256), (4_206, 512), (20_000, 512))
# Longest expected path to the row's end first: a draft and an answer, a rewrite and an answer, an answer.
LONG_CHAINS = {DRAFT: 0, REWRITE: 1, REFRAME: 2}


def drawn_rows(number: int, seed: int, sigma: float = SIGMA, cap: int = 2_000) -> list[Row]:
    """Lognormal lengths with mean 120 (rewrite) and 400 (answers) before the cap."""
    draw = random.Random(seed)

    def length(mean: float) -> int:
        return min(cap, math.ceil(draw.lognormvariate(math.log(mean) - sigma**2 / 2, sigma)))

    return [(length(120), length(400), length(400)) for _ in range(number)]


def lower_bound(rows: Sequence[Row], slots: int) -> float:
    """No schedule is shorter than all work over all slots, or than the longest row."""
    work = sum(map(sum, rows)) / slots
    return max(work, *(max(rewrite, draft) + reframe for rewrite, draft, reframe in rows))


def barriers(rows: Sequence[Row], slots: int) -> int:
    """Three stages in turn, each ending with its slowest call."""
    return sum(_in_order([row[stage] for row in rows], slots) for stage in (REWRITE, DRAFT, REFRAME))


def _in_order(lengths: Sequence[int], slots: int) -> int:
    ends = [0] * slots
    for length in lengths:
        heapq.heapreplace(ends, ends[0] + length)
    return max(ends)


def rows_in_flight(rows: Sequence[Row], slots: int, priority: Priority, window: int, tail: int = 0) -> int:
    """Row programs: at most `window` rows at once, all of them once no more than `tail` are left to start."""
    ready: list[tuple[tuple[int, ...], int, int]] = []
    ends: list[tuple[int, int, int]] = []  # of running calls: time, kind, row
    missing = [2] * len(rows)
    started = finished = now = 0
    while finished < len(rows):
        while started < len(rows) and (started - finished < window or len(rows) - started <= tail):
            for kind in (DRAFT, REWRITE):
                heapq.heappush(ready, (priority(kind, started), kind, started))
            started += 1
        while ready and len(ends) < slots:
            _, kind, row = heapq.heappop(ready)
            heapq.heappush(ends, (now + rows[row][kind], kind, row))
        now, kind, row = heapq.heappop(ends)
        if kind == REFRAME:
            finished += 1
            continue
        missing[row] -= 1
        if not missing[row]:
            heapq.heappush(ready, (priority(REFRAME, row), REFRAME, row))
    return now


def oldest_row(kind: int, row: int) -> tuple[int, ...]:
    return (row,)


def long_chains(kind: int, row: int) -> tuple[int, ...]:
    return LONG_CHAINS[kind], row


def fewest_finished(kind: int, row: int) -> tuple[int, ...]:
    """What the engine's worker does: the calls that its row has finished decide, whatever the program is."""
    return 2 * (kind == REFRAME), row


def arrival() -> Priority:
    """First come, first served."""
    numbers = itertools.count()
    return lambda kind, row: (next(numbers),)


def policies(slots: int, rows: int) -> dict[str, tuple[Priority, int, int]]:
    """Name -> priority, window, tail."""
    few, four = math.ceil(1.1 * slots), 4 * math.ceil(1.1 * slots)
    return {
        "oldest row first, 1.1 x slots rows open": (oldest_row, few, 0),
        "first come first served, 1.1 x slots": (arrival(), few, 0),
        "first come first served, 4.4 x slots": (arrival(), four, 0),
        "first come first served, 1.1 x slots, the last 3 x slots all open": (arrival(), few, 3 * slots),
        "fewest finished calls first, 1.1 x slots": (fewest_finished, few, 0),
        "fewest finished calls first, 2.2 x slots": (fewest_finished, 2 * few, 0),
        "fewest finished calls first, 4.4 x slots (ours)": (fewest_finished, four, 0),
        "fewest finished calls first, 1.1 x slots, the last 3 x slots all open": (fewest_finished, few, 3 * slots),
        "long chains first, 1.1 x slots": (long_chains, few, 0),
        "long chains first, 4.4 x slots": (long_chains, four, 0),
        "long chains first, all rows open": (long_chains, rows, 0),
    }


def compare(rows: Sequence[Row], slots: int) -> dict[str, Any]:
    """Makespans in steps, by policy, beside the lower bound and the three stages."""
    makespans = {
        name: rows_in_flight(rows, slots, priority, window, tail)
        for name, (priority, window, tail) in policies(slots, len(rows)).items()
    }
    return {
        "rows": len(rows),
        "slots": slots,
        "lower_bound": lower_bound(rows, slots),
        "three_stages": barriers(rows, slots),
        "policies": makespans,
    }
