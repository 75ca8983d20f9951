"""Which plan computes the loss, and how many bytes it takes: pure arithmetic, no tensors, no GPU.

Legend: N tokens, S supervised tokens, H hidden, V vocabulary, C columns of a vocabulary block or rows of a token chunk.

    B  blocked: all logits of the supervised rows once, turned in place into dlogits and then into dW      6 SHV FLOPs
    T  token chunks: gradients in the forward, dW summed in fp32; needs a scalar loss                      6 SHV
    R  recompute: one vocabulary block of logits at a time, twice; any upstream gradient                   8 SHV

Bytes are the peak beyond hidden, weight and dX [N, H], which every method has. dW [V, H] is counted.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch

from shard_kernels.gemm import SIXTEEN_BIT, WIDENED_K
from shard_kernels.layout import PITCH_MULTIPLE, plan_layout, round_up, vocab_blocks
from shard_kernels.rows import TWIN_ELEMENTS

PlanName = Literal["B", "T", "R"]
ROW_BYTES = 96  # labels, indices, running statistics, loss and upstream gradient of one row


@dataclass(frozen=True)
class LossPlan:
    """A plan with its peak bytes. `blocks` of the vocabulary in B and R, `chunk` rows at a time in T."""

    name: PlanName
    bytes: int
    blocks: int
    chunk: int

    @property
    def gemms(self) -> int:
        """Matrix products of 2 SHV FLOPs each."""
        return 4 if self.name == "R" else 3


def plan_loss(
    tokens: int,
    supervised: int,
    hidden: int,
    vocab: int,
    dtype: torch.dtype,
    *,
    budget_bytes: int | None = None,
    per_token: bool = False,
    device: str = "cuda",
    name: PlanName | None = None,
) -> LossPlan:
    """The leaner of B and T, which take the same time; R where the leaner one exceeds `budget_bytes`.

    `per_token`: the losses of single tokens get upstream gradients of their own (DPO, DeRTa), which rules T out.
    `name` forces a plan. Raises ValueError for sizes below 1, more supervised tokens than tokens, or T per token.
    """
    if min(hidden, vocab) < 1 or tokens < 0 or not 0 <= supervised <= tokens:
        raise ValueError(f"no loss over {supervised} of {tokens} tokens with hidden {hidden} and vocabulary {vocab}")
    if name == "T" and per_token:
        raise ValueError("plan T forms gradients before single tokens' upstream gradients are known; use B or R")
    shape = (tokens, supervised, hidden, vocab, dtype, device)
    plans = {"B": _plan_b(*shape), "T": _plan_t(*shape), "R": _plan_r(*shape, budget_bytes)}
    if name is not None:
        return plans[name]
    leaner = plans["B"] if per_token else min(plans["B"], plans["T"], key=lambda plan: plan.bytes)
    return leaner if budget_bytes is None or leaner.bytes <= budget_bytes else plans["R"]


def _rows(tokens: int, supervised: int, hidden: int, dtype: torch.dtype) -> int:
    """Per-row vectors, and the compacted copy of the hidden states where some token is masked."""
    return supervised * ROW_BYTES + (supervised * hidden * dtype.itemsize if supervised < tokens else 0)


def _dx(tokens: int, supervised: int, hidden: int, dtype: torch.dtype) -> int:
    """The fp32 sum over vocabulary blocks; where it is dX itself it is not counted."""
    itself = dtype not in SIXTEEN_BIT and supervised == tokens
    return 0 if itself else supervised * hidden * max(4, dtype.itemsize)


def _scratch(rows: int, hidden: int, dtype: torch.dtype, device: str) -> int:
    """CPU only: tiles of the torch twin, and operands widened to fp32 for want of a mixed product."""
    if device != "cpu":
        return 0
    tiles = 3 * TWIN_ELEMENTS * 4
    return tiles + (WIDENED_K * (rows + hidden) * 4 if dtype in SIXTEEN_BIT else 0)


def _plan_b(tokens: int, supervised: int, hidden: int, vocab: int, dtype: torch.dtype, device: str) -> LossPlan:
    blocks = 8
    buffer = plan_layout(supervised, hidden, vocab, blocks).size * dtype.itemsize
    rows = _rows(tokens, supervised, hidden, dtype) + _dx(tokens, supervised, hidden, dtype)
    return LossPlan("B", buffer + rows + _scratch(supervised, hidden, dtype, device), blocks, supervised)


def _plan_t(tokens: int, supervised: int, hidden: int, vocab: int, dtype: torch.dtype, device: str) -> LossPlan:
    chunk = token_chunk(supervised, hidden)
    dw = vocab * hidden * max(4, dtype.itemsize)
    dx = supervised * hidden * dtype.itemsize if supervised < tokens else 0
    logits = chunk * round_up(vocab, PITCH_MULTIPLE) * dtype.itemsize
    peak = dw + dx + logits + _rows(tokens, supervised, hidden, dtype)
    # On a CPU dW's product widens chunks of dlogits [V, K] and of hidden [K, H].
    return LossPlan("T", peak + _scratch(vocab, hidden, dtype, device), 1, chunk)


def _plan_r(
    tokens: int, supervised: int, hidden: int, vocab: int, dtype: torch.dtype, device: str, budget: int | None
) -> LossPlan:
    dw = vocab * hidden * dtype.itemsize
    rows = _rows(tokens, supervised, hidden, dtype) + _dx(tokens, supervised, hidden, dtype)
    fixed = dw + rows + _scratch(supervised, hidden, dtype, device)
    for blocks in (8, 16, 32, 64):  # narrower blocks until it fits; under 2,000 columns products get slow
        width = round_up(vocab_blocks(vocab, blocks)[0][1], PITCH_MULTIPLE)
        plan = LossPlan("R", fixed + supervised * width * dtype.itemsize, blocks, supervised)
        if budget is None or plan.bytes <= budget:
            break
    return plan


def token_chunk(supervised: int, hidden: int) -> int:
    """Rows of plan T's chunks: all as long, 4,096 at most, at least 2,048 where there are as many.

    dX of a chunk is a product of ceil(C / 128) x ceil(H / 256) tiles, worked off by 132 multiprocessors (H100) in
    waves; H = 2304 fills its waves to 73 % at C = 4,096 and to 99 % at 3,712. Of the chunk counts that need the
    fewest waves in all, within 2 %, the one with the shortest chunks: logits take 2 C V bytes.
    """
    fewest = max(1, -(-supervised // 4096))
    most = max(fewest, supervised // 2048)
    waves = {}
    for count in range(fewest, most + 1):
        tiles = -(-supervised // count // 128) * -(-hidden // 256)
        waves[count] = count * -(-tiles // 132)
    best = max(count for count, total in waves.items() if total <= 1.02 * min(waves.values()))
    return max(1, -(-supervised // best))
