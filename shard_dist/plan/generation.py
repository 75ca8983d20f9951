"""What an engine holds on each of its GPUs, and how many sequences its cache of keys and values takes at once.

vLLM takes gpu_memory_utilization of a GPU, fills what weights and working memory leave of it with cache, and starts
only if one sequence of max_model_len fits there. What settings do not tell is a constant below, with its source.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from shard_dist.config.cluster import NodesConfig
from shard_dist.config.schema import Backend, ModelConfig
from shard_dist.engines.placement import gpus_of
from shard_dist.plan.account import GIB, Account, Line, account
from shard_dist.plan.model import Shape

# What vLLM 0.32 takes where an engine of ours says nothing (config/cache.py, config/scheduler.py).
UTILIZATION, SEQUENCES, BATCHED, BATCHED_ON_CPU = 0.92, 128, 2048, 4096
BLOCK, BLOCK_ON_CPU = 16, 128  # tokens that the cache gives out at once
# By vLLM's own log of Llama-3-8B on GPUs of 80 GB (vllm#10511): outside torch 1.79 GiB on one GPU, 3.58 on each of two;
# torch's peak in the trial run 1.26 GiB, which is ten float32 logits for each of 256 sequences and 128,256 words.
OUTSIDE, OUTSIDE_PARALLEL, LOGITS = 1.8 * GIB, 3.6 * GIB, 10
GRAPHS = 1.0 * GIB  # CUDA graphs; an allowance: engines log half of it to all of it
PROCESS = 1.5 * GIB  # an engine's processes on a CPU, with Python and torch
# Bits of a stored weight by vLLM's name of the method, scales included, where config.json need not be asked.
BITS = {
    **dict.fromkeys(("fp8", "fbgemm_fp8", "ptpc_fp8", "modelopt", "experts_int8"), 8.0),
    "bitsandbytes": 4.5,  # 64 weights share a float32
    "mxfp4": 4.25,  # 32 weights share a byte
    "modelopt_fp4": 4.5,  # 16 weights share a byte
}


@dataclass(frozen=True)
class Cache:
    """Bytes that keys and values take on one GPU: of a token, of a token within a window, of a sequence.

    `block`: tokens that are given out at once; `room`: bytes for all of it.
    """

    token: float
    windows: tuple[tuple[int, float], ...]
    sequence: float
    block: int
    room: float

    def bytes(self, tokens: float) -> float:
        """Of one sequence of so many tokens, whose last block is held whole."""
        whole = math.ceil(tokens / self.block) * self.block
        return self.token * whole + sum(each * min(whole, window) for window, each in self.windows) + self.sequence

    def holds(self, tokens: float) -> float:
        """Sequences of so many tokens that fit at once."""
        return self.room / one if (one := self.bytes(tokens)) else math.inf

    def tokens(self, context: int) -> int:
        """Whole blocks of cache in sequences of `context` tokens."""
        return int(held * context) // self.block * self.block if (held := self.holds(context)) < math.inf else 0


@dataclass(frozen=True)
class GenerationMemory:
    """What an engine of a role holds.

    `device`: one of its GPUs, or its process on a CPU. `kv_tokens`: tokens that its cache takes, in sequences of
    max_model_len, as vLLM's log has it. `sequences`: how many of those run at once. `weights`: bytes on one GPU. With
    one of the `problems` it would not start; `notes` are worth a look.
    """

    device: Account
    kv_tokens: int
    sequences: int
    max_num_seqs: int
    max_model_len: int
    weights: float
    cache: Cache
    problems: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    def at_once(self, tokens: float) -> int:
        """Sequences of so many tokens that run at once."""
        return int(min(self.max_num_seqs, self.cache.holds(tokens)))


def generation_memory(shape: Shape, spec: ModelConfig, nodes: NodesConfig) -> GenerationMemory | None:
    """What an engine of `spec` holds on the GPUs of `nodes`, or on a CPU where they have none; None for backends that
    load no model here (http, fake)."""
    if spec.backend != Backend.vllm:
        return None
    engine = _Engine(shape, spec, nodes)
    lines, cache = [*engine.weights(), *engine.work()], engine.cache()
    longest, used = cache.bytes(engine.context), sum(line.bytes for line in lines)
    room, formula = engine.room(used, longest)
    lines.append(Line("cache of keys and values", formula, max(room, longest)))
    cache = Cache(cache.token, cache.windows, cache.sequence, cache.block, room)
    held = cache.holds(engine.context)
    return GenerationMemory(
        device=account("GPU in generation" if engine.on_gpu else "engine on a CPU", lines, engine.capacity / GIB),
        kv_tokens=cache.tokens(engine.context),
        sequences=int(min(held, engine.slots)),
        max_num_seqs=engine.slots,
        max_model_len=engine.context,
        weights=sum(line.bytes for line in engine.weights()),
        cache=cache,
        problems=tuple(engine.problems(room, longest)),
        notes=tuple(engine.notes(held)),
    )


class _Engine:
    """One engine by its settings and its model's sizes."""

    def __init__(self, shape: Shape, spec: ModelConfig, nodes: NodesConfig) -> None:
        settings = spec.engine_args
        self.shape, self.spec, self.settings = shape, spec, settings
        self.tensor, self.pipeline = (settings.get(f"{kind}_parallel_size", 1) for kind in ("tensor", "pipeline"))
        self.on_gpu = nodes.gpus > 0 and gpus_of(spec, True) > 0
        self.memory = (nodes.gpu_memory_gib if self.on_gpu else nodes.memory_gib) * GIB
        self.share = float(settings.get("gpu_memory_utilization", UTILIZATION))
        self.capacity = self.memory * (self.share if self.on_gpu else 1)
        self.context = int(settings.get("max_model_len") or shape.positions)
        self.slots = int(settings.get("max_num_seqs") or SEQUENCES) * self.pipeline
        self.stored, self.unknown = _stored_bits(shape, settings)
        self.wide = 4 if settings.get("dtype") in ("float32", "float") else 2

    def weights(self) -> Iterator[Line]:
        """Of one GPU; with a pipeline of the stage that has most layers and one of the two tables."""
        shape, tensor, width = self.shape, self.tensor, self.wide
        layers = math.ceil(shape.layers / self.pipeline)
        bytes_each = self.stored / 8 if self.stored else width
        part = f"{shape.matrices:,} x {layers}/{shape.layers} layers / {tensor} GPUs x {bytes_each:g} bytes"
        split = shape.matrices * layers / shape.layers / tensor * bytes_each
        yield Line("matrices of the layers", part, split)
        if tensor > shape.kv_heads:
            width_kept = 2 * shape.hidden * shape.head_dim * (1 - shape.kv_heads / tensor)
            formula = f"{layers} layers x 2 x {shape.hidden:,} x {shape.head_dim} x (1 - {shape.kv_heads}/{tensor})"
            extra = layers * width_kept * bytes_each
            yield Line("key and value heads held twice", f"{formula} x {bytes_each:g}", extra)
        tables = 1 if shape.tied or self.pipeline > 1 else 2
        formula = f"{tables} x {shape.vocab:,} x {shape.hidden:,} / {tensor} x {width}"
        yield Line("embedding table and head", formula, tables * shape.vocab * shape.hidden / tensor * width)
        rest = shape.parameters - shape.matrices - (1 if shape.tied else 2) * shape.vocab * shape.hidden
        yield Line("norms, biases and the like", f"{max(rest, 0):,} x {width}", max(rest, 0) * width)
        if not self.settings.get("language_model_only"):
            formula = f"{shape.encoders:,} / {tensor} x {width}"
            yield Line("encoders of images and the like", formula, shape.encoders / tensor * width)

    def work(self) -> Iterator[Line]:
        """What it needs beside weights and cache."""
        shape, batched = self.shape, self.settings.get("max_num_batched_tokens")
        tokens = batched or (BATCHED if self.on_gpu else max(BATCHED_ON_CPU, self.context))
        logits = self.slots // self.pipeline * shape.vocab * 4 * LOGITS
        passed = tokens * (3 * shape.intermediate / self.tensor + 4 * shape.hidden) * self.wide
        if logits >= passed:
            formula = f"{self.slots // self.pipeline} sequences x {shape.vocab:,} x 4 bytes x {LOGITS}"
        else:
            widths = f"(3 x {shape.intermediate:,} / {self.tensor} + 4 x {shape.hidden:,})"
            formula = f"{tokens:,} tokens x {widths} x {self.wide}"
        if not self.on_gpu:
            yield Line("processes", "allowance", PROCESS)
            yield Line("largest step", formula, max(logits, passed))
            return
        several = self.tensor * self.pipeline > 1
        outside = OUTSIDE_PARALLEL if several else OUTSIDE
        yield Line("CUDA and NCCL" if several else "CUDA", "allowance, by a published log", outside)
        yield Line("largest step", formula, max(logits, passed))
        if not self.settings.get("enforce_eager"):
            yield Line("CUDA graphs", "allowance", GRAPHS)

    def cache(self) -> Cache:
        """What a sequence takes on one GPU; the room is not known yet."""
        shape, pipeline, width = self.shape, self.pipeline, self._cache_bytes()
        heads = max(1.0, shape.kv_heads / self.tensor)  # a head is held by several GPUs rather than cut
        layer = (shape.latent or 2 * heads * shape.head_dim) * width
        windows = tuple((window, layers / pipeline * layer) for window, layers in shape.windows)
        block = self.settings.get("block_size") or (BLOCK if self.on_gpu else BLOCK_ON_CPU)
        state = shape.state / self.tensor / pipeline * self.wide
        return Cache(math.ceil(shape.kv_layers / pipeline) * layer, windows, state, block, 0.0)

    def _cache_bytes(self) -> float:
        kind = str(self.settings.get("kv_cache_dtype", "auto"))
        return 1.0 if kind.startswith(("fp8", "int8")) else self.wide

    def room(self, used: float, longest: float) -> tuple[float, str]:
        """Bytes for the cache on one GPU, and why so many."""
        if given := self.settings.get("kv_cache_memory_bytes"):
            return float(given), "kv_cache_memory_bytes"
        if not self.on_gpu and (space := int(self.spec.env.get("VLLM_CPU_KVCACHE_SPACE", 0))):
            return space * GIB, f"VLLM_CPU_KVCACHE_SPACE {space} GiB"
        if not self.memory:
            return longest, f"memory not stated: one sequence of {self.context:,} tokens"
        allowed = self.memory * self.share
        shown = f"{self.share:g} x {self.memory / GIB:g} GiB - {used / GIB:.2f} GiB"
        return max(0.0, allowed - used), f"all that is left: {shown}"

    def problems(self, room: float, longest: float) -> Iterator[str]:
        """Sentences that name the setting to change."""
        shape, tensor = self.shape, self.tensor
        if shape.heads % tensor:
            yield f"tensor_parallel_size {tensor} does not divide the {shape.heads} attention heads of {shape.name}"
        elif not shape.splits(tensor):
            yield f"tensor_parallel_size {tensor} and the {shape.kv_heads} key heads of {shape.name} do not divide"
        if self.context > shape.positions > 0 and "hf_overrides" not in self.settings:
            yield f"max_model_len {self.context:,} is more than the {shape.positions:,} tokens that {shape.name} knows"
        if self.on_gpu and (self.spec.gpus or 1) < min(1.0, self.share):
            yield f"gpu_memory_utilization {self.share:g} on {self.spec.gpus:g} of a GPU: others have the rest of it"
        if room < longest:
            state, block = self.cache().sequence, self.cache().block
            most = int(self.context * max(0.0, room - state) / (longest - state)) // block * block
            advice = f"lower max_model_len to {most}" if most else "the weights leave no room at all"
            yield (
                f"the cache of keys and values does not hold one sequence of max_model_len {self.context:,} tokens: "
                f"{longest / GIB:.2f} GiB, and {room / GIB:.2f} are left; {advice}, or raise tensor_parallel_size or "
                "gpu_memory_utilization"
            )

    def notes(self, held: float) -> Iterator[str]:
        if self.unknown:
            yield f"quantization {self.unknown}: bits of a weight not known, reckoned as {self.wide} bytes"
        if 1 <= held < self.slots / 2:
            yield (
                f"the cache holds {held:.1f} sequences of max_model_len {self.context:,} at once, of max_num_seqs "
                f"{self.slots}: shorter sequences fill the rest"
            )


def _stored_bits(shape: Shape, settings: dict[str, Any]) -> tuple[float, str]:
    """(bits of a stored weight, or 0 where they are plain or unknown; the method's name where it is unknown)."""
    stored = dict(shape.quantization)
    method = str(settings.get("quantization") or stored.get("quant_method") or "")
    bits, group = stored.get("bits") or stored.get("w_bit"), stored.get("group_size") or stored.get("q_group_size")
    for scheme in (stored.get("config_groups") or {}).values():
        kind = scheme.get("weights") or {}
        bits, group = kind.get("num_bits"), kind.get("group_size")
    if stored.get("load_in_8bit"):
        bits = 8
    if bits:
        return bits + ((16 + bits) / group if group and group > 0 else 0.0), ""  # a group's scale and zero point
    known = BITS.get(method, 0.0)
    return known, "" if known else method
