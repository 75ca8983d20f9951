"""Calls from one engine's process to the engines of another role: a judge beside a student, a teacher behind HTTP.

Calls leave in batches and answers stream back as they are ready. A call goes to the engine that has its prefix in the
cache while that one is not much fuller than the emptiest; what an engine had when it died goes to another.
"""

from __future__ import annotations

import asyncio
import heapq
import itertools
from collections import deque
from dataclasses import dataclass
from typing import Any

from ray.exceptions import RayActorError, RayTaskError

from shard_dist.artefacts import value_hash
from shard_dist.engines.protocol import CallRefused, EngineDied
from shard_dist.engines.queue import DEATHS
from shard_dist.engines.worker import RowState
from shard_dist.records import Call, Completion

GATHER = 0.002  # seconds that a call waits for company: about what a message costs


@dataclass
class _Letter:
    key: str
    call: Call
    rank: int
    answer: asyncio.Future[Completion]
    deaths: int = 0


class RemoteBackend:
    """The engines of `role`, each with at most its window of our calls. The driver says which engines there are."""

    def __init__(self, role: str) -> None:
        self.role = role
        self.engines: dict[str, tuple[Any, int]] = {}  # life -> actor, window
        self.load: dict[str, int] = {}
        self.box: list[tuple[int, int, _Letter]] = []  # lowest rank first, then the earliest
        self.suspects: deque[_Letter] = deque()  # at work when an engine died: one at a time per engine from then on
        self.on_trial: set[str] = set()
        self.numbers = itertools.count()
        self.pumping: asyncio.TimerHandle | None = None
        self.streams: set[asyncio.Task[None]] = set()

    def set_engines(self, engines: dict[str, tuple[Any, int]]) -> None:
        self.engines = engines
        self.load = {name: self.load.get(name, 0) for name in engines}
        self._pump_soon()

    async def complete(self, key: str, call: Call, row: RowState) -> Completion:
        known = row.known.get(key)
        if known is not None:
            return known
        if row.refused:
            raise CallRefused("quarantined", row.refused)
        letter = _Letter(key, call, row.depth, asyncio.get_running_loop().create_future())
        row.inside += 1
        try:
            self._post(letter)
            return await letter.answer
        finally:
            row.inside -= 1

    def _post(self, letter: _Letter) -> None:
        heapq.heappush(self.box, (letter.rank, next(self.numbers), letter))
        self._pump_soon()

    def _pump_soon(self) -> None:
        if self.pumping is None:
            self.pumping = asyncio.get_event_loop().call_later(GATHER, self._pump)

    def _pump(self) -> None:
        """Send what there is room for, one batch per engine, and one suspect to each that has none."""
        self.pumping = None
        for name in [name for name in self.load if name not in self.on_trial][: len(self.suspects)]:
            self.on_trial.add(name)
            self.load[name] += 1
            self._send(name, [self.suspects.popleft()])
        batches: dict[str, list[_Letter]] = {}
        while self.box and any(self._room(name) for name in self.load):
            letter = heapq.heappop(self.box)[2]
            if not letter.answer.done():
                name = self._choose(letter)
                self.load[name] += 1
                batches.setdefault(name, []).append(letter)
        for name, letters in batches.items():
            self._send(name, letters)

    def _send(self, name: str, letters: list[_Letter]) -> None:
        task = asyncio.ensure_future(self._stream(name, letters))
        self.streams.add(task)
        task.add_done_callback(self.streams.discard)

    def _choose(self, letter: _Letter) -> str:
        prefix = letter.call.messages[0]["content"]
        at_home = max(self.load, key=lambda name: value_hash([prefix, name]))
        least = min(filter(self._room, self.load), key=self.load.__getitem__)
        near = self.load[at_home] <= self.load[least] + self.engines[at_home][1] // 4
        return at_home if near and self._room(at_home) else least

    def _room(self, name: str) -> bool:
        return self.load[name] < self.engines[name][1]

    async def _stream(self, name: str, letters: list[_Letter]) -> None:
        """One batch at one engine. Its death sends the unanswered calls elsewhere; its other errors are theirs."""
        engine, waiting = self.engines[name][0], dict(enumerate(letters))
        # A suspect goes before all others, so that it is at work for a short time only.
        batch = [(letter.key, letter.call, -1 if letter.deaths else letter.rank) for letter in letters]
        try:
            async for ref in engine.complete_many.options(num_returns="streaming").remote(batch):
                for number, outcome in await ref:
                    self._settle(name, waiting.pop(number), outcome)
        except (RayActorError, RayTaskError) as error:
            cause = error.cause if isinstance(error, RayTaskError) else EngineDied(str(error).splitlines()[0])
            if isinstance(cause, EngineDied):
                self.engines.pop(name, None)
                self.load.pop(name, None)
            for letter in waiting.values():
                self._after_death(name, letter, cause)
        if letters[0].deaths:
            self.on_trial.discard(name)
        self._pump_soon()

    def _settle(self, name: str, letter: _Letter, outcome: Completion | Exception) -> None:
        if name in self.load:
            self.load[name] -= 1
        if letter.answer.done():
            return
        if isinstance(outcome, Completion):
            letter.answer.set_result(outcome)
        else:
            letter.answer.set_exception(outcome)

    def _after_death(self, name: str, letter: _Letter, cause: Exception) -> None:
        letter.deaths += 1
        if not isinstance(cause, EngineDied):
            self._settle(name, letter, cause)
        elif letter.deaths >= DEATHS:
            why = f"{letter.deaths} engines of {self.role} died with this call at work; the last: {cause}"
            self._settle(name, letter, CallRefused("quarantined", why))
        else:
            self.suspects.append(letter)
