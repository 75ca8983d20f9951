"""Hugging Face causal language models: their head made a LossHead, and their forward with labels sent through it.

Legend: B rows, L tokens, H hidden, V vocabulary.
"""

from __future__ import annotations

import types
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from shard_kernels.head import HeadOptions, LossHead, replace_head

IGNORE = -100
# What transformers 5.19's causal models do to logits after the head. A cap comes after a scale.
CAPS = ("final_logit_softcapping", "logits_soft_cap")  # Gemma 2 and 3, nanochat; RecurrentGemma
FACTORS = ("logit_scale", "output_multiplier", "lm_head_multiplier")  # Cohere; Muse Glimmer; Falcon-H1
DIVISORS = ("logits_scaling",)  # Granite


def logit_terms(config: Any) -> tuple[float, float | None]:
    """(scale, soft cap or None) of a model's logits, from its configuration.

    Raises ValueError where the model's loss is more than the cross-entropy of those.
    """
    config = config.get_text_config()
    for name in ("output_router_logits", "unpadded_vocab_size"):
        if getattr(config, name, None):
            raise ValueError(f"{config.model_type}: {name} changes the loss beyond its head; switch it off")
    scale = 1.0
    for name in FACTORS:
        scale *= getattr(config, name, None) or 1.0
    for name in DIVISORS:
        scale /= getattr(config, name, None) or 1.0
    caps = [getattr(config, name, None) for name in CAPS]
    return scale, next((float(cap) for cap in caps if cap), None)


def install_loss_head(model: nn.Module, options: HeadOptions | None = None) -> LossHead:
    """Make the head of a Hugging Face causal LM a LossHead, with the scale and cap that the model's config names.

    Only for callers that run decoder and head themselves; `fuse_loss` does it for `model(input_ids, labels=...)`.
    Raises ValueError for a model without a plain linear head.
    """
    head: Any = model.get_output_embeddings()  # type: ignore[operator]
    if head is None:
        raise ValueError(f"{type(model).__name__} has no output head")
    scale, cap = logit_terms(model.config)
    return replace_head(head, replace(options or HeadOptions(), logit_scale=scale, softcap=cap))


def fuse_loss(model: nn.Module, options: HeadOptions | None = None) -> nn.Module:
    """Patch a Hugging Face causal LM in place: with labels its forward returns the loss and no logits.

    `labels` [B, L] as ever (shifted inside), or `shift_labels` [B, L] already shifted, `num_items_in_batch` as the
    denominator; training and evaluation alike. Without labels, and in generation, nothing changes.
    Raises ValueError for a model without a plain linear head.
    """
    install_loss_head(model, options)
    plain = model.forward

    def forward(
        self: Any,
        input_ids: torch.Tensor | None = None,
        *args: Any,
        labels: torch.Tensor | None = None,
        shift_labels: torch.Tensor | None = None,
        num_items_in_batch: float | torch.Tensor | None = None,
        **inputs: Any,
    ) -> Any:
        if labels is None and shift_labels is None:
            return plain(input_ids, *args, **inputs)
        if args:
            raise ValueError("with labels, pass everything after input_ids by name")
        if shift_labels is None:
            assert labels is not None
            shift_labels = F.pad(labels, (0, 1), value=IGNORE)[..., 1:]
        inputs.pop("logits_to_keep", None)
        inputs.pop("return_dict", None)
        return _loss_output(self, input_ids, shift_labels, num_items_in_batch, inputs)

    model.forward = types.MethodType(forward, model)
    return model


def _loss_output(
    model: Any,
    input_ids: torch.Tensor | None,
    labels_BL: torch.Tensor,
    denominator: float | torch.Tensor | None,
    inputs: dict[str, Any],
) -> Any:
    from transformers.modeling_outputs import CausalLMOutputWithPast

    outputs = model.get_decoder()(input_ids=input_ids, **inputs)
    hidden_BLH = outputs.last_hidden_state
    labels_BL = labels_BL.to(hidden_BLH.device)
    loss = model.get_output_embeddings()(hidden_BLH, labels_BL, denominator=denominator)
    return CausalLMOutputWithPast(
        loss=loss,
        past_key_values=getattr(outputs, "past_key_values", None),
        hidden_states=getattr(outputs, "hidden_states", None),
        attentions=getattr(outputs, "attentions", None),
    )
