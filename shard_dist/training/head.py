"""The loss, inside the forward of the model's own head: where ZeRO-3 gathers its weight, and releases it after.

Legend: B rows, L tokens, N supervised tokens, H hidden, V vocabulary.
"""

from __future__ import annotations

import torch
from torch import nn
from transformers import PreTrainedModel

from shard_dist.config.schema import TrainConfig
from shard_kernels import HeadOptions, install_loss_head


def head_options(config: TrainConfig) -> HeadOptions:
    budget = int(config.loss_budget_gib * 2**30) or None
    return HeadOptions(budget_bytes=budget, eager=not config.fused_loss)


class CausalLoss(nn.Module):
    """A causal language model that returns its loss instead of its logits."""

    def __init__(self, model: PreTrainedModel, options: HeadOptions | None = None) -> None:
        """Makes the model's own head a LossHead. Raises ValueError for a head that is more than a linear layer."""
        super().__init__()
        install_loss_head(model, options)
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
        head = self.model.get_output_embeddings()
        loss: torch.Tensor = head(hidden_BLH, targets_N, rows=rows_N, denominator=denominator)
        return loss
