"""Memory in training: what must hold of the sums whatever the sizes, and one real training beside its plan."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shard_dist.config.cluster import NodesConfig
from shard_dist.config.training import LongConfig, Offload, Packing, TrainConfig
from shard_dist.plan.activations import Pass
from shard_dist.plan.model import Shape
from shard_dist.plan.states import Sharding, model_states
from shard_dist.plan.training import TrainingMemory, checkpoint_bytes, training_memory

LLAMA_SIZES = (
    "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "vocab_size"
)  # fmt: skip
NODES = NodesConfig(gpus=8, gpu_memory_gib=79.6, memory_gib=1_800, disk_gib=10_000)


def llama(hidden: int, inner: int, layers: int, heads: int, key_heads: int, vocab: int, tied: bool = False) -> Shape:
    """By hand, from the sizes in a Llama's config.json."""
    width = hidden // heads
    attention = (hidden * hidden, hidden * key_heads * width, hidden * key_heads * width, hidden * hidden)
    layer = (*attention, *(3 * (hidden * inner,)), hidden, hidden)
    tensors = (vocab * hidden, *(layers * layer), hidden, *(() if tied else (vocab * hidden,)))
    return Shape(
        name="llama", tensors=tensors, layer=sum(layer), layers=layers, kv_layers=layers, hidden=hidden,
        intermediate=inner, heads=heads, kv_heads=key_heads, head_dim=width, vocab=vocab, tied=tied, positions=131_072,
    )  # fmt: skip


EIGHT = llama(4_096, 14_336, 32, 32, 8, 128_256)
SEVENTY = llama(8_192, 28_672, 80, 64, 8, 128_256)
shapes = st.builds(
    lambda width, heads, share, layers, inner, vocab, tied: llama(
        width * heads, inner, layers, heads, max(1, heads // share), vocab, tied
    ),
    st.sampled_from([64, 128]), st.sampled_from([8, 16, 32]), st.sampled_from([1, 4]), st.integers(2, 64),
    st.integers(1_000, 30_000), st.integers(1_000, 200_000), st.booleans(),
)  # fmt: skip
places = st.sampled_from([Offload.none, Offload.cpu])
trains = st.builds(
    TrainConfig,
    workers=st.sampled_from([1, 2, 8, 16, 64]),
    bf16=st.booleans(),
    gpus_per_worker=st.sampled_from([0, 1]),
    gradient_checkpointing=st.booleans(),
    micro_batch_size=st.integers(1, 4),
    max_tokens=st.sampled_from([512, 4_096, 32_768]),
    async_checkpoints=st.booleans(),
    long=st.builds(
        LongConfig,
        mlp_tiles=st.sampled_from([1, 4]),
        sequence_parallel=st.sampled_from([1, 8]),
        offload_activations=st.booleans(),
        offload_optimizer=places,
        offload_parameters=places,
    ),
)


def total(shape: Shape, train: TrainConfig, **changes: Any) -> float:
    # dpo: its loss has one plan only. Where sft's has two, a token more may choose the one in smaller pieces.
    return training_memory(shape, replace(train, **changes), NODES, "dpo").device.total


def states_bytes(memory: TrainingMemory, sharding: Sharding) -> float:
    """Model states of one process, wherever they are."""
    names = {line.name for line in model_states(sharding).values()}
    shared = (*memory.node.lines, *memory.disk.lines)
    own = sum(line.bytes for line in memory.device.lines if line.name in names)
    return own + sum(line.bytes for line in shared if line.name in names) / sharding.processes


@given(shapes, trains)
def test_the_plan_is_its_highest_moment_and_every_total_the_sum_of_its_lines(shape: Shape, train: TrainConfig) -> None:
    plan = training_memory(shape, train, NODES)
    assert plan.device.total == max(moment.total for moment in plan.moments)
    for account in (*plan.moments, plan.node, plan.disk):
        assert account.total == sum(line.bytes for line in account.lines)
        assert all(line.bytes > 0 and line.formula for line in account.lines)


@given(shapes, trains, st.sampled_from([2, 3, 8]))
def test_more_ranks_never_need_more(shape: Shape, train: TrainConfig, factor: int) -> None:
    """From two on: one rank gathers nothing."""
    ranks = max(2, train.workers)
    assert total(shape, train, workers=ranks * factor) <= total(shape, train, workers=ranks)


@given(shapes, trains)
def test_longer_rows_and_more_of_them_never_need_less(shape: Shape, train: TrainConfig) -> None:
    here = total(shape, train)
    assert total(shape, train, max_tokens=train.max_tokens + 8) >= here
    assert total(shape, train, micro_batch_size=train.micro_batch_size + 1) >= here


@given(shapes, trains)
def test_recomputation_adds_at_most_a_layers_input(shape: Shape, train: TrainConfig) -> None:
    """Which it keeps beside the layer at work; all else it can only spare."""
    keeping = replace(train, gradient_checkpointing=False)
    width = shape.hidden * Sharding(shape, train, NODES).itemsize
    extra = 1.05 * Pass(Sharding(shape, train, NODES), "dpo").tokens * width  # with its share of the margin
    assert total(shape, keeping, gradient_checkpointing=True) <= total(shape, keeping) + extra


@given(shapes, trains, places, places)
def test_offloading_moves_model_states_and_loses_none(
    shape: Shape, train: TrainConfig, optimizer: Offload, parameters: Offload
) -> None:
    train = replace(train, gpus_per_worker=1, long=LongConfig())
    moved = replace(train, long=LongConfig(offload_optimizer=optimizer, offload_parameters=parameters))
    here, there = (Sharding(shape, settings, NODES) for settings in (train, moved))
    before, after = training_memory(shape, train, NODES), training_memory(shape, moved, NODES)
    assert states_bytes(after, there) == pytest.approx(states_bytes(before, here))
    assert after.device.total <= before.device.total


def test_what_goes_to_nvme_is_on_the_disk() -> None:
    long = LongConfig(offload_optimizer=Offload.nvme, offload_parameters=Offload.nvme, nvme_path="/disk")
    plan = training_memory(SEVENTY, TrainConfig(workers=16, long=long), NODES)
    on_disk = {line.name: line.bytes for line in plan.disk.lines}
    assert on_disk["weights"] == pytest.approx(SEVENTY.parameters * 2 / 2, rel=1e-3)  # half of the processes
    assert on_disk["AdamW's two moments in fp32"] == pytest.approx(SEVENTY.parameters * 8 / 2, rel=1e-3)


def test_pinned_buffers_are_powers_of_two() -> None:
    """Of each of eight processes the weights, the sum of gradients, and these once more in sub-groups."""
    both = LongConfig(offload_optimizer=Offload.cpu, offload_parameters=Offload.cpu)
    plan = training_memory(SEVENTY, TrainConfig(workers=64, long=both), NODES)
    part = Sharding(SEVENTY, TrainConfig(workers=64), NODES).part
    added = next(line.bytes for line in plan.node.lines if line.name.startswith("pinned memory"))
    assert 2**30 < part < 1_200_000_000
    handed = 2**32 - 4_000_000_000 + 2**29 - 4 * (part - 1_000_000_000)
    assert added == 8 * (2**32 - 2 * part + 2**33 - 4 * part + handed)


def test_padded_pairs_take_two_rows() -> None:
    rows = {
        packing: Pass(Sharding(EIGHT, TrainConfig(packing=packing, max_tokens=1_000), NODES), "dpo").tokens
        for packing in (Packing.none, Packing.batch)
    }
    assert rows == {Packing.none: 2_000, Packing.batch: 1_000}


def test_processes_that_share_a_row_hold_their_slice_of_it() -> None:
    train = TrainConfig(workers=16, max_tokens=131_072, micro_batch_size=1)
    shared = replace(train, long=LongConfig(sequence_parallel=8))
    whole, slice_ = (Pass(Sharding(EIGHT, settings, NODES), "sft").tokens for settings in (train, shared))
    assert (whole, slice_) == (131_072, 16_384)


def test_the_users_own_deepspeed_settings_count() -> None:
    small = {"zero_optimization": {"reduce_bucket_size": 10_000_000, "stage3_param_persistence_threshold": 0}}
    plans = [
        training_memory(EIGHT, TrainConfig(workers=8, deepspeed=settings), NODES).device for settings in ({}, small)
    ]
    buckets = [next(line.bytes for line in plan.lines if line.name == "reduce bucket") for plan in plans]
    assert buckets == [50_000_000 * 2, 10_000_000 * 2]
    names = [{line.name for line in plan.lines} for plan in plans]
    assert "small weights, kept whole" in names[0] - names[1]


def test_the_heads_gradient_is_widened_where_processes_share_rows() -> None:
    """Gradients are then summed in fp32: 4 bytes for each of the head's weights, all of them, on every rank."""
    train = TrainConfig(workers=16, gradient_checkpointing=True, long=LongConfig(sequence_parallel=8))
    moments = training_memory(SEVENTY, train, NODES).moments
    head = next(moment for moment in moments if moment.where.endswith("when the head's gradient is reduced"))
    widened = next(line.bytes for line in head.lines if line.name == "a gradient widened to be sent")
    assert widened == 128_256 * 8_192 * 4


def test_a_tied_heads_gradient_waits_for_the_embeddings() -> None:
    tied = llama(2_048, 8_192, 16, 32, 8, 128_256, tied=True)
    for shape, waits in ((tied, True), (EIGHT, False)):
        moments = training_memory(shape, TrainConfig(workers=8), NODES).moments
        backward = next(moment for moment in moments if moment.where.endswith("last layer's backward pass"))
        assert ("the head's gradient" in {line.name for line in backward.lines}) == waits


def test_a_checkpoint_has_weights_and_moments_in_fp32() -> None:
    assert checkpoint_bytes(EIGHT, TrainConfig(workers=8)).bytes == pytest.approx(EIGHT.parameters * 12, rel=1e-3)


def test_the_measured_peaks_are_still_the_plans(root: Path) -> None:
    """Those of the benchmark plan_memory.py, which wrote them down: three shapes, one and two ranks, and offloaded."""
    sys.path.insert(0, str(root / "tests" / "benchmarks"))
    from plan_memory import BAR, cases

    document = json.loads((root / "tests" / "benchmarks" / "results" / "plan_memory.json").read_text())
    records = {record["case"]: record["measured_bytes"] for record in document["plan_memory"]["records"]}
    assert records.keys() == cases().keys()
    for name, case in cases().items():
        sizes = [case.llama[key] for key in LLAMA_SIZES]
        shape = llama(*sizes, tied=case.llama.get("tie_word_embeddings", False))
        plan = training_memory(shape, case.config, NodesConfig()).device
        assert plan.total == pytest.approx(records[name], rel=BAR), name


@pytest.mark.zero
def test_a_real_trainings_peak_is_the_plans(tmp_path: Path, root: Path, launch: Callable[..., Any]) -> None:
    """Two ranks, 18 M weights in fp32, real steps; within 10 %. The benchmark plan_memory.py has more shapes."""
    sys.path.insert(0, str(root / "tests" / "benchmarks"))
    from plan_runs import RANK, STEPS, Case, highest, measured

    sizes = {
        "vocab_size": 8_192, "hidden_size": 512, "intermediate_size": 1_536, "num_hidden_layers": 3,
        "num_attention_heads": 8, "num_key_value_heads": 4,
    }  # fmt: skip
    train = TrainConfig(
        workers=2, gpus_per_worker=0, bf16=False, threads=1, max_tokens=512, packing=Packing.dataset,
        global_batch_size=4, epochs=1.0,
    )  # fmt: skip
    case, out = Case("a rank", sizes, train), tmp_path / "out"
    done = launch(RANK, case.pickled(tmp_path), STEPS, out).wait()
    assert done.returncode == 0, done.stderr[-3000:]
    peak = highest(measured(out, ranks=2))
    print(measured(out, 2))
    print([(m.where, m.total) for m in case.plan(tmp_path).moments])
    print(case.plan(tmp_path).device)
    assert case.plan(tmp_path).device.total == pytest.approx(peak, rel=0.1)
