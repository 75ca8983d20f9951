"""Matrix products with fp32 accumulation, on every device and in every dtype.

Legend: M, K, N as in [M, K] @ [K, N].
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

# Where torch has no product of 16-bit matrices into fp32 (CPU), operands are widened this many of K at a time.
WIDENED_K = 512
SIXTEEN_BIT = (torch.bfloat16, torch.float16)


def accumulator_dtype(dtype: torch.dtype) -> torch.dtype:
    """What sums over blocks are kept in: fp32, or fp64 for fp64."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def accumulate_(acc_MN: torch.Tensor, a_MK: torch.Tensor, b_KN: torch.Tensor, *, first: bool) -> None:
    """acc = a @ b if `first` (whatever acc held), else acc += a @ b; the product is never rounded to 16 bits.

    Rounding each block's product to bf16 costs more with every block: 5e-3 relative error of dW at 16 blocks and 2.6e-2
    at 512, where one rounding has 1.6e-3.
    """
    if a_MK.dtype == acc_MN.dtype:
        torch.mm(a_MK, b_KN, out=acc_MN) if first else torch.addmm(acc_MN, a_MK, b_KN, out=acc_MN)
    elif acc_MN.is_cuda:
        if first:
            torch.mm(a_MK, b_KN, out_dtype=acc_MN.dtype, out=acc_MN)
        else:
            torch.addmm(acc_MN, a_MK, b_KN, out_dtype=acc_MN.dtype, out=acc_MN)
    else:
        if first:
            acc_MN.zero_()
        for k in range(0, a_MK.shape[1], WIDENED_K):
            acc_MN.addmm_(a_MK[:, k : k + WIDENED_K].to(acc_MN.dtype), b_KN[k : k + WIDENED_K].to(acc_MN.dtype))


@contextmanager
def whole_reductions() -> Iterator[None]:
    """No cuBLAS kernel that splits K and adds the parts in 16 bits, which torch allows by default. No device work."""
    matmul = torch.backends.cuda.matmul
    before = matmul.allow_bf16_reduced_precision_reduction, matmul.allow_fp16_reduced_precision_reduction
    matmul.allow_bf16_reduced_precision_reduction = matmul.allow_fp16_reduced_precision_reduction = False
    try:
        yield
    finally:
        matmul.allow_bf16_reduced_precision_reduction, matmul.allow_fp16_reduced_precision_reduction = before


def project(
    hidden_SH: torch.Tensor, weight_VH: torch.Tensor, bias_V: torch.Tensor | None, first: int, out_SC: torch.Tensor
) -> None:
    """Logits of the vocabulary's columns [first, first + C) into `out`, rounded once to its dtype."""
    columns = slice(first, first + out_SC.shape[1])
    if bias_V is None:
        torch.mm(hidden_SH, weight_VH[columns].t(), out=out_SC)
    else:
        torch.addmm(bias_V[columns], hidden_SH, weight_VH[columns].t(), out=out_SC)


def scale_(tensor: torch.Tensor, scale: torch.Tensor) -> None:
    """Multiply rows by an fp32 number; on a GPU torch would round the number itself to a 16-bit tensor's dtype."""
    for piece in tensor.split(1024):
        piece.copy_(piece.to(scale.dtype) * scale)


def narrow_(acc: torch.Tensor, dtype: torch.dtype, scale: torch.Tensor) -> torch.Tensor:
    """`acc * scale`, contiguous fp32, rounded to a 16-bit `dtype` inside its own storage; a tensor of the same shape.

    The first 4,096 elements go through a temporary; then [a, 2a) of the result lies in bytes [2a, 4a), which end where
    the source bytes [4a, 8a) begin. ceil(log2(n / 4096)) passes: 17 for Llama-3-8B's head, and no second copy of dW.
    """
    source = acc.view(-1)
    target = source.view(dtype)[: source.numel()]
    done = min(4096, source.numel())
    target[:done].copy_(source[:done] * scale)
    while done < source.numel():
        end = min(2 * done, source.numel())
        torch.mul(source[done:end], scale, out=source[done:end])
        target[done:end].copy_(source[done:end])
        done = end
    return target.view(acc.shape)
