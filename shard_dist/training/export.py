"""Export to Hugging Face safetensors, weight by weight: no rank ever holds the whole model.

DeepSpeed's own consolidation collects all 16-bit weights in the memory of rank 0, which is 140 GB at 70B.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import torch
import torch.distributed as dist
from huggingface_hub import split_torch_state_dict_into_shards
from safetensors import SafetensorError
from safetensors.torch import save_file
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.core_model_loading import revert_weight_conversion
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, cached_file

from shard_dist.artefacts import write_json
from shard_dist.training.zero import gathered, whole_shape

SHARD_SIZE = "5GB"


def export(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    base: str,
    revision: str,
    dtype: torch.dtype,
    directory: Path,
    shard_size: str = SHARD_SIZE,
) -> None:
    """Write `model` to `directory`, which appears whole or not at all; a collective call.

    Weights have `dtype`, tied weights are written once, files hold at most `shard_size`. Rank 0 writes. Raises
    ValueError where the disk is full.
    """
    partial = directory.with_name(f".{directory.name}.partial")
    writer = dist.get_rank() == 0
    if writer:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
    try:
        for name, weights in _files(model, dtype, shard_size, partial if writer else None):
            save_file(weights, partial / name, metadata={"format": "pt"})
        if writer:
            _write_rest(model, tokenizer, base, revision, dtype, partial)
            if directory.exists():
                shutil.rmtree(directory)
            partial.rename(directory)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(partial, ignore_errors=True)
        if "No space left" in str(error) or "quota" in str(error):  # safetensors keeps the words, not the errno
            raise ValueError(f"no space left to write the model {directory}; free some and run again") from error
        raise
    dist.barrier()


def _files(
    model: PreTrainedModel, dtype: torch.dtype, shard_size: str, index_in: Path | None
) -> Iterator[tuple[str, dict[str, torch.Tensor]]]:
    """File name and tensors, file by file, on the writer; nothing elsewhere, where the gathers still run.

    Some families hold their weights in another form than their files do (experts in one tensor);
    revert_weight_conversion is transformers' own way back. Meta tensors tell the final names and sizes beforehand.
    """
    persistent = model.state_dict().keys()
    tensors = {name: buffer for name, buffer in model.named_buffers() if name in persistent}
    tensors |= dict(model.named_parameters())  # a tied weight appears once
    saved_as = {
        name: revert_weight_conversion(model, {name: torch.empty(whole_shape(tensor), dtype=dtype, device="meta")})
        for name, tensor in tensors.items()
    }
    plan = split_torch_state_dict_into_shards(
        {name: tensor for saved in saved_as.values() for name, tensor in saved.items()},
        max_shard_size=shard_size,
    )
    if index_in is not None and plan.is_sharded:
        write_json(
            index_in / SAFE_WEIGHTS_INDEX_NAME,
            {"metadata": plan.metadata, "weight_map": plan.tensor_to_filename},
        )
    for file, names in plan.filename_to_tensors.items():
        weights: dict[str, torch.Tensor] = {}
        for source in (name for name, saved in saved_as.items() if saved.keys() & set(names)):
            with gathered([tensors[source]]):
                if index_in is None:
                    continue
                whole = tensors[source].detach().to("cpu", dtype, copy=True)
            saved = revert_weight_conversion(model, {source: whole})
            weights |= {name: tensor.contiguous() for name, tensor in saved.items() if name in names}
        if index_in is not None:
            yield file, weights


def _write_rest(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    base: str,
    revision: str,
    dtype: torch.dtype,
    directory: Path,
) -> None:
    """Configuration, generation settings as the base has them, tokenizer with its chat template."""
    model.config.dtype = dtype
    model.config.architectures = [type(model).__name__]
    model.config.save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    generation = cached_file(
        base,
        "generation_config.json",
        revision=revision or "main",
        _raise_exceptions_for_missing_entries=False,
    )
    if generation is not None:
        shutil.copyfile(generation, directory / "generation_config.json")
