"""The fused loss over the axes of its test matrix, each case judged by the rule in oracle.py.

Legend: N tokens, S supervised tokens, H hidden, V vocabulary.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from oracle import Problem, Result, assert_equal, check, error, make, run, truth

from shard_kernels.loss import linear_cross_entropy
from shard_kernels.planner import LossPlan

BF16, FP16, FP32, FP64 = torch.bfloat16, torch.float16, torch.float32, torch.float64
DTYPES = [FP32, BF16, FP16, FP64]
TERMS: dict[str, dict[str, Any]] = {
    "plain": {},
    "softcap": {"softcap": 30.0},
    "tight cap": {"softcap": 2.0},
    "scale": {"logit_scale": 0.0625},
    "smoothing": {"label_smoothing": 0.1},
    "z-loss": {"z_loss": 1e-4},
    "all": {"softcap": 5.0, "logit_scale": 0.5, "label_smoothing": 0.1, "z_loss": 1e-2},
}
ALL = TERMS["all"]
SHAPES = [(1, 32, 64), (7, 31, 123), (63, 41, 41), (252, 123, 507), (256, 128, 512)]


@pytest.mark.parametrize("plan", ["B", "T", "R"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_shapes_and_dtypes(shape: tuple[int, int, int], dtype: torch.dtype, plan: str) -> None:
    check(make(*shape, dtype=dtype, masked=0.2), plan=plan, upstream=0.25)


def test_a_larger_shape() -> None:
    for plan in ("B", "T", "R"):
        check(make(1024, 512, 2048, masked=0.5), plan=plan)


@pytest.mark.parametrize("plan", ["B", "T", "R"])
@pytest.mark.parametrize("dtype", [FP32, BF16], ids=str)
@pytest.mark.parametrize("supervised", [0, 1, 127, 128, 129, 600, 1269])
def test_ragged_counts_of_supervised_tokens(supervised: int, dtype: torch.dtype, plan: str) -> None:
    """S below, at and above H = 128."""
    p = make(1300, 128, 507, dtype=dtype, masked=1 - supervised / 1300)
    assert len(p.rows) == supervised
    result = check(p, plan=plan)
    assert torch.isfinite(result.loss)


@pytest.mark.parametrize("triton", [False, True], ids=["twin", "kernel"])
@pytest.mark.parametrize("plan", ["B", "T", "R"])
@pytest.mark.parametrize("bias", [False, True], ids=["", "bias"])
@pytest.mark.parametrize("terms", TERMS.values(), ids=TERMS)
def test_terms(terms: dict[str, Any], bias: bool, plan: str, triton: bool) -> None:
    check(make(12, 16, 301, masked=0.3, bias=bias), plan=plan, triton=triton, upstream=0.25, **terms)


@pytest.mark.parametrize("plan", ["B", "T", "R"])
@pytest.mark.parametrize(("dtype", "terms"), [(BF16, {}), (FP16, {}), (FP64, {}), (BF16, ALL), (FP16, ALL)])
def test_kernels_in_other_dtypes(terms: dict[str, Any], dtype: torch.dtype, plan: str) -> None:
    check(make(9, 16, 301, dtype=dtype, masked=0.3, bias=True), plan=plan, triton=True, **terms)


@pytest.mark.parametrize("plan", ["B", "T", "R", None])
@pytest.mark.parametrize("kw", [{}, {"reduction": "sum"}, {"denominator": 123.5}], ids=["mean", "sum", "denominator"])
@pytest.mark.parametrize("upstream", [1.0, 0.25, -3.0])
@pytest.mark.parametrize("dtype", [FP32, BF16], ids=str)
def test_reductions_and_upstream_gradients(dtype: torch.dtype, upstream: float, kw: dict[str, Any], plan: Any) -> None:
    check(make(60, 24, 203, dtype=dtype, masked=0.2), plan=plan, upstream=upstream, **kw)


@pytest.mark.parametrize("plan", ["B", "R"])
@pytest.mark.parametrize("dtype", [FP32, BF16], ids=str)
@pytest.mark.parametrize("shape", [(60,), (3, 20)], ids=str)
def test_p3_every_tokens_loss_takes_its_own_upstream_gradient(
    shape: tuple[int, ...], dtype: torch.dtype, plan: str
) -> None:
    p = make(60, 24, 203, dtype=dtype, masked=0.2)
    p = Problem(p.hidden.reshape(*shape, 24), p.weight, p.labels.reshape(shape))
    upstream = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    upstream.view(-1)[::7] = 0
    result = check(p, plan=plan, reduction="none", upstream=upstream)
    assert result.loss.shape == shape
    assert (result.loss[p.labels == -100] == 0).all()
    assert result.dhidden is not None
    assert (result.dhidden[upstream == 0] == 0).all()


@pytest.mark.parametrize("plan", ["B", "T", "R"])
@pytest.mark.parametrize("ignore_index", [-100, 0, 57])
@pytest.mark.parametrize("masked", [0.0, 0.15, 0.9, 1.0])
def test_ignored_tokens(masked: float, ignore_index: int, plan: str) -> None:
    """Also where ignore_index is a token of the vocabulary, as padding often is."""
    p = make(40, 16, 203, masked=masked, ignore_index=ignore_index)
    result = check(p, plan=plan)
    assert result.dhidden is not None
    assert (result.dhidden[p.labels == ignore_index] == 0).all()


@pytest.mark.parametrize("plan", ["B", "T", "R"])
def test_labels_of_32_bits_give_the_same(plan: Any) -> None:
    p = make(30, 16, 203, masked=0.2)
    narrow = Problem(p.hidden, p.weight, p.labels.int())
    assert_equal(*(run(linear_cross_entropy, q, plan=plan) for q in (p, narrow)))


@pytest.mark.parametrize("plan", ["B", "T", "R"])
def test_hidden_states_need_not_be_contiguous(plan: Any) -> None:
    p = make(30, 16, 203)
    for hidden in (p.hidden.t().contiguous().t(), torch.stack([p.hidden, p.hidden], 1)[:, 0]):
        assert not hidden.is_contiguous()
        for labels in (p.labels, p.labels.where(torch.arange(30) % 3 > 0, -100)):
            plain, strided = (Problem(x, p.weight, labels) for x in (p.hidden, hidden))
            assert_equal(*(run(linear_cross_entropy, q, plan=plan) for q in (plain, strided)))


@pytest.mark.parametrize("plan", ["B", "T", "R"])
def test_weights_need_not_be_contiguous(plan: Any) -> None:
    p = make(30, 16, 203, masked=0.2)
    check(Problem(p.hidden, p.weight.t().contiguous().t(), p.labels), plan=plan)


@pytest.mark.parametrize("plan", ["B", "T", "R"])
@pytest.mark.parametrize("dtype", [FP32, BF16], ids=str)
@pytest.mark.parametrize("masked", [0.0, 0.4])
@pytest.mark.parametrize("needs", ["x", "w", "b", "xw", "xb", "wb"])
def test_p16_a_frozen_side_leaves_the_other_gradients_bitwise_equal(
    needs: str, masked: float, dtype: torch.dtype, plan: Any
) -> None:
    p = make(30, 16, 301, dtype=dtype, masked=masked, bias=True)
    full, part = (run(linear_cross_entropy, p, plan=plan, needs=n, upstream=0.5) for n in ("xwb", needs))
    assert torch.equal(full.loss, part.loss)
    for name, whole, found in zip("xwb", full[1:], part[1:], strict=True):
        assert (found is not None) == (name in needs)
        if found is not None and whole is not None:
            assert torch.equal(whole, found)


@pytest.mark.parametrize("masked", [0.0, 0.4, 1.0])
@pytest.mark.parametrize("terms", [TERMS["plain"], TERMS["all"]], ids=["plain", "all"])
def test_without_gradients_the_loss_is_that_of_training(terms: dict[str, Any], masked: float) -> None:
    p = make(30, 16, 301, masked=masked, bias=True)
    for reduction in ("none", "sum", "mean"):
        kw: dict[str, Any] = {"reduction": reduction, "bias": p.bias, **terms}
        learning = linear_cross_entropy(p.hidden, p.weight.clone().requires_grad_(), p.labels, **kw)
        with torch.no_grad():
            frozen = linear_cross_entropy(p.hidden, p.weight.clone().requires_grad_(), p.labels, **kw)
        plain = linear_cross_entropy(p.hidden, p.weight, p.labels, **kw)
        assert isinstance(learning, torch.Tensor)
        assert learning.requires_grad
        for other in (frozen, plain):
            assert isinstance(other, torch.Tensor)
            assert not other.requires_grad
            torch.testing.assert_close(other, learning.detach(), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("plan", ["B", "T", "R"])
@pytest.mark.parametrize("dtype", [FP32, BF16], ids=str)
@pytest.mark.parametrize("masked", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("index", [torch.int64, torch.int32], ids=str)
def test_rows_given_are_bitwise_rows_looked_up(masked: float, dtype: torch.dtype, plan: Any, index: Any) -> None:
    p = make(30, 16, 301, dtype=dtype, masked=masked)
    given = Problem(p.hidden, p.weight, p.labels[p.rows])
    looked_up = run(linear_cross_entropy, p, plan=plan, upstream=0.5)
    assert_equal(looked_up, run(linear_cross_entropy, given, plan=plan, upstream=0.5, rows=p.rows.to(index)))


def test_losses_with_rows_are_those_of_the_rows() -> None:
    p = make(30, 16, 301, masked=0.3)
    whole = linear_cross_entropy(p.hidden, p.weight, p.labels, reduction="none")
    rows = linear_cross_entropy(p.hidden, p.weight, p.labels[p.rows], rows=p.rows, reduction="none")
    assert isinstance(whole, torch.Tensor)
    assert isinstance(rows, torch.Tensor)
    assert torch.equal(whole[p.rows], rows)


def test_masked_tokens_leave_no_trace_bitwise() -> None:
    """Whole numbers: every sum is exact, so that compacted and whole products must agree to the last bit."""
    g = torch.Generator().manual_seed(3)
    hidden, weight = (torch.randint(-3, 4, shape, generator=g).float() for shape in ((50, 8), (203, 8)))
    labels = torch.randint(0, 203, (50,), generator=g)
    masked = labels.where(torch.rand(50, generator=g) < 0.5, -100)
    whole, compact = (linear_cross_entropy(hidden, weight, y, reduction="none") for y in (labels, masked))
    assert isinstance(whole, torch.Tensor)
    assert isinstance(compact, torch.Tensor)
    assert torch.equal(whole[masked >= 0], compact[masked >= 0])


def with_plan(monkeypatch: pytest.MonkeyPatch, plan: LossPlan, p: Problem, **kw: Any) -> Result:
    """Under a plan whose blocks and chunks are ours to choose."""
    monkeypatch.setattr("shard_kernels.loss.plan_loss", lambda *args, **kwargs: plan)
    return run(linear_cross_entropy, p, **kw)


@pytest.mark.parametrize("dtype", [FP32, FP64], ids=str)
@pytest.mark.parametrize("rows", [10, 100])
def test_blocks_and_chunks_do_not_change_the_result(
    monkeypatch: pytest.MonkeyPatch, rows: int, dtype: torch.dtype
) -> None:
    p = make(rows + 5, 48, 1301, dtype=dtype, masked=5 / (rows + 5), bias=True)
    kw: dict[str, Any] = {"upstream": 0.5, "softcap": 8.0, "label_smoothing": 0.1}
    right = truth(p, **kw)
    for name, blocks, chunk in [("B", 1, 0), ("B", 3, 0), ("B", 8, 0), ("R", 1, 0), ("R", 11, 0)] + [
        ("T", 1, chunk) for chunk in (1, 3, 64, rows)
    ]:
        result = with_plan(monkeypatch, LossPlan(name, 0, blocks, chunk), p, **kw)  # type: ignore[arg-type]
        for value, exact in zip(result, right, strict=True):
            assert value is not None
            assert exact is not None
            assert error(value, exact) < (1e-13 if dtype == FP64 else 4e-6), (name, blocks, chunk)


@pytest.mark.parametrize("plan", ["B", "T", "R"])
def test_statistics_are_those_of_the_plain_softmax(plan: Any) -> None:
    p = make(50, 24, 301, masked=0.2, bias=True)
    z_SV = (p.hidden[p.rows].double() @ p.weight.double().t() + p.bias).mul(0.5)  # type: ignore[operator]
    p.labels[p.rows[:9]] = z_SV[:9].argmax(1)
    for grad in (True, False):
        weight = p.weight.clone().requires_grad_(grad)
        kw: dict[str, Any] = {"bias": p.bias, "logit_scale": 0.5, "return_stats": True, "plan": plan}
        _, stats = linear_cross_entropy(p.hidden, weight, p.labels, **kw)
        assert not any(field.requires_grad for field in stats)
        torch.testing.assert_close(stats.lse.double(), z_SV.logsumexp(1), rtol=1e-6, atol=1e-6)
        entropy = torch.distributions.Categorical(logits=z_SV).entropy()
        torch.testing.assert_close(stats.entropy.double(), entropy, rtol=1e-5, atol=1e-5)
        assert torch.equal(stats.correct, z_SV.argmax(1) == p.labels[p.rows])
        assert stats.correct[:9].all()
        assert not stats.correct.all()
