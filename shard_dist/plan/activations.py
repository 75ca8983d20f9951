"""What a forward and backward pass keep on a rank's device, and the loss.

Legend: T tokens of a rank's micro-batch, H hidden, I inner width of the MLP, A heads, K key heads, D width of a head,
V vocabulary, b bytes of an element. A layer is reckoned as a Llama's: RMSNorm, attention, SwiGLU.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from shard_dist.config.training import Packing
from shard_dist.plan.account import Line
from shard_dist.plan.states import Sharding, product
from shard_kernels.layout import plan_layout
from shard_kernels.planner import LossPlan, plan_loss


@dataclass(frozen=True)
class Pass:
    """A micro-batch of full rows through the model, on one rank."""

    sharding: Sharding
    objective: str

    @property
    def rows(self) -> int:
        """Without packing the two answers of a pair are rows of their own, padded to the longer one."""
        train = self.sharding.train
        pair = self.objective in ("dpo", "derta") and train.packing == Packing.none
        return train.micro_batch_size * (2 if pair else 1)

    @property
    def tokens(self) -> int:
        """Rows are taken to be full. Processes that share a sequence each hold their slice of it."""
        train = self.sharding.train
        return self.rows * -(-train.max_tokens // train.long.sequence_parallel)

    @property
    def shown(self) -> tuple[float, str]:
        train = self.sharding.train
        shared = f" / {train.long.sequence_parallel} processes" if train.long.sequence_parallel > 1 else ""
        return self.tokens, f"tokens ({self.rows} rows of {train.max_tokens:,}{shared})"

    @property
    def attention(self) -> int:
        """Bytes per token that a layer's attention saves: q, k, v and its output, its output in the tokens' order where
        it is not in it, and the logarithms of its sums in fp32. Ulysses holds q, k, v and output before and after."""
        shape, b = self.sharding.shape, self.sharding.itemsize
        copies = 1 if self.sharding.on_gpu else 2
        wide, narrow = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
        exchanged = (2 * wide + 2 * narrow) * b if self.sharding.train.long.sequence_parallel > 1 else 0
        return ((1 + copies) * wide + 2 * narrow) * b + 4 * shape.heads + exchanged

    @property
    def norms(self) -> int:
        """Bytes per token of both RMSNorms: the input in fp32, the normalised input, the output."""
        return 2 * self.sharding.shape.hidden * (4 + 2 * self.sharding.itemsize)

    @property
    def mlp(self) -> int:
        """Bytes per token of gate, up, silu(gate) and their product; in tiles nothing but the input is kept."""
        inner = 4 * self.sharding.shape.intermediate * self.sharding.itemsize
        return inner if self.sharding.train.long.mlp_tiles == 1 else 0

    @property
    def layer(self) -> tuple[int, str]:
        """Bytes per token that a layer saves, and of what they are the sum."""
        parts = {"attention": self.attention, "norms": self.norms, "MLP": self.mlp}
        shown = ", ".join(f"{name} {size:,}" for name, size in parts.items())
        return sum(parts.values()), f"bytes ({shown})"

    @property
    def tile(self) -> tuple[float, str]:
        """Tokens that an MLP computes at once."""
        tiles = self.sharding.train.long.mlp_tiles
        return self.shown if tiles == 1 else (-(-self.tokens // tiles), f"tokens of a tile (1 / {tiles})")


def saved(a_pass: Pass, layers: int) -> list[Line]:
    """What `layers` layers keep from the forward for the backward pass."""
    sharding = a_pass.sharding
    many = layers, f"of {sharding.shape.layers} layers"
    if not sharding.train.gradient_checkpointing:
        return [product("activations", many, a_pass.shown, a_pass.layer)]
    if sharding.train.long.offload_activations and sharding.on_gpu:
        many = min(1, layers), "layer (the others' are in the node's memory)"
    width = sharding.shape.hidden * sharding.itemsize
    return [product("inputs of the layers", many, a_pass.shown, (width, "bytes (H x b)"))]


def passing(a_pass: Pass) -> list[Line]:
    """What a layer's forward needs where nothing is saved: three of the MLP's inner states, three outer ones."""
    shape, b = a_pass.sharding.shape, a_pass.sharding.itemsize
    train = a_pass.sharding.train
    if not train.gradient_checkpointing and train.long.mlp_tiles == 1:
        return []
    return [
        product("MLP of the layer at work", a_pass.tile, (3 * shape.intermediate * b, "bytes (3 x I x b)")),
        product("hidden states of the layer at work", a_pass.shown, (3 * shape.hidden * b, "bytes (3 x H x b)")),
    ]


def at_work(a_pass: Pass) -> list[Line]:
    """What the backward pass of one layer adds: with recomputation all that the layer saves; then gradients."""
    sharding, shape, b = a_pass.sharding, a_pass.sharding.shape, a_pass.sharding.itemsize
    inner = a_pass.tile
    lines = []
    if sharding.train.gradient_checkpointing:
        lines.append(product("activations of the layer at work", a_pass.shown, a_pass.layer))
    if sharding.train.long.mlp_tiles > 1:
        lines.append(product("MLP of a tile", inner, (4 * shape.intermediate * b, "bytes (4 x I x b)")))
    return [
        *lines,
        product("gradients within the MLP", inner, (2 * shape.intermediate * b, "bytes (2 x I x b)")),
        product("gradients of the residual stream", a_pass.shown, (2 * shape.hidden * b, "bytes (2 x H x b)")),
        product("gradient of a weight", (sharding.largest_inside, "elements"), (b, "bytes")),
    ]


def loss(a_pass: Pass) -> list[Line]:
    """Head and loss: the plan's own bytes, the last hidden states and their gradient. All tokens are supervised."""
    shape, b = a_pass.sharding.shape, a_pass.sharding.itemsize
    copies = 4 if a_pass.sharding.train.long.sequence_parallel > 1 else 2  # before and after they are evened out
    width = copies * shape.hidden * b, f"bytes ({copies} x H x b)"
    states = product("last hidden states and their gradient", a_pass.shown, width)
    if not a_pass.sharding.train.fused_loss:
        each = shape.vocab * (b + 2 * 4), f"bytes (V x ({b} + 2 x 4), V {shape.vocab:,})"
        return [states, product("logits, in fp32 too, and their gradient", a_pass.shown, each)]
    plan = _plan(a_pass)
    said = f"plan {plan.name} over {a_pass.tokens:,} supervised tokens, H {shape.hidden:,}, V {shape.vocab:,}"
    return [states, Line("loss, with the head's gradient", said, plan.bytes)]


def _plan(a_pass: Pass) -> LossPlan:
    train, shape = a_pass.sharding.train, a_pass.sharding.shape
    return plan_loss(
        a_pass.tokens, a_pass.tokens, shape.hidden, shape.vocab, torch.bfloat16 if train.bf16 else torch.float32,
        budget_bytes=int(train.loss_budget_gib * 2**30) or None, per_token=a_pass.objective == "dpo",
        device="cuda" if a_pass.sharding.on_gpu else "cpu",
    )  # fmt: skip


def head_gradient(a_pass: Pass) -> Line:
    """The gradient of the head's weight, in whatever it was made in: plan B's buffer, in whose front it lies; plan T's
    fp32 sum, within which it was narrowed."""
    shape, b = a_pass.sharding.shape, a_pass.sharding.itemsize
    plan = _plan(a_pass).name if a_pass.sharding.train.fused_loss else ""
    elements = shape.vocab * shape.hidden, "elements (V x H)"
    if plan == "B":
        elements = plan_layout(a_pass.tokens, shape.hidden, shape.vocab).size, "elements (plan B's buffer)"
    return product("the head's gradient", elements, (4 if plan == "T" else b, "bytes"))


def embedding(a_pass: Pass) -> list[Line]:
    """The embedding's gradient, and where the head is tied to it their sum."""
    shape, tensors = a_pass.sharding.shape, 2 if a_pass.sharding.shape.tied else 1
    elements = shape.vocab * shape.hidden, "elements (V x H)"
    return [product("the embedding's gradient", elements, (tensors, "times"), (a_pass.sharding.itemsize, "bytes"))]


def offloaded(a_pass: Pass) -> list[Line]:
    """Saved inputs in the node's memory, of all its processes; the last layer's never leave."""
    sharding = a_pass.sharding
    train = sharding.train
    if not (train.long.offload_activations and train.gradient_checkpointing and sharding.on_gpu):
        return []
    width = sharding.shape.hidden * sharding.itemsize
    layers = sharding.shape.layers - 1, "layers"
    processes = sharding.processes, "processes of the node"
    return [product("inputs of the layers", layers, a_pass.shown, (width, "bytes (H x b)"), processes)]
