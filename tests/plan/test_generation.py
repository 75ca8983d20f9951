"""What an engine holds: against vLLM's own logs, and how it follows from settings."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shard_dist.config.cluster import NodesConfig
from shard_dist.config.load import load_config
from shard_dist.config.schema import Backend, ModelConfig
from shard_dist.plan.account import GIB
from shard_dist.plan.generation import GenerationMemory, generation_memory
from shard_dist.plan.model import Shape, shape_of

H100 = NodesConfig(count=1, gpus=8, gpu_memory_gib=79.22, memory_gib=1500)
LLAMA = Shape(
    name="llama",
    tensors=(128_256 * 4096,) * 2 + (218_103_808,) * 32,
    layer=218_103_808,
    layers=32,
    kv_layers=32,
    hidden=4096,
    intermediate=14_336,
    heads=32,
    kv_heads=8,
    head_dim=128,
    vocab=128_256,
    tied=False,
    positions=131_072,
    matrices=32 * 218_103_808,
    active=32 * 218_103_808,
)


def memory(shape: Shape = LLAMA, nodes: NodesConfig = H100, **settings: Any) -> GenerationMemory:
    given = {"max_model_len": 8192, "max_num_seqs": 256, "gpu_memory_utilization": 0.9, **settings}
    found = generation_memory(shape, ModelConfig(model="m", engine_args=given), nodes)
    assert found is not None
    return found


def bytes_of(memory: GenerationMemory, name: str) -> float:
    return sum(line.bytes for line in memory.device.lines if name in line.name)


@pytest.mark.parametrize(("tensor", "weights", "cache"), [(1, 14.96, 53.29), (2, 7.48, 58.97)])
def test_an_8b_model_on_80_gb_is_as_vllm_logged_it(models: Path, tensor: int, weights: float, cache: float) -> None:
    """Golden values: the log in vllm#10511, Llama-3-8B on one GPU and on two, before CUDA graphs. What lies outside
    torch and the working memory are that log's too, so this holds weights and arithmetic only; the cache on two is its
    71.29 - 7.48 - 3.58 - 1.26. A token takes 2 x 32 layers x 8 heads x 128 x 2 bytes: 128 KiB."""
    shape = shape_of(str(models / "Llama-3.1-8B"))
    found = memory(shape, tensor_parallel_size=tensor, enforce_eager=True)
    assert found.weights / GIB == pytest.approx(weights, rel=2e-3)
    assert bytes_of(found, "cache") / GIB == pytest.approx(cache, rel=2e-3)
    assert found.kv_tokens == pytest.approx(cache * GIB / (131_072 / tensor), rel=3e-3)


@pytest.mark.parametrize("context", [512, 1024])
def test_the_cache_of_the_demo_is_as_vllm_logged_it(root: Path, monkeypatch: pytest.MonkeyPatch, context: int) -> None:
    """Golden value: vLLM 0.32, booted on a CPU with this role's arguments and VLLM_CPU_KVCACHE_SPACE=1, says "CPU KV
    cache size: 349,440 tokens", 682.50 x 512 and 341.25 x 1,024: 2,730 blocks of 128."""
    monkeypatch.chdir(root)
    spec = load_config(root / "configs" / "demo.yaml").models["student"]
    spec.engine_args["max_model_len"] = context
    found = generation_memory(shape_of(spec.model), spec, NodesConfig(count=1, cpus=2, memory_gib=24))
    assert found is not None
    assert found.kv_tokens == 349_440
    assert found.sequences == spec.engine_args["max_num_seqs"]
    assert not found.problems


def test_backends_that_load_no_model_need_nothing() -> None:
    for backend in (Backend.http, Backend.fake):
        assert generation_memory(LLAMA, ModelConfig(backend, "m"), H100) is None


def test_a_pipeline_splits_layers_and_keeps_one_table_a_stage() -> None:
    whole, half = memory(), memory(pipeline_parallel_size=2)
    assert bytes_of(half, "matrices") == bytes_of(whole, "matrices") / 2
    assert bytes_of(half, "table") == bytes_of(whole, "table") / 2
    assert half.max_num_seqs == 2 * whole.max_num_seqs  # it works on as many batches as it has stages


def test_key_heads_are_held_twice_rather_than_cut() -> None:
    """8 of them on 16 GPUs: every GPU has one, in weights and in the cache."""
    eight, sixteen = memory(tensor_parallel_size=8), memory(tensor_parallel_size=16)
    assert sixteen.cache.token == eight.cache.token == 2 * 32 * 128 * 2
    assert bytes_of(sixteen, "held twice") == 32 * 2 * 4096 * 128 * 0.5 * 2
    assert not bytes_of(eight, "held twice")


@pytest.mark.parametrize(
    ("settings", "stored", "bytes_each"),
    [
        ({}, {}, 2),
        ({"dtype": "float32"}, {}, 4),
        ({"quantization": "fp8"}, {}, 1),
        ({}, {"quant_method": "awq", "bits": 4, "group_size": 128}, (4 + 20 / 128) / 8),
        ({}, {"quant_method": "compressed-tensors", "config_groups": {"0": {"weights": {"num_bits": 8}}}}, 1),
        ({"quantization": "of_tomorrow"}, {}, 2),
    ],
)
def test_stored_weights_take_their_bits(settings: dict[str, Any], stored: dict[str, Any], bytes_each: float) -> None:
    found = memory(replace(LLAMA, quantization=tuple(stored.items())), **settings)
    assert bytes_of(found, "matrices") == pytest.approx(LLAMA.matrices * bytes_each)
    assert any("of_tomorrow" in note for note in found.notes) == ("of_tomorrow" in settings.values())


def test_an_eight_bit_cache_holds_twice_as_much() -> None:
    assert memory(kv_cache_dtype="fp8").kv_tokens == pytest.approx(2 * memory().kv_tokens, rel=1e-4)


def test_a_state_is_of_a_sequence_and_a_window_bounds_its_tokens() -> None:
    window = memory(replace(LLAMA, kv_layers=8, windows=((1024, 24),), state=1000)).cache
    assert window.bytes(512) == 512 * 32 * 4096 + 2000
    assert window.bytes(8192) == 8192 * 8 * 4096 + 1024 * 24 * 4096 + 2000


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"tensor_parallel_size": 3}, "does not divide the 32 attention heads"),
        ({"max_model_len": 200_000}, "more than the 131,072 tokens"),
        ({"gpu_memory_utilization": 0.245}, "lower max_model_len to"),
        ({"gpu_memory_utilization": 0.1}, "no room at all"),
    ],
)
def test_what_would_not_start_is_said_with_the_setting_to_change(settings: dict[str, Any], words: str) -> None:
    assert [problem for problem in memory(**settings).problems if words in problem]


def test_an_engine_without_room_for_one_sequence_does_not_fit() -> None:
    small = memory(gpu_memory_utilization=0.245)
    assert not small.device.fits
    assert small.sequences == 0
    (problem,) = small.problems
    most = int(problem.split("lower max_model_len to ")[1].split(",")[0])
    assert memory(gpu_memory_utilization=0.245, max_model_len=most).device.fits


def test_a_share_of_a_gpu_is_no_more_than_it() -> None:
    spec = ModelConfig(model="m", gpus=0.5, engine_args={"max_model_len": 1024, "gpu_memory_utilization": 0.9})
    found = generation_memory(LLAMA, spec, H100)
    assert found is not None
    assert "0.9 on 0.5 of a GPU" in found.problems[0]


@given(st.integers(1, 4), st.integers(1024, 131_072), st.floats(0.5, 0.95))
def test_more_gpus_more_memory_and_shorter_contexts_hold_more(tensor: int, context: int, share: float) -> None:
    """And an engine that fits takes just what it is allowed."""
    settings = {"tensor_parallel_size": 2 ** (tensor - 1), "max_model_len": context, "gpu_memory_utilization": share}
    found = memory(**settings)
    assert memory(**{**settings, "tensor_parallel_size": 2**tensor}).cache.holds(context) >= found.cache.holds(context)
    assert memory(**{**settings, "gpu_memory_utilization": share + 0.04}).kv_tokens >= found.kv_tokens
    assert found.at_once(context // 2) >= found.at_once(context) == found.sequences
    assert found.device.fits == (not found.problems)
    if found.device.fits:
        assert found.device.total == pytest.approx(share * H100.gpu_memory_gib * GIB)
