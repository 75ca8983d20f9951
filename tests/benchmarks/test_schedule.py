"""The simulated schedules keep the bounds that every schedule keeps."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from schedule import barriers, drawn_rows, long_chains, lower_bound, oldest_row, rows_in_flight

ROWS = st.lists(st.tuples(*[st.integers(1, 50)] * 3), min_size=1, max_size=30)


@given(rows=ROWS, slots=st.integers(1, 8), window=st.integers(1, 40), tail=st.integers(0, 40))
@pytest.mark.parametrize("priority", [long_chains, oldest_row])
def test_no_schedule_beats_the_lower_bound(
    rows: list[tuple[int, int, int]], slots: int, window: int, tail: int, priority: object
) -> None:
    makespan = rows_in_flight(rows, slots, priority, window, tail)
    assert lower_bound(rows, slots) <= makespan <= sum(map(sum, rows))


@given(rows=ROWS, slots=st.integers(1, 8))
def test_a_schedule_that_leaves_no_slot_idle_keeps_grahams_bound(rows: list[tuple[int, int, int]], slots: int) -> None:
    """Graham 1966: at most all work over all slots plus the longest chain."""
    makespan = rows_in_flight(rows, slots, long_chains, window=len(rows))
    longest = max(max(rewrite, draft) + reframe for rewrite, draft, reframe in rows)
    assert makespan <= sum(map(sum, rows)) / slots + longest


def test_one_slot_takes_all_work_in_turn_with_or_without_stages() -> None:
    rows = drawn_rows(20, seed=0)
    assert barriers(rows, 1) == rows_in_flight(rows, 1, oldest_row, window=3) == sum(map(sum, rows))


def test_stages_wait_for_their_slowest_call() -> None:
    assert barriers([(1, 10, 1), (7, 1, 20)], 2) == 7 + 10 + 20
    assert rows_in_flight([(1, 10, 1), (7, 1, 20)], 4, long_chains, window=2) == 27
