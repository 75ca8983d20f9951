"""Plan B's one buffer: logits of every vocabulary block, and the weight gradient that grows over them.

Legend: S supervised rows, H hidden, V vocabulary, C columns of a vocabulary block.

Logits are kept as vocabulary blocks [S, C], one behind the other. Once block j has become dlogits and has been used
for dX, its only remaining use is dW block j = dlogits_j^T @ X. That is written to the front of the buffer, over
blocks that are done. All that must hold: dW block j ends at or before logits block j begins.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

WIDTH_MULTIPLE = 128  # a block's columns: whole tiles for the matrix products
PITCH_MULTIPLE = 16  # elements from row to row: what Triton wants to know to load 16 bytes at a time; cuBLAS wants 8


@dataclass(frozen=True)
class Block:
    """Columns [first, first + width) of the vocabulary, stored [S, width] from element `start`, rows `pitch` apart."""

    first: int
    width: int
    pitch: int
    start: int


@dataclass(frozen=True)
class Layout:
    """Where everything lies; sizes in elements."""

    rows: int
    hidden: int
    vocab: int
    blocks: tuple[Block, ...]
    size: int

    def logits(self, buffer: torch.Tensor, block: Block) -> torch.Tensor:
        """View [S, C] of one block."""
        return buffer.as_strided((self.rows, block.width), (block.pitch, 1), buffer.storage_offset() + block.start)

    def weight_grad(self, buffer: torch.Tensor) -> torch.Tensor:
        """View [V, H] of the front."""
        return buffer[: self.vocab * self.hidden].view(self.vocab, self.hidden)


def vocab_blocks(vocab: int, blocks: int) -> list[tuple[int, int]]:
    """At most `blocks` ranges (first, width) that cover the vocabulary; all but the last equally wide."""
    width = round_up(-(-vocab // blocks), WIDTH_MULTIPLE)
    return [(first, min(width, vocab - first)) for first in range(0, vocab, width)]


def plan_layout(rows: int, hidden: int, vocab: int, blocks: int = 8) -> Layout:
    """The layout for S = `rows`. Size: V * max(S, H) plus one block of dW (1/8 of V * H at 8 blocks) plus rounding.

    Why dW block j fits before logits block j: for S >= H every earlier block has moved the start by at least its dW's
    size, and the pad holds block j's own. For S < H the logits stand at the end of V * H + pad elements. The last
    block's pitch may exceed its width by up to 15 columns, hence the S * 16 of the pad.
    """
    ranges = vocab_blocks(vocab, blocks)
    pitches = [round_up(width, PITCH_MULTIPLE) for _, width in ranges]
    pad = ranges[0][1] * hidden + rows * PITCH_MULTIPLE
    start = round_up(max(pad, pad + vocab * hidden - rows * sum(pitches)), PITCH_MULTIPLE)  # aligned rows
    placed = []
    for (first, width), pitch in zip(ranges, pitches, strict=True):
        placed.append(Block(first, width, pitch, start))
        assert (first + width) * hidden <= start, "a block of dW would reach logits that are still needed"
        start += pitch * rows
    return Layout(rows, hidden, vocab, tuple(placed), max(start, vocab * hidden))


def padded_view(buffer: torch.Tensor, rows: int, width: int) -> torch.Tensor:
    """View [rows, width] of the front of a buffer, rows as far apart as in a Block."""
    return buffer.as_strided((rows, width), (round_up(width, PITCH_MULTIPLE), 1))


def round_up(number: int, multiple: int) -> int:
    return -(-number // multiple) * multiple
