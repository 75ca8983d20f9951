"""What a model's config.json says of its size: no weights are read, nothing is downloaded but that file."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Shape:
    """Sizes of a causal language model. `tensors`: elements of every weight, tied ones once, in the model's order.

    `layer`: elements of the largest decoder layer. `kv_layers`: layers that keep keys and values of every token
    (a layer of linear attention or of a sliding window does not). `positions`: longest context it was made for.
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

    @property
    def parameters(self) -> int:
        return sum(self.tensors)
