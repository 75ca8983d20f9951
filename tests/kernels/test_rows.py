"""The two row kernels, in Triton's interpreter on a CPU, against their torch twins and against the formulas in fp64."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch

from shard_kernels.gemm import accumulator_dtype
from shard_kernels.rows import LossTerms, RowState, fold, to_gradients_

BF16, FP16, FP32, FP64 = torch.bfloat16, torch.float16, torch.float32, torch.float64
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
PLAIN = LossTerms()
TERMS = {
    "plain": PLAIN,
    "scale": LossTerms(logit_scale=0.0625),
    "negative scale": LossTerms(logit_scale=-1.5),
    "cap": LossTerms(softcap=3.0),
    "smoothing": LossTerms(label_smoothing=0.1),
    "z-loss": LossTerms(z_loss=1e-2),
    "all": LossTerms(0.5, 5.0, 0.1, 1e-2),
}
TOLERANCE = {BF16: 2e-6, FP16: 2e-6, FP32: 2e-6, FP64: 1e-14}


def folded(
    logits_SV: torch.Tensor, labels_S: torch.Tensor, terms: LossTerms, *, triton: bool, cuts: tuple[int, ...] = ()
) -> RowState:
    """Fold the whole vocabulary, in blocks that begin at 0 and at `cuts`."""
    state = RowState.start(len(labels_S), accumulator_dtype(logits_SV.dtype), logits_SV.device)
    edges = [0, *cuts, logits_SV.shape[1]]
    for first, end in pairwise(edges):
        fold(logits_SV[:, first:end], first, labels_S, state, terms, stats=True, triton=triton)
    return state


def gradients(
    logits_SV: torch.Tensor,
    labels_S: torch.Tensor,
    lse_S: torch.Tensor,
    upstream_S: torch.Tensor,
    terms: LossTerms,
    *,
    triton: bool,
    cuts: tuple[int, ...] = (),
) -> torch.Tensor:
    out = logits_SV.clone(memory_format=torch.preserve_format)
    vocab = out.shape[1]
    edges = [0, *cuts, vocab]
    for first, end in pairwise(edges):
        to_gradients_(out[:, first:end], first, vocab, labels_S, lse_S, upstream_S, terms, triton=triton)
    return out


def data(rows: int, columns: int, dtype: torch.dtype, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    g = torch.Generator().manual_seed(seed)
    logits_SV = (2 * torch.randn(rows, columns, generator=g)).to(dtype)
    return logits_SV.to(DEVICE), torch.randint(0, columns, (rows,), generator=g).to(DEVICE)


def exact(logits_SV: torch.Tensor, labels_S: torch.Tensor, upstream_S: torch.Tensor, terms: LossTerms) -> dict:
    """Loss, entropy and dlogits in fp64, by autograd from the definition."""
    raw_SV = logits_SV.double().clone().requires_grad_()
    z_SV = raw_SV * terms.logit_scale
    if terms.softcap:
        z_SV = terms.softcap * (z_SV / terms.softcap).tanh()
    logp_SV = z_SV.log_softmax(1)
    lse_S = z_SV.logsumexp(1)
    nll_S = -logp_SV.gather(1, labels_S[:, None])[:, 0]
    s = terms.label_smoothing
    loss_S = (1 - s) * nll_S + (s * -logp_SV.mean(1) if s else 0) + terms.z_loss * lse_S.square()
    loss_S.backward(upstream_S.double())
    entropy_S = -(logp_SV.exp() * logp_SV).nan_to_num(0).sum(1).detach()
    return {"loss": loss_S.detach(), "lse": lse_S.detach(), "entropy": entropy_S, "d": raw_SV.grad}


def assert_near(value: torch.Tensor, right: torch.Tensor, tolerance: float) -> None:
    scale = 1 + right.abs()
    assert ((value.double() - right.double()).abs() <= tolerance * scale).all()


@pytest.mark.parametrize("triton", [False, True], ids=["twin", "kernel"])
@pytest.mark.parametrize("terms", TERMS.values(), ids=TERMS)
@pytest.mark.parametrize("dtype", [BF16, FP16, FP32, FP64], ids=str)
@pytest.mark.parametrize("columns", [1, 7, 128, 301])
def test_kernels_and_twins_follow_the_formulas(
    columns: int, dtype: torch.dtype, terms: LossTerms, triton: bool
) -> None:
    rows = 4
    logits_SV, labels_S = data(rows, columns, dtype)
    acc = accumulator_dtype(dtype)
    upstream_S = torch.tensor([1.0, 0.25, -3.0, 0.0], dtype=acc, device=DEVICE)
    right = exact(logits_SV, labels_S, upstream_S, terms)
    cuts = (5, 128) if columns > 128 else ()
    state = folded(logits_SV, labels_S, terms, triton=triton, cuts=cuts)
    tolerance = TOLERANCE[dtype]
    if triton and dtype == FP64 and terms not in (PLAIN, TERMS["scale"], TERMS["cap"], TERMS["negative scale"]):
        tolerance = 1e-7  # .1 and .01 reach the kernels as fp32 numbers
    assert_near(state.loss(terms, columns), right["loss"], 3 * tolerance)
    assert_near(state.lse(), right["lse"], tolerance)
    assert_near(state.entropy(), right["entropy"], 4 * tolerance)
    assert state.loss(terms, columns).dtype == acc
    d_SV = gradients(logits_SV, labels_S, state.lse(), upstream_S, terms, triton=triton, cuts=cuts)
    assert d_SV.dtype == dtype
    # One rounding to the logits' dtype; the interpreter cuts bf16 off instead: one unit in the last place.
    unit = 2.0**-7 if triton and DEVICE == "cpu" and dtype == BF16 else torch.finfo(dtype).eps / 2
    smallest = torch.finfo(dtype).smallest_normal * torch.finfo(dtype).eps
    allowed = 1.01 * unit * right["d"].abs() + 4 * tolerance + smallest
    assert ((d_SV.double() - right["d"]).abs() <= allowed).all()
    assert (d_SV[3] == 0).all(), "no upstream, no gradient"


@pytest.mark.parametrize("dtype", [BF16, FP32], ids=str)
@pytest.mark.parametrize("terms", [PLAIN, TERMS["all"]], ids=["plain", "all"])
def test_p10_the_target_may_lie_anywhere_around_a_tiles_edge(terms: LossTerms, dtype: torch.dtype) -> None:
    """Tiles are 8,192 columns (fold) and 4,096 (gradients): the target's element is written once, and only it."""
    columns = 8192 + 5
    labels_S = torch.tensor([0, 4095, 4096, 8191, 8192, columns - 1], device=DEVICE)
    logits_SV = data(1, columns, dtype)[0].expand(len(labels_S), -1).contiguous()
    upstream_S = torch.full((len(labels_S),), 2.0, device=DEVICE)
    states = [folded(logits_SV, labels_S, terms, triton=triton) for triton in (False, True)]
    assert_near(states[1].loss(terms, columns), states[0].loss(terms, columns), 1e-6)
    lse_S = states[0].lse()
    both = [gradients(logits_SV, labels_S, lse_S, upstream_S, terms, triton=triton) for triton in (False, True)]
    unit = 2.0**-7 if dtype == BF16 else 0.0
    assert ((both[1] - both[0]).abs() <= unit * both[0].abs() + 1e-6).all()
    for row, label in enumerate(labels_S.tolist()):
        assert (both[1][row] < -0.05).nonzero().flatten().tolist() == [label]


@pytest.mark.parametrize("triton", [False, True], ids=["twin", "kernel"])
def test_rows_may_be_further_apart_than_their_columns(triton: bool) -> None:
    wide_SP, labels_S = data(5, 160, FP32)
    labels_S %= 131
    view_SV = wide_SP[:, :131]
    plain_SV = view_SV.contiguous()
    upstream_S = torch.rand(5, device=DEVICE)
    a, b = (folded(x, labels_S, PLAIN, triton=triton) for x in (view_SV, plain_SV))
    assert torch.equal(a.loss(PLAIN, 131), b.loss(PLAIN, 131))
    between_SP = wide_SP[:, 131:].clone()
    to_gradients_(view_SV, 0, 131, labels_S, a.lse(), upstream_S, PLAIN, triton=triton)
    to_gradients_(plain_SV, 0, 131, labels_S, a.lse(), upstream_S, PLAIN, triton=triton)
    assert torch.equal(view_SV, plain_SV)
    assert torch.equal(wide_SP[:, 131:], between_SP), "what lies between the rows is not ours"


@pytest.mark.parametrize("triton", [False, True], ids=["twin", "kernel"])
@pytest.mark.parametrize("cuts", [(), (1,), (3, 64)], ids=str)
def test_columns_of_minus_infinity_have_no_mass_and_no_gradient(triton: bool, cuts: tuple[int, ...]) -> None:
    """The first column, a whole first block and single ones: a tokenizer's unused entries."""
    logits_SV, _ = data(3, 130, FP32)
    logits_SV[:, 0] = -torch.inf
    logits_SV[1, :64] = -torch.inf
    logits_SV[2, 100:] = -torch.inf
    labels_S = torch.tensor([1, 129, 70], device=DEVICE)
    upstream_S = torch.ones(3, device=DEVICE)
    state = folded(logits_SV, labels_S, PLAIN, triton=triton, cuts=cuts)
    z_SV = logits_SV.double()
    logp_SV = z_SV.log_softmax(1)
    assert_near(state.lse(), z_SV.logsumexp(1), 1e-6)
    assert_near(state.entropy(), -(logp_SV.exp() * logp_SV).nan_to_num(0).sum(1), 1e-5)
    d_SV = gradients(logits_SV, labels_S, state.lse(), upstream_S, PLAIN, triton=triton, cuts=cuts)
    right_SV = logp_SV.exp()
    right_SV[torch.arange(3), labels_S] -= 1
    assert_near(d_SV, right_SV, 1e-6)
    assert (d_SV[torch.isinf(logits_SV)] == 0).all()


@pytest.mark.parametrize("triton", [False, True], ids=["twin", "kernel"])
@pytest.mark.parametrize("terms", [PLAIN, LossTerms(softcap=30.0)], ids=["plain", "cap"])
def test_huge_logits_neither_overflow_nor_lose_the_loss(terms: LossTerms, triton: bool) -> None:
    logits_SV, labels_S = data(4, 40, FP32)
    logits_SV[0] += 1e4
    logits_SV[1] -= 1e4
    logits_SV[2, 7], labels_S[2] = 1e4, 7
    logits_SV[3, 7], labels_S[3] = 1e4, 8
    upstream_S = torch.ones(4, device=DEVICE)
    right = exact(logits_SV, labels_S, upstream_S, terms)
    state = folded(logits_SV, labels_S, terms, triton=triton, cuts=(16,))
    assert_near(state.loss(terms, 40), right["loss"], 1e-5)
    # lse is a number of four digits before the point: 1e4 * 2^-24 of error in exp(z - lse).
    d_SV = gradients(logits_SV, labels_S, state.lse(), upstream_S, terms, triton=triton)
    assert_near(d_SV, right["d"], 1e-3)
    assert torch.isfinite(d_SV).all()


@pytest.mark.parametrize("triton", [False, True], ids=["twin", "kernel"])
@pytest.mark.parametrize("dtype", [BF16, FP32], ids=str)
def test_a_rows_result_does_not_depend_on_the_other_rows(dtype: torch.dtype, triton: bool) -> None:
    logits_SV, labels_S = data(9, 517, dtype)
    terms = TERMS["all"]
    upstream_S = torch.rand(9, device=DEVICE)
    together = folded(logits_SV, labels_S, terms, triton=triton)
    d_SV = gradients(logits_SV, labels_S, together.lse(), upstream_S, terms, triton=triton)
    for row in (0, 4, 8):
        one = slice(row, row + 1)
        alone = folded(logits_SV[one], labels_S[one], terms, triton=triton)
        assert torch.equal(alone.loss(terms, 517), together.loss(terms, 517)[one])
        assert torch.equal(alone.entropy(), together.entropy()[one])
        d_1V = gradients(logits_SV[one], labels_S[one], alone.lse(), upstream_S[one], terms, triton=triton)
        assert torch.equal(d_1V, d_SV[one])


@pytest.mark.parametrize("triton", [False, True], ids=["twin", "kernel"])
@pytest.mark.parametrize("cuts", [(), (1,), (2, 4)], ids=str)
def test_of_equal_logits_the_first_is_the_best(triton: bool, cuts: tuple[int, ...]) -> None:
    """As torch.argmax on a CPU, whatever the blocks: a row of equals counts as right for token 0 only."""
    logits_SV = torch.tensor(
        [[0.0] * 6, [0, 3, 1, 3, 3, 0], [-5, -6, -5, -7, -4, -4], [1, 2, 3, 4, 5, 6]], device=DEVICE
    )
    labels_S = torch.zeros(4, dtype=torch.int64, device=DEVICE)
    state = folded(logits_SV, labels_S, PLAIN, triton=triton, cuts=cuts)
    assert state.best.tolist() == [0, 1, 4, 5]


@pytest.mark.parametrize("triton", [False, True], ids=["twin", "kernel"])
def test_no_rows_are_nothing_to_do(triton: bool) -> None:
    empty_SV, labels_S = torch.empty(0, 9, device=DEVICE), torch.empty(0, dtype=torch.int64, device=DEVICE)
    state = folded(empty_SV, labels_S, PLAIN, triton=triton)
    assert state.loss(PLAIN, 9).shape == (0,)
    assert gradients(empty_SV, labels_S, state.lse(), state.lse(), PLAIN, triton=triton).shape == (0, 9)


@pytest.mark.parametrize("triton", [False, True], ids=["twin", "kernel"])
def test_labels_of_32_bits_do(triton: bool) -> None:
    logits_SV, labels_S = data(5, 33, FP32)
    a, b = (folded(logits_SV, y, PLAIN, triton=triton) for y in (labels_S, labels_S.int()))
    assert torch.equal(a.loss(PLAIN, 33), b.loss(PLAIN, 33))


def test_the_twin_works_through_rows_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """More elements than it widens at a time: the same, bit for bit."""
    logits_SV, labels_S = data(11, 50, FP32)
    upstream_S = torch.rand(11, device=DEVICE)
    terms = TERMS["all"]
    whole = folded(logits_SV, labels_S, terms, triton=False)
    d_SV = gradients(logits_SV, labels_S, whole.lse(), upstream_S, terms, triton=False)
    monkeypatch.setattr("shard_kernels.rows.TWIN_ELEMENTS", 150)
    pieces = folded(logits_SV, labels_S, terms, triton=False)
    assert torch.equal(whole.loss(terms, 50), pieces.loss(terms, 50))
    assert torch.equal(d_SV, gradients(logits_SV, labels_S, pieces.lse(), upstream_S, terms, triton=False))
