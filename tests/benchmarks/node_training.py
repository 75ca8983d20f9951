"""Training over many nodes as arithmetic: ZeRO-3 steps of a global batch of examples, checkpoints, starts, failures.

A step waits for the rank with the most tokens, for the weights to be gathered twice and the gradients scattered once.
How Ray Train starts and restarts a group is measured (`node_runs.py`); machines' figures are stated.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

from schedule import drawn_rows

from shard_dist.training.packing import balance

BATCHES = 20  # drawn, for the mean of the rank with the most tokens
PROMPT_TOKENS = 150  # of an example, beside its answer


@dataclass(frozen=True)
class Trainer:
    """One training: its model, its data, its machines. Seconds, bytes, bytes per second, FLOP/s."""

    weights: float  # parameters
    layers: int
    examples: int  # over all epochs
    nodes: int
    batch: int = 64  # examples of a step
    ranks_per_node: int = 8
    peak: float = 989e12
    mfu: float = 0.35
    memory: float = 3.35e12  # bandwidth of a GPU
    node_link: float = 400e9 * 0.7  # of a node to the others, in and out at once: 8 x 400 Gbit/s, 70 % of it
    gpu_link: float = 450e9 * 0.7  # of a GPU to those of its node
    hop: float = 2e-6  # of a collective, per rank in its ring
    overlap: float = 0.7  # of communication that hides behind computation
    storage: float = 20e9
    storage_per_node: float = 5e9
    checkpoint_every: int = 100
    start: float = 10.0  # of a worker group
    restart: float = 20.0  # from a node's death until the next group runs
    mtbf: float = math.inf  # of a node
    even: bool = False  # every example as long as the mean

    @property
    def ranks(self) -> int:
        return self.nodes * self.ranks_per_node

    @property
    def steps(self) -> int:
        return math.ceil(self.examples / self.batch)


def tokens_of_batches(batch: int, even: bool) -> list[list[int]]:
    """Lengths of the examples of some batches, the same ones for every trainer."""
    found = [[PROMPT_TOKENS + reframe for _, _, reframe in drawn_rows(batch, seed)] for seed in range(BATCHES)]
    mean = round(sum(map(sum, found)) / (BATCHES * batch))
    return [[mean] * batch for _ in found] if even else found


def step_parts(one: Trainer) -> dict[str, float]:
    """Seconds of a step that computing and communicating take, each alone; tokens of the batch."""
    batches = tokens_of_batches(one.batch, one.even)
    most = [max(sum(lengths[i] for i in share) for share in balance(lengths, one.ranks)) for lengths in batches]
    reading = 6 * one.weights / one.memory  # a rank of few tokens still reads the gathered weights three times
    compute = max(6 * one.weights * sum(most) / BATCHES / (one.peak * one.mfu), reading)
    moved = 3 * 2 * one.weights  # bf16: two gathers, one scatter
    between = moved * (one.nodes - 1) / one.nodes / one.node_link
    inside = moved * (one.ranks_per_node - 1) / one.ranks_per_node / one.gpu_link
    network = max(between, inside) + 3 * one.layers * (one.ranks - 1) * one.hop
    return {"compute": compute, "network": network, "tokens": sum(map(sum, batches)) / BATCHES}


def training(one: Trainer) -> dict[str, float]:
    """Seconds of the whole training and of its parts; tokens per second over the whole."""
    parts = step_parts(one)
    low, high = sorted((parts["compute"], parts["network"]))
    step = high + (1 - one.overlap) * low
    disk = min(one.storage, one.storage_per_node * one.nodes)
    checkpoint = 14 * one.weights / disk  # fp32 weights and two moments, bf16 weights
    load = 2 * one.weights / min(one.storage_per_node, one.storage / one.nodes)  # every node reads all of them
    checkpoints = one.steps // one.checkpoint_every * checkpoint
    export = 2 * one.weights / one.storage_per_node
    running = one.steps * step + checkpoints
    failures = running * one.nodes / one.mtbf
    lost = failures * (one.restart + load + checkpoint + min(one.checkpoint_every, one.steps) / 2 * step)
    whole = one.start + load + running + lost + export
    return {
        "seconds": whole,
        "step_seconds": step,
        "compute_seconds": parts["compute"],
        "network_seconds": parts["network"],
        "start_seconds": one.start + load,
        "storage_seconds": checkpoints + export,
        "failure_seconds": lost,
        "failures": failures,
        "tokens_per_second": one.steps * parts["tokens"] / whole,
    }


# -- what is taken away, to see what it cost

FREE: dict[str, Callable[[Trainer], Trainer]] = {
    # As many examples a step as ranks have room for; the same examples in all.
    "global batch": lambda one: replace(one, batch=max(one.batch, 8 * one.ranks)),
    "GPUs": lambda one: replace(one, peak=math.inf, memory=math.inf),
    "longest examples": lambda one: replace(one, even=True),
    "network": lambda one: replace(one, node_link=math.inf, gpu_link=math.inf, hop=0.0),
    "start": lambda one: replace(one, start=0.0),
    "shared storage": lambda one: replace(one, storage=math.inf, storage_per_node=math.inf),
    "failures": lambda one: replace(one, mtbf=math.inf),
}
