"""The loss inside the model against torch's cross-entropy over full logits, values and gradients."""

from types import ModuleType

import pytest
import torch
from transformers import AutoModelForCausalLM, Gemma2Config

from shard_dist.config.schema import TrainConfig
from shard_dist.training.head import CausalLoss, head_options
from shard_dist.training.objectives import collate, sft
from shard_kernels import HeadOptions


@pytest.fixture
def model(base_model):
    return AutoModelForCausalLM.from_pretrained(base_model)


def test_loss_and_gradients_equal_cross_entropy_over_full_logits(model, tiny: ModuleType) -> None:
    rows = [sft(example, tiny.tokenizer(), {}) for example in tiny.examples(5)]
    batch = collate(rows)
    loss = CausalLoss(model)(batch.ids_BL, batch.rows_N, batch.targets_N, 37.0)
    loss.backward()
    ours = {name: weight.grad.clone() for name, weight in model.named_parameters()}
    model.zero_grad()
    expected = tiny.summed_loss(model, rows) / 37.0
    expected.backward()
    torch.testing.assert_close(loss, expected, rtol=1e-6, atol=1e-6)
    for name, weight in model.named_parameters():
        torch.testing.assert_close(ours[name], weight.grad, rtol=1e-4, atol=1e-6, msg=name)


def test_without_supervised_tokens_the_loss_is_a_zero_that_reaches_every_weight(model) -> None:
    """A rank without tokens must still take part in every reduction, and must not bring a NaN into it."""
    batch = collate([])
    loss = CausalLoss(model)(batch.ids_BL, batch.rows_N, batch.targets_N, 5.0)
    assert loss.item() == 0.0
    loss.backward()
    for name, weight in model.named_parameters():
        assert weight.grad is not None, name
        assert (weight.grad == 0).all(), name


def test_the_loss_is_float32_whatever_the_weights(model, tiny: ModuleType) -> None:
    batch = collate([sft(example, tiny.tokenizer(), {}) for example in tiny.examples(3)])
    loss = CausalLoss(model.bfloat16())(batch.ids_BL, batch.rows_N, batch.targets_N, 1.0)
    assert loss.dtype == torch.float32


def test_the_plain_twin_and_a_budget_give_the_same_loss(model, tiny: ModuleType) -> None:
    """`train.fused_loss` and `train.loss_budget_gib` choose how, not what."""
    batch = collate([sft(example, tiny.tokenizer(), {}) for example in tiny.examples(5)])
    losses = []
    for settings in ({}, {"fused_loss": False}, {"loss_budget_gib": 1e-9}):
        options = head_options(TrainConfig(**settings))
        losses.append(CausalLoss(model, options)(batch.ids_BL, batch.rows_N, batch.targets_N, 3.0).item())
    assert losses == pytest.approx([losses[0]] * 3, rel=1e-6)
    assert head_options(TrainConfig()) == HeadOptions()
    assert head_options(TrainConfig(loss_budget_gib=0.5)).budget_bytes == 2**29


def test_caps_and_scales_of_a_family_are_the_heads(tiny: ModuleType) -> None:
    """Gemma's capped logits: our forward has the loss of the model's own."""
    torch.manual_seed(0)
    config = Gemma2Config(vocab_size=260, hidden_size=32, intermediate_size=64, num_hidden_layers=2, head_dim=16,
                          num_attention_heads=2, num_key_value_heads=1, final_logit_softcapping=0.5)  # fmt: skip
    model = AutoModelForCausalLM.from_config(config)
    rows = [sft(example, tiny.tokenizer(), {}) for example in tiny.examples(5)]
    expected = tiny.summed_loss(model, rows)
    batch = collate(rows)
    torch.testing.assert_close(CausalLoss(model)(batch.ids_BL, batch.rows_N, batch.targets_N, 1.0), expected)
