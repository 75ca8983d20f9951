"""The Triton side of `rows.py`; the formulas are there.

Legend: S supervised rows, V vocabulary, C columns of one vocabulary block.

No libdevice, atomics or tl.dot: the kernels run as they are in Triton's interpreter. Offsets are 64-bit: S * V passes
2^31 at 16,744 rows of Llama-3's vocabulary. Python floats arrive as fp32 scalars and are widened to ACC, which is
fp32 except in fp64 tests.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

try:
    import triton
    import triton.language as tl
except ImportError:  # no Triton for this platform: the torch twins do the work
    triton = None

if TYPE_CHECKING:
    from shard_kernels.rows import LossTerms, RowState

# A kernel sees module values only as constexpr.
LOG2E: Any = tl.constexpr(1.4426950408889634) if triton is not None else None


def available(device: torch.device) -> bool:
    """Whether the kernels are the choice on `device`: on GPUs, where Triton is installed."""
    return triton is not None and device.type == "cuda"


def jit(function: Any) -> Any:
    return triton.jit(function) if triton is not None else function


@jit
def _tanh(x):
    # From exp2 of a negative number: cannot overflow, exact at +-inf.
    e = tl.exp2(tl.abs(x) * (-2 * LOG2E))
    t = (1 - e) / (1 + e)
    return tl.where(x < 0, -t, t)


@jit
def _logit(raw, scale, cap, CAP: tl.constexpr, ACC: tl.constexpr):  # type: ignore[no-untyped-def]
    z = raw.to(ACC) * tl.cast(scale, ACC)
    if CAP:
        z = tl.cast(cap, ACC) * _tanh(z / tl.cast(cap, ACC))
    return z


@jit
def _merge(peak, mass, moment, z, STATS: tl.constexpr):  # type: ignore[no-untyped-def]
    # The online softmax: older sums are scaled to the new peak.
    new_peak = tl.maximum(peak, tl.max(z, axis=0))
    fade = tl.exp2((peak - new_peak) * LOG2E)
    below = z - new_peak
    e = tl.exp2(below * LOG2E)
    if STATS:
        moved = moment + mass * (peak - new_peak)
        moment = fade * moved + tl.sum(e * tl.where(e > 0, below, 0.0), axis=0)
    return new_peak, mass * fade + tl.sum(e, axis=0), moment


@jit
def _fold_kernel(  # type: ignore[no-untyped-def]
    logits, pitch, labels, peak_ptr, mass_ptr, target_ptr, total_ptr, moment_ptr, best_ptr,
    first, columns, scale, cap,
    CAP: tl.constexpr, TOTAL: tl.constexpr, STATS: tl.constexpr, BLOCK: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    base = logits + row * pitch
    label = tl.load(labels + row).to(tl.int64) - first
    peak = tl.load(peak_ptr + row)
    mass = tl.load(mass_ptr + row)
    total = tl.load(total_ptr + row)
    moment = tl.load(moment_ptr + row)
    best = tl.load(best_ptr + row)
    for start in range(0, columns, BLOCK):
        offsets = start + tl.arange(0, BLOCK)
        inside = offsets < columns
        z = _logit(tl.load(base + offsets, mask=inside, other=0.0), scale, cap, CAP, ACC)
        if TOTAL:
            total += tl.sum(tl.where(inside, z, 0.0), axis=0)
        # Masked after the transform: a cap would turn -inf into -cap, and that into probability mass.
        z = tl.where(inside, z, float("-inf"))
        if STATS:
            tile_peak, tile_best = tl.max(z, axis=0, return_indices=True, return_indices_tie_break_left=True)
            best = tl.where(tile_peak > peak, first + start + tile_best, best)
        peak, mass, moment = _merge(peak, mass, moment, z, STATS)
    tl.store(peak_ptr + row, peak)
    tl.store(mass_ptr + row, mass)
    if TOTAL:
        tl.store(total_ptr + row, total)
    if STATS:
        tl.store(moment_ptr + row, moment)
        tl.store(best_ptr + row, best)
    if (label >= 0) & (label < columns):
        tl.store(target_ptr + row, _logit(tl.load(base + label), scale, cap, CAP, ACC))


@jit
def _gradient_kernel(  # type: ignore[no-untyped-def]
    logits, pitch, labels, lse_ptr, upstream_ptr,
    first, columns, scale, cap, uniform, on_target, z_loss,
    CAP: tl.constexpr, BLOCK: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    offsets = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = offsets < columns
    pointers = logits + row * pitch + offsets
    scale = tl.cast(scale, ACC)
    lse = tl.load(lse_ptr + row)
    upstream = tl.load(upstream_ptr + row)
    label = tl.load(labels + row).to(tl.int64) - first

    z = tl.load(pointers, mask=inside, other=0.0).to(ACC) * scale
    if CAP:
        cap = tl.cast(cap, ACC)
        tanh = _tanh(z / cap)
        z = cap * tanh
    p = tl.exp2((z - lse) * LOG2E)
    d = p * (1 + 2 * tl.cast(z_loss, ACC) * lse) - tl.cast(uniform, ACC)
    # In registers, before the one store: no second store could race with it.
    d = tl.where(offsets == label, d - tl.cast(on_target, ACC), d)
    d = d * upstream * scale
    if CAP:
        d = d * (1 - tanh * tanh)
    tl.store(pointers, d.to(logits.dtype.element_ty), mask=inside)


def launch_fold(
    logits_SC: torch.Tensor, first: int, labels_S: torch.Tensor, state: RowState, terms: LossTerms, stats: bool
) -> None:
    """One program per row, which reads the row once."""
    rows, columns = logits_SC.shape
    if rows == 0:
        return
    block = min(8192, triton.next_power_of_2(columns))
    _fold_kernel[(rows,)](
        logits_SC, logits_SC.stride(0), labels_S,
        state.peak, state.mass, state.target, state.total, state.moment, state.best,
        first, columns, float(terms.logit_scale), float(terms.softcap),
        CAP=terms.softcap != 0, TOTAL=terms.label_smoothing != 0, STATS=stats, BLOCK=block, ACC=_acc(state.peak),
        num_warps=max(1, min(16, block // 512)),
    )  # fmt: skip


def launch_gradients(
    logits_SC: torch.Tensor,
    first: int,
    vocab: int,
    labels_S: torch.Tensor,
    lse_S: torch.Tensor,
    upstream_S: torch.Tensor,
    terms: LossTerms,
) -> None:
    """One program per row and 4,096 columns. Rows on grid axis 0, which may pass 65,535."""
    rows, columns = logits_SC.shape
    if rows == 0:
        return
    block = min(4096, triton.next_power_of_2(columns))
    _gradient_kernel[(rows, triton.cdiv(columns, block))](
        logits_SC, logits_SC.stride(0), labels_S, lse_S, upstream_S,
        first, columns, float(terms.logit_scale), float(terms.softcap),
        terms.label_smoothing / vocab, 1.0 - terms.label_smoothing, float(terms.z_loss),
        CAP=terms.softcap != 0, BLOCK=block, ACC=_acc(lse_S),
        num_warps=max(1, min(8, block // 512)),
    )  # fmt: skip


def _acc(tensor: torch.Tensor) -> Any:
    return tl.float64 if tensor.dtype == torch.float64 else tl.float32
