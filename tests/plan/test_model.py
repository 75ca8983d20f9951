"""Sizes by a config.json alone: against published counts, against models that are really built, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from safetensors import safe_open
from transformers import AutoConfig, AutoModelForCausalLM, PretrainedConfig

from shard_dist.plan.hours import model_cost_of
from shard_dist.plan.model import shape_of
from shard_dist.training.throughput import model_cost

SMALL = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 128,
    "head_dim": 16,
}


def saved(folder: Path, kind: str, **settings: Any) -> str:
    """A directory with the config.json of a small model of an architecture."""
    config: PretrainedConfig = AutoConfig.for_model(kind, **{**SMALL, **settings})
    config.save_pretrained(folder)
    return str(folder)


@pytest.mark.parametrize(
    ("name", "published"),
    [
        ("Llama-3.1-8B", 8.03e9),
        ("Llama-3.3-70B", 70.6e9),
        ("Mistral-7B-v0.3", 7.25e9),
        ("Phi-4", 14.7e9),
        ("Qwen3.5-9B", 9.41e9),
    ],
)
def test_counts_are_the_published_ones(models: Path, name: str, published: float) -> None:
    """70 B in bf16 would be 141 GB: that this ends at all shows that no weight has memory."""
    shape = shape_of(str(models / name))
    assert shape.parameters + shape.encoders == pytest.approx(published, rel=3e-3)


def test_a_hybrid_keeps_the_tokens_of_its_full_attention_alone(models: Path) -> None:
    shape = shape_of(str(models / "Qwen3.5-9B"))
    assert (shape.layers, shape.kv_layers, shape.windows) == (32, 8, ())
    # 24 layers x (32 heads of 128 x 128, and 3 tokens of 2 x 16 x 128 + 32 x 128 channels before the convolution)
    assert shape.state == 24 * (32 * 128 * 128 + 3 * (2 * 16 * 128 + 32 * 128))
    assert shape.encoders > 0


def test_every_weight_of_a_checkpoint_is_in_the_list(root: Path) -> None:
    """The demo's model on disk, whose head is its embedding table."""
    home = root / "shard_dist" / "demo" / "seed_model"
    with safe_open(home / "model.safetensors", "pt") as weights:
        stored = sorted(weights.get_tensor(name).numel() for name in weights.keys())  # noqa: SIM118
    shape = shape_of(str(home))
    assert sorted(shape.tensors) == stored
    assert shape.tied
    assert shape.layer * shape.layers + shape.vocab * shape.hidden + shape.hidden == shape.parameters


@pytest.mark.parametrize("kind", ["llama", "mistral", "qwen3", "mixtral", "gemma3_text"])
def test_what_a_token_costs_is_what_training_reckons(tmp_path: Path, kind: str) -> None:
    """By `model_cost` of the model as it is trained: attention in windows and the active experts counted."""
    source = saved(tmp_path, kind, sliding_window=8)
    model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(source))
    shape, cost = shape_of(source), model_cost(model)
    assert cost is not None
    assert shape.tensors == tuple(weight.numel() for weight in model.parameters())
    assert model_cost_of(shape).flops([100, 7], 50) == cost.flops([100, 7], 50)


def test_of_a_mixture_all_experts_count_for_memory_and_the_chosen_ones_for_arithmetic(tmp_path: Path) -> None:
    shape = shape_of(saved(tmp_path, "mixtral", num_local_experts=8, num_experts_per_tok=2))
    experts = 4 * 8 * 3 * 64 * 96
    assert shape.matrices - shape.active == experts * 6 // 8
    assert shape.intermediate == 2 * 96


def test_layers_with_a_window_keep_no_more_than_it(tmp_path: Path) -> None:
    kinds = ["sliding_attention", "sliding_attention", "sliding_attention", "full_attention"]
    shape = shape_of(saved(tmp_path, "gemma3_text", sliding_window=32, layer_types=kinds))
    assert (shape.kv_layers, shape.windows) == (1, ((32, 3),))


def test_latent_attention_keeps_one_vector_of_a_token(tmp_path: Path) -> None:
    ranks = {"kv_lora_rank": 32, "qk_rope_head_dim": 8, "qk_nope_head_dim": 16, "v_head_dim": 16, "q_lora_rank": 24}
    experts = {"n_routed_experts": 4, "num_experts_per_tok": 2, "n_group": 1, "topk_group": 1}
    shape = shape_of(
        saved(tmp_path, "deepseek_v3", **ranks, **experts, num_key_value_heads=4, moe_intermediate_size=32)
    )
    assert shape.latent == 32 + 8


def test_how_weights_are_stored_does_not_change_their_number(tmp_path: Path) -> None:
    plain = shape_of(saved(tmp_path, "llama"))
    path = tmp_path / "config.json"
    stored = {"quant_method": "fp8", "activation_scheme": "dynamic"}
    path.write_text(json.dumps({**json.loads(path.read_text()), "quantization_config": stored}))
    shape = shape_of(str(tmp_path))
    assert shape.tensors == plain.tensors
    assert dict(shape.quantization)["quant_method"] == "fp8"


@pytest.mark.parametrize(
    "config",
    [None, {}, {"model_type": "of_tomorrow"}, {"model_type": "own", "auto_map": {"AutoConfig": "own.Config"}}],
    ids=["nothing", "no architecture", "an unknown one", "code of its own"],
)
def test_a_directory_that_says_nothing_is_refused(tmp_path: Path, config: dict[str, Any] | None) -> None:
    if config is not None:
        (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "own.py").write_text("raise SystemExit('was run')")
    with pytest.raises(ValueError, match=r"Only its config\.json is read: without the hub, name a directory"):
        shape_of(str(tmp_path))


def test_a_path_that_is_none_is_refused() -> None:
    with pytest.raises(ValueError, match="no such directory"):
        shape_of("./no/such/model")
