"""Who takes part. A provider is made by a function that imports what it needs and returns its loss: Batch -> scalar.

Each computes the mean cross-entropy over the supervised tokens, with gradients for hidden and weight, in the setting
that its makers recommend for accuracy. Byte models are those of the peers' sources: bytes beyond hidden, weight and dX.

Legend: N tokens, S supervised tokens, H hidden, V vocabulary, C rows of a token chunk.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from bench.measure import Loss
from bench.shapes import Batch, Shape
from shard_kernels import LossPlan, linear_cross_entropy, plan_loss

GEMMS = "three_gemms"


@dataclass(frozen=True)
class Provider:
    """`package` is the distribution that it comes from. `bytes` models its memory, where there is a model."""

    load: Callable[[], Loss]
    package: str = "torch"
    needs_gpu: bool = False
    bytes: Callable[[Shape], int] | None = None
    ours: bool = False


def eager() -> Loss:
    """As in Hugging Face's causal language models: all logits, then all of them again in fp32."""
    return lambda b: F.cross_entropy(F.linear(b.hidden, b.weight).float(), b.labels)


def torch_native() -> Loss:
    """torch's token chunks at their most accurate. Without acc_dtype an explicit policy sums in the inputs' dtype."""
    from torch.nn import LinearCrossEntropyOptions

    def loss(b: Batch) -> torch.Tensor:
        wide = torch.float32 if b.hidden.dtype == torch.bfloat16 else None
        options = LinearCrossEntropyOptions(acc_policy="accurate", acc_dtype=wide)
        return F.linear_cross_entropy(b.hidden, b.weight, b.labels, options=options)

    return loss


def torch_native_auto() -> Loss:
    """torch's token chunks as torch itself chooses them for the device and the dtype: faster than `torch_native`."""
    from torch.nn import LinearCrossEntropyOptions

    options = LinearCrossEntropyOptions()
    return lambda b: F.linear_cross_entropy(b.hidden, b.weight, b.labels, options=options)


def trl() -> Loss:
    """The SFT trainer's call: vocabulary chunks of 32,768, masked tokens left out on GPUs only. The trainer asks for
    entropy and accuracy too, which nobody else computes here.
    """
    from trl.kernels import ChunkedLogProbFunction

    def loss(b: Batch) -> torch.Tensor:
        mask = b.labels != -100
        compact = b.hidden.is_cuda
        hidden = b.hidden[mask] if compact else b.hidden
        targets = b.labels[mask] if compact else b.labels.clamp(min=0)
        logprobs = ChunkedLogProbFunction.apply(hidden, b.weight, None, targets, 1.0, 32768, None, 1.0, ())[0]
        return -(logprobs if compact else logprobs.masked_fill(~mask, 0)).sum() / mask.sum()

    return loss


def liger(accum_dtype: torch.dtype | None) -> Loss:
    """Sums dW over token chunks in the weight's dtype, or in `accum_dtype`."""
    from liger_kernel.ops.fused_linear_cross_entropy import LigerFusedLinearCrossEntropyFunction

    # Positions: bias, class weights, ignore_index, z-loss, smoothing, reduction, softcap, return_z_loss, accum_dtype.
    tail = (None, None, -100, 0.0, 0.0, "mean", None, False, accum_dtype)
    return lambda b: LigerFusedLinearCrossEntropyFunction.apply(b.hidden, b.weight, b.labels, *tail)[0]


def liger_bf16() -> Loss:
    """Liger's default."""
    return liger(None)


def liger_fp32() -> Loss:
    """Liger with fp32 sums."""
    return liger(torch.float32)


def cce() -> Loss:
    """Apple's kernels without their gradient filter, which drops small entries."""
    from cut_cross_entropy import linear_cross_entropy as cut_cross_entropy

    return lambda b: cut_cross_entropy(b.hidden, b.weight, b.labels, filter_eps=None, impl="cce")


def quack() -> Loss:
    """QuACK's own choice of pipeline: scaled-exp on Hopper from 0.6.2 on."""
    from quack.linear_cross_entropy import chunked_linear_cross_entropy

    return lambda b: chunked_linear_cross_entropy(b.hidden, b.weight, b.labels, chunk_size=4096)


def ours() -> Loss:
    """The planner's choice. `rows` come from the collator, so looking them up is in no timing."""
    return lambda b: _scalar(linear_cross_entropy(b.hidden, b.weight, b.row_labels, rows=b.rows))


def ours_r() -> Loss:
    """Plan R, which recomputes the logits to save memory."""
    return lambda b: _scalar(linear_cross_entropy(b.hidden, b.weight, b.row_labels, rows=b.rows, plan="R"))


def _scalar(loss: object) -> torch.Tensor:
    assert isinstance(loss, torch.Tensor)  # a tuple only where statistics are asked for
    return loss


def eager_bytes(shape: Shape) -> int:
    """Upper bound: 16 bytes per logit for logits, log-probabilities and their gradients alive at once."""
    return 16 * shape.tokens * shape.head.vocab


def quack_bytes(shape: Shape) -> int:
    chunk = min(4096, shape.tokens)
    return 2 * chunk * shape.head.vocab + _weight_bytes(shape, 2 if chunk == shape.tokens else 6)


def liger_bytes(shape: Shape, per_weight: int) -> int:
    chunks = -(-shape.head.vocab // shape.head.hidden)
    chunk = min(shape.tokens, 1 << (-(-shape.tokens // chunks) - 1).bit_length())
    return 2 * chunk * shape.head.vocab + _weight_bytes(shape, per_weight)


def _weight_bytes(shape: Shape, per_weight: int) -> int:
    return shape.head.vocab * shape.head.hidden * per_weight


PROVIDERS = {
    "ours": Provider(ours, ours=True),
    "ours_R": Provider(ours_r, ours=True),
    "eager": Provider(eager, bytes=eager_bytes),
    "torch_native": Provider(torch_native),
    "torch_native_auto": Provider(torch_native_auto),
    "trl": Provider(trl, "trl"),
    "liger_bf16": Provider(liger_bf16, "liger-kernel", needs_gpu=True, bytes=lambda shape: liger_bytes(shape, 8)),
    "liger_fp32": Provider(liger_fp32, "liger-kernel", needs_gpu=True, bytes=lambda shape: liger_bytes(shape, 6)),
    "cce": Provider(cce, "cut-cross-entropy", needs_gpu=True),
    "quack": Provider(quack, "quack-kernels", needs_gpu=True, bytes=quack_bytes),
}


def load(names: list[str], device: torch.device) -> tuple[dict[str, Loss], dict[str, str]]:
    """Losses of those that can run on `device`, and the reasons of those that cannot."""
    losses, absent = {}, {}
    for name in names:
        provider = PROVIDERS[name]
        if provider.needs_gpu and device.type != "cuda":
            absent[name] = "its kernels need a GPU"
            continue
        try:
            losses[name] = provider.load()
        except Exception as error:  # a peer may fail in any way while it is imported
            absent[name] = f"{provider.package} does not import: {type(error).__name__}: {error}"
    return losses, absent


def our_plan(name: str, shape: Shape, device: torch.device) -> LossPlan:
    """What the planner says of one of our own providers."""
    sizes = (shape.tokens, shape.supervised, shape.head.hidden, shape.head.vocab, shape.dtype)
    return plan_loss(*sizes, device=device.type, name="R" if name == "ours_R" else None)


def three_gemms(b: Batch) -> Callable[[], None]:
    """The products that no exact method can do without, over the supervised rows: logits, dX and dW."""
    hidden_SH = b.hidden.detach().index_select(0, b.rows)
    weight_VH = b.weight.detach()

    def run() -> None:
        logits_SV = torch.mm(hidden_SH, weight_VH.T)
        torch.mm(logits_SV, weight_VH)
        torch.mm(logits_SV.T, hidden_SH)

    return run
