"""The loss inside the model against torch's cross-entropy over full logits, values and gradients."""

from types import ModuleType

import pytest
import torch
from transformers import AutoModelForCausalLM, Gemma2Config, LlamaConfig

from shard_dist.training.head import CausalLoss, check_head
from shard_dist.training.objectives import collate, sft


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


def test_models_that_change_their_logits_are_refused() -> None:
    check_head(LlamaConfig())
    with pytest.raises(ValueError, match="final_logit_softcapping"):
        check_head(Gemma2Config())
