"""Problems, the exact answer in fp64, and the rule by which a result is judged.

Legend: N tokens, S supervised tokens, H hidden, V vocabulary.

The rule (as in QuACK's and CCE's suites): the error against fp64 is at most a few times the error that plain torch
makes in the same dtype. Errors are relative to the largest entry of the truth, so that no tolerance depends on a
reduction or an upstream gradient.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from shard_kernels.eager import eager_linear_cross_entropy
from shard_kernels.loss import linear_cross_entropy

LOSS_FACTOR, GRAD_FACTOR = 3.0, 2.0
# Beside the error of plain torch, which can be 0 by luck: some units of the dtype in which sums are kept.
FLOOR = {torch.float64: 1e-13, torch.float32: 4e-6, torch.float16: 1e-4, torch.bfloat16: 1e-4}
# Triton's interpreter cuts fp32 to bf16 off instead of rounding it: one unit in the last place, always downwards.
TRUNCATED = 2.0**-7


@dataclass(frozen=True)
class Problem:
    """hidden [N, H], weight [V, H], labels [N] with `ignore_index`, bias [V] or None."""

    hidden: torch.Tensor
    weight: torch.Tensor
    labels: torch.Tensor
    bias: torch.Tensor | None = None
    ignore_index: int = -100

    @property
    def rows(self) -> torch.Tensor:
        return (self.labels != self.ignore_index).nonzero().flatten()

    def to(self, dtype: torch.dtype) -> Problem:
        bias = None if self.bias is None else self.bias.to(dtype)
        return replace(self, hidden=self.hidden.to(dtype), weight=self.weight.to(dtype), bias=bias)


class Result(NamedTuple):
    """Loss and gradients; None for what has none."""

    loss: torch.Tensor
    dhidden: torch.Tensor | None
    dweight: torch.Tensor | None
    dbias: torch.Tensor | None


def make(
    tokens: int,
    hidden: int,
    vocab: int,
    *,
    dtype: torch.dtype = torch.float32,
    masked: float = 0.0,
    bias: bool = False,
    ignore_index: int = -100,
    spread: float = 2.0,
    seed: int = 0,
    device: str = "cpu",
) -> Problem:
    """Normal data; `spread` is the standard deviation of the logits, `masked` the share of masked tokens."""
    g = torch.Generator().manual_seed(seed)
    x_NH = torch.randn(tokens, hidden, generator=g)
    w_VH = torch.randn(vocab, hidden, generator=g) * spread * hidden**-0.5
    y_N = torch.randint(0, vocab, (tokens,), generator=g)
    y_N[torch.randperm(tokens, generator=g)[: round(masked * tokens)]] = ignore_index
    b_V = torch.randn(vocab, generator=g) if bias else None
    problem = Problem(x_NH, w_VH, y_N, b_V, ignore_index).to(dtype)
    moved = {name: getattr(problem, name).to(device) for name in ("hidden", "weight", "labels")}
    return replace(problem, **moved, bias=None if b_V is None else b_V.to(device, dtype))


def exact_linear_cross_entropy(
    hidden: torch.Tensor,
    weight: torch.Tensor,
    labels: torch.Tensor,
    *,
    bias: torch.Tensor | None = None,
    reduction: str = "mean",
    denominator: float | None = None,
    ignore_index: int = -100,
    softcap: float | None = None,
    logit_scale: float = 1.0,
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
) -> torch.Tensor:
    """The definition, written down in fp64 over all tokens; autograd does the rest."""
    z_NV = hidden.double() @ weight.double().t()
    if bias is not None:
        z_NV = z_NV + bias.double()
    z_NV = z_NV * logit_scale
    if softcap:
        z_NV = softcap * torch.tanh(z_NV / softcap)
    kept_N = labels != ignore_index
    lse_N = z_NV.logsumexp(-1)
    target_N = z_NV.gather(-1, labels.long().where(kept_N, 0)[..., None])[..., 0]
    loss_N = lse_N - (1 - label_smoothing) * target_N + z_loss * lse_N.square()
    if label_smoothing:
        loss_N = loss_N - label_smoothing * z_NV.mean(-1)
    loss_N = loss_N.where(kept_N, 0)
    if reduction == "none":
        return loss_N
    total = loss_N.sum()
    if reduction == "sum":
        return total
    return total / (max(1, int(kept_N.sum())) if denominator is None else denominator)


def run(
    function: Callable[..., Any], problem: Problem, *, upstream: Any = 1.0, needs: str = "xwb", **kw: Any
) -> Result:
    """Forward and backward. `upstream`: a number or the loss's shape; `needs`: which of x, w, b require gradients."""
    x, w = (t.detach().clone(memory_format=torch.preserve_format) for t in (problem.hidden, problem.weight))
    b = None if problem.bias is None else problem.bias.detach().clone()
    leaves = {"x": x, "w": w, "b": b}
    for name in needs:
        if (leaf := leaves[name]) is not None:
            leaf.requires_grad_()
    loss = function(x, w, problem.labels, bias=b, ignore_index=problem.ignore_index, **kw)
    gradient = upstream if isinstance(upstream, torch.Tensor) else torch.full_like(loss, upstream)
    loss.backward(gradient.to(loss.dtype))
    return Result(loss.detach(), x.grad, w.grad, None if b is None else b.grad)


def truth(problem: Problem, *, upstream: Any = 1.0, **kw: Any) -> Result:
    """The exact answer in fp64 for the inputs as they are, rounded to whatever dtype they have."""
    return run(exact_linear_cross_entropy, problem.to(torch.float64), upstream=upstream, **kw)


def error(value: torch.Tensor, exact: torch.Tensor) -> float:
    """Largest deviation, relative to the largest entry of the truth; plain where the truth is all 0."""
    if value.numel() == 0:
        return 0.0
    scale = float(exact.abs().max()) or 1.0
    return float((value.double() - exact).abs().max()) / scale


def judge(result: Result, exact: Result, plain: Result, *, slack: float = 0.0) -> None:
    """The rule. `plain` is plain torch's result in the same dtype; `slack` a further relative error."""
    for name, value, right, peer in zip(Result._fields, result, exact, plain, strict=True):
        assert (value is None) == (right is None), name
        if value is None or right is None or peer is None:
            continue
        assert value.shape == right.shape, name
        factor = LOSS_FACTOR if name == "loss" else GRAD_FACTOR
        floor = FLOOR[peer.dtype] + (slack if name != "loss" else 0.0)
        found, allowed = error(value, right), factor * error(peer, right) + floor
        assert found <= allowed, f"{name}: error {found:.3g}, plain torch has {error(peer, right):.3g}"


def check(problem: Problem, *, upstream: Any = 1.0, triton: bool = False, plan: Any = None, **kw: Any) -> Result:
    """Run the fused loss and judge it; the result for further questions."""
    result = run(linear_cross_entropy, problem, upstream=upstream, triton=triton, plan=plan, **kw)
    plain = run(eager_linear_cross_entropy, problem, upstream=upstream, **kw)
    truncates = triton and not problem.hidden.is_cuda and problem.hidden.dtype == torch.bfloat16
    judge(result, truth(problem, upstream=upstream, **kw), plain, slack=TRUNCATED if truncates else 0.0)
    return result


def assert_equal(a: Result, b: Result) -> None:
    """Bitwise."""
    for name, left, right in zip(Result._fields, a, b, strict=True):
        assert (left is None) == (right is None), name
        if left is not None and right is not None:
            assert torch.equal(left, right), f"{name} differs by {float((left - right).abs().max()):.3g}"


class Watch(TorchDispatchMode):
    """Calls `look(name of the operator, its result)` after each one, in forward and backward."""

    def __init__(self, look: Callable[[str, Any], None]) -> None:
        super().__init__()
        self.look = look

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        self.look(func.overloadpacket.__name__, result)
        return result


def peak_bytes(work: Callable[[], Any]) -> int:
    """The most that torch's CPU allocator held at a time during `work`, beyond what it held before."""
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
        work()
    assert recorded.profiler is not None
    results: Any = recorded.profiler.kineto_results
    events = [event for event in results.events() if event.name() == "[memory]"]
    held = highest = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        held += event.nbytes()
        highest = max(highest, held)
    return highest
