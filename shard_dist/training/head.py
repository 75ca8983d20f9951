"""The loss, inside the model's forward: ZeRO-3 gathers the head's weight there and releases it after.

Legend: B rows, L tokens, N supervised tokens, H hidden, V vocabulary.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn
from transformers import PretrainedConfig, PreTrainedModel

# What some families do to their logits after the head; we apply the head ourselves and would leave it out.
LOGIT_CHANGES = ("final_logit_softcapping", "logit_scale", "logits_scaling")


def check_head(config: PretrainedConfig) -> None:
    """Raise ValueError for a model whose logits are more than a linear head."""
    for name in LOGIT_CHANGES:
        if getattr(config, name, None) not in (None, 1, 1.0):
            raise ValueError(f"{config.model_type} models change their logits ({name}); training them is not supported")


class CausalLoss(nn.Module):
    """A causal language model that returns its loss instead of its logits."""

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__()
        self.model = model

    def forward(
        self, ids_BL: torch.Tensor, rows_N: torch.Tensor, targets_N: torch.Tensor, denominator: float
    ) -> torch.Tensor:
        """Sum of the supervised tokens' cross-entropies in nats / `denominator`: a float32 scalar.

        `rows_N` index the flattened [B * L] positions. Without any (N = 0) the result is a zero that still depends on
        every weight, so that this rank takes part in the others' reductions. No attention mask: rows are padded on
        the right, where causal attention never looks.
        """
        hidden_BLH = self.model.get_decoder()(input_ids=ids_BL, use_cache=False).last_hidden_state
        hidden_NH = hidden_BLH.flatten(0, 1).index_select(0, rows_N)
        logits_NV = self.model.get_output_embeddings()(hidden_NH).float()
        return F.cross_entropy(logits_NV, targets_N, reduction="sum") / denominator
