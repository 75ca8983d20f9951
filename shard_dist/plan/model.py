"""What a model's config.json says of its size: no weights are read, nothing is downloaded but that file.

The model is built on torch's meta device, where tensors have shapes and no memory, so the list of weights is that of
the library which trains it and not a formula of ours.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoModelForSequenceClassification,
    PretrainedConfig,
    PreTrainedModel,
)

from shard_dist.training.base_model import load_config

EXPERT = re.compile(r"(^|\.)experts\.")  # the shared experts that every token passes have other names
# Settings of layers that mix tokens with a state of one size, by the names of Qwen3-Next and Qwen3.5.
STATE = ("linear_num_value_heads", "linear_num_key_heads", "linear_key_head_dim", "linear_value_head_dim")


@dataclass(frozen=True)
class Shape:
    """Sizes of a causal language model. `tensors`: elements of every weight, tied ones once, in the model's order.

    `layer`: elements of the largest decoder layer. `kv_layers`: layers that keep keys and values of every token
    (a layer of linear attention or of a sliding window does not). `positions`: longest context it was made for.
    `intermediate`: width of the MLP that one token passes, over all its experts.
    """

    name: str
    tensors: tuple[int, ...]
    layer: int
    layers: int
    kv_layers: int
    hidden: int
    intermediate: int
    heads: int
    kv_heads: int
    head_dim: int
    vocab: int
    tied: bool
    positions: int
    matrices: int = 0
    """Elements of the decoder's matrices, all experts, without embedding table and head: what is quantised."""
    active: int = 0
    """Those of them that multiply a token: of a mixture of experts the chosen ones."""
    windows: tuple[tuple[int, int], ...] = ()
    """(tokens, layers) of layers that keep keys and values of so many tokens only."""
    state: int = 0
    """Elements that layers of linear attention keep of a sequence, however long it is."""
    latent: int = 0
    """Elements that a layer keeps of a token instead of keys and values (multi-head latent attention); 0: those."""
    encoders: int = 0
    """Elements of encoders of images and the like, which engines load and training does not."""
    quantization: tuple[tuple[str, Any], ...] = ()
    """What config.json says of how the weights are stored, empty where they are plain."""

    def splits(self, size: int) -> bool:
        """Whether `size` processes can share the attention heads: training/sequence.py and vLLM ask the same."""
        return self.heads % size == 0 and (self.kv_heads % size == 0 or size % self.kv_heads == 0)

    @property
    def parameters(self) -> int:
        return sum(self.tensors)


def shape_of(source: str, revision: str = "", trust_remote_code: bool = False) -> Shape:
    """The sizes of the model in a directory with a config.json, or of a hub id.

    Raises ValueError where there is no config.json, where transformers does not know the architecture, and where its
    code would have to be run and `trust_remote_code` is off.
    """
    try:
        config = load_config(source, revision, trust_remote_code)
        model, whole = _built(config, trust_remote_code)
    except (ValueError, AttributeError, ImportError, TypeError, RuntimeError) as error:
        raise ValueError(
            f"no sizes of the model {source!r}: {error}. Only its config.json is read: without the hub, name a "
            "directory that holds that file"
        ) from error
    return _shape(source, config, model, whole - sum(weight.numel() for weight in model.parameters()))


def _built(config: PretrainedConfig, trust_remote_code: bool) -> tuple[PreTrainedModel, int]:
    """The language model without memory, and how many elements the whole has with its encoders."""
    text = config.get_text_config()
    classifies = any(name.endswith("ForSequenceClassification") for name in config.architectures or ())
    with torch.device("meta"):
        kind: Any = AutoModelForSequenceClassification if classifies else AutoModelForCausalLM
        model = kind.from_config(text, trust_remote_code=trust_remote_code)
        if getattr(config, "vision_config", None) is None:
            return model, model.num_parameters()
        whole = AutoModelForImageTextToText.from_config(config, trust_remote_code=trust_remote_code)
    return model, whole.num_parameters()


def _shape(source: str, config: PretrainedConfig, model: PreTrainedModel, encoders: int) -> Shape:
    text = config.get_text_config()
    decoder = model.get_decoder()
    blocks = next(part for part in decoder.children() if isinstance(part, nn.ModuleList))
    kept = _kept(text)
    heads = text.num_attention_heads
    head, table = model.get_output_embeddings(), model.get_input_embeddings()
    return Shape(
        name=source,
        tensors=tuple(weight.numel() for weight in model.parameters()),
        layer=max(sum(weight.numel() for weight in block.parameters()) for block in blocks),
        layers=len(blocks),
        kv_layers=kept.pop(0, 0),
        hidden=text.hidden_size,
        intermediate=_width(text),
        heads=heads,
        kv_heads=getattr(text, "num_key_value_heads", None) or heads,
        head_dim=getattr(text, "head_dim", None) or text.hidden_size // heads,
        vocab=text.vocab_size,
        tied=head is not None and head.weight is table.weight,
        positions=getattr(text, "max_position_embeddings", 0),
        matrices=sum(numel for _, numel in _matrices(decoder)),
        active=round(sum(numel * _share(name, text) for name, numel in _matrices(decoder))),
        windows=tuple(sorted(kept.items())),
        state=_state(text),
        latent=(getattr(text, "kv_lora_rank", None) or 0) and text.kv_lora_rank + text.qk_rope_head_dim,
        encoders=encoders,
        quantization=tuple((getattr(config, "quantization_config", None) or {}).items()),
    )


def _kept(config: PretrainedConfig) -> Counter[int]:
    """Tokens whose keys and values a layer keeps (0: all) -> layers. Layers of other kinds keep none."""
    window = getattr(config, "sliding_window", None) or 0
    default = ["sliding_attention" if window else "full_attention"] * config.num_hidden_layers
    kinds = getattr(config, "layer_types", None) or default
    seen = {
        "full_attention": 0,
        "sliding_attention": window,
        "chunked_attention": getattr(config, "attention_chunk_size", None) or 0,
    }
    return Counter(seen[kind] for kind in kinds if kind in seen)


def _width(config: PretrainedConfig) -> int:
    """Of the widest MLP that a token passes: one, or the experts that are chosen for it and those for all tokens."""
    dense: int = getattr(config, "intermediate_size", None) or 4 * config.hidden_size
    chosen = getattr(config, "num_experts_per_tok", None)
    if not chosen:
        return dense
    expert: int = getattr(config, "moe_intermediate_size", None) or dense
    shared = getattr(config, "shared_expert_intermediate_size", None) or 0
    shared += (getattr(config, "n_shared_experts", None) or 0) * expert
    return max(dense, chosen * expert + shared)


def _matrices(decoder: nn.Module) -> Iterator[tuple[str, int]]:
    """(name, elements) of what multiplies tokens: no embedding table, bias or norm."""
    for path, module in decoder.named_modules():
        for name, weight in module.named_parameters(recurse=False):
            if weight.dim() >= 2 and not name.endswith("bias") and not isinstance(module, nn.Embedding):
                yield f"{path}.{name}", weight.numel()


def _share(name: str, config: PretrainedConfig) -> float:
    """Of a weight's elements that multiply a token."""
    chosen = getattr(config, "num_experts_per_tok", None)
    if not chosen or not EXPERT.search(name):
        return 1.0
    counts = (getattr(config, key, None) for key in ("num_experts", "num_local_experts", "n_routed_experts"))
    return float(chosen / next(filter(None, counts)))


def _state(config: PretrainedConfig) -> int:
    """Of linear attention by the delta rule: a matrix per head, and the tokens that its convolution looks back on."""
    if not all(hasattr(config, name) for name in STATE):
        return 0
    values, keys, key, value = (getattr(config, name) for name in STATE)
    looked_back = (config.linear_conv_kernel_dim - 1) * (2 * keys * key + values * value)
    layers = sum(kind == "linear_attention" for kind in config.layer_types)
    return int(layers * (values * key * value + looked_back))
