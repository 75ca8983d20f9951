"""The engines of some roles as processes: placed, booted a few at a time, watched, replaced, grown and shrunk.

Ray's own restarts are off (`max_restarts=0`): who died of what decides what becomes of its rows, so a death comes home
to the driver, which starts a new life. Nothing here waits: `tick` looks at what has happened and returns.
"""

from __future__ import annotations

import time
import uuid
from collections import defaultdict, deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import ray
from ray.exceptions import RayActorError, RayTaskError
from ray.util.placement_group import PlacementGroup, placement_group, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from shard_dist import cluster
from shard_dist.config.cluster import ClusterConfig
from shard_dist.config.schema import Backend
from shard_dist.engines.actor import EngineActor, Pulse
from shard_dist.engines.placement import Node, Plan, plan
from shard_dist.engines.protocol import EngineStats
from shard_dist.engines.telemetry import Telemetry
from shard_dist.engines.worker import Counters, Role

BEAT = 1.0  # seconds between pulses
IDLE = 60.0  # an engine above the least number that has had nothing to do for so long is shut down
UNPLACED = 30.0  # seconds that an engine of growth may wait for its place: others may have been faster


@dataclass
class Life:
    """One life of an engine; `name` is of the engine, `life` of this process of it."""

    role: Role
    name: str
    life: str
    actor: Any
    group: PlacementGroup
    attempt: int
    grown: bool
    boot: Any  # the reference of its boot
    where: Any  # and of its node
    since: float = field(default_factory=time.monotonic)
    ready: bool = False
    window: int = 0  # calls in flight that keep it full
    node: str = ""
    beat: Any = None  # the pulse that is under way
    asked: float = 0.0
    pulse: Pulse | None = None
    moved: float = field(default_factory=time.monotonic)  # when its pulse last showed an advance
    busy: float = field(default_factory=time.monotonic)  # when it last had something to do


@dataclass(frozen=True)
class Death:
    """A life that ended unasked. `suspicious`: by itself, so that a row may be the cause."""

    life: Life
    kind: str
    why: str
    suspicious: bool


class Fleet:
    """Open it, `tick` it, close it. Raises ValueError where a role can have no engine, with the engine's own words."""

    def __init__(self, roles: Sequence[Role], settings: ClusterConfig, telemetry: Telemetry) -> None:
        self.roles, self.settings, self.telemetry = {role.name: role for role in roles}, settings, telemetry
        self.plan = Plan(True, {})
        self.lives: list[Life] = []
        self.to_start: deque[tuple[Role, str, int, bool]] = deque()  # role, engine, attempt, grown
        self.deaths: list[Death] = []
        self.barren: dict[str, int] = defaultdict(int)  # role -> deaths since one of its engines finished a call
        self.nodes: dict[str, set[str]] = {}  # node -> engines that are or were there
        self.looked = 0.0
        self.past: list[tuple[Counters, int]] = []  # counters and torn lines of lives that ended
        self.replaced = 0

    # -- what the pool asks

    def place(self) -> None:
        """Make the plan: a place for every engine.

        Raises ValueError that names what the cluster lacks; waits for nodes first if told so.
        """
        specs = [(name, role.spec) for name, role in self.roles.items()]
        limit = time.monotonic() + self.settings.wait_for_nodes
        while True:
            try:
                found = plan(specs, [Node(name, resources) for name, resources in cluster.nodes()])
                break
            except ValueError:
                if time.monotonic() >= limit:
                    raise
                time.sleep(1)
        self.plan = found
        for line in found.lines():
            self.telemetry.event("plan", line.partition(":")[0], line)

    def open(self, names: Iterable[str]) -> None:
        """Start the engines of some roles; return when each of them has one."""
        names = list(names)
        for role in (self.roles[name] for name in names):
            self.to_start.extend((role, f"{role.name}-{number}", 1, False) for number in range(role.spec.engines))
        while not all(self.ready(name) for name in names):
            self.tick()
            self.wait(0.1)

    def ready(self, role: str) -> list[Life]:
        return [life for life in self.lives if life.ready and life.role.name == role]

    def wait(self, seconds: float, *more: Any) -> None:
        """Until something is ready: a boot, a pulse, or one of `more`."""
        refs = [ref for life in self.lives for ref in (life.beat, None if life.ready else life.boot) if ref is not None]
        if refs or more:
            ray.wait([*refs, *more], timeout=seconds, fetch_local=False)
        else:
            time.sleep(seconds)

    def tick(self) -> list[Death]:
        """Start what may start, read boots and pulses, bury the dead. The deaths since the last call."""
        self._start_some()
        self._look_at_nodes()
        for life in list(self.lives):
            if life.ready:
                self._feel(life)
            else:
                self._look_at_boot(life)
        deaths, self.deaths = self.deaths, []
        return deaths

    def grow(self, role: str) -> None:
        """One engine more, where the settings allow it, nothing of this role is loading and the cluster has room."""
        spec = self.roles[role].spec
        names = {life.name for life in self.lives if life.role.name == role}
        loading = any(not life.ready for life in self.lives if life.role.name == role) or self.to_start
        if loading or len(names) >= spec.max_engines or not self._has_room(role):
            return
        name = next(f"{role}-{number}" for number in range(len(names) + 1) if f"{role}-{number}" not in names)
        self.to_start.append((self.roles[role], name, 1, True))

    def shrink(self, role: str) -> list[Life]:
        """Shut down engines above the least number that have been idle; they are returned."""
        now, spec = time.monotonic(), self.roles[role].spec
        idle = [life for life in self.ready(role) if now - life.busy > IDLE]
        surplus = idle[: max(0, len(self.ready(role)) - spec.engines)]
        for life in surplus:
            self.telemetry.event("shrunk", life.name, f"idle for {IDLE:.0f} s")
            ray.wait([life.actor.close.remote()], timeout=10)
            self._end(life)
        return surplus

    def bury(self, life: Life, kind: str, why: str, *, suspicious: bool) -> None:
        """A life ended unasked: note it, and start its successor."""
        if life not in self.lives:
            return
        if life.node and life.node not in _alive():
            suspicious = False
        self._end(life)
        self.telemetry.event(kind, life.name, why)
        self.deaths.append(Death(life, kind, why, suspicious))
        self.barren[life.role.name] += 1
        if self.barren[life.role.name] > life.role.spec.max_deaths:
            raise ValueError(
                f"models.{life.role.name}: its engines died {self.barren[life.role.name]} times without finishing a "
                f"call in between (models.{life.role.name}.max_deaths); finished calls are kept; logs in "
                f"{life.role.logs}; the last: {why}"
            )
        self.replaced += 1
        self.to_start.append((life.role, life.name, 1, life.grown))

    def counts(self) -> tuple[Counters, int]:
        """Counters of every life, and the most torn lines that one saw."""
        total, torn = Counters(), 0
        seen = [(life.pulse.counters, life.pulse.torn_lines) for life in self.lives if life.pulse]
        for counters, lines in seen + self.past:
            total.add(counters)
            torn = max(torn, lines)
        return total, torn

    def refresh(self) -> None:
        """Have the newest pulse of every engine, for the counts."""
        lives = [life for life in self.lives if life.ready]
        beats = [life.actor.pulse.remote() for life in lives]
        done, _ = ray.wait(beats, num_returns=len(beats), timeout=10) if beats else ([], [])
        for life, beat in zip(lives, beats, strict=True):
            if beat in done:
                self._read(life, beat)

    def shut_down(self) -> None:
        """End every engine: politely first, so that their processes leave nothing behind."""
        self.to_start.clear()
        goodbyes = [life.actor.close.remote() for life in self.lives if life.ready]
        if goodbyes:
            ray.wait(goodbyes, num_returns=len(goodbyes), timeout=30)
        for life in list(self.lives):
            self._end(life)

    # -- placing and booting

    def _start_some(self) -> None:
        """Few at a time: dozens of processes that read one model at once starve each other."""
        most = self.settings.boots_at_once or 2 * len(_alive())
        while self.to_start and sum(not life.ready for life in self.lives) < most:
            self.lives.append(self._start(*self.to_start.popleft()))

    def _start(self, role: Role, name: str, attempt: int, grown: bool) -> Life:
        spec, life = role.spec, f"{name}-{uuid.uuid4().hex[:8]}"
        placement = self.plan.placements[role.name]
        group = placement_group(placement.bundles, strategy=placement.strategy)
        # Across nodes the GPUs belong to vLLM's own Ray workers, in the same group.
        across_nodes = len(placement.bundles) > 1
        gpus = 0 if across_nodes else placement.bundles[0].get("GPU", 0)
        options: dict[str, Any] = {
            "num_cpus": spec.cpus,
            "num_gpus": gpus,
            "max_restarts": 0,
            "max_concurrency": 10_000,  # async calls in flight; the engine's door bounds them, not Ray
            "scheduling_strategy": PlacementGroupSchedulingStrategy(
                group, placement_group_bundle_index=0, placement_group_capture_child_tasks=True
            ),
            "runtime_env": {"env_vars": {"VLLM_NO_USAGE_STATS": "1", "TOKENIZERS_PARALLELISM": "false", **spec.env}},
        }
        actor: Any = ray.remote(**options)(EngineActor).remote(role, life, list(self.roles.values()), across_nodes)
        return Life(role, name, life, actor, group, attempt, grown, actor.boot.remote(), actor.where.remote())

    def _look_at_nodes(self) -> None:
        """Ray notices a lost node some seconds after the engines there have died."""
        if time.monotonic() - self.looked < BEAT:
            return
        self.looked, alive = time.monotonic(), _alive()
        for node in set(self.nodes) - alive:
            names = ", ".join(sorted(self.nodes.pop(node)))
            self.telemetry.event("node_gone", names, f"node {node[:12]} is gone, and with it {names or 'no engine'}")
        for node in alive:
            engines = self.nodes.setdefault(node, set())
            engines.update(life.name for life in self.lives if life.node == node)

    def _look_at_boot(self, life: Life) -> None:
        spec, waited = life.role.spec, time.monotonic() - life.since
        if not life.node and ray.wait([life.where], timeout=0)[0]:
            life.node = _get(life.where) or ""
        if ray.wait([life.boot], timeout=0)[0]:
            try:
                fault, life.window = ray.get(life.boot)
            except (RayActorError, RayTaskError) as error:
                self._boot_failed(life, f"its process died: {str(error).splitlines()[0]}")
                return
            if fault:
                self._boot_failed(life, fault, final=True)
            else:
                life.ready, life.busy, life.moved = True, time.monotonic(), time.monotonic()
                self.telemetry.event("grown" if life.grown else "booted", life.name, f"in {waited:.1f} s")
                self._introduce(life.role.name)
        elif waited > spec.boot_timeout:
            self._boot_failed(life, f"no engine after boot_timeout = {spec.boot_timeout:g} seconds")
        elif life.grown and not life.node and waited > UNPLACED:
            self._end(life)  # somebody else took the room

    def _boot_failed(self, life: Life, fault: str, final: bool = False) -> None:
        """Try again unless the engine itself said why; without any engine of the role the run ends with its words."""
        self._end(life)
        role = life.role.name
        self.telemetry.event("boot_failed", life.name, fault)
        served = self.ready(role) or any(other.name == life.name for other in self.lives) or self.replaced
        if life.attempt < life.role.spec.boot_attempts and not (final and not served):
            self.to_start.append((life.role, life.name, life.attempt + 1, life.grown))
        elif not any(other.role.name == role for other in self.lives):
            raise ValueError(f"models.{role}: the engine does not boot: {fault}")
        else:
            self.telemetry.event("gave_up", life.name, f"{life.attempt} boots failed; going on without it")

    def _introduce(self, role: str) -> None:
        """Tell the engines of every other role who serves this one now; and a new one, who serves the others."""
        for name in self.roles:
            peers = {life.life: (life.actor, life.window) for life in self.ready(name)}
            for life in self.lives:
                if life.ready and life.role.name != name and role in (name, life.role.name):
                    life.actor.set_peers.remote(name, peers)

    def _has_room(self, role: str) -> bool:
        free = ray.available_resources()
        needs: dict[str, float] = defaultdict(float)
        for bundle in self.plan.placements[role].bundles:
            for kind, amount in bundle.items():
                needs[kind] += amount
        return all(free.get(kind, 0) >= amount for kind, amount in needs.items())

    # -- watching

    def _feel(self, life: Life) -> None:
        now = time.monotonic()
        if life.beat is None and now - life.asked >= BEAT:
            life.beat, life.asked = life.actor.pulse.remote(), now
        if life.beat is not None and ray.wait([life.beat], timeout=0)[0]:
            beat, life.beat = life.beat, None
            self._read(life, beat)
        elif life.beat is not None and now - life.asked > life.role.spec.silent_timeout:
            self.bury(life, "silent", f"its process has not answered for {now - life.asked:.0f} s", suspicious=True)

    def _read(self, life: Life, beat: Any) -> None:
        try:
            pulse: Pulse = ray.get(beat)
        except RayActorError as error:
            self.bury(life, "died", str(error).splitlines()[0], suspicious=True)
            return
        before, life.pulse, now = life.pulse, pulse, time.monotonic()
        self.telemetry.sample(life.name, life.life, pulse.counters, pulse.stats)
        if before is None or _advance(before) != _advance(pulse):
            life.moved = now
        if before is not None and pulse.counters.made > before.counters.made:
            self.barren[life.role.name] = 0
        if pulse.inside or (before and pulse.counters.calls > before.counters.calls):
            life.busy = now
        else:
            life.moved = now
        limit = life.role.spec.silent_timeout
        if pulse.died:
            self.bury(life, "died", pulse.died, suspicious=True)
        elif life.role.spec.backend != Backend.http and now - life.moved > limit:  # http has time-outs of its own
            self.bury(life, "silent", f"{pulse.inside} calls and no token for {limit:g} s", suspicious=True)

    def _end(self, life: Life) -> None:
        """The process, its place and its gauges go; its counters stay."""
        self.lives.remove(life)
        if life.pulse:
            self.past.append((life.pulse.counters, life.pulse.torn_lines))
        ray.kill(life.actor)
        remove_placement_group(life.group)
        self.telemetry.gone(life.name)
        if life.ready:
            self._introduce(life.role.name)


def _advance(pulse: Pulse) -> tuple[int, ...]:
    """Changes as long as the engine does anything."""
    stats: EngineStats = pulse.stats
    return stats.prompt_tokens, stats.completion_tokens, pulse.counters.made


def _alive() -> set[str]:
    return {node["NodeID"] for node in ray.nodes() if node["Alive"]}


def _get(ref: Any) -> Any:
    """The value, or None where its process is gone: `boot` tells why."""
    try:
        return ray.get(ref)
    except (RayActorError, RayTaskError):
        return None
