"""Input that does not fit together is refused, with the reason, before anything is computed."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch.distributed as dist
from hypothesis import given
from hypothesis import strategies as st
from oracle import check, make

from shard_kernels.eager import eager_linear_cross_entropy
from shard_kernels.loss import linear_cross_entropy, per_token_logprobs

X, W, Y = torch.zeros(4, 3), torch.zeros(7, 3), torch.tensor([0, 6, -100, 2])
ROWS = torch.tensor([0, 2])

BAD: dict[str, tuple[dict[str, Any], str]] = {
    "label too large": ({"labels": torch.tensor([0, 7, 1, 2])}, "labels must be 0 to 6, or ignore_index=-100; got [7]"),
    "label negative": ({"labels": torch.tensor([0, -1, 1, 2])}, "got [-1]"),
    "label 2^33": ({"labels": torch.tensor([0, 2**33, 1, 2])}, "got [8589934592]"),
    "labels of floats": ({"labels": torch.zeros(4)}, "labels are torch.float32"),
    "labels of bytes": ({"labels": torch.zeros(4, dtype=torch.uint8)}, "labels are torch.uint8"),
    "labels too few": ({"labels": Y[:3]}, "labels [3] do not match hidden [4, 3]"),
    "labels of another shape": ({"labels": Y[:, None]}, "one label per row of H"),
    "labels elsewhere": ({"labels": Y.to("meta")}, "int64 or int32 on cpu expected"),
    "weight elsewhere": ({"weight": W.to("meta")}, "on meta and hidden"),
    "weight of another dtype": ({"weight": W.bfloat16()}, "cast or move one of them, or use autocast"),
    "bias of another dtype": ({"bias": torch.zeros(7).double()}, "bias is torch.float64"),
    "hidden of integers": ({"hidden": X.long()}, "hidden is torch.int64"),
    "weight of another width": ({"weight": torch.zeros(7, 4)}, "does not end in the weight's H = 4"),
    "hidden of no dimension": ({"hidden": torch.zeros(())}, "does not end in the weight's H"),
    "weight of one dimension": ({"weight": torch.zeros(7)}, "not [V, H]"),
    "weight of three": ({"weight": torch.zeros(7, 3, 1)}, "not [V, H]"),
    "no vocabulary": ({"weight": torch.zeros(0, 3)}, "not [V, H]"),
    "bias of another length": ({"bias": torch.zeros(6)}, "bias [6] is not [V] with V = 7"),
    "rows of floats": ({"rows": ROWS.float(), "labels": Y[:2]}, "a vector of int64"),
    "rows of two dimensions": ({"rows": ROWS[:, None], "labels": Y[:2]}, "a vector of int64"),
    "rows elsewhere": ({"rows": ROWS.to("meta"), "labels": Y[:2]}, "on meta"),
    "rows beyond the tokens": ({"rows": torch.tensor([0, 4]), "labels": Y[:2]}, "from 0 to 3; got [4]"),
    "rows negative": ({"rows": torch.tensor([-1, 2]), "labels": Y[:2]}, "got [-1]"),
    "rows twice": ({"rows": torch.tensor([2, 2]), "labels": Y[:2]}, "rows must rise"),
    "rows falling": ({"rows": torch.tensor([2, 1]), "labels": Y[:2]}, "rows must rise"),
    "rows with all labels": ({"rows": ROWS}, "labels are those of the rows; got [4]"),
    "rows with an ignored label": ({"rows": ROWS, "labels": torch.tensor([0, -100])}, "got [-100]"),
    "cap 0": ({"softcap": 0.0}, "softcap=0.0 must be above 0"),
    "cap negative": ({"softcap": -3.0}, "softcap=-3.0"),
    "cap infinite": ({"softcap": float("inf")}, "softcap=inf"),
    "scale 0": ({"logit_scale": 0.0}, "logit_scale=0.0"),
    "scale NaN": ({"logit_scale": float("nan")}, "logit_scale=nan"),
    "smoothing 1": ({"label_smoothing": 1.0}, "label_smoothing=1.0 must be in [0, 1)"),
    "smoothing negative": ({"label_smoothing": -0.1}, "label_smoothing"),
    "z-loss negative": ({"z_loss": -1.0}, "z_loss=-1.0"),
    "z-loss NaN": ({"z_loss": float("nan")}, "z_loss=nan"),
}


@pytest.mark.parametrize("function", [linear_cross_entropy, eager_linear_cross_entropy], ids=["fused", "eager"])
@pytest.mark.parametrize(("change", "message"), BAD.values(), ids=BAD)
def test_bad_input_is_refused(change: dict[str, Any], message: str, function: Callable[..., Any]) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        function(**{"hidden": X, "weight": W, "labels": Y, **change})


def test_bad_settings_of_the_fused_loss_are_refused() -> None:
    with pytest.raises(ValueError, match="none, sum or mean"):
        linear_cross_entropy(X, W, Y, reduction="average")
    for reduction in ("none", "sum"):
        with pytest.raises(ValueError, match="denominator has no effect"):
            linear_cross_entropy(X, W, Y, reduction=reduction, denominator=3)
    with pytest.raises(ValueError, match="plan T"):
        linear_cross_entropy(X, W, Y, reduction="none", plan="T")


def test_p4_a_weight_that_zero3_has_not_gathered_is_named_as_such() -> None:
    for function in (linear_cross_entropy, eager_linear_cross_entropy, per_token_logprobs):
        with pytest.raises(ValueError, match=r"weight has shape \[0\].*ZeRO-3.*LossHead"):
            function(X, torch.empty(0), Y)


@pytest.fixture
def one_process() -> Iterator[None]:
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.mark.usefixtures("one_process")
def test_p19_distributed_tensors_are_refused() -> None:
    """Their full_tensor() would mark the gradient as replicated: other ranks' parts dropped. Also as parameters."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import Shard, distribute_tensor

    weight = distribute_tensor(torch.randn(8, 3), init_device_mesh("cpu", (1,)), [Shard(0)])
    for given_weight in (weight, torch.nn.Parameter(weight)):
        with pytest.raises(ValueError, match="DTensor"):
            linear_cross_entropy(X, given_weight, Y)


@given(labels=st.lists(st.integers(-3, 9), min_size=4, max_size=4), ignore_index=st.integers(-3, 9))
def test_a_label_is_a_token_or_ignored_or_an_error(labels: list[int], ignore_index: int) -> None:
    y = torch.tensor(labels)
    kept = [label for label in labels if label != ignore_index]
    if all(0 <= label < 7 for label in kept):
        loss = linear_cross_entropy(X, W, y, ignore_index=ignore_index, reduction="sum")
        torch.testing.assert_close(loss, len(kept) * torch.tensor(7.0).log())
    else:
        with pytest.raises(ValueError, match="labels must be"):
            linear_cross_entropy(X, W, y, ignore_index=ignore_index)


@pytest.mark.parametrize("triton", [False, True], ids=["twin", "kernel"])
@pytest.mark.parametrize("plan", ["B", "T", "R"])
@pytest.mark.parametrize("shape", [(5, 1, 9), (5, 3, 1), (5, 1, 1), (1, 1, 1)], ids=["H=1", "V=1", "both", "all"])
def test_sizes_of_one_are_right(shape: tuple[int, int, int], plan: str, triton: bool) -> None:
    result = check(make(*shape, bias=True), plan=plan, triton=triton)
    if shape[2] == 1:
        assert float(result.loss) == 0.0


def test_logprobs_are_negative_losses_at_a_temperature() -> None:
    p = make(10, 4, 50, masked=0.3)
    logprobs = per_token_logprobs(p.hidden, p.weight, p.labels, logit_scale=0.5)
    right = (p.hidden @ p.weight.t() / 2).log_softmax(1).gather(1, p.labels.clamp(min=0)[:, None])[:, 0]
    torch.testing.assert_close(logprobs, right.where(p.labels >= 0, 0))
