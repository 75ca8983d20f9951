"""What is measured: heads, token counts, supervised shares; and the inputs drawn for them.

Legend: N tokens, S supervised tokens, H hidden, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product
from typing import Any

import torch

IGNORE = -100
SHARES = (1.0, 0.5, 0.25)
DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}


@dataclass(frozen=True)
class Head:
    """A model's output head. Plain for all of them: Gemma's softcap of 30 is left out, since not every provider has
    one.
    """

    name: str
    hidden: int
    vocab: int


@dataclass(frozen=True)
class Workload:
    """What a device measures unless told otherwise."""

    heads: tuple[Head, ...]
    tokens: tuple[int, ...]
    dtypes: tuple[str, ...]
    repeats: int


GPU = Workload(
    heads=(
        Head("llama-3-8b", 4096, 128256),
        Head("llama-3-70b", 8192, 128256),
        Head("qwen2.5-7b", 3584, 152064),
        Head("gemma-2-2b", 2304, 256000),
    ),
    tokens=(4096, 8192, 16384, 32768),
    dtypes=("bf16",),
    repeats=20,
)
# Small enough for two cores and two minutes; V / H = 32, about Llama-3-8B's, and S from H / 2 to 4 H.
CPU = Workload(heads=(Head("small", 256, 8192),), tokens=(512, 1024), dtypes=("fp32", "bf16"), repeats=5)
HEADS = {head.name: head for head in (*GPU.heads, *CPU.heads)}


@dataclass(frozen=True)
class Shape:
    """One cell of the benchmark."""

    head: Head
    tokens: int
    share: float
    dtype_name: str

    @property
    def supervised(self) -> int:
        return max(1, round(self.tokens * self.share))

    @property
    def dtype(self) -> torch.dtype:
        return DTYPES[self.dtype_name]

    @property
    def flops(self) -> int:
        """Of the logits', dX's and dW's products over the supervised rows: 6 SHV."""
        return 6 * self.supervised * self.head.hidden * self.head.vocab

    def key(self) -> dict[str, str | int | float]:
        """What names this cell in records."""
        return {"head": self.head.name, "tokens": self.tokens, "share": self.share, "dtype": self.dtype_name}


def grid(heads: list[Head], dtypes: list[str], tokens: list[int], shares: list[float]) -> list[Shape]:
    """Every combination; few tokens first, so that a run cut short has whole curves of the first heads."""
    return [Shape(head, n, share, dtype) for head, dtype, n, share in product(heads, dtypes, tokens, shares)]


@dataclass
class Batch:
    """Inputs of one shape: hidden [N, H] and weight [V, H] with gradients on, labels [N] with -100 for masked tokens.

    `rows` [S] are the positions of the supervised tokens and `row_labels` [S] their labels: a collator has both at no
    cost, so they are made here, outside of every timing.
    """

    hidden: torch.Tensor
    weight: torch.Tensor
    labels: torch.Tensor
    rows: torch.Tensor
    row_labels: torch.Tensor

    def clear(self) -> None:
        """Drop the gradients."""
        self.hidden.grad = self.weight.grad = None


def draw(shape: Shape, device: torch.device) -> Batch:
    """Random normal, the same for every run: logits are N(0, 1), about the spread of a language model's."""
    generator = torch.Generator(device).manual_seed(0)
    width, vocab = shape.head.hidden, shape.head.vocab
    options: dict[str, Any] = {"generator": generator, "device": device}
    hidden_NH = torch.randn(shape.tokens, width, dtype=shape.dtype, **options)
    weight_VH = torch.randn(vocab, width, dtype=shape.dtype, **options).mul_(width**-0.5)
    rows_S = torch.randperm(shape.tokens, **options)[: shape.supervised].sort().values
    row_labels_S = torch.randint(0, vocab, (shape.supervised,), **options)
    labels_N = torch.full((shape.tokens,), IGNORE, device=device).index_copy_(0, rows_S, row_labels_S)
    return Batch(hidden_NH.requires_grad_(), weight_VH.requires_grad_(), labels_N, rows_S, row_labels_S)
