"""Row programs: every row ends exactly once, finished calls are never made again, faults stay with their row."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shard_dist.config.schema import Backend, FakeConfig, ModelConfig
from shard_dist.engines.fake import FakeEngine
from shard_dist.engines.local import run_local
from shard_dist.engines.pool import Role, RowQueue
from shard_dist.engines.protocol import CallFailed, CallRefused
from shard_dist.engines.worker import Counters, LocalBackend, ModelIdentity, RowAsk, work
from shard_dist.ledger.store import Ledger
from shard_dist.records import Call, Completion, Sampling

IDENTITY = ModelIdentity("fake", "0")


class Chain:
    """A program of three calls a row, the last one after the first two, as SHARD has it."""

    async def __call__(self, row: int, ask: RowAsk) -> tuple[int, str]:
        async def one(step: str, text: str) -> str:
            message = {"role": "user", "content": text}
            return (await ask("student", step, (message,), Sampling(seed=row))).text

        draft, rewrite = await asyncio.gather(one("draft", f"draft {row}"), one("rewrite", f"rewrite {row}"))
        return row, await one("reframe", f"{draft} {rewrite}")


def engine(**faults: float) -> FakeEngine:
    return FakeEngine(ModelConfig(backend=Backend.fake, model="fake", fake=FakeConfig(**faults)))


async def drive(program: Any, rows: Sequence[Any], backend: LocalBackend, window: int) -> list[Any]:
    queue = RowQueue(rows)
    queue.join("w")

    async def take(most: int) -> Sequence[tuple[int, Any]]:
        return queue.take("w", most)

    async def finish(results: list[tuple[int, Any]]) -> None:
        queue.finish("w", results, {})

    await work(program, take, finish, lambda: RowAsk({"student": backend}, {"student": IDENTITY}), window)
    assert not queue.out["w"]
    assert not queue.waiting
    return [result for _, result in sorted(queue.collect()[0])]


@given(rows=st.integers(0, 30), window=st.integers(1, 8))
@settings(max_examples=30, deadline=None)
def test_every_row_ends_once_whatever_the_window(
    rows: int, window: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    backend = LocalBackend(engine(), Ledger(tmp_path_factory.mktemp("ledger")), window, Counters())
    results = asyncio.run(drive(Chain(), range(rows), backend, window))
    assert [row for row, _ in results] == list(range(rows))
    assert backend.counters.made == 3 * rows


def test_faults_that_pass_do_not_change_any_result(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shard_dist.engines.worker.FIRST_WAIT", 0.0)
    calm = LocalBackend(engine(), Ledger(tmp_path / "calm"), 8, Counters())
    stormy = LocalBackend(engine(error_rate=0.2), Ledger(tmp_path / "stormy"), 8, Counters())
    expected = asyncio.run(drive(Chain(), range(40), calm, 8))
    assert asyncio.run(drive(Chain(), range(40), stormy, 8)) == expected


def test_a_second_run_makes_no_call(tmp_path: Path) -> None:
    first = LocalBackend(engine(), Ledger(tmp_path), 4, Counters())
    expected = asyncio.run(drive(Chain(), range(10), first, 4))
    second = LocalBackend(engine(), Ledger(tmp_path), 4, Counters())
    assert asyncio.run(drive(Chain(), range(10), second, 4)) == expected
    assert (second.counters.made, second.counters.hits) == (0, 30)


def test_the_same_call_at_the_same_time_is_made_once(tmp_path: Path) -> None:
    class Same:
        async def __call__(self, row: int, ask: RowAsk) -> str:
            return (await ask("student", "x", ({"role": "user", "content": "same"},), Sampling())).text

    backend = LocalBackend(engine(latency=0.01), Ledger(tmp_path), 8, Counters())
    assert len(set(asyncio.run(drive(Same(), range(20), backend, 8)))) == 1
    assert (backend.counters.made, Ledger(tmp_path).stats.lines) == (1, 1)


def test_no_more_calls_are_in_flight_than_the_window(tmp_path: Path) -> None:
    class Watched(FakeEngine):
        now = most = 0

        async def generate(self, call: Call) -> Completion:
            Watched.now += 1
            Watched.most = max(Watched.most, Watched.now)
            await asyncio.sleep(0.001)
            Watched.now -= 1
            return await super().generate(call)

    watched = Watched(ModelConfig(backend=Backend.fake, model="fake"))
    asyncio.run(drive(Chain(), range(30), LocalBackend(watched, Ledger(tmp_path), 3, Counters()), 10))
    assert Watched.most == 3


def test_a_call_that_keeps_failing_becomes_the_rows_failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shard_dist.engines.worker.FIRST_WAIT", 0.0)

    class Broken(FakeEngine):
        async def generate(self, call: Call) -> Completion:
            raise CallFailed("503")

    backend = LocalBackend(Broken(ModelConfig(backend=Backend.fake, model="x")), Ledger(tmp_path), 2, Counters())
    with pytest.raises(CallRefused, match="5 tries failed") as caught:
        asyncio.run(drive(Chain(), [0], backend, 1))
    assert caught.value.reason == "engine_error"
    assert Ledger(tmp_path).stats.entries == 0


def test_rows_of_a_dead_worker_are_first_in_line_again() -> None:
    queue = RowQueue(["a", "b", "c", "d"])
    queue.join("w")
    queue.take("w", 3)
    queue.finish("w", [(1, "B")], {})
    queue.join("w")
    assert list(queue.waiting) == [(0, "a"), (2, "c"), (3, "d")]


def test_rows_that_the_ledger_knows_need_no_engine(tmp_path: Path) -> None:
    spec = ModelConfig(backend=Backend.fake, model="fake")
    role = Role("student", spec, IDENTITY, tmp_path, tmp_path)
    made = LocalBackend(engine(), Ledger(tmp_path), 4, Counters())
    expected = asyncio.run(drive(Chain(), [0, 1], made, 4))
    results, left, counters = run_local(Chain(), [0, 1, 2], [role])
    assert ([results[0], results[1]], left) == (expected, [2])
    assert (counters.calls, counters.hits, counters.made) == (6, 6, 0)


def test_fake_answers_follow_the_schema_and_the_seed() -> None:
    schema = {
        "type": "object",
        "properties": {"verdict": {"enum": ["A", "B"]}, "reason": {"type": "string", "maxLength": 9}},
        "required": ["verdict", "reason"],
    }
    call = Call("m", "f", ({"role": "user", "content": "some words here"},), Sampling(n=3), schema)
    one, two = asyncio.run(engine().generate(call)), asyncio.run(engine().generate(call))
    assert one == two
    assert len(one.texts) == 3
    assert Counter(one.finish_reasons) == {"stop": 3}
