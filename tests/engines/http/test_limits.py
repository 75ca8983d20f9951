"""Waits, pauses and ceilings of the HTTP engine, with many calls in flight."""

from __future__ import annotations

import asyncio
import json
import time
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import pytest
from fault_server import FINE, GOOD, JSON, Reply, Server, ask, ask_many, call, with_engine
from hypothesis import given
from hypothesis import strategies as st

from shard_dist.engines import http
from shard_dist.engines.http import HttpEngine, backoff, retry_after
from shard_dist.engines.protocol import CallRefused
from shard_dist.records import Completion


def test_a_server_that_is_gone_ends_the_run_before_it_fails_every_row(server: Server) -> None:
    server.replies[:] = [Reply(500, "text/plain", b"")]
    outcomes, _ = ask_many(server, 5, max_deaths=3)
    kinds = [type(outcome) for outcome in outcomes]
    assert (kinds.count(CallRefused), kinds.count(ValueError)) == (2, 3)
    assert "run the same command again when the server is back" in str(
        next(outcome for outcome in outcomes if isinstance(outcome, ValueError))
    )


def test_one_call_that_fails_among_others_ends_nothing(server: Server) -> None:
    async def use(engine: HttpEngine) -> list[type]:
        kinds = []
        for number in range(6):
            server.replies[:] = [Reply(500, "text/plain", b"")] if number % 2 else [FINE]
            kinds += [type(one) for one in await asyncio.gather(engine.generate(call()), return_exceptions=True)]
        return kinds

    assert with_engine(server.url, use, max_deaths=2) == [Completion, CallRefused] * 3


@pytest.mark.parametrize("headers", [{}, {"Retry-After": "0.05"}, {"retry-after-ms": "20"}])
def test_many_calls_get_through_a_server_that_refuses_a_third(server: Server, headers: dict[str, str]) -> None:
    busy = Reply(429, "text/plain", b"slow down", headers)
    server.replies[:] = [busy if number % 3 == 0 else FINE for number in range(1000)]
    outcomes, engine = ask_many(server, 50, max_retries=8)
    assert [type(outcome) for outcome in outcomes] == [Completion] * 50
    sent = len(server.seen)
    assert sent == engine.ceiling.sent == 50 + sum(number % 3 == 0 for number in range(sent))
    assert len({body["messages"][0]["content"] for _, body in server.seen}) == 50
    stats = engine.stats()
    assert (stats.running, stats.waiting, stats.prompt_tokens, stats.completion_tokens) == (0, 0, 150, 200)


def test_a_busy_server_is_spared_by_all_calls(server: Server) -> None:
    """One call meets a 429 with Retry-After; the others, which come later, are held back with it."""
    server.replies[:] = [Reply(429, "text/plain", b"", {"Retry-After": "30"}), FINE]

    async def use(engine: HttpEngine) -> None:
        calls = [asyncio.ensure_future(engine.generate(call()))]
        while not engine.throttle.resume_at:
            await asyncio.sleep(0.01)
        calls += [asyncio.ensure_future(engine.generate(call(number))) for number in range(1, 4)]
        await asyncio.sleep(0.1)
        assert len(server.seen) == 1
        assert (engine.stats().running, engine.stats().waiting) == (0, 4)
        assert 25 < engine.throttle.resume_at - time.monotonic() <= 30
        assert engine.throttle.limit == 1
        for task in calls:
            task.cancel()
        await asyncio.gather(*calls, return_exceptions=True)
        assert engine.stats().waiting == 0

    with_engine(server.url, use, max_retries=1)


def test_calls_in_flight_halve_with_each_pause_and_grow_with_answers() -> None:
    async def use() -> list[float]:
        throttle, limits = http.Throttle(), []
        throttle.running = 64
        for sent in (1.0, 0.5, 2.0):  # the second one was sent before the pause that the first one began
            throttle.resume_at = min(throttle.resume_at, 1.5)
            throttle.pause(0.0, sent)
            limits.append(throttle.limit)
        assert throttle.pauses == 2
        throttle.answered()
        assert throttle.pauses == 0
        return [*limits, throttle.limit]

    assert asyncio.run(use()) == [32, 32, 16, 16 + 1 / 16]


def test_no_call_is_lost_to_a_rate_limit_while_others_are_answered(server: Server) -> None:
    """Four of five requests are refused: with whole retries a call would be lost in 1 of 5 cases."""
    server.replies[:] = [FINE if number % 5 == 0 else Reply(429, "text/plain", b"") for number in range(3000)]
    outcomes, _ = ask_many(server, 15, max_retries=6)
    assert [type(outcome) for outcome in outcomes].count(Completion) >= 14


@pytest.mark.parametrize(("engines", "most"), [(1, 7), (3, 2)])
def test_no_request_is_sent_beyond_the_ceiling(server: Server, engines: int, most: int) -> None:
    """With many calls in flight and retries among them; engines share the ceiling."""
    server.replies[:] = [Reply(500, "text/plain", b"") if number % 3 == 1 else FINE for number in range(100)]
    outcomes, _ = ask_many(server, 30, max_requests=7, engines=engines, max_retries=5)
    assert len(server.seen) == most
    reached = [str(outcome) for outcome in outcomes if isinstance(outcome, ValueError)]
    assert len(reached) == 30 - sum(number % 3 != 1 for number in range(most))
    assert "max_requests is 7" in reached[0]
    assert "raise it and run the same command again" in reached[0]


def test_spending_stops_at_the_ceiling_and_answers_on_their_way_are_kept(server: Server) -> None:
    """An answer costs 3 x 1 + 4 x 2 = 11: the fourth reaches the ceiling of 40, while others are on their way."""
    server.free = 4

    async def use(engine: HttpEngine) -> list[int]:
        slots, kept = asyncio.Semaphore(6), []

        async def one(number: int) -> None:
            async with slots:
                kept.append(await engine.generate(call(number)))

        tasks = [asyncio.ensure_future(one(number)) for number in range(40)]
        while len(kept) < 4:
            await asyncio.sleep(0.01)
        await asyncio.sleep(0.1)
        assert not any(task.done() and task.exception() for task in tasks)
        server.gate.set()
        with pytest.raises(ValueError, match=r"max_spend is 40, and (55|66|77|88|99) was spent in \d requests"):
            await asyncio.gather(*tasks)
        at_the_error = len(kept)
        await asyncio.gather(*tasks, return_exceptions=True)
        return [at_the_error, len(server.seen)]

    kept, sent = with_engine(server.url, use, max_spend=40.0, input_price=1e6, output_price=2e6)
    assert kept == sent
    assert 5 <= sent <= 9


def test_a_server_that_reports_no_tokens_cannot_keep_to_a_budget(server: Server) -> None:
    server.replies[:] = [Reply(200, JSON, json.dumps({"choices": GOOD["choices"]}).encode())]
    with pytest.raises(ValueError, match="max_spend cannot be kept"):
        ask(server, max_spend=1.0, output_price=1.0)


def test_retry_after_is_read_in_every_form() -> None:
    assert retry_after({"retry-after": "7"}) == 7
    assert retry_after({"retry-after-ms": "1500", "retry-after": "7"}) == 1.5
    soon = datetime.now(UTC) + timedelta(seconds=60)
    assert 55 < retry_after({"retry-after": format_datetime(soon, usegmt=True)}) <= 60
    past = datetime.now(UTC) - timedelta(days=1)
    for nothing in ("", "soon", "-5", "nan", format_datetime(past, usegmt=True)):
        assert retry_after({"retry-after": nothing}) == 0
    for long in ("86400", "inf", format_datetime(soon + timedelta(days=9), usegmt=True)):
        assert retry_after({"retry-after": long}) == http.LONGEST_RETRY_AFTER


@given(st.text() | st.floats().map(str) | st.datetimes().map(format_datetime))
def test_any_retry_after_gives_a_bounded_wait(text: str) -> None:
    assert 0 <= retry_after({"retry-after": text}) <= http.LONGEST_RETRY_AFTER


@given(st.integers(0, 10_000))
def test_waits_grow_and_stay_bounded(attempt: int) -> None:
    full = min(http.LONGEST_WAIT, http.FIRST_WAIT * 2.0 ** min(attempt, 1000))
    assert full / 2 <= backoff(attempt) <= full
