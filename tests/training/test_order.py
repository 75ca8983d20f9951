"""Data order and the deal of a batch to ranks."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shard_dist.config.schema import TrainConfig
from shard_dist.training.order import (
    accumulation_steps,
    deal,
    epoch_order,
    global_batch,
    steps_per_epoch,
    total_steps,
)

sizes = st.integers(1, 200)


@given(seed=st.integers(0, 2**32), epoch=st.integers(0, 5), examples=sizes, batch=st.integers(1, 64))
def test_every_example_comes_exactly_once_per_epoch(seed: int, epoch: int, examples: int, batch: int) -> None:
    per_epoch = steps_per_epoch(examples, batch)
    steps = range(epoch * per_epoch, (epoch + 1) * per_epoch)
    seen = [index for step in steps for index in global_batch(seed, step, examples, batch)]
    assert sorted(seen) == list(range(examples))
    assert all(len(global_batch(seed, step, examples, batch)) == batch for step in steps[:-1])


@given(seed=st.integers(0, 2**32), examples=sizes, batch=st.integers(1, 64), start=st.integers(0, 20))
def test_resuming_at_any_step_sees_the_batches_of_an_unbroken_run(
    seed: int, examples: int, batch: int, start: int
) -> None:
    whole = [global_batch(seed, step, examples, batch) for step in range(start + 5)]
    epoch_order.cache_clear()  # a new process remembers nothing
    assert [global_batch(seed, step, examples, batch) for step in range(start, start + 5)] == whole[start:]


@given(
    lengths=st.dictionaries(st.integers(0, 10_000), st.integers(1, 50), min_size=1, max_size=64),
    ranks=st.sampled_from([1, 2, 4, 8]),
    micro=st.integers(1, 9),
)
def test_ranks_share_a_batch_without_loss_or_overlap(lengths: dict[int, int], ranks: int, micro: int) -> None:
    shares = [deal(lengths, rank, ranks, micro) for rank in range(ranks)]
    assert sorted(index for rank in shares for batch in rank for index in batch) == sorted(lengths)
    assert len({len(rank) for rank in shares}) == 1, "every rank runs as many micro-batches, or the collectives hang"
    assert all(len(batch) <= micro for rank in shares for batch in rank)
    loads = [sum(len(batch) for batch in rank) for rank in shares]
    assert max(loads) - min(loads) <= 1


def test_epochs_differ_and_the_order_is_pinned() -> None:
    """Golden: printed once by epoch_order(0, epoch, 8); a change would break every checkpoint's data position."""
    assert epoch_order(0, 0, 8) == (0, 3, 7, 4, 1, 5, 2, 6)
    assert epoch_order(0, 1, 8) == (6, 3, 1, 2, 0, 4, 5, 7)


def test_total_steps_of_parts_of_an_epoch() -> None:
    assert total_steps(250, 16, 6.0) == 6 * 16
    assert total_steps(250, 16, 0.5) == 8
    assert total_steps(3, 16, 1.0) == 1
    assert total_steps(3, 16, 0.01) == 1


def test_a_batch_that_cannot_be_dealt_evenly_is_refused() -> None:
    assert accumulation_steps(TrainConfig(global_batch_size=16, workers=2, micro_batch_size=4)) == 2
    for batch, workers, micro in ((16, 3, 1), (4, 8, 1), (0, 1, 1), (8, 0, 1)):
        with pytest.raises(ValueError, match="global_batch_size"):
            accumulation_steps(TrainConfig(global_batch_size=batch, workers=workers, micro_batch_size=micro))
