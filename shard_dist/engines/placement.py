"""Where engines can run: pure arithmetic over the resources of nodes, before anything is placed.

A pool would wait for ever, and without a word, for resources that no node has; here that is an error which names them.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from shard_dist.config.schema import Backend, ModelConfig

Bundle = dict[str, float]
# Ray counts resources in ten-thousandths. Integers keep 0.1 + 0.2 CPUs from being more than 0.3.
UNIT = 10_000


@dataclass(frozen=True)
class Node:
    """A node by a name that people know, with all its resources, in use or not ({"GPU": 8, "CPU": 64})."""

    name: str
    resources: Bundle


@dataclass(frozen=True)
class Placement:
    """How each engine of a role is placed: a placement group's bundles and strategy, and a place that is known to fit.

    `nodes[i][j]` is the node of bundle j of engine i; `room` is how many engines more fit beside what runs with them.
    """

    bundles: list[Bundle]
    strategy: str
    nodes: list[tuple[str, ...]]
    room: int


@dataclass(frozen=True)
class Plan:
    """Placements by role, in the order of the roles: all at once, or each role with the cluster to itself."""

    side_by_side: bool
    placements: dict[str, Placement]

    def lines(self) -> list[str]:
        """A sentence per role, for a person."""
        found = []
        for number, (role, placement) in enumerate(self.placements.items(), 1):
            others = ", ".join(other for other in self.placements if other != role)
            when = f"side by side with {others}" if self.side_by_side else f"number {number} one after the other"
            engines, count = placement.nodes, len(placement.nodes)
            line = f"{role}: {count} engine{'s' * (count != 1)} x {_size(placement.bundles)}"
            line += f", {when}" if others else ""
            line += f", on {_some(sorted({node for places in engines for node in places}))}"
            found.append(line + (f"; room for {placement.room} more" if placement.room else ""))
        if not self.side_by_side:
            found.append(f"{', '.join(self.placements)} do not fit on the cluster at once: one after the other")
        return found


def gpus_of(spec: ModelConfig, cluster_has_gpus: bool) -> float:
    """GPUs of one engine: as set, else what its parallel sizes take where the cluster has any."""
    if spec.gpus is not None:
        return spec.gpus
    if spec.backend != Backend.vllm or not cluster_has_gpus:
        return 0
    return float(math.prod(_parallel(spec)))


def bundles(spec: ModelConfig, cluster_has_gpus: bool, across_nodes: bool = False) -> tuple[list[Bundle], str]:
    """Bundles and strategy of the placement group of one engine.

    On one node the engine's actor holds all GPUs itself and vLLM's own processes share them. Across nodes vLLM's Ray
    workers take one bundle of one GPU each. The actor sits in the first bundle, with its CPUs and no GPU of its own:
    so it is on a node of the group, which vLLM asks for.
    """
    gpus = gpus_of(spec, cluster_has_gpus)
    if not across_nodes:
        return [_without_zeros({"GPU": gpus, "CPU": spec.cpus})], "STRICT_PACK"
    first, *others = ({"GPU": 1.0} for _ in range(round(gpus)))
    return [_without_zeros({**first, "CPU": spec.cpus}), *others], "PACK"


def plan(roles: Sequence[tuple[str, ModelConfig]], nodes: Sequence[Node]) -> Plan:
    """A place for every engine on the empty cluster. Raises ValueError that names what no node will ever have.

    Whether a role fits alone is exact; whether all fit at once is found by first fit, the largest first, which may
    miss a tight packing: then roles run one after the other though they could share.
    """
    has_gpus = any(node.resources.get("GPU", 0) > 0 for node in nodes)
    options = {role: _options(role, spec, has_gpus, nodes) for role, spec in roles}
    for chosen in itertools.product(*options.values()):
        ways = dict(zip(options, chosen, strict=True))
        if (found := _pack(ways, nodes)) is not None:
            return Plan(True, found)
    one_by_one: dict[str, Placement] = {}
    for role, ways_of_role in options.items():
        alone = _pack({role: ways_of_role[0]}, nodes)
        assert alone is not None, f"{role} was counted to fit"
        one_by_one |= alone
    return Plan(False, one_by_one)


@dataclass(frozen=True)
class _Way:
    """One way to place a role's engines. A piece is what must not be split: an engine, or one tensor-parallel group."""

    bundles: list[Bundle]
    strategy: str
    pieces: list[Bundle]
    engines: int


def _options(role: str, spec: ModelConfig, has_gpus: bool, nodes: Sequence[Node]) -> list[_Way]:
    """The ways in which all engines of a role fit on the empty cluster; ValueError where there is none."""
    single, strategy = bundles(spec, has_gpus)
    ways = [_Way(single, strategy, single, spec.engines)]
    tensor, pipeline = _parallel(spec)
    if pipeline > 1 and spec.gpus is None and gpus_of(spec, has_gpus):
        group, strategy = bundles(spec, has_gpus, across_nodes=True)
        # Every rank of a tensor-parallel group talks at every layer: the group stays on one node.
        pieces = [{**group[stage * tensor], "GPU": float(tensor)} for stage in range(pipeline)]
        ways.append(_Way(group, strategy, pieces, spec.engines))
    fitting = [way for way in ways if _room(way.pieces, nodes) >= spec.engines]
    if not fitting:
        nearest = max(reversed(ways), key=lambda way: _room(way.pieces, nodes))
        raise ValueError(_why_not(role, spec, nearest, nodes))
    return fitting


def _room(pieces: list[Bundle], nodes: Iterable[Node]) -> int:
    """How many engines fit. Exact: pieces take the same GPUs, and only the first one takes CPUs too."""
    nodes = list(nodes)
    return min(_capacity(pieces[0], nodes), _capacity(pieces[-1], nodes) // len(pieces))


def _capacity(piece: Bundle, nodes: Iterable[Node]) -> int:
    return sum(
        min(_units(node.resources.get(name, 0)) // _units(need) for name, need in piece.items()) for node in nodes
    )


def _pack(ways: dict[str, _Way], nodes: Sequence[Node]) -> dict[str, Placement] | None:
    """Every engine of every role at once; None where first fit finds no place for one."""
    free = {node.name: {name: _units(amount) for name, amount in node.resources.items()} for node in nodes}
    places: dict[tuple[str, int, int], str] = {}
    wanted = [
        (piece, (role, engine, number))
        for role, way in ways.items()
        for engine in range(way.engines)
        for number, piece in enumerate(way.pieces)
    ]
    # The largest first, each where it leaves least: small engines fill what the large ones leave.
    for piece, place in sorted(wanted, key=lambda item: (-item[0].get("GPU", 0), -item[0].get("CPU", 0), item[1])):
        needs = {name: _units(amount) for name, amount in piece.items()}
        fits = [name for name, have in free.items() if all(have.get(kind, 0) >= n for kind, n in needs.items())]
        if not fits:
            return None
        best = min(fits, key=lambda name: (free[name].get("GPU", 0), free[name].get("CPU", 0), name))
        places[place] = best
        for kind, amount in needs.items():
            free[best][kind] -= amount
    rest = [Node(name, {kind: amount / UNIT for kind, amount in have.items()}) for name, have in free.items()]
    return {role: _placement(role, way, places, rest) for role, way in ways.items()}


def _placement(role: str, way: _Way, places: dict[tuple[str, int, int], str], rest: list[Node]) -> Placement:
    width = len(way.bundles) // len(way.pieces)  # bundles of a piece
    engines = [
        tuple(places[role, engine, number // width] for number in range(len(way.bundles)))
        for engine in range(way.engines)
    ]
    return Placement(way.bundles, way.strategy, engines, _room(way.pieces, rest))


def _why_not(role: str, spec: ModelConfig, way: _Way, nodes: Sequence[Node]) -> str:
    """What is missing, with the figures of engine and cluster and the setting to change."""
    across = len(way.pieces) > 1
    piece = way.pieces[0]
    if not nodes:
        return f"models.{role}: the cluster has no nodes"
    for kind, need in piece.items():
        largest = max(nodes, key=lambda node: (node.resources.get(kind, 0), node.name))
        have = largest.resources.get(kind, 0)
        if have < need:
            unit = "a tensor-parallel group" if across else "an engine"
            amount = f"models.{role}: {unit} takes {_size([{kind: need}])} on one node ({_setting(spec, kind, across)})"
            if not have:
                return f"{amount}; no node has any"
            return f"{amount}; the largest node has {have:g} ({largest.name}); {_advice(role, spec, kind, have)}"
    if not _capacity(piece, nodes):
        return f"models.{role}: an engine takes {_size([piece])} on one node; no node has both"
    room, total = _room(way.pieces, nodes), _size(way.bundles * spec.engines)
    have_ = {kind: sum(node.resources.get(kind, 0) for node in nodes) for kind in piece}
    cluster = f"the cluster has {_size([have_])} on {len(nodes)} node{'s' * (len(nodes) != 1)}"
    if not room:
        sizes = f"{len(way.pieces)} groups of {piece['GPU']:g} GPUs, each on one node"
        return f"models.{role}: an engine takes {sizes} ({_setting(spec, 'GPU', False)}); {cluster}; add nodes"
    count = f"{spec.engines} engine{'s' * (spec.engines != 1)}"
    return f"models.{role}: {count} take {total} in all; {cluster}: room for {room}; set models.{role}.engines={room}"


def _setting(spec: ModelConfig, kind: str, across: bool) -> str:
    """Where an amount comes from."""
    if kind != "GPU":
        return "cpus"
    if spec.gpus is not None:
        return "gpus"
    tensor, pipeline = _parallel(spec)
    pipelined = pipeline > 1 and not across
    return f"tensor_parallel_size {tensor}" + (f", pipeline_parallel_size {pipeline}" if pipelined else "")


def _advice(role: str, spec: ModelConfig, kind: str, have: float) -> str:
    if kind != "GPU" or spec.gpus is not None:
        return f"lower models.{role}.{_setting(spec, kind, False)}"
    tensor, pipeline = _parallel(spec)
    # The largest size that a node holds and that divides the old one: the product, and with it the memory, stays.
    smaller = max((size for size in range(1, int(have) + 1) if tensor % size == 0), default=1)
    instead = f"use tensor_parallel_size {smaller} with pipeline_parallel_size {pipeline * tensor // smaller}"
    return f"lower tensor_parallel_size or {instead}"


def _parallel(spec: ModelConfig) -> tuple[int, int]:
    """Tensor and pipeline parallel size."""
    return spec.engine_args.get("tensor_parallel_size", 1), spec.engine_args.get("pipeline_parallel_size", 1)


def _units(amount: float) -> int:
    return round(amount * UNIT)


def _without_zeros(bundle: Bundle) -> Bundle:
    left = {name: amount for name, amount in bundle.items() if amount}
    assert left, "an engine takes CPUs at least: config/check.py"
    return left


def _size(many: Iterable[Bundle]) -> str:
    """The sum of some bundles in words: "8 GPUs + 2 CPUs"."""
    total: Bundle = {}
    for bundle in many:
        for name, amount in bundle.items():
            total[name] = total.get(name, 0) + amount
    return " + ".join(f"{amount:g} {name}{'s' * (amount != 1)}" for name, amount in total.items())


def _some(names: list[str]) -> str:
    return ", ".join(names) if len(names) <= 4 else f"{', '.join(names[:3])} and {len(names) - 3} nodes more"
