"""Generation over many nodes as a discrete-event simulation around the real row queue. Seconds, from the stage's start.

The queue is `engines/queue.py` itself under the simulation's clock: who gets which rows, give-backs, hedges, deaths.
What it costs, what the driver costs and how long processes take to start are measured (node_costs.py, node_runs.py).
Engines decode in steps whose time grows with the batch; a call joins the batch after a prefill that stalls the engine.

Large runs are coarse: `grain` real rows and slots are one here, and what is serial is charged `grain` times.
"""

from __future__ import annotations

import heapq
import math
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from schedule import DRAFT, REFRAME, REWRITE, Row

from shard_dist.engines.pool import LOOK
from shard_dist.engines.queue import Lease, Reply, RowQueue
from shard_dist.engines.rows import ListRows
from shard_dist.engines.worker import OPEN_WINDOWS, TALK

Action = Callable[[], None]
TINY = 1e-9  # of a step: rounding


@dataclass(frozen=True)
class Machines:
    """One kind of engine on nodes of one kind. Seconds, bytes and bytes per second."""

    engines_per_node: int
    slots: int
    step: float  # of decoding with an empty batch: the weights are read
    step_per_call: float = 0.0  # more per call in the batch: its KV cache is read
    prefill: float = 0.0  # of the whole engine, per call
    boot: float = 0.0  # once its weights are there
    weights: float = 0.0  # bytes, read once per node
    boots_per_node: float = 2.0  # that may load at once, over the whole cluster
    storage: float = math.inf  # bytes per second of the shared file system, all nodes together
    storage_per_node: float = math.inf
    writes: float = math.inf  # appends per second that it takes
    repair: float = 600.0  # until a lost node is back


@dataclass(frozen=True)
class Costs:
    """What is measured of our own code and Ray. Seconds."""

    start: float  # from asking for an engine's process until it loads
    begin: float  # of a run: the queue's process starts
    call: float  # more per call than the engine takes
    talk: float  # of the queue, per talk
    talk_per_engine: float
    row: float  # of the queue, per row
    row_per_engine: float
    watch: float  # of the driver per look and engine
    notice: float  # from a node's death until the driver knows
    end: float  # from the last row until its end is noticed
    end_per_row: float  # of the driver: from the spool to the table of records
    line: float = 1_640.0  # bytes of a call in the ledger


@dataclass(eq=False)
class _Open:
    """A row that an engine has open."""

    lease: Lease
    depth: int = 0
    missing: int = 2
    inside: int = 0

    @property
    def index(self) -> int:
        return self.lease.index


@dataclass
class Result:
    """Seconds until the first engine was up, the first row began, the last row ended, the stage was over; what it took.

    `queue_busy`: share of the time that the queue's process works, until the last row ends.
    """

    first: float
    begun: float
    rows: float
    whole: float
    tokens: int
    talks: int
    given_back: int
    rerun_calls: int
    queue_busy: float
    decoding: float  # share of all slots and of the time in which a call decodes


class Engine:
    """A batch in virtual time: `done` counts decoding steps, whose length depends on how many calls share them."""

    def __init__(self, run: Generation, name: str, node: int) -> None:
        self.run, self.name, self.node = run, name, node
        self.slots = max(1, round(run.machines.slots / run.grain))
        self.window = math.ceil(1.1 * self.slots)
        self.most = OPEN_WINDOWS * self.window
        self.alive, self.waiting, self.version, self.talked = True, False, 0, 0.0
        self.latency = 0.0
        self.finished: list[int] = []
        self.rows: dict[int, _Open] = {}
        self.door: list[tuple[int, int, _Open, int]] = []  # rank, number, row, kind
        self.queued: deque[tuple[_Open, int]] = deque()  # in the engine, behind its slots
        self.batch: list[tuple[float, int, _Open, int]] = []  # last step, number, row, kind
        self.done = self.at = self.area = 0.0

    # -- the batch

    @property
    def step(self) -> float:
        return self.run.machines.step + self.run.machines.step_per_call * len(self.batch) * self.run.grain

    def _advance(self) -> None:
        now = self.run.now
        if now > self.at:
            self.done += (now - self.at) / self.step
            self.area += (now - self.at) * len(self.batch)
            self.at = now

    def fill(self) -> None:
        """Calls through the door and into the batch; when the next one will end."""
        self._advance()
        while len(self.batch) + len(self.queued) < self.window and self.door:
            _, _, row, kind = heapq.heappop(self.door)
            if self.rows.get(row.index) is row:  # else it was given back meanwhile
                row.inside += 1
                self.queued.append((row, kind))
        while len(self.batch) < self.slots and self.queued:
            row, kind = self.queued.popleft()
            steps = self.run.rows[row.index][kind] + self.run.costs.call / self.step
            heapq.heappush(self.batch, (self.done + steps, next(self.run.numbers), row, kind))
            self.at += self.run.machines.prefill * self.run.grain  # nobody decodes meanwhile
        self.version += 1
        if self.batch:
            version, end = self.version, self.at + (self.batch[0][0] - self.done) * self.step
            self.run.later(end, lambda: self._ends(version))

    def _ends(self, version: int) -> None:
        if version != self.version or not self.alive:
            return
        self._advance()
        while self.batch and self.batch[0][0] <= self.done + TINY * max(1.0, self.done):
            _, _, row, kind = heapq.heappop(self.batch)
            self.run.written(self, row, kind)
        self.fill()

    # -- the rows

    def start(self, lease: Lease) -> None:
        row = self.rows[lease.index] = _Open(lease)
        ended = self.run.ledger.get(lease.index, 0)  # calls that another engine has finished
        known = {kind for kind in (REWRITE, DRAFT) if ended >> kind & 1}
        row.depth, row.missing = len(known), 2 - len(known)
        for kind in (DRAFT, REWRITE):
            if kind not in known:
                self._knock(row, kind)
        if not row.missing:
            self._knock(row, REFRAME)

    def _knock(self, row: _Open, kind: int) -> None:
        heapq.heappush(self.door, (row.depth, next(self.run.numbers), row, kind))

    def call_ended(self, row: _Open, kind: int) -> None:
        """The answer is in the ledger, and its row goes on."""
        if self.rows.get(row.index) is not row or not self.alive:
            return
        row.inside -= 1
        row.depth += 1
        if kind == REFRAME:
            del self.rows[row.index]
            self.finished.append(row.index)
            self._stir()
            return
        row.missing -= 1
        if not row.missing:
            self._knock(row, REFRAME)

    def hear_answer(self, row: _Open, kind: int) -> None:
        self.call_ended(row, kind)
        self.fill()

    def drop(self, index: int) -> None:
        row = self.rows.pop(index, None)
        if row is not None:
            self._advance()
            self.batch = [call for call in self.batch if call[2] is not row]
            heapq.heapify(self.batch)
            self.queued = deque(call for call in self.queued if call[0] is not row)

    # -- talking to the queue, as engines/worker.py does

    def _stir(self) -> None:
        if self.waiting:
            self.waiting = False
            self._talk_in(TALK if len(self.rows) > self.most // 4 else 0.0)

    def _talk_in(self, seconds: float, returned: Sequence[Lease] = ()) -> None:
        self.run.later(self.run.now + seconds, lambda: self.talk(list(returned)))

    def talk(self, returned: list[Lease]) -> None:
        if not self.alive:
            return
        finished, self.finished = self.finished, []
        reply, at = self.run.exchange(self, finished, returned, self.most - len(self.rows))
        self.latency = at - self.run.now
        self.run.later(at, lambda: self.hear(reply))

    def hear(self, reply: Reply) -> None:
        if not self.alive:
            return
        for index in reply.drop:
            self.drop(index)
        idle = sorted((row.depth, index) for index, row in self.rows.items() if not row.inside)[: reply.give_back]
        returned = [self.rows.pop(index).lease for _, index in idle]
        self.run.given_back += len(returned)
        for lease in reply.leases:
            self.start(lease)
        self.fill()
        if reply.over:
            self.alive = False
        elif returned:
            self._talk_in(0.0, returned)
        elif self.finished:
            self._talk_in(TALK if len(self.rows) > self.most // 4 else 0.0)
        else:
            self.waiting = True
            self.version_of_poll = poll = next(self.run.numbers)
            self.run.later(self.run.now + self.run.idle, lambda: self._poll(poll))

    def _poll(self, poll: int) -> None:
        if self.waiting and self.version_of_poll == poll:
            self._stir()


class Generation:
    """One stage over `rows` (tokens of rewrite, draft and answer) on so many nodes."""

    def __init__(
        self, rows: Sequence[Row], nodes: int, machines: Machines, costs: Costs, grain: float = 1.0,
        up: Sequence[float] = (), lose: float = math.inf,
    ) -> None:  # fmt: skip
        """`up`: when each engine was up where that is known, on the nodes in turn; `lose`: when a node is lost."""
        self.rows, self.nodes, self.machines, self.costs, self.grain = rows, nodes, machines, costs, grain
        self.now = self.free = self.stored = self.busy = 0.0
        self.events: list[tuple[float, int, Action]] = []
        self.numbers = iter(range(1 << 62))
        self.queue = RowQueue(ListRows(rows), np.arange(len(rows)), clock=lambda: self.now)
        self.size, self.up = len(up) or nodes * machines.engines_per_node, up
        self.engines: dict[str, Engine] = {}
        # Ray spreads them: eight engines on three nodes were 3, 3 and 2.
        self.to_boot = deque(() if up else (number % nodes for number in range(self.size)))
        self.loading, self.read = 0, dict[int, float]()
        self.ledger: dict[int, int] = {}  # row -> its finished calls, as bits
        self.talks = self.given_back = self.rerun = self.lives = 0
        self.first = self.begun = self.area = 0.0
        # A poll stands for several where many engines idle, or rows stand for several.
        self.idle = 4 * TALK * max(1.0, self.size / 64, grain / 4)
        self.lose = lose

    def later(self, time: float, action: Action) -> None:
        heapq.heappush(self.events, (time, next(self.numbers), action))

    def simulate(self) -> Result:
        self._boot_some()
        for number, time in enumerate(self.up):
            self.later(time, lambda node=number % self.nodes: self._booted(node))
        if self.lose < math.inf:
            self.later(self.lose, lambda: self._fail(0))
        costs = self.costs
        while self.queue.done < self.queue.total:
            self.now, _, action = heapq.heappop(self.events)
            action()
        last = self.now
        for engine in self.engines.values():
            self.area += engine.area / engine.slots
        return Result(
            first=self.first,
            begun=self.begun,
            rows=last,
            whole=last + costs.end + costs.end_per_row * len(self.rows) * self.grain,
            tokens=round(sum(map(sum, self.rows)) * self.grain),
            talks=self.talks,
            given_back=self.given_back,
            rerun_calls=self.rerun,
            queue_busy=self.busy / last,
            decoding=self.area / self.size / last,
        )

    # -- boots

    def _boot_some(self) -> None:
        while self.to_boot and self.loading < max(1.0, self.machines.boots_per_node * self.nodes):
            node = self.to_boot.popleft()
            self.loading += 1
            read = self._read_weights(node, self.now + self.costs.start)
            self.later(read + self.machines.boot, lambda node=node: self._booted(node))

    def _read_weights(self, node: int, begin: float) -> float:
        """When the weights are there: read once per node, the others of a node find them in its page cache."""
        if node not in self.read:
            self.stored = max(self.stored, begin) + self.machines.weights / self.machines.storage
            self.read[node] = max(self.stored, begin + self.machines.weights / self.machines.storage_per_node)
        return max(begin, self.read[node])

    def _booted(self, node: int) -> None:
        """The driver sees it at its next look; the first engine also waits for the queue's process."""
        self.loading -= not self.up
        self.lives += 1
        engine = Engine(self, f"engine-{self.lives}", node)
        self.first = self.first or self.now
        look = LOOK / 2 + self.costs.watch * len(self.engines)
        begin = max(self.now + look, self.first + self.costs.begin)
        self.later(begin, lambda: self._join(engine))
        self._boot_some()

    def _join(self, engine: Engine) -> None:
        self.engines[engine.name] = engine
        self.begun = self.begun or self.now
        self.queue.join(engine.name, engine.window)
        engine.at = self.now
        engine.talk([])

    # -- what is shared

    def exchange(self, engine: Engine, finished: list[int], returned: list[Lease], room: int) -> tuple[Reply, float]:
        """The queue's reply, and when it is there: one talk after the other."""
        costs, joined = self.costs, len(self.engines)
        reply = self.queue.exchange(engine.name, finished, returned, room)
        talks = 1.0
        if self.grain > 1:  # as many as there would be, at most one per row
            since = self.now - engine.talked
            talks = min(1 + self.grain * len(finished), 1 + since / (TALK + engine.latency))
        elif not finished and not reply.leases and not returned:
            talks = self.idle / (4 * TALK)
        engine.talked = self.now
        moved = self.grain * (len(finished) + len(reply.leases)) / 2
        service = talks * (costs.talk + costs.talk_per_engine * joined)
        service += moved * (costs.row + costs.row_per_engine * joined)
        self.free = max(self.free, self.now) + service
        self.talks += round(talks)
        self.busy += service
        return reply, self.free

    def written(self, engine: Engine, row: _Open, kind: int) -> None:
        """A call's line goes to the ledger; its row waits where the file system does not keep up."""
        machines = self.machines
        before = self.ledger.get(row.index, 0)
        self.rerun += before >> kind & 1
        self.ledger[row.index] = before | 1 << kind
        self.stored = max(self.stored, self.now)
        self.stored += self.grain * max(self.costs.line / machines.storage, 1 / machines.writes)
        if self.stored > self.now + LOOK:
            self.later(self.stored, lambda: engine.hear_answer(row, kind))
        else:
            engine.call_ended(row, kind)

    # -- failures

    def _fail(self, node: int) -> None:
        lost = [engine for engine in self.engines.values() if engine.node == node and engine.alive]
        for engine in lost:
            engine.alive = False
        self.later(self.now + self.costs.notice, lambda: self._mourn(lost))
        if not self.up:
            self.later(self.now + self.machines.repair, lambda: self._repaired(node, len(lost)))

    def _mourn(self, lost: list[Engine]) -> None:
        for engine in lost:
            self.queue.leave(engine.name, False, "")
            self.area += self.engines.pop(engine.name).area / engine.slots

    def _repaired(self, node: int, engines: int) -> None:
        self.read.pop(node, None)
        self.to_boot.extend([node] * engines)
        self._boot_some()


def simulate(rows: Sequence[Row], nodes: int, machines: Machines, costs: Costs, **more: Any) -> Result:
    return Generation(rows, nodes, machines, costs, **more).simulate()
