"""What can be set otherwise where a configuration does not fit, the cheapest first, without touching results.

Training. What it costs a step, roughly, as papers and DeepSpeed's authors report it:

| option | costs |
|---|---|
| workers and sequence_parallel that the machines and the heads allow | nothing: without it no process starts |
| micro_batch_size 1 | weights are gathered more often; little where rows are long |
| gradient_checkpointing | a second forward pass: a third more compute |
| loss_budget_gib | the logits twice: a few per cent |
| long.mlp_tiles | the MLPs once more: a tenth to a fifth |
| long.offload_activations | traffic to the CPU, mostly hidden behind compute |
| workers up to the machines' GPUs | GPUs that others may want, and traffic between nodes; the hours become fewer |
| long.sequence_parallel | an exchange at every attention layer, kept within a node; fewer rows at a time |
| long.offload_optimizer cpu | the update on CPUs: seconds a step |
| long.offload_parameters cpu | every gathered weight over the bus |
| both on nvme | the disk's speed, and its wear |

Engines: fewer of them where they find no place; fewer sequences at once; the context down to what the run's calls may
take; GPUs that share a model, for an exchange at every layer and fewer engines; nodes that share it; last, more of a
GPU's memory, at the risk of running out of it.

Storage: fewer checkpoints.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any

from shard_dist.config.schema import Config, ModelConfig
from shard_dist.config.training import Offload
from shard_dist.engines.placement import plan
from shard_dist.plan.generation import SEQUENCES, UTILIZATION
from shard_dist.plan.machines import nodes_of, places
from shard_dist.plan.model import Shape

Key = tuple[str, ...]
Settings = dict[Key, Any]
# Tokens around a call's own texts: the longest template and a prompt.
TEMPLATE_TOKENS = 2048
# vLLM's graphs and the allocator need some of the rest.
MOST_UTILIZATION = 0.95


@dataclass(frozen=True)
class Remedy:
    """Degrees of one option, the mildest first; `why` says what it does and costs, in a phrase."""

    why: str
    degrees: tuple[Settings, ...]


def _train(why: str, *degrees: dict[str, Any]) -> Remedy:
    """Keys below `train`."""
    return Remedy(why, tuple({("train", *key.split(".")): value for key, value in each.items()} for each in degrees))


def training(config: Config, shape: Shape) -> Iterator[Remedy]:
    train, nodes = config.train, config.cluster.nodes
    yield from _start(config, shape)
    if train.micro_batch_size > 1:
        yield _train("one row at a time", {"micro_batch_size": 1})
    yield _train("activations are computed again: a third more compute", {"gradient_checkpointing": True})
    if train.fused_loss:
        budgets = [gib for gib in (4.0, 2.0, 1.0, 0.5) if not 0 < train.loss_budget_gib <= gib]
        yield _train("the logits are computed twice: a few per cent", *({"loss_budget_gib": gib} for gib in budgets))
    tiles = [{"long.mlp_tiles": n} for n in (2, 4, 8, 16) if n > train.long.mlp_tiles]
    yield _train("MLPs piece by piece, and once more in the backward pass", *tiles)
    if train.gpus_per_worker:
        yield _train("saved activations go to the CPU's memory", {"long.offload_activations": True})
    most = min(_room(config), train.global_batch_size * train.long.sequence_parallel)
    yield _train("more GPUs share the states", *({"workers": n} for n in _doublings(train.workers, most)))
    groups = _shares(train.long.sequence_parallel, nodes.gpus, shape)
    yield _train("processes share a row", *({"long.sequence_parallel": n} for n in groups))
    if train.gpus_per_worker:
        yield from _offloading(config)


def _start(config: Config, shape: Shape) -> Iterator[Remedy]:
    """The nearest numbers of processes with which training starts at all."""
    train, size = config.train, config.train.long.sequence_parallel
    room = min(train.workers, _room(config))
    allowed = [n for n in range(min(size, room), 0, -1) if shape.splits(n)]
    if allowed and (train.workers > room or allowed[0] != size):
        numbers = {"workers": room - room % allowed[0]} if train.workers > room or train.workers % allowed[0] else {}
        shared = {"long.sequence_parallel": allowed[0]} if allowed[0] != size else {}
        yield _train("as many processes as the machines and the model's heads allow", {**numbers, **shared})


def _room(config: Config) -> int:
    return places(config.cluster.nodes, cpus=config.train.cpus_per_worker, gpus=config.train.gpus_per_worker)


def _offloading(config: Config) -> Iterator[Remedy]:
    long = config.train.long
    if long.offload_optimizer == Offload.none:
        yield _train("the optimizer works on the CPUs", {"long.offload_optimizer": Offload.cpu})
    if long.offload_parameters == Offload.none:
        yield _train("weights wait in the CPU's memory", {"long.offload_parameters": Offload.cpu})
    if config.cluster.nodes.disk_gib and Offload.nvme not in (long.offload_optimizer, long.offload_parameters):
        disk = {"long.nvme_path": long.nvme_path or "/mnt/nvme"}
        optimizer = {**disk, "long.offload_optimizer": Offload.nvme}
        both = {**optimizer, "long.offload_parameters": Offload.nvme}
        yield _train("states lie on each node's own disk; name a directory there", optimizer, both)


def _shares(present: int, gpus: int, shape: Shape) -> list[int]:
    """Larger groups that a node's GPUs and the heads divide into, the smallest first; any where the present fails."""
    least = present if shape.splits(present) else 0
    return [size for size in range(least + 1, gpus + 1) if gpus % size == 0 and shape.splits(size)]


def _doublings(above: int, most: int) -> list[int]:
    """Twice, four times ... as many, and at last `most`; empty where there is no more."""
    sizes = itertools.takewhile(lambda size: size < most, (above * 2**power for power in itertools.count(1)))
    return [*sizes, most] if most > above else []


def engines(config: Config, role: str, shape: Shape | None) -> Iterator[Remedy]:
    """`shape` is None for roles that hold no model of ours: only their number can change."""
    spec, nodes = config.models[role], config.cluster.nodes

    def remedy(why: str, degrees: Iterable[dict[str, Any]]) -> Remedy:
        return Remedy(why, tuple({("models", role, *k.split(".")): v for k, v in each.items()} for each in degrees))

    room = _engines_that_fit(config, role, spec)
    if 0 < room < spec.engines:
        yield remedy("no more engines than find a place", [{"engines": room}])
    if shape is None:
        return
    arguments, gpus = spec.engine_args, nodes.gpus
    sequences = [n for n in (128, 64, 32, 16) if n < (arguments.get("max_num_seqs") or SEQUENCES)]
    yield remedy("fewer answers at once", ({"engine_args.max_num_seqs": n} for n in sequences))
    # A judge reads two answers and the reframing call a draft, before they write one of their own.
    enough = 3 * config.recipe.answer_sampling.max_tokens + TEMPLATE_TOKENS
    if enough < (arguments.get("max_model_len") or shape.positions):
        yield remedy("no longer context than the run's calls need", [{"engine_args.max_model_len": enough}])
    tensor = arguments.get("tensor_parallel_size", 1)
    wide = [_parallel(config, role, n, 1) for n in _shares(tensor, gpus, shape)]
    across = [_parallel(config, role, gpus, n) for n in _doublings(1, nodes.count) if gpus and shape.splits(gpus)]
    yield remedy("GPUs share the model", wide)
    yield remedy("nodes share the model, layer by layer", across)
    if arguments.get("gpu_memory_utilization", UTILIZATION) < MOST_UTILIZATION:
        more = {"engine_args.gpu_memory_utilization": MOST_UTILIZATION}
        yield remedy("less of the GPU is left free", [more])


def _engines_that_fit(config: Config, role: str, spec: ModelConfig) -> int:
    nodes = nodes_of(config.cluster.nodes)
    for engines in range(spec.engines, 0, -1):
        try:
            plan([(role, replace(spec, engines=engines, max_engines=0))], nodes)
        except ValueError:
            continue
        return engines
    return 0


def _parallel(config: Config, role: str, tensor: int, pipeline: int) -> dict[str, Any]:
    """The sizes that differ, and as many engines as then find a place."""
    spec = config.models[role]
    sizes = {"tensor_parallel_size": tensor, "pipeline_parallel_size": pipeline}
    changed = {f"engine_args.{name}": size for name, size in sizes.items() if spec.engine_args.get(name, 1) != size}
    gpus = spec.gpus and float(tensor * pipeline)
    room = _engines_that_fit(config, role, replace(spec, gpus=gpus, engine_args={**spec.engine_args, **sizes}))
    return {
        **changed,
        **({"gpus": gpus} if gpus else {}),
        **({"engines": room} if 0 < room < spec.engines else {}),
    }


def storage(config: Config) -> Iterator[Remedy]:
    keep = config.train.keep_checkpoints
    if keep > 1:
        yield _train("fewer checkpoints stay", *({"keep_checkpoints": n} for n in range(keep - 1, 0, -1)))
