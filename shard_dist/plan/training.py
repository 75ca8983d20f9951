"""Memory in training, from a model's shape and the settings: no weights, no GPU, no DeepSpeed.

Memory has its peak at one of a few moments of a step. Each is an account of its own; the largest is the plan.
"""

from __future__ import annotations

from dataclasses import dataclass

from shard_dist.config.cluster import NodesConfig
from shard_dist.config.training import TrainConfig
from shard_dist.plan import activations, states
from shard_dist.plan.account import GIB, Account, Line, account
from shard_dist.plan.activations import Pass
from shard_dist.plan.model import Shape
from shard_dist.plan.states import Sharding, product

CONTEXT = "CUDA context, NCCL and cuBLAS"
MARGIN = "margin for fragmentation"
CONTEXT_GIB = 1.5  # assumed: context 0.5, NCCL's channels and cuBLAS' workspaces the rest
MARGIN_SHARE = 0.05  # assumed: what torch's allocator holds beyond what is allocated
PROCESS_GIB = 3.0  # assumed: Python, torch and CUDA's libraries in a process' own memory
EXPORT_FILE = 5_000_000_000  # training/export.py: SHARD_BYTES


@dataclass(frozen=True)
class TrainingMemory:
    """`device`: a GPU, or a process where gpus_per_worker is 0, at its highest of `moments`. `node`: CPU memory of a
    node. `disk`: what a node keeps on nvme."""

    device: Account
    node: Account
    disk: Account
    moments: tuple[Account, ...]


def training_memory(shape: Shape, train: TrainConfig, nodes: NodesConfig, objective: str = "sft") -> TrainingMemory:
    """The peak of a training with `objective` (sft, dpo or derta). Rows are taken to be full, all tokens supervised.

    Raises ValueError for settings that DeepSpeed's configuration may not have.
    """
    sharding = Sharding(shape, train, nodes)
    a_pass = Pass(sharding, objective)
    capacity = nodes.gpu_memory_gib * min(1.0, train.gpus_per_worker)
    where = "GPU" if sharding.on_gpu else "process"
    moments = tuple(
        account(f"{where} in training, {moment}", _with_reserve(sharding, lines), capacity)
        for moment, lines in _moments(sharding, a_pass).items()
    )
    device = max(moments, key=lambda moment: moment.total)
    node = account("node's memory in training", _node(sharding, a_pass, device), nodes.memory_gib)
    disk = account("node's disk in training", states.on_disk(sharding), nodes.disk_gib)
    return TrainingMemory(device, node, disk, moments)


def _moments(sharding: Sharding, a_pass: Pass) -> dict[str, list[Line]]:
    """A bucket is sent when it is full: the layers whose gradients fill it have given their activations back. A tied
    head's gradient waits for the embedding's through the whole backward pass."""
    layers, reduction = sharding.shape.layers, states.reduction(sharding)
    whole, later = states.gathered(sharding, layers), states.gathered(sharding, reduction.layers)
    unpacked = [whole.unpacked] if whole.ahead else []
    held, head = [*states.on_device(sharding), reduction.bucket], activations.head_gradient(a_pass)
    waiting = [head] if sharding.shape.tied else []
    forward = [*held, *activations.saved(a_pass, layers), whole.whole]
    backward = [*unpacked, *waiting, *activations.at_work(a_pass)]
    sending = [*held, *reduction.sending]
    if reduction.layers:  # else a bucket holds the whole model, and the backward pass is over
        sending += [*activations.saved(a_pass, reduction.layers), later.whole, *backward]
    moments = {
        "in the last layer's forward pass": [*forward, whole.unpacked, *activations.passing(a_pass)],
        "when the loss is computed": [*forward, *unpacked, *activations.loss(a_pass)],
        "in the last layer's backward pass": [*forward, *backward],
        "when gradients are reduced": sending,
        "in the embedding's backward pass": [*held, states.gathered(sharding, 0).whole, *waiting,
                                             *activations.embedding(a_pass)],
        "in the optimizer's step": [*held, *states.at_step(sharding)],
    }  # fmt: skip
    if reduction.head:
        moments["when the head's gradient is reduced"] = [*forward, *unpacked, head, *reduction.head]
    return moments


def _with_reserve(sharding: Sharding, lines: list[Line]) -> list[Line]:
    if not sharding.on_gpu:
        return lines
    total = sum(line.bytes for line in lines)
    margin = product(MARGIN, (MARGIN_SHARE, "(assumed) of"), (total, "bytes"))
    return [*lines, margin, product(CONTEXT, (CONTEXT_GIB, "GiB (assumed)"), (GIB, "bytes"))]


def _node(sharding: Sharding, a_pass: Pass, device: Account) -> list[Line]:
    processes = sharding.processes, "processes of the node"
    lines = [product("programs and libraries", processes, (PROCESS_GIB, "GiB (assumed)"), (GIB, "bytes"))]
    if sharding.on_gpu:
        lines += [*states.on_node(sharding), *activations.offloaded(a_pass)]
    else:
        lines.append(product("training", processes, (device.total, "bytes of a process")))
    copies = [_export(sharding)]
    if sharding.train.async_checkpoints:
        part = sharding.part, sharding.padded
        copies.append(product("checkpoint's copy", processes, part, (12, "bytes (fp32 weights, moments)")))
    return [*lines, max(copies, key=lambda line: line.bytes)]


def _export(sharding: Sharding) -> Line:
    """Each rank holds a file's tensors and one weight's copy; no file is smaller than two of the largest weights."""
    model = sharding.shape.parameters * sharding.itemsize
    file = min(model, max(EXPORT_FILE, 2 * sharding.largest * sharding.itemsize))
    writers = min(sharding.processes, -(-model // file))
    weight = sharding.largest * sharding.itemsize
    return product("export", (writers, "processes with a file"), (file + weight, "bytes of a file and a weight"))


def checkpoint_bytes(shape: Shape, train: TrainConfig) -> Line:
    """One checkpoint on shared storage: fp32 weights and moments of every rank, padding and all."""
    sharding = Sharding(shape, train, NodesConfig())
    part = sharding.part, sharding.padded
    return product("checkpoint", part, (12, "bytes (fp32 weights, two moments)"), (sharding.ranks, "ranks"))
