"""What a loss is asked to work on, checked and brought to one shape: [N, H], its supervised rows and their labels.

Legend: N tokens, S supervised tokens, H hidden, V vocabulary.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch

from shard_kernels.rows import LossTerms

DTYPES = (torch.bfloat16, torch.float16, torch.float32, torch.float64)


class Inputs(NamedTuple):
    """`rows` None: every token is supervised. `labels` are those of the supervised rows."""

    hidden_NH: torch.Tensor
    weight_VH: torch.Tensor
    bias_V: torch.Tensor | None
    labels_S: torch.Tensor
    rows_S: torch.Tensor | None


def read_terms(logit_scale: float, softcap: float | None, label_smoothing: float, z_loss: float) -> LossTerms:
    """Raises ValueError for a term out of its range."""
    if not (math.isfinite(logit_scale) and logit_scale != 0):
        raise ValueError(f"logit_scale={logit_scale} must be a finite number other than 0")
    if softcap is not None and not (math.isfinite(softcap) and softcap > 0):
        raise ValueError(f"softcap={softcap} must be above 0; None means no cap")
    if not 0 <= label_smoothing < 1:
        raise ValueError(f"label_smoothing={label_smoothing} must be in [0, 1)")
    if not (math.isfinite(z_loss) and z_loss >= 0):
        raise ValueError(f"z_loss={z_loss} must be 0 or more")
    return LossTerms(float(logit_scale), float(softcap or 0), float(label_smoothing), float(z_loss))


def read_inputs(
    hidden: torch.Tensor,
    weight_VH: torch.Tensor,
    labels: torch.Tensor,
    rows_S: torch.Tensor | None,
    bias_V: torch.Tensor | None,
    ignore_index: int,
) -> Inputs:
    """See `linear_cross_entropy` for shapes. Raises ValueError for whatever does not fit together.

    Without `rows` the supervised ones are looked up, which waits for a GPU. Values (labels, rows) are checked at once
    on a CPU; on a GPU the check runs there and fails the stream, like torch's own.
    """
    hidden, weight_VH, bias_V = _autocast(hidden, weight_VH, bias_V)
    _check_matrices(hidden, weight_VH, bias_V)
    if labels.dtype not in (torch.int32, torch.int64) or labels.device != hidden.device:
        raise ValueError(f"labels are {labels.dtype} on {labels.device}; int64 or int32 on {hidden.device} expected")
    hidden_NH = hidden.reshape(-1, hidden.shape[-1])
    if rows_S is None:
        if labels.shape != hidden.shape[:-1]:
            raise ValueError(f"labels {_shape(labels)} do not match hidden {_shape(hidden)}: one label per row of H")
        labels_N = labels.reshape(-1).long()
        rows_S = (labels_N != ignore_index).nonzero().flatten()
        labels_S = labels_N.index_select(0, rows_S)
    else:
        _check_rows(rows_S, labels, hidden_NH)
        rows_S, labels_S = rows_S.long(), labels.long()
    vocab = weight_VH.shape[0]
    _require(
        (labels_S >= 0) & (labels_S < vocab),
        f"labels must be 0 to {vocab - 1}, or ignore_index={ignore_index}",
        labels_S,
    )
    return Inputs(hidden_NH, weight_VH, bias_V, labels_S, None if len(rows_S) == len(hidden_NH) else rows_S)


def _autocast(
    hidden: torch.Tensor, weight_VH: torch.Tensor, bias_V: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
    """Under autocast a head runs in autocast's dtype, whatever its inputs are; as torch's own linear does."""
    if not torch.is_autocast_enabled(hidden.device.type):
        return hidden, weight_VH, bias_V
    dtype = torch.get_autocast_dtype(hidden.device.type)
    return hidden.to(dtype), weight_VH.to(dtype), None if bias_V is None else bias_V.to(dtype)


def _check_matrices(hidden: torch.Tensor, weight_VH: torch.Tensor, bias_V: torch.Tensor | None) -> None:
    for name, tensor in (("hidden", hidden), ("weight", weight_VH), ("bias", bias_V)):
        if tensor is None:
            continue
        if type(tensor).__name__ == "DTensor":
            raise ValueError(f"{name} is a DTensor; its gradient would miss other ranks' parts. Pass a plain tensor")
        if tensor.dtype not in DTYPES:
            raise ValueError(f"{name} is {tensor.dtype}; the head is computed in {', '.join(map(str, DTYPES))}")
        if (tensor.dtype, tensor.device) != (hidden.dtype, hidden.device):
            raise ValueError(
                f"{name} is {tensor.dtype} on {tensor.device} and hidden {hidden.dtype} on {hidden.device}; "
                "cast or move one of them, or use autocast"
            )
    if weight_VH.ndim != 2 or weight_VH.numel() == 0:
        raise ValueError(
            f"weight has shape {_shape(weight_VH)}, not [V, H]. Under ZeRO-3 a weight is whole only inside its own "
            "module's forward: compute the loss in LossHead, not with lm_head.weight from outside"
        )
    if hidden.ndim < 1 or hidden.shape[-1] != weight_VH.shape[1]:
        raise ValueError(f"hidden {_shape(hidden)} does not end in the weight's H = {weight_VH.shape[1]}")
    if bias_V is not None and bias_V.shape != weight_VH.shape[:1]:
        raise ValueError(f"bias {_shape(bias_V)} is not [V] with V = {weight_VH.shape[0]}")


def _check_rows(rows_S: torch.Tensor, labels: torch.Tensor, hidden_NH: torch.Tensor) -> None:
    if rows_S.ndim != 1 or rows_S.dtype not in (torch.int32, torch.int64) or rows_S.device != hidden_NH.device:
        raise ValueError(
            f"rows are {rows_S.dtype} {_shape(rows_S)} on {rows_S.device}; a vector of int64 beside hidden"
        )
    if labels.shape != rows_S.shape:
        raise ValueError(f"with rows {_shape(rows_S)}, labels are those of the rows; got {_shape(labels)}")
    tokens = len(hidden_NH)
    rising = torch.ones_like(rows_S, dtype=torch.bool)
    rising[1:] = rows_S[1:] > rows_S[:-1]
    _require(
        rising & (rows_S >= 0) & (rows_S < tokens), f"rows must rise, without repeats, from 0 to {tokens - 1}", rows_S
    )


def _require(good: torch.Tensor, message: str, values: torch.Tensor) -> None:
    if good.is_cuda:  # no reading back: the device raises when it gets there
        torch._assert_async(good.all(), message)
    elif not good.all():
        raise ValueError(f"{message}; got {values[~good][:3].tolist()}")


def _shape(tensor: torch.Tensor) -> list[int]:
    return list(tensor.shape)
