"""What can be known before a model is loaded: examples tokenised, settings that contradict them refused."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from transformers import PreTrainedTokenizerBase

from shard_dist.artefacts import file_hash, replacing, value_hash
from shard_dist.config.training import Packing
from shard_dist.data.examples import stream_examples
from shard_dist.training.attention import check_packable
from shard_dist.training.base_model import check_model
from shard_dist.training.job import TrainJob
from shard_dist.training.objectives import Encoder
from shard_dist.training.order import Order
from shard_dist.training.packing import pack
from shard_dist.training.sequence import check_sequence
from shard_dist.training.tokens import TokenSet, finished, open_tokens, write_tokens

ENCODING = 2  # raise it when the same examples get other tokens


@dataclass(frozen=True)
class Prepared:
    """Directories of the tokenised examples, and what a checkpoint must agree with, part by part."""

    train: Path
    val: Path
    identity: dict[str, str]

    def open(self) -> tuple[TokenSet, TokenSet]:
        return open_tokens(self.train), open_tokens(self.val)


def prepare(job: TrainJob) -> Prepared:
    """Tokenise both files of examples unless that is done already. One process does it for all.

    Raises ValueError for a model or examples that cannot be trained on.
    """
    config, tokenizer = check_model(job.model, job.revision, job.tokenizer, job.trust_remote_code)
    check_sequence(config, job.config.long.sequence_parallel)
    if job.config.packing != Packing.none:
        check_packable(config)
    tokenizer_is, vocabulary = tokenizer_hash(tokenizer), config.get_text_config().vocab_size
    encoder = partial(Encoder, tokenizer, job.chat_template_kwargs, job.config, job.seed, vocabulary)
    train = _tokenised(job, job.train_examples, encoder, tokenizer_is)
    val = _tokenised(job, job.val_examples, encoder, tokenizer_is)
    identity = {**job.identity, "tokenizer": tokenizer_is, "examples": value_hash([train.name, val.name])}
    prepared = Prepared(train, val, identity)
    train_set, val_set = prepared.open()
    _check(job, train_set, val_set)
    plan_order(job, train_set)  # on disk, where it takes long
    return prepared


def plan_order(job: TrainJob, train: TokenSet) -> Order:
    """The training's order. Full rows are planned once: their shape depends on the examples' lengths only."""
    lengths = tuple(train.lengths.tolist())
    if job.config.packing != Packing.dataset:
        return Order(lengths, job.seed, job.config.global_batch_size)
    plan = train.directory / "rows.npz"
    if not plan.is_file():
        rows = pack(sorted(lengths, reverse=True), job.config.max_tokens)
        with replacing(plan) as partial, partial.open("wb") as stream:
            np.savez(stream, places=np.concatenate(rows), ends=np.cumsum([len(row) for row in rows]))
    with np.load(plan) as saved:
        rows = [row.tolist() for row in np.split(saved["places"], saved["ends"][:-1])]
    return Order(lengths, job.seed, job.config.global_batch_size, rows)


def tokenizer_hash(tokenizer: PreTrainedTokenizerBase) -> str:
    """Of all that decides its tokens: vocabulary and merges, control tokens, chat template."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    words = backend.to_str() if backend is not None else sorted(tokenizer.get_vocab().items())
    return value_hash([words, sorted(tokenizer.all_special_tokens), tokenizer.chat_template])


def _tokenised(job: TrainJob, examples: str, new_encoder: Callable[[], Encoder], tokenizer_is: str) -> Path:
    derta, config = job.config.derta, job.config
    # What decides an example's tokens.
    settings = [config.max_tokens, config.split_long_examples, derta.no_prefix, derta.keep, derta.refusal]
    source = [file_hash(Path(examples)) if Path(examples).is_file() else "", tokenizer_is, job.chat_template_kwargs]
    directory = Path(job.tokens_dir) / value_hash([ENCODING, *source, settings, job.seed])[:16]
    if not finished(directory):
        # Rust's own threads would warn, and wait, in every process that is forked later.
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
        encoder = new_encoder()  # it counts one file's examples
        write_tokens(directory, encoder.items(stream_examples(Path(examples))), encoder.counts)
    return directory


def _check(job: TrainJob, train: TokenSet, val: TokenSet) -> None:
    config, longest = job.config, job.config.max_tokens
    if not len(train):
        raise ValueError(
            f"nothing to train on in {job.train_examples}: {train.counts['examples']} examples, of which "
            f"{train.counts['too_long']} have more than train.max_tokens={longest} tokens"
        )
    if config.keep_best and not len(val):
        raise ValueError(f"train.keep_best chooses by validation loss, and there is no example in {job.val_examples}")
    pairs = train.has("dpo.chosen") or val.has("dpo.chosen")
    if pairs and (config.label_smoothing or config.z_loss):
        raise ValueError(
            "train.label_smoothing and train.z_loss change the log-probabilities that dpo compares; set them to 0, "
            "or train.dpo.label_smoothing for labels in doubt"
        )
    if train.has("dpo.chosen") and (train.has("sft") or train.has("derta.safe")):
        warnings.warn("dpo examples beside others: a step's loss is the mean over pairs plus that over tokens",
                      stacklevel=2)  # fmt: skip


def as_counts(train: TokenSet, val: TokenSet) -> dict[str, Any]:
    """What a training says of its examples: how many, and how many of them were left out or cut."""
    return {
        "examples": train.counts["examples"] - train.counts["too_long"],
        "val_examples": val.counts["examples"] - val.counts["too_long"],
        "too_long": train.counts["too_long"] + val.counts["too_long"],
        "split": train.counts["split"] + val.counts["split"],
    }
