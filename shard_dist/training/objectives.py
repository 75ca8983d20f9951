"""From an Example to tokens with a loss on some of them, and from those to a right-padded micro-batch.

Legend: B rows of a micro-batch, L tokens of its longest row, N supervised tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from shard_dist.prompts.render import defuse, special_tokens
from shard_dist.records import Example

IGNORE = -100  # the label that torch's cross-entropy skips


@dataclass(frozen=True)
class Tokens:
    """One example: `ids` [L] and `labels` [L], where label IGNORE means no loss on predicting that token."""

    ids: torch.Tensor
    labels: torch.Tensor

    @property
    def supervised(self) -> int:
        return int((self.labels != IGNORE).sum())


@dataclass(frozen=True)
class MicroBatch:
    """Rows padded on the right. `rows_N` are the positions in the flattened [B * L] grid whose next token counts.

    They are found here, on the CPU, because a boolean mask on a GPU tensor would stall it until the mask is read.
    """

    ids_BL: torch.Tensor
    rows_N: torch.Tensor
    targets_N: torch.Tensor

    def to(self, device: torch.device) -> MicroBatch:
        tensors = (self.ids_BL, self.rows_N, self.targets_N)
        return MicroBatch(*(tensor.to(device, non_blocking=True) for tensor in tensors))


def sft(example: Example, tokenizer: PreTrainedTokenizerBase, template: dict[str, Any]) -> Tokens:
    """Prompt and answer through the model's own chat template; loss on the answer and the end of its turn.

    The prompt's ids are exactly what the model is asked with at inference. White space around the target is dropped:
    a leading newline could merge with the last token of the prompt.
    """
    if not example.target.strip():
        raise ValueError(f"example {example.dataset}/{example.id}: its target is empty")
    specials = special_tokens(tokenizer)
    messages = [{"role": m["role"], "content": defuse(m["content"], specials)} for m in example.messages]
    answer = {"role": "assistant", "content": defuse(example.target.strip(), specials)}
    prompt = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False, **template)
    full = tokenizer.apply_chat_template([*messages, answer], return_dict=False, **template)
    if full[: len(prompt)] != prompt or len(full) == len(prompt):
        raise ValueError(
            f"example {example.dataset}/{example.id}: the chat template does not continue the prompt with the answer, "
            "so there is no telling which tokens are the model's own; other chat_template_kwargs may help "
            "(enable_thinking: false for some reasoning models)"
        )
    ids = torch.tensor(full, dtype=torch.long)
    labels = ids.clone()
    labels[: len(prompt)] = IGNORE
    return Tokens(ids, labels)


OBJECTIVES = {"sft": sft}


def encode(
    examples: Sequence[Example], tokenizer: PreTrainedTokenizerBase, template: dict[str, Any], max_tokens: int
) -> tuple[list[Tokens], int]:
    """All examples of at most `max_tokens` tokens, in order, and how many were longer and are left out.

    Raises ValueError for an unknown objective, an empty target or a template that hides the answer.
    """
    encoded = []
    for example in examples:
        if example.objective not in OBJECTIVES:
            raise ValueError(f"example {example.dataset}/{example.id}: no objective {example.objective!r}")
        encoded.append(OBJECTIVES[example.objective](example, tokenizer, template))
    kept = [tokens for tokens in encoded if len(tokens.ids) <= max_tokens]
    return kept, len(encoded) - len(kept)


def collate(rows: Sequence[Tokens]) -> MicroBatch:
    """Rows to one micro-batch. No rows: one padding token without a loss, so that every rank runs the same modules.

    The padding id is 0, whatever the tokenizer: in a causal model nothing to the left ever sees it.
    """
    width = max((len(row.ids) for row in rows), default=1)
    ids_BL = torch.zeros(max(1, len(rows)), width, dtype=torch.long)
    labels_BL = torch.full_like(ids_BL, IGNORE)
    for row, tokens in enumerate(rows):
        ids_BL[row, : len(tokens.ids)] = tokens.ids
        labels_BL[row, : len(tokens.ids) - 1] = tokens.labels[1:]  # position t predicts token t + 1
    rows_N = (labels_BL.flatten() != IGNORE).nonzero().flatten()
    return MicroBatch(ids_BL, rows_N, labels_BL.flatten()[rows_N])
