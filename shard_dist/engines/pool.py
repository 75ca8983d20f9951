"""Row programs over many rows and engines: the driver's side. Tokens never come here, only counts and indices do.

A row's program runs inside the actor of the engine that it calls most; only calls to another role leave the actor.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import RayActorError, RayTaskError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from shard_dist.config.cluster import ClusterConfig
from shard_dist.engines.actor import Job
from shard_dist.engines.fleet import Death, Fleet, Life
from shard_dist.engines.probe import calls_around
from shard_dist.engines.protocol import EngineDied
from shard_dist.engines.queue import RowQueue, Status
from shard_dist.engines.rows import ListRows, Rows
from shard_dist.engines.spool import Spool
from shard_dist.engines.telemetry import Telemetry
from shard_dist.engines.turns import AskOnce, Refusals, put_off
from shard_dist.engines.worker import Counters, Program, Role
from shard_dist.records import Call

LOOK = 0.2  # seconds between looks at the queue
LAST_WORDS = 10.0  # seconds that workers get to end once all rows are done


@dataclass
class PoolCounts:
    """Sums over every engine of every role, dead lives included."""

    counters: Counters = field(default_factory=Counters)
    torn_lines: int = 0
    engine_restarts: int = 0


def plain(value: Any) -> Any:
    """The encoding of results that are plain JSON already."""
    return value


class EnginePool:
    """The engines of several roles, as a context: it boots them and shuts them down. `run` may be called many times."""

    def __init__(self, roles: Sequence[Role], settings: ClusterConfig, telemetry: Telemetry) -> None:
        self.telemetry = telemetry
        self.fleet = Fleet(roles, settings, telemetry)

    def __enter__(self) -> EnginePool:
        try:
            self.fleet.place()
            if self.fleet.plan.side_by_side:
                self.fleet.open(self.fleet.roles)
        except BaseException:
            self.fleet.shut_down()
            raise
        return self

    def __exit__(self, *exc: object) -> None:
        self.fleet.shut_down()

    def check(self, program: Program, empty: Any) -> None:
        """Raise ValueError where a model that has engines now cannot take a call around the row `empty`.

        It exceeds its context, or is of a kind that such a model does not answer.
        """
        identities = {name: role.identity for name, role in self.fleet.roles.items()}
        for role, calls in calls_around(program, empty, identities).items():
            if fault := self._unfit(role, calls):
                raise ValueError(
                    f"models.{role}: the context is too short for the templates of {self.telemetry.stage}, even around "
                    f"an empty row: {fault}; shorten them, lower max_tokens, or raise max_model_len"
                )

    def _unfit(self, role: str, calls: Sequence[Call]) -> str:
        """What keeps an engine from taking these calls; "" where none is left that could tell."""
        for life in self.fleet.ready(role):
            try:
                fault: str = ray.get(life.actor.fits.remote(calls))
                return fault
            except RayTaskError as error:
                if isinstance(error.cause, ValueError):
                    raise ValueError(f"models.{role}: {error.cause}") from None
                if not isinstance(error.cause, EngineDied):
                    raise
            except RayActorError:
                continue  # it died since it booted: that is for the next tick to see, and another's to tell
        return ""

    def run(
        self,
        program: Program,
        rows: Rows,
        home: str,
        spool: Path,
        progress: Callable[[int], None],
        encode: Callable[[Any], Any] = plain,
    ) -> None:
        """Run `program` over the rows that have no result in `spool`, in the engines of role `home`.

        `progress` hears the rows done so far, those found done included. Raises ValueError for what a person can put
        right; whatever has been finished until then is kept.
        """
        job = Job(program, rows, spool, encode)
        if self.fleet.plan.side_by_side:
            self._work(job, home, progress)
            return
        job = replace(job, absent=spool.with_name(f"{spool.name} put off"))
        assert job.absent
        while len(Spool(spool, len(rows)).missing):
            shutil.rmtree(job.absent, ignore_errors=True)
            self._turn(home)
            self._work(job, home, progress)
            for role in self.fleet.roles:
                calls = put_off(job.absent, self.fleet.roles[role].identity)
                if role != home and calls:
                    self._turn(role)
                    job.refusals.update(self._answer(role, calls, job.absent))

    def _turn(self, role: str) -> None:
        """The cluster is this role's now."""
        if not self.fleet.ready(role):
            self.fleet.shut_down()
            self.fleet.open([role])

    def _answer(self, role: str, calls: list[Call], directory: Path) -> Refusals:
        """Have the ledger know these calls; what the role refused."""
        answers = directory / role
        self._work(Job(AskOnce(role), ListRows(calls), answers, plain), role, lambda done: None)
        outcomes = Spool(answers, len(calls)).ordered()
        return {each["key"]: tuple(each["refused"]) for each in outcomes if each["refused"]}

    def _work(self, job: Job, home: str, progress: Callable[[int], None]) -> None:
        total = len(job.rows)
        missing = Spool(job.spool, total).missing
        self.telemetry.begin(job.spool.name, total, total - len(missing))
        if not len(missing):
            return
        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
        options: dict[str, Any] = {"num_cpus": 0, "scheduling_strategy": here}
        queue: Any = ray.remote(**options)(RowQueue).remote(job.rows, missing)
        shift = _Shift(self.fleet, queue, job, home)
        try:
            while True:
                status = shift.step()
                done = total - len(missing) + status.done
                self.telemetry.rows(done)
                progress(done)
                if status.done == len(missing):
                    break
            shift.end()
        finally:
            ray.kill(queue)

    def counts(self) -> PoolCounts:
        self.fleet.refresh()
        counters, torn = self.fleet.counts()
        return PoolCounts(counters, torn, self.fleet.replaced)


class _Shift:
    """One run: which engines of the home role work on its queue."""

    def __init__(self, fleet: Fleet, queue: Any, job: Job, home: str) -> None:
        self.fleet, self.queue, self.job, self.home = fleet, queue, job, home
        self.at_work: dict[str, tuple[Life, Any]] = {}  # life -> the reference of its work

    def step(self) -> Status:
        """Look once: deaths, new engines, ended work, the queue; grow or shrink."""
        self._mourn(self.fleet.tick())
        for life in self.fleet.ready(self.home):
            if life.life not in self.at_work:
                ray.get(self.queue.join.remote(life.life, life.window))
                self.at_work[life.life] = (life, life.actor.work.remote(self.queue, self.job))
        self.fleet.wait(LOOK, *(work for _, work in self.at_work.values()))
        self._read_work()
        status: Status = ray.get(self.queue.status.remote())
        for kind, worker, detail in status.events:
            self.fleet.telemetry.event(kind, worker.rpartition("-")[0], detail)
            self.fleet.barren[self.home] = 0  # a quarantined row is an advance too
        if status.waiting:
            self.fleet.grow(self.home)
        for role in self.fleet.roles:
            for life in self.fleet.shrink(role) if role != self.home or not status.waiting else ():
                self._leave(life, suspicious=False, why="shut down")
        return status

    def _read_work(self) -> None:
        for life, work in list(self.at_work.values()):
            if not ray.wait([work], timeout=0)[0]:
                continue
            try:
                ray.get(work)
            except RayTaskError as error:
                if not isinstance(error.cause, EngineDied):
                    raise (error.cause if isinstance(error.cause, ValueError) else error) from None
                self.fleet.bury(life, "died", str(error.cause), suspicious=True)
            except RayActorError as error:
                self.fleet.bury(life, "died", str(error).splitlines()[0], suspicious=True)
            self._mourn(self.fleet.tick())

    def _mourn(self, deaths: list[Death]) -> None:
        for death in deaths:
            self._leave(death.life, suspicious=death.suspicious, why=death.why)

    def _leave(self, life: Life, *, suspicious: bool, why: str) -> None:
        if self.at_work.pop(life.life, None):
            ray.get(self.queue.leave.remote(life.life, suspicious, why))

    def end(self) -> None:
        """All rows are done: workers notice it at their next talk, and copies of rows are dropped."""
        limit = time.monotonic() + LAST_WORDS
        for _, work in self.at_work.values():
            ray.wait([work], timeout=max(0.0, limit - time.monotonic()))
