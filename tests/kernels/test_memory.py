"""The planner's bytes against torch's CPU allocator. They exclude dX [N, H], which every method returns."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from oracle import make, peak_bytes

from shard_kernels.eager import eager_linear_cross_entropy
from shard_kernels.loss import linear_cross_entropy
from shard_kernels.planner import plan_loss

BF16, FP32 = torch.bfloat16, torch.float32
SHAPE = (1024, 192, 6144)  # N, H, V: logits of 24 MiB in fp32, dW of 4.5
LOW = (256, 512, 6144)  # S below H: the buffer is little more than dW


def measure(function: Any, shape: tuple[int, int, int], masked: float, dtype: torch.dtype, **kw: Any) -> int:
    p = make(*shape, dtype=dtype, masked=masked)
    x, w = p.hidden.requires_grad_(), p.weight.requires_grad_()
    rows, labels = p.rows, p.labels[p.rows]

    def step() -> None:
        x.grad = w.grad = None
        function(x, w, labels, rows=rows, **kw).backward()

    step()  # what torch sets up once is not the loss's
    x.grad = w.grad = None
    return peak_bytes(step) - x.numel() * x.itemsize


@pytest.mark.parametrize("plan", ["B", "T", "R"])
@pytest.mark.parametrize("dtype", [FP32, BF16], ids=str)
@pytest.mark.parametrize("masked", [0.0, 0.5])
@pytest.mark.parametrize("shape", [SHAPE, LOW], ids=str)
def test_the_peak_is_at_most_the_plans_bytes(
    shape: tuple[int, int, int], masked: float, dtype: torch.dtype, plan: Any
) -> None:
    tokens, hidden, vocab = shape
    planned = plan_loss(tokens, round(tokens * (1 - masked)), hidden, vocab, dtype, device="cpu", name=plan).bytes
    peak = measure(linear_cross_entropy, shape, masked, dtype, plan=plan, triton=False)
    assert peak <= 1.05 * planned
    assert peak >= 0.5 * planned, "a figure that is far off is no help to a user either"


@pytest.mark.parametrize("dtype", [FP32, BF16], ids=str)
@pytest.mark.parametrize("masked", [0.0, 0.5])
@pytest.mark.parametrize("shape", [SHAPE, LOW], ids=str)
def test_plan_b_takes_less_than_the_plain_loss(shape: tuple[int, int, int], masked: float, dtype: torch.dtype) -> None:
    ours = measure(linear_cross_entropy, shape, masked, dtype, plan="B", triton=False)
    assert ours < measure(eager_linear_cross_entropy, shape, masked, dtype)


@pytest.mark.parametrize("shape", [SHAPE, (5000, 32, 4096)], ids=["plan B", "plan T"])
def test_p15_evaluation_holds_one_block_of_logits(shape: tuple[int, int, int]) -> None:
    """Whatever plan training would take."""
    tokens, hidden, vocab = shape
    p = make(tokens, hidden, vocab)
    with torch.no_grad():
        peak = peak_bytes(lambda: linear_cross_entropy(p.hidden, p.weight.requires_grad_(), p.labels, triton=False))
    assert peak < 4 * tokens * vocab / 2
