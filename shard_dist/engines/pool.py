"""Ray actors that host engines, and the queue that they pull rows from.

A row's program runs inside the actor of the engine that it calls most; only calls to another role leave the actor, to
the least loaded engine of that role.
"""

from __future__ import annotations

import asyncio
import math
import os
import re
import sys
import traceback
import uuid
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import RayActorError, RayTaskError

from shard_dist import cluster
from shard_dist.config.schema import Backend, ModelConfig
from shard_dist.engines import worker
from shard_dist.engines.protocol import CallRefused, Engine, EngineDied
from shard_dist.engines.worker import Counters, LocalBackend, ModelIdentity, Program, RowAsk
from shard_dist.ledger.store import Ledger
from shard_dist.records import Call, Completion

# An engine process that dies is replaced this often before the run gives up on it.
ENGINE_RESTARTS = 3


@dataclass(frozen=True)
class Role:
    """A model in a role of this run: its settings, its identity, and where its calls are kept."""

    name: str
    spec: ModelConfig
    identity: ModelIdentity
    ledger: Path
    logs: Path


def call_window(spec: ModelConfig) -> int:
    """Calls in flight per engine: 1.1 x its slots keep its batch full while the next requests wait at its door."""
    return spec.window or math.ceil(1.1 * spec.engine_args.get("max_num_seqs", 64))


def gpus_of(spec: ModelConfig) -> float:
    """GPUs of one engine: as set, else what its parallel sizes take where the cluster has any."""
    if spec.gpus is not None:
        return spec.gpus
    if spec.backend != Backend.vllm or not cluster.gpus():
        return 0
    sizes = (spec.engine_args.get(f"{kind}_parallel_size", 1) for kind in ("tensor", "pipeline"))
    return float(math.prod(sizes))


def make_engine(spec: ModelConfig) -> Engine:
    """The engine of a backend; each backend's library is imported only where it is used."""
    if spec.backend == Backend.vllm:
        from shard_dist.engines.vllm_actor import VllmEngine

        return VllmEngine(spec)
    if spec.backend == Backend.http:
        from shard_dist.engines.http import HttpEngine

        return HttpEngine(spec)
    from shard_dist.engines.fake import FakeEngine

    return FakeEngine(spec)


class RowQueue:
    """Rows waiting, rows out at a worker, results not yet collected. A plain class; `open_pool` makes it an actor."""

    def __init__(self, rows: Sequence[Any]) -> None:
        self.waiting = deque(enumerate(rows))
        self.out: dict[str, dict[int, Any]] = {}
        self.results: list[tuple[int, Any]] = []
        self.counters: dict[str, Counters] = {}

    def join(self, name: str) -> None:
        """A worker (re)starts: what its predecessor had out is waiting again, first in line."""
        self.waiting.extendleft(reversed(self.out.pop(name, {}).items()))
        self.out[name] = {}

    def take(self, name: str, most: int) -> list[tuple[int, Any]]:
        rows = [self.waiting.popleft() for _ in range(min(most, len(self.waiting)))]
        self.out[name].update(rows)
        return rows

    def finish(self, name: str, results: list[tuple[int, Any]], counters: dict[str, Counters]) -> None:
        for index, _ in results:
            del self.out[name][index]
        self.results += results
        self.counters.update(counters)

    def collect(self) -> tuple[list[tuple[int, Any]], dict[str, Counters]]:
        """Results since the last call, and every worker life's counters."""
        results, self.results = self.results, []
        return results, self.counters


class RemoteBackend:
    """The pool of another role: the engine with the fewest of our calls in flight, a bounded window each."""

    def __init__(self, actors: list[Any], window: int) -> None:
        self.actors, self.load = actors, [0] * len(actors)
        self.slots = asyncio.Semaphore(window * len(actors))

    async def complete(self, key: str, call: Call) -> Completion:
        async with self.slots:
            index = min(range(len(self.actors)), key=self.load.__getitem__)
            self.load[index] += 1
            try:
                return await self.actors[index].complete.remote(key, call)
            except RayTaskError as error:
                raise error.cause if isinstance(error.cause, CallRefused) else error from None
            finally:
                self.load[index] -= 1


class EngineActor:
    """One engine in one process, with its ledger segment. Becomes a Ray actor in `open_pool`."""

    def __init__(self, role: Role, name: str) -> None:
        self.role, self.name = role, name
        self.life = f"{name}-{uuid.uuid4().hex[:8]}"  # a restarted actor counts anew
        self.counters = Counters()
        self.backend: LocalBackend | None = None
        self.booting = asyncio.Lock()

    async def boot(self) -> str:
        """Load the engine; "" when it serves, else its own error in a few lines."""
        async with self.booting:
            if self.backend is not None:
                return ""
            log = self.role.logs / f"{self.name}.log"
            _redirect_output(log)
            try:
                engine = make_engine(self.role.spec)
                await engine.health()
                ledger = Ledger(self.role.ledger)
            except (Exception, SystemExit) as error:
                traceback.print_exc()
                sys.stderr.flush()
                return boot_error(log, error)
            self.backend = LocalBackend(engine, ledger, call_window(self.role.spec), self.counters)
            return ""

    async def _ready(self) -> LocalBackend:
        fault = await self.boot()
        if fault:
            raise ValueError(fault)
        assert self.backend is not None
        return self.backend

    async def complete(self, key: str, call: Call) -> Completion:
        backend = await self._ready()
        try:
            return await backend.complete(key, call)
        except EngineDied:
            traceback.print_exc()
            os._exit(1)  # Ray starts a new actor and repeats the unfinished calls; the ledger answers finished ones

    async def work(
        self, queue: Any, program: Program, others: dict[str, tuple[list[Any], int]], roles: list[Role]
    ) -> None:
        """Pull rows from the queue and run their programs until it is empty."""
        local = await self._ready()
        backends: dict[str, worker.Backend] = {self.role.name: local}
        backends |= {role: RemoteBackend(actors, window) for role, (actors, window) in others.items()}
        identities = {role.name: role.identity for role in roles}
        await queue.join.remote(self.name)

        async def take(most: int) -> list[tuple[int, Any]]:
            return await queue.take.remote(self.name, most)

        async def finish(results: list[tuple[int, Any]]) -> None:
            await queue.finish.remote(self.name, results, {self.life: self.counters})

        try:
            window = call_window(self.role.spec)
            await worker.work(program, take, finish, lambda: RowAsk(backends, identities), window)
        except EngineDied:
            traceback.print_exc()
            os._exit(1)

    async def count(self) -> tuple[str, Counters, int]:
        """This life's name, its counters, and the torn lines of the ledger that it read."""
        torn = self.backend.ledger.stats.torn_lines if self.backend else 0
        return self.life, self.counters, torn

    async def close(self) -> None:
        if self.backend is not None:
            await self.backend.engine.close()
            self.backend.ledger.close()


def _redirect_output(log: Path) -> None:
    """Everything that this process and its children print goes to `log`: engines talk a lot."""
    log.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    os.close(descriptor)


def boot_error(log: Path, error: BaseException) -> str:
    """The engine's own error: vLLM's parent process only says that its core failed, the reason is in the core's log."""
    if "initialization failed" not in str(error):
        cause = "\n".join(f"{type(error).__name__}: {error}".strip().splitlines()[:6])
        return f"{cause[:1000]}\n(its whole log: {log})"
    text = log.read_text(encoding="utf-8", errors="replace")
    named = re.findall(r"((?:[A-Za-z_]+\.)*[A-Za-z_]*(?:Error|Exception)): (.+)", text)
    causes = [f"{kind}: {reason.strip()}" for kind, reason in named if "initialization failed" not in reason]
    cause = causes[-1] if causes else f"{type(error).__name__}: {error}"
    return f"{cause[:1000]}\n(its whole log: {log})"


@dataclass
class PoolCounts:
    """Sums over every engine of every role, dead lives included."""

    counters: Counters = field(default_factory=Counters)
    torn_lines: int = 0
    engine_restarts: int = 0


class EnginePool:
    """The engines of several roles. Open with `open_pool`; `run` may be called many times."""

    def __init__(self, roles: Sequence[Role]) -> None:
        self.roles = {role.name: role for role in roles}
        self.actors: dict[str, list[Any]] = {}
        self.lives: dict[str, Counters] = {}

    def open(self) -> None:
        """Start every engine, side by side. Raises ValueError with the engine's own error where one does not boot."""
        specs = [role.spec for role in self.roles.values() for _ in range(role.spec.engines)]
        what = "the engines of " + ", ".join(f"models.{role.name}" for role in self.roles.values())
        cluster.require(what, cpus=sum(spec.cpus for spec in specs), gpus=sum(gpus_of(spec) for spec in specs))
        for role in self.roles.values():
            self.actors[role.name] = [_start(role, number) for number in range(role.spec.engines)]
        boots = {actor.boot.remote(): role for role in self.roles.values() for actor in self.actors[role.name]}
        waiting = list(boots)
        limit = max(role.spec.boot_timeout for role in self.roles.values())
        while waiting:
            done, waiting = ray.wait(waiting, timeout=limit)
            if not done:
                raise ValueError(f"models.{boots[waiting[0]].name}: no engine after boot_timeout = {limit} seconds")
            for ref in done:
                try:
                    fault = ray.get(ref)
                except RayActorError as error:
                    fault = f"its process died: {str(error).splitlines()[0]}"
                if fault:
                    raise ValueError(f"models.{boots[ref].name}: the engine does not boot: {fault}")

    def run(
        self, program: Program, rows: Sequence[Any], home: str, progress: Callable[[int, Counters], None]
    ) -> list[Any]:
        """The results of `program` over `rows`, in their order; the programs run in the engines of role `home`."""
        queue: Any = ray.remote(num_cpus=0)(RowQueue).remote(list(rows))
        others = {
            name: (actors, call_window(self.roles[name].spec)) for name, actors in self.actors.items() if name != home
        }
        tasks = [actor.work.remote(queue, program, others, list(self.roles.values())) for actor in self.actors[home]]
        results: dict[int, Any] = {}
        try:
            while tasks or len(results) < len(rows):
                done, tasks = ray.wait(tasks, timeout=0.5) if tasks else ([], [])
                for task in done:
                    _raise_plainly(task, home, self.roles[home].logs)
                fresh, lives = ray.get(queue.collect.remote())
                results.update(fresh)
                self.lives.update(lives)
                progress(len(results), self._sum())
                assert tasks or len(results) == len(rows), "workers ended with rows left"
        finally:
            ray.kill(queue)
        return [results[index] for index in range(len(rows))]

    def _sum(self) -> Counters:
        total = Counters()
        for counters in self.lives.values():
            total.add(counters)
        return total

    def counts(self) -> PoolCounts:
        actors = [actor for group in self.actors.values() for actor in group]
        torn = 0
        for life, counters, lines in ray.get([actor.count.remote() for actor in actors]):
            self.lives[life] = counters
            torn = max(torn, lines)
        return PoolCounts(self._sum(), torn, len(self.lives) - len(actors))

    def close(self) -> None:
        """Shut the engines down: politely first, so that their processes leave nothing behind."""
        actors = [actor for group in self.actors.values() for actor in group]
        ray.wait([actor.close.remote() for actor in actors], num_returns=len(actors), timeout=30)
        for actor in actors:
            ray.kill(actor)
        self.actors = {}

    def __enter__(self) -> EnginePool:
        try:
            self.open()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


def _start(role: Role, number: int) -> Any:
    spec = role.spec
    options: dict[str, Any] = {
        "num_cpus": spec.cpus,
        "num_gpus": gpus_of(spec),
        "max_restarts": ENGINE_RESTARTS,
        "max_task_retries": ENGINE_RESTARTS,
        "max_concurrency": 10_000,  # async calls in flight; the window bounds them, not Ray
        "runtime_env": {"env_vars": {"VLLM_NO_USAGE_STATS": "1", "TOKENIZERS_PARALLELISM": "false", **spec.env}},
    }
    name = f"{role.name}-{number}"
    return ray.remote(**options)(EngineActor).remote(role, name)


def _raise_plainly(task: Any, home: str, logs: Path) -> None:
    try:
        ray.get(task)
    except RayTaskError as error:
        cause = error.cause
        raise (cause if isinstance(cause, ValueError) else error) from None
    except RayActorError as error:
        raise ValueError(
            f"models.{home}: an engine died {ENGINE_RESTARTS + 1} times; finished calls are kept; log in {logs}: "
            f"{str(error).splitlines()[0]}"
        ) from None
