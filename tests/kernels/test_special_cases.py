"""Autograd's corners: gradcheck, second backwards, orders of backwards, checkpointing, determinism."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from oracle import Problem, Result, assert_equal, check, make, run
from torch.utils.checkpoint import checkpoint

from shard_kernels.loss import linear_cross_entropy

PLANS = pytest.mark.parametrize("plan", ["B", "T", "R"])
SIDES = pytest.mark.parametrize("triton", [False, True], ids=["twin", "kernel"])


class Again(torch.autograd.Function):
    """Computes everything afresh in every backward: gradcheck differentiates one graph many times."""

    @staticmethod
    def forward(ctx: Any, function: Callable[..., torch.Tensor], *leaves: torch.Tensor) -> torch.Tensor:
        ctx.function = function
        ctx.save_for_backward(*leaves)
        return function(*leaves).detach()

    @staticmethod
    def backward(ctx: Any, upstream: torch.Tensor) -> Any:
        with torch.enable_grad():
            leaves = [t.detach().requires_grad_() for t in ctx.saved_tensors]
            return (None, *torch.autograd.grad(ctx.function(*leaves), leaves, upstream))


@pytest.mark.parametrize(
    ("shape", "plan", "reduction"),
    [
        ((3, 2, 7), "B", "none"),
        ((3, 2, 7), "R", "none"),
        ((3, 2, 7), "T", "sum"),
        ((6, 2, 7), "B", "mean"),
        ((2, 1, 131), "B", "none"),
    ],
    ids=str,
)
@pytest.mark.parametrize(
    "terms",
    # Numbers that fp32 holds exactly: the kernels get them as fp32.
    [{}, {"softcap": 2.0, "logit_scale": 0.5, "z_loss": 0.125}],
    ids=["plain", "terms"],
)
@SIDES
def test_gradcheck_in_fp64(
    terms: dict[str, Any], shape: tuple[int, int, int], plan: Any, reduction: Any, triton: bool
) -> None:
    p = make(*shape, dtype=torch.float64, masked=1 / shape[0], bias=True, spread=1.0)

    def loss(x: torch.Tensor, w: torch.Tensor, b: torch.Tensor) -> Any:
        return linear_cross_entropy(x, w, p.labels, bias=b, plan=plan, reduction=reduction, triton=triton, **terms)

    assert p.bias is not None
    leaves = [t.requires_grad_() for t in (p.hidden, p.weight, p.bias)]
    assert torch.autograd.gradcheck(lambda *leaves: Again.apply(loss, *leaves), leaves)


@PLANS
@pytest.mark.parametrize("masked", [0.0, 0.4])
def test_a_second_backward_is_an_error_and_not_a_wrong_number(masked: float, plan: Any) -> None:
    p = make(10, 8, 140, masked=masked)
    w = p.weight.requires_grad_()
    loss: Any = linear_cross_entropy(p.hidden.requires_grad_(), w, p.labels, plan=plan)
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="differentiated twice"):
        loss.backward()


@PLANS
def test_gradients_of_gradients_are_refused(plan: Any) -> None:
    p = make(10, 8, 140)
    w = p.weight.requires_grad_()
    loss: Any = linear_cross_entropy(p.hidden, w, p.labels, plan=plan)
    upstream = torch.ones((), requires_grad=True)
    (dw,) = torch.autograd.grad(loss, w, upstream, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        dw.sum().backward()


@PLANS
@pytest.mark.parametrize("masked", [0.0, 0.4])
def test_two_forwards_may_be_differentiated_in_reverse(masked: float, plan: Any) -> None:
    problems = [make(12, 8, 140, masked=masked, seed=seed) for seed in (1, 2)]
    apart = [run(linear_cross_entropy, p, plan=plan) for p in problems]
    leaves = [(p.hidden.clone().requires_grad_(), p.weight.clone().requires_grad_()) for p in problems]
    losses: list[Any] = [
        linear_cross_entropy(x, w, p.labels, plan=plan) for (x, w), p in zip(leaves, problems, strict=True)
    ]
    for loss in reversed(losses):
        loss.backward()
    for (x, w), loss, alone in zip(leaves, losses, apart, strict=True):
        assert_equal(Result(loss.detach(), x.grad, w.grad, None), alone)


@PLANS
def test_gradients_of_two_losses_add_up_in_one_weight(plan: Any) -> None:
    """dW is a view of a buffer, which autograd must not keep as its own where a second one is added."""
    p = make(12, 8, 140, masked=0.25)
    alone = run(linear_cross_entropy, p, plan=plan)
    w = p.weight.clone().requires_grad_()
    for _ in range(3):
        loss: Any = linear_cross_entropy(p.hidden, w, p.labels, plan=plan)
        loss.backward()
    assert alone.dweight is not None
    torch.testing.assert_close(w.grad, 3 * alone.dweight, rtol=1e-6, atol=1e-7)


@PLANS
@pytest.mark.parametrize("masked", [0.0, 0.4])
def test_checkpointing_around_the_loss_changes_nothing(masked: float, plan: Any) -> None:
    p = make(12, 8, 140, masked=masked)

    def wrapped(*args: Any, **kw: Any) -> Any:
        return checkpoint(linear_cross_entropy, *args, use_reentrant=False, **kw)

    assert_equal(*(run(f, p, plan=plan, upstream=0.5) for f in (linear_cross_entropy, wrapped)))


@PLANS
@SIDES
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_the_same_run_twice_is_bitwise_the_same(dtype: torch.dtype, triton: bool, plan: Any) -> None:
    p = make(20, 16, 301, dtype=dtype, masked=0.25, bias=True)
    assert_equal(*(run(linear_cross_entropy, p, plan=plan, triton=triton) for _ in range(2)))


@PLANS
def test_inputs_are_left_as_they_were(plan: Any) -> None:
    """Buffers are overwritten; hidden states, weight, labels and the upstream gradient are not."""
    p = make(20, 16, 301, bias=True)
    assert p.bias is not None
    mine = [t.clone() for t in (p.hidden, p.weight, p.bias, p.labels)]
    x, w, b, y = mine
    leaves = [t.requires_grad_() for t in (x, w, b)]
    loss: Any = linear_cross_entropy(x, w, y, bias=b, plan=plan)
    upstream = torch.tensor(0.5)
    torch.autograd.grad(loss, leaves, upstream)
    for before, after in zip((p.hidden, p.weight, p.bias, p.labels), mine, strict=True):
        assert torch.equal(before, after)
    assert float(upstream) == 0.5


@PLANS
@SIDES
def test_a_bias_of_minus_infinity_switches_tokens_off(triton: bool, plan: Any) -> None:
    """Also the whole first block of the vocabulary."""
    p = make(10, 8, 400, bias=True)
    assert p.bias is not None
    p.bias[:130] = -torch.inf
    p.bias[300] = -torch.inf
    labels = torch.arange(10) + 150
    result = check(Problem(p.hidden, p.weight, labels, p.bias), plan=plan, triton=triton)
    assert result.dweight is not None
    assert (result.dweight[:130] == 0).all()


@PLANS
@SIDES
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_huge_logits_give_finite_losses_and_gradients(dtype: torch.dtype, triton: bool, plan: Any) -> None:
    """+-1e4, beyond what exp can take."""
    p = make(10, 8, 300, dtype=dtype, spread=1e4)
    result = run(linear_cross_entropy, p, plan=plan, triton=triton)
    for tensor in result[:3]:
        assert tensor is not None
        assert torch.isfinite(tensor).all()
    if dtype == torch.float32:
        torch.testing.assert_close(result.loss.double(), run_exact(p), rtol=1e-5, atol=0)


def run_exact(p: Problem) -> torch.Tensor:
    return torch.nn.functional.cross_entropy(p.hidden.double() @ p.weight.double().t(), p.labels)


@PLANS
def test_the_target_may_be_the_last_token(plan: str) -> None:
    p = make(9, 8, 301)
    check(Problem(p.hidden, p.weight, torch.full((9,), 300)), plan=plan)
