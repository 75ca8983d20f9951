"""What only a GPU can show: the compiled kernels, its memory, its stream. Skipped elsewhere."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from oracle import Problem, assert_equal, check, make, run

from shard_kernels.eager import eager_linear_cross_entropy
from shard_kernels.loss import linear_cross_entropy
from shard_kernels.planner import plan_loss

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
BF16, FP16, FP32 = torch.bfloat16, torch.float16, torch.float32
PLANS = pytest.mark.parametrize("plan", ["B", "T", "R"])
GIB = 2**30


@pytest.fixture(autouse=True)
def settle() -> Iterator[None]:
    """Whole fp32 products, as the truth expects, and nothing left in the allocator's cache."""
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = False
    yield
    torch.backends.cuda.matmul.allow_tf32 = before
    torch.cuda.empty_cache()


def need(gib: float) -> None:
    free, _ = torch.cuda.mem_get_info()
    if free < gib * GIB:
        pytest.skip(f"needs {gib} GiB of free GPU memory, has {free / GIB:.1f}")


@PLANS
@pytest.mark.parametrize("dtype", [BF16, FP16, FP32], ids=str)
@pytest.mark.parametrize("vocab", [32000, 128256, 151936, 152064, 256000, 262144])
def test_compiled_kernels_at_real_vocabularies(vocab: int, dtype: torch.dtype, plan: str) -> None:
    need(4)
    check(make(300, 256, vocab, dtype=dtype, masked=0.25, device="cuda"), plan=plan, triton=True, upstream=0.25)


@PLANS
@pytest.mark.parametrize("dtype", [BF16, FP32], ids=str)
def test_compiled_kernels_with_every_term(dtype: torch.dtype, plan: str) -> None:
    p = make(130, 128, 5003, dtype=dtype, masked=0.25, bias=True, device="cuda")
    terms: dict[str, Any] = {"softcap": 5.0, "logit_scale": 0.5, "label_smoothing": 0.1, "z_loss": 1e-2}
    check(p, plan=plan, triton=True, **terms)


@pytest.mark.parametrize("plan", ["B", "R"])
def test_upstream_gradients_of_single_tokens(plan: str) -> None:
    upstream = torch.randn(257, device="cuda")
    upstream[::5] = 0
    p = make(257, 128, 5003, dtype=BF16, masked=0.25, device="cuda")
    check(p, plan=plan, triton=True, reduction="none", upstream=upstream)


def test_p8_more_than_2_to_the_31_logits() -> None:
    """17,000 x 128,256 logits in bf16: the last rows agree with a run over those rows alone."""
    need(14)
    tokens, vocab = 17_000, 128_256
    assert tokens * vocab > 2**31
    p = make(tokens, 128, vocab, dtype=BF16, device="cuda")
    kw: dict[str, Any] = {"plan": "B", "triton": True, "reduction": "none"}
    whole = run(linear_cross_entropy, p, **kw)
    tail = run(linear_cross_entropy, Problem(p.hidden[-64:], p.weight, p.labels[-64:]), **kw)
    torch.testing.assert_close(whole.loss[-64:], tail.loss, rtol=1e-3, atol=1e-3)
    assert whole.dhidden is not None
    assert tail.dhidden is not None
    scale = float(tail.dhidden.abs().max())
    torch.testing.assert_close(whole.dhidden[-64:], tail.dhidden, rtol=2e-2, atol=2e-2 * scale)


@PLANS
@pytest.mark.parametrize("masked", [0.0, 0.5])
def test_p14_nothing_waits_for_the_gpu_where_rows_are_given(masked: float, plan: Any) -> None:
    p = make(512, 128, 5003, dtype=BF16, masked=masked, bias=True, device="cuda")
    given = Problem(p.hidden, p.weight, p.labels[p.rows], p.bias)
    rows, denominator = p.rows, torch.tensor(300.0, device="cuda")
    run(linear_cross_entropy, given, plan=plan, rows=rows)  # compiles the kernels
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        run(linear_cross_entropy, given, plan=plan, rows=rows)
        run(
            linear_cross_entropy,
            given,
            plan=plan,
            rows=rows,
            denominator=denominator,
            upstream=torch.ones_like(denominator),
        )
        with pytest.raises(RuntimeError, match="synchroniz"):
            run(linear_cross_entropy, p, plan=plan)
    finally:
        torch.cuda.set_sync_debug_mode("default")


def peak(function: Any, p: Problem, **kw: Any) -> int:
    """Bytes beyond hidden, weight and dX, after a first step has made what is made once."""
    x, w = p.hidden.requires_grad_(), p.weight.requires_grad_()
    rows, labels = p.rows, p.labels[p.rows]
    for _ in range(2):
        x.grad = w.grad = None
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        function(x, w, labels, rows=rows, **kw).backward()
        torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before - x.numel() * x.itemsize


@PLANS
@pytest.mark.parametrize("masked", [0.0, 0.5, 0.75])
@pytest.mark.parametrize("shape", [(4096, 2048, 32000), (2048, 4096, 128256)], ids=str)
def test_the_peak_is_at_most_the_plans_bytes(shape: tuple[int, int, int], masked: float, plan: Any) -> None:
    need(12)
    tokens, hidden, vocab = shape
    planned = plan_loss(tokens, round(tokens * (1 - masked)), hidden, vocab, BF16, name=plan).bytes
    p = make(*shape, dtype=BF16, masked=masked, device="cuda")
    found = peak(linear_cross_entropy, p, plan=plan)
    assert found <= 1.05 * planned
    if plan == "B" and masked <= 0.5:  # with few rows every method's peak is dW
        assert found < peak(eager_linear_cross_entropy, p)


@PLANS
def test_the_same_run_twice_is_bitwise_the_same(plan: Any) -> None:
    p = make(500, 256, 32000, dtype=BF16, masked=0.25, device="cuda")
    assert_equal(*(run(linear_cross_entropy, p, plan=plan) for _ in range(2)))


def test_kernels_are_the_choice_on_a_gpu_and_their_twins_agree() -> None:
    p = make(200, 128, 5003, dtype=BF16, device="cuda")
    by_default, kernels = (run(linear_cross_entropy, p, triton=choice) for choice in (None, True))
    assert_equal(by_default, kernels)
    check(p, triton=False)


BAD_LABEL = """
import torch
from shard_kernels import linear_cross_entropy
x, w = torch.randn(4, 64, device="cuda"), torch.randn(100, 64, device="cuda")
loss = linear_cross_entropy(x, w, torch.tensor([1, 2, 100, 3], device="cuda"))
torch.cuda.synchronize()
print("loss", float(loss))
"""


def test_an_out_of_range_label_fails_the_stream() -> None:
    """In a process of its own: a failed assertion on the device leaves the CUDA context unusable."""
    done = subprocess.run([sys.executable, "-c", BAD_LABEL], capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode != 0
    assert "loss" not in done.stdout
    assert "assert" in done.stderr.lower()
