"""The invariant of plan B's buffer: dW block j never reaches logits that are still needed."""

from __future__ import annotations

import random

import pytest
import torch

from shard_kernels.layout import PITCH_MULTIPLE, WIDTH_MULTIPLE, Layout, plan_layout, round_up, vocab_blocks

SHAPES = 200_000


def random_shape(rng: random.Random) -> tuple[int, int, int, int]:
    """(S, H, V, blocks): S below, at and above H; sizes of 1; V off and on multiples of 8 and 128."""
    hidden = rng.choice((1, rng.randint(1, 64), rng.randint(1, 8192)))
    rows = rng.choice((0, 1, hidden, rng.randint(0, hidden), rng.randint(hidden, 5 * hidden)))
    vocab = rng.choice(
        (1, rng.randint(1, 300), rng.randint(1, 5000), 8 * rng.randint(1, 999), 128 * rng.randint(1, 99))
    )
    return rows, hidden, vocab, rng.randint(1, 16)


def assert_sound(layout: Layout, rows: int, hidden: int, vocab: int) -> None:
    column = 0
    free = 0  # where the logits before this block end
    for block in layout.blocks:
        assert block.first == column
        assert block.width >= 1
        assert block.pitch >= block.width
        assert block.pitch % PITCH_MULTIPLE == 0
        assert block.start >= free
        # The destination of this block's dW ends before its own logits begin, and so before all later ones.
        assert (block.first + block.width) * hidden <= block.start
        column += block.width
        free = block.start + block.pitch * rows
    assert column == vocab
    assert layout.size >= free
    assert layout.size >= vocab * hidden


def test_dw_never_reaches_logits_that_are_still_needed_over_200000_random_shapes() -> None:
    rng = random.Random(20260821)
    for _ in range(SHAPES):
        rows, hidden, vocab, blocks = random_shape(rng)
        layout = plan_layout(rows, hidden, vocab, blocks)
        try:
            assert_sound(layout, rows, hidden, vocab)
        except AssertionError as fault:
            raise AssertionError(f"S={rows} H={hidden} V={vocab} blocks={blocks}") from fault


def test_without_the_pads_share_for_the_last_pitch_blocks_would_overlap() -> None:
    """S * 8 of the pad is needed: leave it out, and some shapes of the same distribution break the invariant."""
    rng = random.Random(20260821)
    broken = 0
    for _ in range(20_000):
        rows, hidden, vocab, blocks = random_shape(rng)
        ranges = vocab_blocks(vocab, blocks)
        pitches = [round_up(width, PITCH_MULTIPLE) for _, width in ranges]
        pad = ranges[0][1] * hidden
        start = max(pad, pad + vocab * hidden - rows * sum(pitches))
        for (first, width), pitch in zip(ranges, pitches, strict=True):
            if (first + width) * hidden > start:
                broken += 1
                break
            start += pitch * rows
    assert broken > 0


@pytest.mark.parametrize("vocab", [1, 127, 128, 129, 1000, 50257, 128256, 152064])
@pytest.mark.parametrize("blocks", [1, 3, 8, 16])
def test_vocabulary_blocks_cover_it_once_in_whole_tiles(vocab: int, blocks: int) -> None:
    ranges = vocab_blocks(vocab, blocks)
    assert 1 <= len(ranges) <= blocks
    assert [column for first, width in ranges for column in (first, first + width)][1:-1:2] == [
        f for f, _ in ranges[1:]
    ]
    assert ranges[0][0] == 0
    assert sum(width for _, width in ranges) == vocab
    assert {width for _, width in ranges[:-1]} <= {ranges[0][1]}
    assert all(width % WIDTH_MULTIPLE == 0 for _, width in ranges[:-1])


@pytest.mark.parametrize(
    ("rows", "gigabytes"),
    # Llama-3-8B's and -70B's heads, V = 128256, in bf16; computed in the analysis that the layout comes from.
    [((4096, 4096), 1.18), ((8192, 4096), 2.23), ((8192, 8192), 2.36), ((16384, 8192), 4.47)],
)
def test_the_buffer_takes_the_published_bytes(rows: tuple[int, int], gigabytes: float) -> None:
    assert 2 * plan_layout(*rows, 128256, 8).size / 1e9 == pytest.approx(gigabytes, abs=0.006)


@pytest.mark.parametrize(("rows", "hidden"), [(512, 4096), (4096, 4096), (20000, 4096)])
def test_the_buffer_is_the_larger_of_logits_and_dw_plus_one_block(rows: int, hidden: int) -> None:
    vocab, blocks = 128256, 8
    width = vocab_blocks(vocab, blocks)[0][1]
    size = plan_layout(rows, hidden, vocab, blocks).size
    least = vocab * max(rows, hidden) + width * hidden
    assert least <= size <= least + rows * 2 * PITCH_MULTIPLE


@pytest.mark.parametrize("shape", [(5, 3, 300, 3), (40, 3, 300, 3), (3, 40, 1001, 8), (4, 4, 7, 1)])
def test_views_hold_what_was_written_until_it_is_consumed(shape: tuple[int, int, int, int]) -> None:
    """Play the backward: mark all logits, then write dW block by block; a block is intact when its turn comes."""
    layout = plan_layout(*shape)
    buffer = torch.zeros(layout.size)
    for number, block in enumerate(layout.blocks, start=1):
        layout.logits(buffer, block).fill_(number)
    dweight = layout.weight_grad(buffer)
    assert dweight.shape == (shape[2], shape[1])
    for number, block in enumerate(layout.blocks, start=1):
        assert (layout.logits(buffer, block) == number).all()
        dweight[block.first : block.first + block.width] = -number
    for number, block in enumerate(layout.blocks, start=1):
        assert (dweight[block.first : block.first + block.width] == -number).all()
