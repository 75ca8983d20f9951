"""A Llama of 100 M parameters with random weights that ends its sentences: compute-bound work without a download.

Random weights alone end no answer and close no JSON string. Here the first channel of every token's embedding is a
large constant, which comes through the residual stream to the head, where a row's first weight is its token's bias.
"""

from __future__ import annotations

import math
from pathlib import Path

import torch
from transformers import AutoTokenizer, GenerationConfig, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerBase

from shard_dist.demo.world import SEED_MODEL

# Random logits are N(0, 0.3), so N(0, 1) at temperature 0.3: V of them weigh V exp(0.5) together.
LOGIT_STD = TEMPERATURE = 0.3
CONSTANT = 8.0
END_AFTER, QUOTE_AFTER = 24, 6  # tokens to the end of an answer and of a JSON string, on average


def save_random_model(out: Path) -> int:
    """Write the model and the demo's tokenizer to `out`; returns the number of parameters."""
    tokenizer = AutoTokenizer.from_pretrained(SEED_MODEL)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=768,
        intermediate_size=2048,
        num_hidden_layers=14,
        num_attention_heads=12,
        num_key_value_heads=12,
        max_position_embeddings=1024,
        tie_word_embeddings=False,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    model = LlamaForCausalLM(config)
    _bias_the_head(model, tokenizer)
    model.bfloat16()
    model.generation_config = GenerationConfig(eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id)
    model.save_pretrained(out)
    tokenizer.save_pretrained(out)
    return int(model.num_parameters())


@torch.no_grad()
def _bias_the_head(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerBase) -> None:
    vocabulary = len(tokenizer)
    model.model.embed_tokens.weight[:, 0] = CONSTANT
    # Measured, not derived: what all layers and the last norm leave of the constant and of the random part.
    states = model.model(torch.randint(vocabulary, (4, 64))).last_hidden_state
    constant, random = states[..., 0].mean(), states[..., 1:].norm(dim=-1).mean()
    head = model.lm_head.weight
    head.normal_(std=LOGIT_STD / random.item())
    head[:, 0] = 0.0
    for token in range(vocabulary):
        # vLLM's grammar lets control characters into JSON strings; no parser takes them.
        if not tokenizer.decode([token]).isprintable():
            head[token, 0] = -10 / constant
    for token, length in (
        (tokenizer.eos_token_id, END_AFTER),
        (tokenizer.convert_tokens_to_ids('"'), QUOTE_AFTER),
    ):
        head[token] = 0.0
        head[token, 0] = TEMPERATURE * math.log(vocabulary * math.exp(0.5) / (length - 1)) / constant
