"""Defects that users of other fused losses have met, each with a test that would catch it here.

Others of the list are where their subject is: P2, P22 in test_gemm.py; P3, P16 in test_matrix.py; P4, P19 in
test_inputs.py; P15 in test_memory.py; those of ZeRO-3 and whole models beside the head.
"""

from __future__ import annotations

import ast
from pathlib import Path
from typing import Any

import pytest
import torch
from oracle import Problem, Watch, assert_equal, check, error, make, run, truth

from shard_kernels import row_kernels
from shard_kernels.eager import eager_linear_cross_entropy
from shard_kernels.loss import linear_cross_entropy
from shard_kernels.rows import LossTerms, RowState, fold, to_gradients_

BF16, FP32 = torch.bfloat16, torch.float32
PLANS = pytest.mark.parametrize("plan", ["B", "T", "R"])
SIDES = pytest.mark.parametrize("triton", [False, True], ids=["twin", "kernel"])


@PLANS
@pytest.mark.parametrize("dtype", [FP32, BF16], ids=str)
def test_p1_every_gradient_takes_the_upstream_gradient(dtype: torch.dtype, plan: Any) -> None:
    """A quarter is a shift of the exponent: all gradients are a quarter, to the last bit."""
    p = make(30, 16, 301, dtype=dtype, masked=0.2, bias=True)
    whole, quarter = (run(linear_cross_entropy, p, plan=plan, upstream=u, reduction="sum") for u in (1.0, 0.25))
    for a, b in zip(whole[1:], quarter[1:], strict=True):
        assert a is not None
        assert b is not None
        assert torch.equal(a * 0.25, b)
        assert a.abs().max() > 0


@pytest.mark.parametrize("plan", ["B", "R"])
def test_p2_p22_dx_and_dw_keep_the_error_of_one_rounding(plan: Any) -> None:
    """bf16, 64 blocks of the vocabulary: no worse than plain torch, which has one product each."""
    p = make(256, 64, 8192, dtype=BF16)
    kw: dict[str, Any] = {"plan": plan, "budget_bytes": 1}
    result, right = run(linear_cross_entropy, p, **kw), truth(p)
    plain = run(eager_linear_cross_entropy, p)
    for found, exact, peer in zip(result[1:3], right[1:3], plain[1:3], strict=True):
        assert found is not None
        assert exact is not None
        assert peer is not None
        assert (found.double() - exact).norm() <= 1.25 * (peer.double() - exact).norm()


@PLANS
def test_p6_the_weight_is_never_widened_whole(plan: Any) -> None:
    p = make(16, 64, 2048, dtype=BF16, masked=0.25)
    widest = 0

    def look(name: str, result: Any) -> None:
        nonlocal widest
        if name in ("_to_copy", "copy_", "clone") and result.dtype == FP32:
            widest = max(widest, result.numel())

    with Watch(look):
        run(linear_cross_entropy, p, plan=plan, triton=False)
    assert 0 < widest < p.weight.numel()
    with Watch(look):
        p.weight.float()
    assert widest == p.weight.numel(), "the watch sees a copy where there is one"


@PLANS
@SIDES
@pytest.mark.parametrize("vocab", [129, 300, 515])
@pytest.mark.parametrize("cap", [None, 1.0, 30.0])
def test_p7_columns_beyond_the_vocabulary_have_no_mass(vocab: int, cap: Any, triton: bool, plan: str) -> None:
    """One logit of 3, the rest -15, V off every tile: a phantom logit of 0 (or -cap) would have most of the mass."""
    hidden = torch.ones(3, 1)
    weight = torch.full((vocab, 1), -15.0)
    weight[vocab - 1] = 3.0
    check(Problem(hidden, weight, torch.tensor([vocab - 1, 0, 7])), plan=plan, triton=triton, softcap=cap)


@SIDES
def test_p8_offsets_have_64_bits(triton: bool) -> None:
    """Rows 2^30 elements apart: row 2 lies 2^31 elements in. Only the pages that are touched take memory."""
    pitch, columns = 2**30, 37
    if torch.cuda.is_available() and torch.cuda.get_device_properties(0).total_memory < 2**33:
        pytest.skip("needs 4 GiB of GPU memory")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    flat = torch.empty(2 * pitch + columns, dtype=BF16, device=device)
    logits_SC = flat.as_strided((3, columns), (pitch, 1))
    plain_SC = torch.randn(3, columns, generator=torch.Generator().manual_seed(0)).to(device, BF16)
    logits_SC.copy_(plain_SC)
    labels_S = torch.tensor([0, 5, columns - 1], device=device)
    found = []
    for x_SC in (plain_SC, logits_SC):
        state = RowState.start(3, FP32, x_SC.device)
        fold(x_SC, 0, labels_S, state, LossTerms(), stats=True, triton=triton)
        to_gradients_(x_SC, 0, columns, labels_S, state.lse(), torch.ones_like(state.mass), LossTerms(), triton=triton)
        found.append((state.loss(LossTerms(), columns), x_SC))
    assert torch.equal(found[0][0], found[1][0])
    assert torch.equal(found[0][1], found[1][1])


@SIDES
@pytest.mark.parametrize("p_target", [0.9, 0.99, 0.999])
def test_p9_peaked_softmax_keeps_the_targets_gradient(p_target: float, triton: bool) -> None:
    """p - 1 of a p that was rounded to bf16 first loses 20 % at .99 and all of it at .999."""
    vocab = 256
    raw_SC = torch.zeros(1, vocab, dtype=BF16)
    raw_SC[0, 17] = torch.tensor(p_target * (vocab - 1) / (1 - p_target)).log()
    labels_S = torch.tensor([17])
    right = raw_SC.double().softmax(1)[0, 17] - 1
    state = RowState.start(1, FP32, raw_SC.device)
    fold(raw_SC, 0, labels_S, state, LossTerms(), stats=False, triton=triton)
    to_gradients_(raw_SC, 0, vocab, labels_S, state.lse(), torch.ones(1), LossTerms(), triton=triton)
    unit = 2.0**-7 if triton else 2.0**-8
    assert abs(float(raw_SC[0, 17]) - right) <= (unit + 1e-4) * abs(right)


@PLANS
@SIDES
@pytest.mark.parametrize("p_target", [0.9, 0.99, 0.999])
def test_p9_peaked_softmax_through_the_whole_loss(p_target: float, triton: bool, plan: str) -> None:
    vocab = 256
    weight = torch.zeros(vocab, 1)
    weight[17] = torch.tensor(p_target * (vocab - 1) / (1 - p_target)).log()
    check(Problem(torch.ones(4, 1), weight, torch.full((4,), 17)).to(BF16), plan=plan, triton=triton)


@PLANS
@SIDES
@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_p11_no_supervised_token_is_a_zero_with_zero_gradients(reduction: str, triton: bool, plan: Any) -> None:
    p = make(6, 4, 130, masked=1.0, bias=True)
    result = run(linear_cross_entropy, p, plan=plan, triton=triton, reduction=reduction)
    assert float(result.loss) == 0.0
    for gradient in result[1:]:
        assert gradient is not None, "connected to every parameter"
        assert (gradient == 0).all()


def test_p11_no_token_at_all_is_a_zero_too() -> None:
    for plan in ("B", "T", "R"):
        result = run(linear_cross_entropy, make(0, 4, 130), plan=plan, triton=False)
        assert float(result.loss) == 0.0
        assert result.dhidden is not None
        assert result.dhidden.shape == (0, 4)
        assert result.dweight is not None
        assert (result.dweight == 0).all()


@PLANS
@pytest.mark.parametrize("as_tensor", [False, True], ids=["number", "tensor"])
def test_p12_parts_with_one_denominator_make_one_batch(as_tensor: bool, plan: Any) -> None:
    """Parts of 1, 40 and 0 supervised tokens: weighted by token, not by part. Means of parts would not agree."""
    p = make(64, 16, 203, masked=0.0)
    labels = p.labels.where((torch.arange(64) < 1) | ((torch.arange(64) >= 16) & (torch.arange(64) < 56)), -100)
    count: Any = torch.tensor(41.0) if as_tensor else 41
    whole = truth(Problem(p.hidden, p.weight, labels))
    parts = []
    for start, end in ((0, 16), (16, 56), (56, 64)):
        part = Problem(p.hidden[start:end], p.weight, labels[start:end])
        parts.append(run(linear_cross_entropy, part, plan=plan, denominator=count))
    assert error(torch.stack([r.loss for r in parts]).sum(), whole.loss) < 2e-6
    assert whole.dhidden is not None
    assert whole.dweight is not None
    assert error(torch.cat([r.dhidden for r in parts if r.dhidden is not None]), whole.dhidden) < 4e-6
    assert error(torch.stack([r.dweight for r in parts if r.dweight is not None]).sum(0), whole.dweight) < 4e-6


@PLANS
def test_p13_a_compiled_caller_keeps_fp32_and_right_gradients(plan: Any) -> None:
    p = make(12, 8, 140, masked=0.25)

    def model(hidden: torch.Tensor, weight: torch.Tensor, labels: torch.Tensor, **kw: Any) -> Any:
        return linear_cross_entropy(hidden * 2, weight, labels, plan=plan, triton=False, **kw) * 3

    kw: dict[str, Any] = {"softcap": 30.0, "z_loss": 1e-4}
    plain, compiled = (run(f, p, **kw) for f in (model, torch.compile(model, backend="aot_eager")))
    assert compiled.loss.dtype == FP32
    assert_equal(plain, compiled)


def kernel_source() -> ast.Module:
    return ast.parse(Path(row_kernels.__file__).read_text())


FRACTIONS = {"scale", "cap", "uniform", "on_target", "z_loss"}


def test_p13_every_fractional_number_is_cast_before_use() -> None:
    """Compiled callers hand Python floats over as fp64: 24 times slower where they meet a tile uncast."""
    met = set()
    for function in (node for node in ast.walk(kernel_source()) if isinstance(node, ast.FunctionDef)):
        if not any(ast.unparse(decorator) == "jit" for decorator in function.decorator_list):
            continue
        taken = {argument.arg for argument in function.args.args} & FRACTIONS
        assigned = [ast.unparse(node) for node in ast.walk(function) if isinstance(node, ast.Assign)]
        uncast = {name for name in taken if f"{name} = tl.cast({name}, ACC)" not in assigned}
        operands = [o for node in ast.walk(function) if isinstance(node, ast.BinOp) for o in (node.left, node.right)]
        assert not uncast & {operand.id for operand in operands if isinstance(operand, ast.Name)}, function.name
        met |= taken
    assert met == FRACTIONS, "the kernels' numbers have other names now"


READS = {"_local_scalar_dense", "nonzero", "equal", "is_nonzero", "item", "unique", "_unique2", "masked_select"}


@PLANS
@SIDES
@pytest.mark.parametrize("masked", [0.0, 0.5])
def test_p14_nothing_is_read_back_where_rows_are_given(
    monkeypatch: pytest.MonkeyPatch, masked: float, triton: bool, plan: Any
) -> None:
    """On a CPU labels are checked at once, on purpose; on a GPU that check does not wait. It is left out here."""
    p = make(8, 4, 130, masked=masked, bias=True)
    given = Problem(p.hidden, p.weight, p.labels[p.rows], p.bias)
    monkeypatch.setattr("shard_kernels.inputs._require", lambda *args: None)
    rows, seen = p.rows, list[str]()
    kw: dict[str, Any] = {"plan": plan, "triton": triton, "return_stats": True}

    def loss_only(*args: Any, **kwargs: Any) -> torch.Tensor:
        return linear_cross_entropy(*args, **kwargs)[0]

    watch = Watch(lambda name, _: seen.append(name) if name in READS else None)
    for denominator in (None, torch.tensor(7.0)):
        with watch:
            run(loss_only, given, rows=rows, denominator=denominator, **kw)
    assert seen == []
    with watch:
        run(loss_only, p, **kw)
    assert seen == ["nonzero"], "looking the rows up does read back, and the watch sees it"


@PLANS
@SIDES
@pytest.mark.parametrize("dtype", [FP32, BF16, torch.float16], ids=str)
def test_p17_a_loss_is_never_negative(dtype: torch.dtype, triton: bool, plan: Any) -> None:
    """Targets that are certain: the logit of each is that under the peak, whatever the rounding."""
    g = torch.Generator().manual_seed(0)
    hidden = torch.eye(24, dtype=dtype) * 40
    weight = torch.randn(300, 24, generator=g).to(dtype)
    labels = (hidden.float() @ weight.float().t()).argmax(1)
    kw: dict[str, Any] = {"plan": plan, "triton": triton}
    for scale in (0.1, 1.0, 3.0):
        summed = run(linear_cross_entropy, Problem(hidden, weight, labels), logit_scale=scale, **kw)
        assert float(summed.loss) >= 0
    each = linear_cross_entropy(hidden, weight, labels, reduction="none", triton=triton)
    assert (each >= 0).all()
    assert (each < 1e-3).any()


@PLANS
@pytest.mark.parametrize("inputs", [(FP32, FP32), (BF16, FP32), (FP32, BF16)], ids=str)
def test_p18_autocast_computes_in_its_dtype(inputs: tuple[torch.dtype, torch.dtype], plan: Any) -> None:
    p = make(20, 16, 203, masked=0.2, bias=True)
    mixed = Problem(p.hidden.to(inputs[0]), p.weight.to(inputs[1]), p.labels, p.bias)
    with torch.autocast("cpu", dtype=BF16):
        result = run(linear_cross_entropy, mixed, plan=plan)
    right = run(linear_cross_entropy, mixed.to(BF16), plan=plan)
    assert result.loss.dtype == FP32
    assert torch.equal(result.loss, right.loss)
    leaves = (mixed.hidden, mixed.weight, mixed.bias)
    for leaf, found, narrow in zip(leaves, result[1:], right[1:], strict=True):
        assert leaf is not None
        assert found is not None
        assert narrow is not None
        assert found.dtype == leaf.dtype
        assert torch.equal(found, narrow.to(leaf.dtype))


@PLANS
def test_p20_shards_of_shifted_labels_add_up_to_the_whole(plan: Any) -> None:
    """Labels are shifted before the sequence is cut: the first shard's last token keeps its target in the second."""
    p = make(40, 16, 203)
    shifted = torch.cat([p.labels[1:], torch.tensor([-100])])
    shifted[:11] = -100
    whole = truth(Problem(p.hidden, p.weight, shifted))
    count = int((shifted != -100).sum())
    shards = [Problem(p.hidden[half], p.weight, shifted[half]) for half in (slice(0, 20), slice(20, 40))]
    parts = [run(linear_cross_entropy, shard, plan=plan, denominator=count) for shard in shards]
    assert error(parts[0].loss + parts[1].loss, whole.loss) < 2e-6
    for index in (1, 2):
        a, b, right = parts[0][index], parts[1][index], whole[index]
        assert a is not None
        assert b is not None
        assert right is not None
        assert error(torch.cat([a, b]) if index == 1 else a + b, right) < 4e-6


@PLANS
@pytest.mark.parametrize("dtype", [FP32, BF16], ids=str)
@pytest.mark.parametrize("vocab", [32_000, 50_257, 262_144])
def test_p21_large_vocabularies(vocab: int, dtype: torch.dtype, plan: str) -> None:
    check(make(2, 8, vocab, dtype=dtype), plan=plan)


def test_p23_kernels_use_nothing_that_the_interpreter_lacks_or_gets_wrong() -> None:
    """libdevice fails there, tl.dot of bf16 is garbage, atomics know fp32 and fp64 only."""
    names = {n.attr for n in ast.walk(kernel_source()) if isinstance(n, ast.Attribute)}
    names |= {n.id for n in ast.walk(kernel_source()) if isinstance(n, ast.Name)}
    assert {"exp2", "program_id"} <= names, "the kernels are in this file"
    assert not {name for name in names if "libdevice" in name or "atomic" in name or name in ("dot", "dot_scaled")}
