"""Row programs on one event loop, beside the engine that they call most. No Ray here: the same code runs in a test.

A row's calls run as its program wants them; rows never wait for each other. Every call goes through the ledger.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from shard_dist.engines.protocol import CallFailed, CallRefused, Engine
from shard_dist.ledger.key import call_key
from shard_dist.ledger.store import Ledger
from shard_dist.records import Call, Completion, Message, Sampling

# Tries of a call that fails for a passing reason, and the first wait in seconds (doubled each time, with jitter).
ATTEMPTS, FIRST_WAIT = 5, 0.2


@dataclass(frozen=True)
class ModelIdentity:
    """What of a model goes into a call's key."""

    model: str
    fingerprint: str


@dataclass
class Counters:
    """`calls` asked for, `made` sent to an engine, `hits` answered by the ledger; tokens are of calls made."""

    calls: int = 0
    made: int = 0
    hits: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0

    def add(self, other: Counters) -> None:
        for name, value in vars(other).items():
            setattr(self, name, getattr(self, name) + value)


class Backend(Protocol):
    """Where a role's calls go: an engine in this process, or the pool of another role."""

    async def complete(self, key: str, call: Call) -> Completion: ...


class LocalBackend:
    """This process's engine behind the ledger: at most `window` calls in flight, equal calls in flight made once."""

    def __init__(self, engine: Engine, ledger: Ledger, window: int, counters: Counters) -> None:
        self.engine, self.ledger, self.counters = engine, ledger, counters
        self.slots = asyncio.Semaphore(window)
        self.pending: dict[str, asyncio.Future[Completion]] = {}

    async def complete(self, key: str, call: Call) -> Completion:
        self.counters.calls += 1
        known = self.ledger.get(key)
        if known is not None:
            self.counters.hits += 1
            return known
        if key in self.pending:
            self.counters.hits += 1  # another row asks the same at this moment
        else:
            self.pending[key] = asyncio.ensure_future(self._make(key, call))
        return await asyncio.shield(self.pending[key])

    async def _make(self, key: str, call: Call) -> Completion:
        try:
            async with self.slots:
                completion = await self._with_retries(call)
            self.ledger.append(key, call, completion)
        finally:
            del self.pending[key]
        self.counters.made += 1
        self.counters.prompt_tokens += completion.prompt_tokens
        self.counters.completion_tokens += completion.completion_tokens
        return completion

    async def _with_retries(self, call: Call) -> Completion:
        for attempt in range(ATTEMPTS):
            try:
                return await self.engine.generate(call)
            except CallFailed as error:
                if attempt == ATTEMPTS - 1:
                    raise CallRefused("engine_error", f"{ATTEMPTS} tries failed; the last: {error}") from error
                await asyncio.sleep(FIRST_WAIT * 2**attempt * (1 + random.random()))
        raise AssertionError("unreachable")


class RowAsk:
    """The `Ask` of one row over the backends of its roles."""

    def __init__(self, backends: dict[str, Backend], identities: dict[str, ModelIdentity]) -> None:
        self.backends, self.identities = backends, identities
        self.calls: dict[str, list[str]] = {}

    async def __call__(
        self,
        role: str,
        step: str,
        messages: tuple[Message, ...],
        sampling: Sampling,
        schema: dict[str, Any] | None = None,
    ) -> Completion:
        identity = self.identities[role]
        call = Call(identity.model, identity.fingerprint, messages, sampling, schema)
        key = call_key(call)
        self.calls.setdefault(step, []).append(key)
        return await self.backends[role].complete(key, call)


class Program(Protocol):
    """An async program over one row; picklable, so that it can travel to the engine."""

    async def __call__(self, row: Any, ask: RowAsk) -> Any: ...


Take = Callable[[int], Awaitable[Sequence[tuple[int, Any]]]]
Finish = Callable[[list[tuple[int, Any]]], Awaitable[None]]


async def work(program: Program, take: Take, finish: Finish, new_ask: Callable[[], RowAsk], window: int) -> None:
    """Run rows until `take` has none left, `window` at a time, handing results over as they come.

    The first exception of a program that is no row's own failure cancels the rest and is raised.
    """
    running: dict[asyncio.Task[Any], int] = {}
    exhausted = False
    try:
        while running or not exhausted:
            if not exhausted and len(running) < window:
                rows = await take(window - len(running))
                exhausted = not rows
                running.update({asyncio.ensure_future(program(row, new_ask())): index for index, row in rows})
                if not running:
                    continue
            done, _ = await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
            await finish([(running.pop(task), task.result()) for task in done])
    finally:
        for task in running:
            task.cancel()
