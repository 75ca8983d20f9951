"""Only the supervised rows go through the head: gathered before it, their gradients put back after.

Legend: N tokens, S supervised rows, H hidden.
"""

from __future__ import annotations

import torch


def gather_rows(hidden_NH: torch.Tensor, rows_S: torch.Tensor | None) -> torch.Tensor:
    """[S, H] contiguous: a copy of the rows, or `hidden` itself where all are supervised (`rows` None)."""
    return hidden_NH.contiguous() if rows_S is None else hidden_NH.index_select(0, rows_S)


def scatter_rows(
    acc_SH: torch.Tensor, rows_S: torch.Tensor | None, spare_SH: torch.Tensor, tokens: int
) -> torch.Tensor:
    """dX [N, H] in `spare`'s dtype: `acc` at its rows, zero elsewhere.

    `spare` is the gathered copy of the rows, of no more use: with `rows` given it is overwritten, to save an
    allocation.
    """
    if rows_S is None:
        return acc_SH.to(spare_SH.dtype)
    dx_NH = spare_SH.new_zeros(tokens, spare_SH.shape[1])
    if acc_SH is not spare_SH:
        spare_SH.copy_(acc_SH)
    return dx_NH.index_copy_(0, rows_S, spare_SH)
