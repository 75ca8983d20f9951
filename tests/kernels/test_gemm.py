"""Matrix products: fp32 sums of 16-bit products, the narrowing in place, and settings that are put back."""

from __future__ import annotations

import pytest
import torch

from shard_kernels.gemm import accumulate_, narrow_, project, scale_, whole_reductions

BF16, FP32 = torch.bfloat16, torch.float32
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def normal(*shape: int, dtype: torch.dtype = FP32, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(DEVICE, dtype)


@pytest.mark.parametrize("blocks", [1, 2, 16, 128, 512])
def test_p2_p22_sums_over_any_number_of_blocks_cost_one_rounding(blocks: int) -> None:
    """Relative error of a bf16 product over K = 4,096: 1.7e-3 is one rounding; bf16 sums have 2.6e-2 at 512 blocks."""
    a_MK, b_KN = normal(96, 4096, dtype=BF16), normal(4096, 64, dtype=BF16, seed=1)
    acc_MN = torch.full((96, 64), torch.nan, device=DEVICE)
    step = 4096 // blocks
    for k in range(0, 4096, step):
        accumulate_(acc_MN, a_MK[:, k : k + step], b_KN[k : k + step], first=k == 0)
    exact_MN = a_MK.double() @ b_KN.double()
    assert (acc_MN.double() - exact_MN).norm() / exact_MN.norm() < 2e-6
    assert (acc_MN.to(BF16).double() - exact_MN).norm() / exact_MN.norm() < 1.8e-3


@pytest.mark.parametrize("dtype", [BF16, torch.float16, FP32, torch.float64], ids=str)
def test_the_first_product_replaces_what_was_there(dtype: torch.dtype) -> None:
    acc = torch.full((3, 5), torch.nan, dtype=torch.float64 if dtype == torch.float64 else FP32, device=DEVICE)
    a, b = normal(3, 700, dtype=dtype), normal(700, 5, dtype=dtype, seed=1)
    accumulate_(acc, a, b, first=True)
    accumulate_(acc, a, b, first=False)
    torch.testing.assert_close(acc.double(), 2 * (a.double() @ b.double()), rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("dtype", [BF16, torch.float16], ids=str)
@pytest.mark.parametrize("scale", [1.0, 0.3, 0.0])
@pytest.mark.parametrize("size", [1, 2, 4095, 4096, 4097, 8191, 8192, 8193, 3 * 4096, 16384, 65535, 65537, 1003 * 517])
def test_narrowing_in_place_is_bitwise_a_cast(size: int, scale: float, dtype: torch.dtype) -> None:
    acc = normal(size)
    factor = torch.tensor(scale, device=DEVICE)
    right = (acc * factor).to(dtype)
    narrow = narrow_(acc, dtype, factor)
    assert torch.equal(narrow, right)
    assert narrow.data_ptr() == acc.data_ptr(), "no second copy"


def test_narrowing_keeps_the_shape() -> None:
    acc = normal(1003, 17)
    right = acc.to(BF16)
    assert torch.equal(narrow_(acc, BF16, torch.ones((), device=DEVICE)), right)


@pytest.mark.parametrize("dtype", [BF16, torch.float16, FP32], ids=str)
def test_scales_are_not_rounded_to_the_tensors_dtype(dtype: torch.dtype) -> None:
    """1/3 in bf16 is 0.33398: a scale that was rounded first shows in a third of the products."""
    x = normal(2500, 7, dtype=dtype)
    scale = torch.tensor(1 / 3, device=DEVICE)
    right = (x.float() * scale).to(dtype)
    if dtype != FP32:
        assert not torch.equal(right, (x.float() * scale.to(dtype).float()).to(dtype))
    scale_(x, scale)
    assert torch.equal(x, right)


@pytest.mark.parametrize("before", [(True, True), (False, True), (True, False), (False, False)])
def test_whole_reductions_puts_the_flags_back_even_after_an_error(before: tuple[bool, bool]) -> None:
    matmul = torch.backends.cuda.matmul
    names = ("allow_bf16_reduced_precision_reduction", "allow_fp16_reduced_precision_reduction")
    found = [getattr(matmul, name) for name in names]
    try:
        for name, value in zip(names, before, strict=True):
            setattr(matmul, name, value)
        with pytest.raises(KeyError), whole_reductions():
            assert [getattr(matmul, name) for name in names] == [False, False]
            raise KeyError
        assert [getattr(matmul, name) for name in names] == list(before)
    finally:
        for name, value in zip(names, found, strict=True):
            setattr(matmul, name, value)


@pytest.mark.parametrize("bias", [False, True], ids=["", "bias"])
def test_projections_write_their_columns_only(bias: bool) -> None:
    x, w, b = normal(4, 6), normal(20, 6, seed=1), normal(20, seed=2) if bias else None
    wide = torch.full((4, 11), torch.nan, device=DEVICE)
    project(x, w, b, 3, wide[:, :9])
    right = x @ w[3:12].t() + (0 if b is None else b[3:12])
    torch.testing.assert_close(wide[:, :9], right)
    assert wide[:, 9:].isnan().all()
