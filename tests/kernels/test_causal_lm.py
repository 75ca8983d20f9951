"""Patched Hugging Face models: the same loss and gradients as the families' own forward, and no logits."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import CONFIG_MAPPING, AutoModelForCausalLM

from shard_kernels import HeadOptions, LossHead, fuse_loss, logit_terms

VOCAB = 211
SIZES = {
    "vocab_size": VOCAB, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2,
    "num_key_value_heads": 2, "head_dim": 16, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
FAMILIES = {
    "llama": {},
    "mistral": {},
    "qwen2": {"tie_word_embeddings": True},
    "qwen3": {},
    "phi3": {},
    "gemma2": {"final_logit_softcapping": 0.5},
    "gemma3_text": {"final_logit_softcapping": 0.5},
    "cohere": {"logit_scale": 0.25},
    "granite": {"logits_scaling": 4.0},
    "gpt_neox": {},
}


def build(family: str, **changes: Any) -> nn.Module:
    torch.manual_seed(0)
    config = CONFIG_MAPPING[family](**{**SIZES, **FAMILIES[family], **changes})
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager")
    with torch.no_grad():  # logits far from zero, where a scale or a cap shows
        for weight in model.parameters():
            weight.mul_(3 if weight.ndim > 1 else 1)
    return model


def batch() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    ids_BL = torch.randint(3, VOCAB, (2, 31), generator=generator)
    labels_BL = ids_BL.clone()
    labels_BL[:, :20] = -100
    return {"input_ids": ids_BL, "labels": labels_BL, "attention_mask": torch.ones_like(ids_BL)}


def loss_and_gradients(model: nn.Module, **inputs: Any) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    model.zero_grad()
    loss = model(**inputs).loss
    loss.backward()
    return loss.detach(), {name: weight.grad for name, weight in model.named_parameters() if weight.grad is not None}


@pytest.mark.parametrize("family", FAMILIES)
def test_a_patched_model_has_the_loss_and_gradients_of_its_familys_own_forward(family: str) -> None:
    model = build(family)
    expected, expected_grads = loss_and_gradients(model, **batch())
    names = list(model.state_dict())
    loss, grads = loss_and_gradients(fuse_loss(model), **batch())
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=1e-5)
    assert grads.keys() == expected_grads.keys()
    for name, grad in grads.items():
        torch.testing.assert_close(grad, expected_grads[name], rtol=1e-3, atol=1e-5, msg=name)
    assert list(model.state_dict()) == names, "no parameter changes its name"


@pytest.mark.parametrize("family", ["gemma2", "cohere", "granite"])
def test_the_logit_terms_matter_in_these_tests(family: str) -> None:
    """With scale and cap left out the loss differs visibly: the test above would catch it."""
    model = fuse_loss(build(family))
    right = model(**batch()).loss.item()
    model.get_output_embeddings().options = HeadOptions()
    assert abs(model(**batch()).loss.item() - right) > 0.01


def test_the_normaliser_of_a_trainer_is_used() -> None:
    """`num_items_in_batch` counts the tokens of all accumulation steps (transformers #34191)."""
    model = build("llama")
    expected, _ = loss_and_gradients(model, **batch(), num_items_in_batch=torch.tensor(40))
    loss, _ = loss_and_gradients(fuse_loss(model), **batch(), num_items_in_batch=torch.tensor(40))
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=1e-5)


def test_p15_evaluation_takes_the_fused_path_too() -> None:
    class LargestTensor(TorchDispatchMode):
        elements = 0

        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            result = func(*args, **(kwargs or {}))
            if isinstance(result, torch.Tensor) and result.ndim == 2 and result.shape[-1] == VOCAB:
                self.elements = max(self.elements, result.numel())
            return result

    model, inputs = build("llama"), batch()
    model.eval()
    with torch.no_grad():
        with LargestTensor() as plain:
            expected = model(**inputs).loss
        with LargestTensor() as fused:
            output = fuse_loss(model)(**inputs)
    torch.testing.assert_close(output.loss, expected)
    assert output.logits is None
    assert plain.elements == inputs["input_ids"].numel() * VOCAB
    assert fused.elements <= SIZES["hidden_size"] * VOCAB, "nothing larger than the head's own weight"


def test_without_labels_and_in_generation_nothing_changes() -> None:
    model = build("gemma2")
    ids_BL = batch()["input_ids"]
    expected, written = model(ids_BL).logits, model.generate(ids_BL, max_new_tokens=4, do_sample=False)
    fuse_loss(model)
    assert torch.equal(model(ids_BL).logits, expected)
    assert torch.equal(model.generate(ids_BL, max_new_tokens=4, do_sample=False), written)


def test_the_head_stays_the_same_object_tied_and_saved_under_the_same_name(tmp_path) -> None:
    model = build("qwen2")
    head = model.lm_head
    fuse_loss(model)
    assert model.lm_head is head
    assert isinstance(head, LossHead)
    assert head.weight is model.model.embed_tokens.weight
    model.save_pretrained(tmp_path)
    again = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert torch.equal(again.lm_head.weight, head.weight)
    assert type(again.lm_head) is nn.Linear


def test_p16_a_head_that_is_more_than_linear_is_refused() -> None:
    """An adapter around lm_head would be left out of a fused loss without a word."""

    class Adapter(nn.Linear):
        pass

    model = build("llama")
    model.lm_head = Adapter(32, VOCAB, bias=False)
    with pytest.raises(ValueError, match="Adapter, not a plain"):
        fuse_loss(model)
    model = build("llama")
    model.lm_head.forward = lambda hidden: hidden  # as offloading does
    with pytest.raises(ValueError, match="wrapped"):
        fuse_loss(model)
    with pytest.raises(ValueError, match="no output head"):
        fuse_loss(build("llama").model)


def test_a_loss_that_is_more_than_the_heads_is_refused() -> None:
    config = CONFIG_MAPPING["mixtral"](output_router_logits=True)
    with pytest.raises(ValueError, match="output_router_logits"):
        logit_terms(config)
    assert logit_terms(CONFIG_MAPPING["mixtral"]()) == (1.0, None)
    assert logit_terms(CONFIG_MAPPING["granite"](logits_scaling=8.0)) == (0.125, None)
    assert logit_terms(CONFIG_MAPPING["gemma2"](final_logit_softcapping=30.0)) == (1.0, 30.0)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-3), (torch.bfloat16, 2e-2)], ids=str)
def test_twenty_steps_of_training_follow_the_plain_loss(dtype: torch.dtype, tolerance: float) -> None:
    losses = {}
    for fused in (True, False):
        model = build("llama").to(dtype)
        if fused:
            fuse_loss(model)
        optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
        losses[fused] = []
        for _ in range(20):
            loss = model(**batch()).loss
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses[fused].append(loss.item())
    assert losses[True] == pytest.approx(losses[False], rel=tolerance)
    assert losses[True][-1] < 0.5 * losses[True][0]
