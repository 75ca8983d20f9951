"""Which plan is chosen, and what it is said to cost. Bytes against a real allocator are in test_memory.py."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from shard_kernels.layout import plan_layout, vocab_blocks
from shard_kernels.planner import ROW_BYTES, plan_loss, token_chunk

BF16, FP32 = torch.bfloat16, torch.float32
LLAMA_8B = (4096, 128256)
HEADS = [(4096, 128256), (8192, 128256), (3584, 152064), (2304, 256000)]


def test_bytes_of_plan_b_are_buffer_rows_and_the_fp32_sum_of_dx() -> None:
    hidden, vocab = LLAMA_8B
    tokens, supervised = 8192, 4096
    plan = plan_loss(tokens, supervised, hidden, vocab, BF16, name="B")
    compacted, dx = 2 * supervised * hidden, 4 * supervised * hidden
    assert plan.bytes == 2 * plan_layout(supervised, hidden, vocab, 8).size + compacted + dx + supervised * ROW_BYTES
    # 2 V max(S, H) + V H / 4 + 6 S H, with what the rounding of blocks adds.
    assert plan.bytes == pytest.approx(2 * vocab * hidden * 9 / 8 + 6 * supervised * hidden, rel=0.01)


def test_bytes_of_plan_t_are_fp32_dw_and_a_chunk_of_logits() -> None:
    hidden, vocab = LLAMA_8B
    plan = plan_loss(32768, 16384, hidden, vocab, BF16, name="T")
    chunk = token_chunk(16384, hidden)
    assert plan.chunk == chunk
    expected = 4 * vocab * hidden + 2 * chunk * vocab + 4 * 16384 * hidden + 16384 * ROW_BYTES
    assert plan.bytes == expected


def test_bytes_of_plan_r_are_dw_and_a_block_of_logits() -> None:
    hidden, vocab = LLAMA_8B
    plan = plan_loss(8192, 8192, hidden, vocab, BF16, name="R")
    width = vocab_blocks(vocab, 8)[0][1]
    assert plan.blocks == 8
    assert plan.bytes == 2 * vocab * hidden + 4 * 8192 * hidden + 2 * 8192 * width + 8192 * ROW_BYTES


def test_nothing_is_compacted_where_every_token_is_supervised() -> None:
    hidden, vocab = LLAMA_8B
    for name in ("B", "T", "R"):
        whole = plan_loss(4096, 4096, hidden, vocab, BF16, name=name).bytes
        masked = plan_loss(4097, 4096, hidden, vocab, BF16, name=name).bytes
        copies = 2 if name == "T" else 1  # T also spreads a compact dX
        assert masked - whole == copies * 2 * 4096 * hidden


@pytest.mark.parametrize(("hidden", "vocab"), HEADS)
def test_b_gives_way_to_t_where_the_logits_outgrow_the_fp32_dw(hidden: int, vocab: int) -> None:
    """2 V S + V H / 4 = 4 V H + 2 C V at S = 15/8 H + C, less B's wider sum of dX: 2 S H bytes."""
    low, high = ((15 / 8 * hidden + chunk) / (1 + hidden / vocab) for chunk in (2048, 4096))
    names = {s: plan_loss(2 * s, s, hidden, vocab, BF16).name for s in range(512, 40_000, 256)}
    last_b = max(s for s, name in names.items() if name == "B")
    first_t = min(s for s, name in names.items() if name == "T")
    for at in (last_b, first_t):
        assert low - 256 <= at <= high + 256
    assert names[512] == "B"


@given(
    supervised=st.integers(0, 40_000),
    masked=st.integers(0, 40_000),
    hidden=st.integers(1, 9000),
    vocab=st.integers(1, 300_000),
    dtype=st.sampled_from([BF16, FP32]),
    device=st.sampled_from(["cuda", "cpu"]),
)
def test_the_leaner_plan_is_chosen_and_never_t_per_token(
    supervised: int, masked: int, hidden: int, vocab: int, dtype: torch.dtype, device: str
) -> None:
    def plan(**kw: Any) -> Any:
        return plan_loss(supervised + masked, supervised, hidden, vocab, dtype, device=device, **kw)

    b, t = plan(name="B"), plan(name="T")
    assert plan() == min(b, t, key=lambda p: p.bytes)
    assert plan(per_token=True) == b
    assert plan(per_token=True, budget_bytes=0).name == "R"
    assert plan(budget_bytes=min(b.bytes, t.bytes)).name != "R"
    assert plan(budget_bytes=min(b.bytes, t.bytes) - 1).name == "R"


def test_r_takes_narrower_blocks_until_it_fits_and_then_gives_up() -> None:
    hidden, vocab = LLAMA_8B
    wide = plan_loss(16384, 16384, hidden, vocab, BF16, name="R")
    tight = plan_loss(16384, 16384, hidden, vocab, BF16, name="R", budget_bytes=wide.bytes - 1)
    hopeless = plan_loss(16384, 16384, hidden, vocab, BF16, name="R", budget_bytes=1)
    assert [plan.blocks for plan in (wide, tight, hopeless)] == [8, 16, 64]
    assert hopeless.bytes < tight.bytes < wide.bytes


@pytest.mark.parametrize("name", ["B", "T", "R"])
def test_a_forced_plan_is_kept_whatever_the_budget(name: Any) -> None:
    assert plan_loss(100, 50, 64, 1000, BF16, name=name, budget_bytes=1).name == name


def test_only_r_computes_the_logits_twice() -> None:
    gemms: dict[str, int] = {}
    for name in ("B", "T", "R"):
        gemms[name] = plan_loss(8, 8, 8, 8, BF16, name=name).gemms
    assert gemms == {"B": 3, "T": 3, "R": 4}


@pytest.mark.parametrize(
    "sizes",
    [(4, 5, 8, 8), (4, -1, 8, 8), (-1, 0, 8, 8), (4, 4, 0, 8), (4, 4, 8, 0)],
    ids=["more supervised than tokens", "negative supervised", "negative tokens", "no hidden", "no vocabulary"],
)
def test_sizes_that_cannot_be_are_refused(sizes: tuple[int, int, int, int]) -> None:
    with pytest.raises(ValueError, match="no loss over"):
        plan_loss(*sizes, BF16)


def test_plan_t_is_refused_per_token() -> None:
    with pytest.raises(ValueError, match="plan T"):
        plan_loss(8, 8, 8, 8, BF16, per_token=True, name="T")


def test_no_supervised_token_is_a_plan_too() -> None:
    for name in ("B", "T", "R", None):
        plan = plan_loss(16, 0, 8, 100, BF16, name=name)
        assert plan.bytes > 0
        assert plan.chunk >= (1 if plan.name == "T" else 0)


@given(supervised=st.integers(0, 200_000), hidden=st.integers(1, 16_384))
def test_token_chunks_cover_the_rows_evenly(supervised: int, hidden: int) -> None:
    chunk = token_chunk(supervised, hidden)
    assert 1 <= chunk <= 4096
    count = -(-supervised // chunk)
    lengths = [min(chunk, supervised - i * chunk) for i in range(count)]
    assert sum(lengths) == supervised
    assert all(length == chunk for length in lengths[:-1])
    if lengths:
        assert lengths[-1] >= chunk - count, "no short tail: shorter by less than one row per chunk"
    if supervised >= 4096:
        assert chunk >= 2048 - 1


@pytest.mark.parametrize(("hidden", "worst"), [(2304, 0.85), (3584, 0.9), (4096, 0.95), (8192, 0.95)])
def test_token_chunks_fill_the_waves_of_dx(hidden: int, worst: float) -> None:
    """128 x 256 tiles over 132 multiprocessors: H = 2304 fills 54 % of its waves with chunks of 2,048 rows."""
    supervised = 16_384
    chunk = token_chunk(supervised, hidden)
    tiles = -(-chunk // 128) * -(-hidden // 256)
    waves = -(-tiles // 132)
    assert chunk / 128 * hidden / 256 / (waves * 132) >= worst


@given(st.data())
def test_more_supervised_tokens_never_cost_fewer_bytes(data: st.DataObject) -> None:
    """Of B and R among masked tokens; T's chunk is chosen for speed and may shrink."""
    hidden, vocab = data.draw(st.integers(1, 5000)), data.draw(st.integers(1, 200_000))
    few, more = sorted((data.draw(st.integers(0, 20_000)), data.draw(st.integers(0, 20_000))))
    for name in ("B", "R"):
        costs = [plan_loss(20_001, s, hidden, vocab, BF16, name=name).bytes for s in (few, more)]
        assert costs[0] <= costs[1]
