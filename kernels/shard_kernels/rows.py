"""What happens to a row of logits between the matrix products: two Triton kernels, and the same in plain torch.

Legend: S supervised rows, V vocabulary, C columns of one vocabulary block.

`fold` reads a block of logits once and folds it into each row's running softmax statistics (online softmax, Milakov
and Gimelshein 2018). `to_gradients_` turns the block into dloss/dlogits in place. With z the logits after scale and
soft cap, smoothing s, z-loss coefficient c and upstream gradient g of row r and target y (all in natural logarithms):

    loss = lse - (1 - s) z_y - (s / V) sum(z) + c lse^2
    dloss/dz_v = g (p_v (1 + 2 c lse) - s / V - (1 - s) [v = y]),   p = exp(z - lse)
    z = cap tanh(u / cap), u = scale * raw:   dz/draw = (1 - tanh^2) scale

Logits are read as they are stored (16 bits, usually) and everything after that is fp32. The target's gradient is
formed in fp32 and stored once: subtracting 1 from an already rounded p would lose 20 % of it at p = .99.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from shard_kernels import row_kernels

TWIN_ELEMENTS = 2**18  # what the torch twin widens at a time: 1 MiB of fp32, which stays in the cache


@dataclass(frozen=True)
class LossTerms:
    """What the loss is made of besides logits and labels. `softcap` 0 means none."""

    logit_scale: float = 1.0
    softcap: float = 0.0
    label_smoothing: float = 0.0
    z_loss: float = 0.0


@dataclass
class RowState:
    """Running statistics [S] of each row over the columns seen so far; fp32 (fp64 for fp64 logits), best int64.

    mass = sum exp(z - peak); moment = sum exp(z - peak) (z - peak), for the entropy; total = sum z, for smoothing.
    """

    peak: torch.Tensor
    mass: torch.Tensor
    target: torch.Tensor
    total: torch.Tensor
    moment: torch.Tensor
    best: torch.Tensor

    @classmethod
    def start(cls, rows: int, dtype: torch.dtype, device: torch.device) -> RowState:
        # A low finite number, not -inf: a first column of -inf must not give exp(-inf + inf) = NaN.
        peak = torch.full((rows,), torch.finfo(dtype).min / 2, dtype=dtype, device=device)
        mass, target, total, moment = torch.zeros(4, rows, dtype=dtype, device=device).unbind()
        return cls(peak, mass, target, total, moment, torch.zeros(rows, dtype=torch.int64, device=device))

    def lse(self) -> torch.Tensor:
        return self.peak + self.mass.log()

    def entropy(self) -> torch.Tensor:
        """Of the softmax, in nats: log mass - E[z - peak]."""
        return self.mass.log() - self.moment / self.mass

    def loss(self, terms: LossTerms, vocab: int) -> torch.Tensor:
        """Per row, in nats. Unsmoothed it is never negative: the target's logit is one of those under the peak."""
        log_mass = self.mass.log()
        lse = self.peak + log_mass
        if terms.label_smoothing == 0:
            loss = (self.peak - self.target) + log_mass
        else:
            loss = lse - (1 - terms.label_smoothing) * self.target - terms.label_smoothing / vocab * self.total
        return loss + terms.z_loss * lse.square() if terms.z_loss else loss


def fold(
    logits_SC: torch.Tensor,
    first: int,
    labels_S: torch.Tensor,
    state: RowState,
    terms: LossTerms,
    *,
    stats: bool,
    triton: bool,
) -> None:
    """Fold the columns [first, first + C) into `state`. Rows of `logits` may be further apart than C.

    `stats` also keeps what accuracy and entropy need.
    """
    if triton:
        row_kernels.launch_fold(logits_SC, first, labels_S, state, terms, stats)
        return
    step = max(1, TWIN_ELEMENTS // logits_SC.shape[1])
    for row in range(0, logits_SC.shape[0], step):
        _fold_rows(logits_SC, first, labels_S, state, terms, stats, slice(row, row + step))


def _fold_rows(
    logits_SC: torch.Tensor,
    first: int,
    labels_S: torch.Tensor,
    state: RowState,
    terms: LossTerms,
    stats: bool,
    rows: slice,
) -> None:
    z_SC = logits_SC[rows].to(state.peak.dtype)
    _, z_SC = _transform(z_SC, terms)
    label_S = labels_S[rows] - first
    here_S = (label_S >= 0) & (label_S < z_SC.shape[1])
    target_S = z_SC.gather(1, label_S.clamp(0, z_SC.shape[1] - 1)[:, None])[:, 0]
    state.target[rows] = torch.where(here_S, target_S, state.target[rows])
    if terms.label_smoothing:
        state.total[rows] += z_SC.sum(1)
    block_peak_S, block_best_S = z_SC.max(1)
    if stats:
        block_best_S = (z_SC == block_peak_S[:, None]).int().argmax(1)  # the first of equals, as in the kernel
        better_S = block_peak_S > state.peak[rows]
        state.best[rows] = torch.where(better_S, first + block_best_S, state.best[rows])
    peak_S = torch.maximum(state.peak[rows], block_peak_S)
    shift_S = state.peak[rows] - peak_S
    below_SC = z_SC - peak_S[:, None]
    e_SC = below_SC.exp() if stats else below_SC.exp_()
    if stats:
        moved_S = state.moment[rows] + state.mass[rows] * shift_S
        below_SC = below_SC.masked_fill_(e_SC == 0, 0)
        state.moment[rows] = moved_S * shift_S.exp() + (e_SC * below_SC).sum(1)
    state.mass[rows] = state.mass[rows] * shift_S.exp() + e_SC.sum(1)
    state.peak[rows] = peak_S


def to_gradients_(
    logits_SC: torch.Tensor,
    first: int,
    vocab: int,
    labels_S: torch.Tensor,
    lse_S: torch.Tensor,
    upstream_S: torch.Tensor,
    terms: LossTerms,
    *,
    triton: bool,
) -> None:
    """Overwrite the columns [first, first + C) of the logits with dloss/dlogits; `upstream` [S] in lse's dtype."""
    if triton:
        row_kernels.launch_gradients(logits_SC, first, vocab, labels_S, lse_S, upstream_S, terms)
        return
    columns = logits_SC.shape[1]
    step = max(1, TWIN_ELEMENTS // columns)
    for row in range(0, logits_SC.shape[0], step):
        rows = slice(row, row + step)
        lse_S1, g_S1 = lse_S[rows, None], upstream_S[rows, None]
        tanh_SC, z_SC = _transform(logits_SC[rows].to(lse_S.dtype), terms)
        d_SC = (z_SC - lse_S1).exp_()
        if terms.z_loss:
            d_SC *= 1 + 2 * terms.z_loss * lse_S1
        if terms.label_smoothing:
            d_SC -= terms.label_smoothing / vocab
        label_S1 = labels_S[rows, None] - first
        here_S1 = (label_S1 >= 0) & (label_S1 < columns)
        ones_S1 = here_S1.to(d_SC.dtype) * (terms.label_smoothing - 1)
        d_SC.scatter_add_(1, label_S1.clamp(0, columns - 1), ones_S1)
        d_SC.mul_(g_S1)
        if tanh_SC is not None:
            d_SC *= 1 - tanh_SC.square()
        if terms.logit_scale != 1:
            d_SC *= terms.logit_scale
        logits_SC[rows] = d_SC


def _transform(raw_SC: torch.Tensor, terms: LossTerms) -> tuple[torch.Tensor | None, torch.Tensor]:
    """tanh(u / cap), None without a cap, and z."""
    u_SC = raw_SC * terms.logit_scale if terms.logit_scale != 1 else raw_SC
    if not terms.softcap:
        return None, u_SC
    tanh_SC = (u_SC / terms.softcap).tanh()
    return tanh_SC, terms.softcap * tanh_SC
