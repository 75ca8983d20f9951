"""Data order: which examples form the batch of optimizer step k, as a pure function of (seed, epoch, step).

Ranks, accumulation and restarts do not enter, so a training that goes on, or goes on with another number of
processes, sees the very same batches. The last batch of an epoch is short where the examples do not fill it: every
example is seen exactly once per epoch, and the loss stays exact because it is divided by the tokens that are there.
"""

from __future__ import annotations

import math
import random
from collections.abc import Mapping
from functools import lru_cache

from shard_dist.config.schema import TrainConfig


def accumulation_steps(config: TrainConfig) -> int:
    """Micro-batches per rank and optimizer step. Raises ValueError where the batch cannot be dealt out evenly."""
    together = config.workers * config.micro_batch_size
    if min(config.global_batch_size, together) < 1 or config.global_batch_size % together:
        raise ValueError(
            f"train.global_batch_size={config.global_batch_size} is no multiple of train.workers="
            f"{config.workers} x train.micro_batch_size={config.micro_batch_size}; change one of the three"
        )
    return config.global_batch_size // together


def steps_per_epoch(examples: int, batch_size: int) -> int:
    return math.ceil(examples / batch_size)


def total_steps(examples: int, batch_size: int, epochs: float) -> int:
    """Optimizer steps of the whole training, at least one. Half an epoch is half its steps, rounded."""
    return max(1, round(epochs * steps_per_epoch(examples, batch_size)))


@lru_cache(maxsize=2)
def epoch_order(seed: int, epoch: int, examples: int) -> tuple[int, ...]:
    """A permutation of 0..examples-1. `random.random` is the generator whose sequence Python guarantees to keep."""
    draw = random.Random(f"{seed}/{epoch}").random
    keys = [draw() for _ in range(examples)]
    return tuple(sorted(range(examples), key=keys.__getitem__))


def global_batch(seed: int, step: int, examples: int, batch_size: int) -> tuple[int, ...]:
    """Indices of the examples of optimizer step `step` (from 0), over all ranks and accumulation steps."""
    epoch, position = divmod(step, steps_per_epoch(examples, batch_size))
    return epoch_order(seed, epoch, examples)[position * batch_size : (position + 1) * batch_size]


def deal(lengths: Mapping[int, int], rank: int, ranks: int, micro_batch_size: int) -> list[tuple[int, ...]]:
    """The micro-batches of one rank for the examples in `lengths` (index -> tokens), as many on every rank.

    Longest first and round robin: rows of like length share a micro-batch (little padding) and every rank gets its
    share of the tokens. A rank whose examples do not suffice has empty micro-batches. The step's sum does not depend
    on any of it.
    """
    ordered = sorted(lengths, key=lambda index: (-lengths[index], index))
    count = math.ceil(math.ceil(len(ordered) / ranks) / micro_batch_size)
    mine = ordered[rank::ranks]
    return [tuple(mine[k * micro_batch_size : (k + 1) * micro_batch_size]) for k in range(count)]
