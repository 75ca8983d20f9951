"""What ZeRO-3 holds: partitions of weights, optimizer states and gradients, buffers, and weights gathered whole.

Legend: b bytes of a weight.

Every tensor is cut into as many equal parts as there are ranks, the last one padded. What is offloaded leaves the
device for its node's memory, as often as the node has processes, or for the node's disk.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from shard_dist.config.cluster import NodesConfig
from shard_dist.config.training import Offload, TrainConfig
from shard_dist.plan.account import Line
from shard_dist.plan.model import Shape
from shard_dist.training.zero import zero_config

# DeepSpeed 0.19.8's own defaults for what our configuration leaves to it, in elements.
LIVE_PARAMETERS = SUB_GROUP = MAX_IN_CPU = 1_000_000_000


@dataclass(frozen=True)
class Sharding:
    """A model over the processes of a training, as its settings have it."""

    shape: Shape
    train: TrainConfig
    nodes: NodesConfig

    @property
    def ranks(self) -> int:
        return self.train.workers

    @property
    def on_gpu(self) -> bool:
        return self.train.gpus_per_worker > 0

    @property
    def itemsize(self) -> int:
        """Bytes of a weight, an activation and a gradient on its way."""
        return 2 if self.train.bf16 else 4

    @property
    def processes(self) -> int:
        """Processes on a node; where nothing is stated of nodes, all of them are on one."""
        per_node = self.train.workers
        if self.on_gpu and self.nodes.gpus:
            per_node = int(self.nodes.gpus / self.train.gpus_per_worker)
        elif self.nodes.count:
            per_node = -(-self.train.workers // self.nodes.count)
        return max(1, min(self.train.workers, per_node))

    @cached_property
    def zero(self) -> dict[str, Any]:
        """DeepSpeed's section zero_optimization, with what train.deepspeed says."""
        section: dict[str, Any] = zero_config(self.train)["zero_optimization"]
        return section

    @cached_property
    def communicated(self) -> int:
        """Bytes of an element of gradients on their way to the rank that keeps them."""
        named = zero_config(self.train).get("communication_data_type")
        return {None: self.itemsize, "fp32": 4}.get(named, 2)

    @cached_property
    def part(self) -> int:
        """Elements of a rank's partition, padding and all."""
        return sum(-(-tensor // self.ranks) for tensor in self.shape.tensors)

    @cached_property
    def largest(self) -> int:
        return max(self.shape.tensors)

    @cached_property
    def group(self) -> int:
        """Elements that the optimizer updates at once."""
        return min(self.part, int(self.zero.get("sub_group_size", SUB_GROUP)))

    @cached_property
    def largest_inside(self) -> int:
        """Elements of the largest tensor but embedding and head."""
        table = self.shape.vocab * self.shape.hidden
        return max(tensor for tensor in self.shape.tensors if tensor != table)

    @property
    def padded(self) -> str:
        return f"weights of {self.shape.parameters:,} / {self.ranks} ranks, each tensor rounded up"

    @cached_property
    def small(self) -> int:
        """Elements of the tensors that stay whole on every rank."""
        most = self.zero["stage3_param_persistence_threshold"]
        return sum(tensor for tensor in self.shape.tensors if tensor <= most)


def product(name: str, *factors: tuple[float, str]) -> Line:
    """A line whose bytes are the product that its formula shows."""
    shown = " x ".join(f"{number:,.10g} {what}" for number, what in factors)
    return Line(name, shown, math.prod(number for number, _ in factors))


def model_states(sharding: Sharding) -> dict[str, Line]:
    """Weights, master weights, moments and gradients of one rank, wherever they are kept; DeepSpeed's "model states".

    With fp32 weights DeepSpeed makes master weights too: it compares a device with its name, which never matches.
    """
    part = (sharding.part, sharding.padded)
    return {
        "weights": product("weights", part, (sharding.itemsize, "bytes")),
        "master": product("fp32 master weights", part, (4, "bytes")),
        "moments": product("AdamW's two moments in fp32", part, (8, "bytes")),
        "gradients": product("gradients, summed in fp32", part, (4, "bytes")),
    }


def offloaded_gradients(sharding: Sharding) -> Line:
    """Where the optimizer is offloaded, DeepSpeed keeps beside the sum of gradients what the optimizer reads."""
    return product("gradients handed to the optimizer", (sharding.part, sharding.padded), (4, "bytes"))


def on_device(sharding: Sharding) -> list[Line]:
    """What a rank's device holds from the first step to the last."""
    states, long = model_states(sharding), sharding.train.long
    kept = []
    if long.offload_parameters == Offload.none or not sharding.on_gpu:
        kept.append(states["weights"])
    if sharding.ranks > 1:
        kept.append(product("small weights, kept whole", (sharding.small, "elements"), (sharding.itemsize, "bytes")))
    if long.offload_optimizer == Offload.none or not sharding.on_gpu:
        kept += [states["master"], states["moments"], states["gradients"]]
        if long.offload_optimizer != Offload.none:
            kept.append(offloaded_gradients(sharding))
    return kept


def on_node(sharding: Sharding) -> list[Line]:
    """What all processes of a node keep in its memory, from GPUs that do not hold it."""
    long, states = sharding.train.long, model_states(sharding)
    lines = [states["weights"]] if long.offload_parameters == Offload.cpu else []
    if long.offload_parameters == Offload.nvme:
        lines += _nvme_parameters(sharding)
    if long.offload_optimizer != Offload.none:
        lines.append(states["gradients"])
    if long.offload_optimizer == Offload.cpu:
        lines += [states["master"], states["moments"], offloaded_gradients(sharding)]
    elif long.offload_optimizer == Offload.nvme:
        count = sharding.zero["offload_optimizer"].get("buffer_count", 4)
        lines.append(product("buffers for nvme", (count, "of"), (sharding.group, "elements"), (4, "bytes")))
    return [_times(line, sharding.processes) for line in [*lines, *_rounding(_pinned(sharding))]]


def _pinned(sharding: Sharding) -> list[int]:
    """Bytes of each buffer of a process that DeepSpeed pins: weights, gradients, and what it hands to the optimizer by
    sub-groups."""
    long, zero, found = sharding.train.long, sharding.zero, []
    if long.offload_parameters == Offload.cpu and zero["offload_param"]["pin_memory"]:
        found.append(sharding.part * sharding.itemsize)
    if long.offload_optimizer != Offload.none and zero["offload_optimizer"]["pin_memory"]:
        found.append(sharding.part * 4)
        if long.offload_optimizer == Offload.cpu:
            groups, rest = divmod(sharding.part, sharding.group)
            found += [sharding.group * 4] * groups + [rest * 4] * (rest > 0)
    return found


def _rounding(pinned: list[int]) -> list[Line]:
    """What torch's allocator of pinned memory adds, which hands out powers of two."""
    added = [(1 << (size - 1).bit_length()) - size for size in pinned]
    shown = f"({' + '.join(f'{size:,}' for size in added)}) bytes"
    return [Line("pinned memory, rounded up to powers of two", shown, sum(added))] if added else []


def on_disk(sharding: Sharding) -> list[Line]:
    """What all processes of a node keep on its disk."""
    long, states, lines = sharding.train.long, model_states(sharding), []
    if long.offload_parameters == Offload.nvme:
        lines.append(states["weights"])
    if long.offload_optimizer == Offload.nvme:
        lines += [states["master"], states["moments"], offloaded_gradients(sharding)]
    return [_times(line, sharding.processes) for line in lines]


def _nvme_parameters(sharding: Sharding) -> list[Line]:
    section = sharding.zero["offload_param"]
    held = min(sharding.part, int(section.get("max_in_cpu", MAX_IN_CPU)))
    count, size = section.get("buffer_count", 5), int(section.get("buffer_size", 100_000_000))
    return [
        product("weights that stay in memory (max_in_cpu)", (held, "elements"), (sharding.itemsize, "bytes")),
        product("buffers for nvme", (count, "of"), (size, "elements"), (sharding.itemsize, "bytes")),
    ]


def _times(line: Line, processes: int) -> Line:
    return Line(line.name, f"{line.formula} x {processes} processes of the node", line.bytes * processes)


@dataclass(frozen=True)
class Gathered:
    """Whole weights of a rank. `ahead`: whether more are gathered than a pass still needs where it is: then a gather
    is on its way at every moment, else only until the head is reached."""

    whole: Line
    unpacked: Line
    ahead: bool


def gathered(sharding: Sharding, layers: int) -> Gathered:
    """Weights that are whole while `layers` layers still wait for their backward pass. One rank has them anyway,
    unless they are offloaded.

    Until stage3_max_live_parameters elements are whole, every module's forward gathers a bucket more, and a layer whose
    backward pass is near keeps its weights. Tensors that are gathered together are copied out of one buffer, which
    lives until the last of them is used.
    """
    shape, alone = sharding.shape, sharding.ranks == 1
    on_node = sharding.on_gpu and sharding.train.long.offload_parameters != Offload.none
    large = shape.parameters - sharding.small
    most = max(int(sharding.zero.get("stage3_max_live_parameters", LIVE_PARAMETERS)), shape.layer, sharding.largest)
    needed = large - (shape.layers - layers) * shape.layer
    whole = 0 if alone and not on_node else max(0, min(most, needed))
    reason = (
        f"elements: at most {most:,} (stage3_max_live_parameters, or what is at work), or the {needed:,} still needed"
    )
    width = sharding.itemsize, "bytes"
    return Gathered(
        product("whole weights", (whole, reason), width),
        product("a gather that is unpacked", (0 if alone else _largest_gather(sharding), "elements"), width),
        large > most,
    )


def _largest_gather(sharding: Sharding) -> int:
    """Elements of the largest prefetch of several tensors: they are taken in order until the bucket is full."""
    size, least = (sharding.zero[f"stage3_{name}"] for name in ("prefetch_bucket_size", "param_persistence_threshold"))
    largest = elements = tensors = 0
    for tensor in (tensor for tensor in sharding.shape.tensors if tensor > least):
        elements, tensors = (elements, tensors) if elements < size else (0, 0)
        elements, tensors = elements + tensor, tensors + 1
        largest = max(largest, elements if tensors > 1 else 0)
    return largest


@dataclass(frozen=True)
class Reduction:
    """Gradients on their way to the ranks that keep them: the bucket, and what it takes to send one, or the head's."""

    bucket: Line
    sending: list[Line]
    head: list[Line]  # empty where the head's gradient goes through a bucket
    layers: int  # whose backward pass has not ended when the first bucket is full


def reduction(sharding: Sharding) -> Reduction:
    """Gradients are collected in the bucket; one that is larger than it is sent alone."""
    shape, size = sharding.shape, int(sharding.zero["reduce_bucket_size"])
    filled, head = min(size, shape.parameters), shape.vocab * shape.hidden
    sent = [_sent(sharding, filled, alone=False)]
    if sharding.largest_inside > size:
        sent.append(_sent(sharding, sharding.largest_inside, alone=True))
    done = (size - head * (not shape.tied)) // shape.layer
    held = size if sharding.on_gpu else filled  # a CPU's pages count when they are written
    return Reduction(
        product("reduce bucket", (held, "elements"), (sharding.communicated, "bytes")),
        max(sent, key=lambda lines: sum(line.bytes for line in lines)),
        _sent(sharding, head, alone=True) if head > size and not shape.tied else [],
        max(0, min(shape.layers, shape.layers - done)),
    )


def _sent(sharding: Sharding, elements: int, alone: bool) -> list[Line]:
    """The bucket is copied into the order of the ranks; a single gradient is copied only to be widened. Then gloo,
    which has no reduce-scatter, reduces a copy of that, and after it this rank's part is widened to be summed."""
    many, width, lines = (elements, "elements"), (sharding.communicated, "bytes"), []
    if not alone:
        lines.append(product("the bucket in the order of the ranks", many, width))
    elif sharding.communicated > sharding.itemsize:
        lines.append(product("a gradient widened to be sent", many, width))
    part = -(-elements // sharding.ranks)
    then = [product("a rank's part of it in fp32", (part, "elements"), (4 * (sharding.communicated < 4), "bytes"))]
    if not sharding.on_gpu:
        then.append(product("gloo's copy of it", many, width))
    return [*lines, max(then, key=lambda line: line.bytes)]


def at_step(sharding: Sharding) -> list[Line]:
    """What the optimizer's step adds; activations are gone by then."""
    if sharding.train.long.offload_optimizer != Offload.none:
        return []
    return [product("gradients of a sub-group, in one piece", (sharding.group, "elements"), (4, "bytes"))]
