"""From guidelines as they were written to a search over them: library, pairs, retriever, and how well it finds."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

from shard_dist.data.dpr import Question, write_questions
from shard_dist.records import Prompt
from shard_dist.retrieval.bm25 import BM25
from shard_dist.retrieval.library import Guideline, Library, held_out, passage_line, questions
from shard_dist.retrieval.search import Dense, Fused, Scorer, Search, recall

RATE, NEW_RATE = 1e-5, 3e-3  # DPR's for a pretrained encoder; for the small one, 1e-2 finds less


class Retriever(StrEnum):
    hybrid = "hybrid"
    dense = "dense"
    bm25 = "bm25"


@dataclass
class RetrieverOptions:
    """Settings of recipes that look guidelines up."""

    k: int = 6
    """Guidelines that a prompt gets, at most."""
    library_similarity: float = 0.7
    """Guidelines as similar as this (0 to 1) to an earlier one do not enter the library."""
    retrieved_similarity: float = 0.5
    """Guidelines as similar as this to a better one are not retrieved beside it."""
    retriever: Retriever = Retriever.hybrid
    """dense: a bi-encoder; bm25: words that a prompt and a guideline share; hybrid: the bi-encoder's ranks fused with
    those of BM25 over each guideline and the prompts that it was written for."""
    encoder: str = ""
    """A sentence-transformers directory or hub id, or a plain encoder; empty: a small one with random weights."""
    encoder_revision: str = ""
    """Hub revision; empty: the default branch."""
    encoder_epochs: int = 10
    """Epochs over the library's own pairs; 0: the encoder stays as it is."""
    encoder_batch: int = 32
    """Pairs per step; the others' guidelines are the negatives."""
    encoder_rate: float | None = None
    """Peak learning rate; null: 1e-5, and 3e-3 for the small one with random weights."""
    device: str = "cpu"
    """Where the encoder runs, in the driver's process: cpu, or cuda where the engines leave a GPU free."""
    held_out: float = 0.1
    """Share of the pairs' prompts that measure recall@k (retrieval.json) and train no encoder."""


def check_retriever(options: RetrieverOptions) -> None:
    """Raise ValueError for the first number out of its range, and for settings that contradict each other."""
    for name, least in {"k": 1, "encoder_epochs": 0, "encoder_batch": 2}.items():
        if getattr(options, name) < least:
            raise ValueError(f"recipe.options.{name} is {getattr(options, name)}; at least {least}")
    for name in ("library_similarity", "retrieved_similarity", "held_out"):
        if not 0 <= getattr(options, name) <= 1:
            raise ValueError(f"recipe.options.{name} is {getattr(options, name)}; a share from 0 to 1")
    if options.encoder_rate is not None and not options.encoder_rate > 0:
        raise ValueError(f"recipe.options.encoder_rate is {options.encoder_rate}; above 0")
    if options.retriever == Retriever.bm25 and options.encoder:
        raise ValueError("recipe.options.encoder has no meaning for retriever=bm25; set retriever=dense")
    if options.retriever != Retriever.bm25 and not options.encoder and not options.encoder_epochs:
        raise ValueError("recipe.options: encoder is empty and encoder_epochs 0, a random encoder; set one of them")
    if options.encoder.startswith((".", "/", "~")) and not Path(options.encoder).is_dir():
        raise ValueError(f"recipe.options.encoder: no directory {options.encoder!r} (from {Path.cwd()})")


def build(
    written: Iterable[tuple[Prompt, Sequence[Guideline]]], options: RetrieverOptions, folder: Path, seed: int
) -> tuple[Search, dict[str, Any]]:
    """The search over the library of what was written for each prompt, and what there is to tell of it.

    `folder` gets library.jsonl, pairs_train.json and pairs_held_out.json (DPR's format), and a trained encoder as
    retriever/. Of an empty library the search finds nothing.
    """
    library = Library(options.library_similarity)
    pairs = questions(library, written)
    held = [pair for pair in pairs if held_out(pair, options.held_out, seed)]
    training = [pair for pair in pairs if not held_out(pair, options.held_out, seed)]
    library.write(folder / "library.jsonl")
    write_questions(folder / "pairs_train.json", training)
    write_questions(folder / "pairs_held_out.json", held)
    lines = [guideline.line for guideline in library.guidelines]
    scorers: dict[str, Scorer] = {Retriever.bm25: BM25(lines)}
    if options.retriever != Retriever.bm25 and lines:
        scorers[Retriever.dense] = encoder = _dense(lines, training, options, folder, seed)
        scorers[Retriever.hybrid] = Fused(encoder, BM25(expanded(lines, training)))
    measured = {str(name): recall(scorer, lines, held, options.k) for name, scorer in scorers.items()} if held else {}
    if measured and measured.get(options.retriever, 0.0) < measured[Retriever.bm25]:
        warnings.warn(f"recall@{options.k} on the library's held-out pairs: {measured}; bm25 finds more", stacklevel=2)
    found = {
        "guidelines": len(lines),
        "repeated": library.repeated,
        "pairs": {"train": len(training), "held_out": len(held)},
        "k": options.k,
        "recall": measured,
    }
    scorer = scorers.get(options.retriever, scorers[Retriever.bm25])
    return Search(library.guidelines, scorer, options.k, options.retrieved_similarity), found


def expanded(lines: Sequence[str], pairs: Sequence[Question]) -> list[str]:
    """Each line with the texts of the questions that it answers (document expansion, Nogueira et al. 2019, with the
    questions that there are instead of predicted ones)."""
    asked = {line: [line] for line in lines}
    for pair in pairs:
        for passage in pair.positives:
            asked[passage_line(passage)].append(pair.text)
    return [" ".join(texts) for texts in asked.values()]


def _dense(
    lines: Sequence[str], pairs: Sequence[Question], options: RetrieverOptions, folder: Path, seed: int
) -> Scorer:
    """The encoder of the options with the vectors of `lines`; trained on the pairs, it is saved."""
    from shard_dist.retrieval.encoder import Fit, load_encoder, new_encoder, train_encoder

    if options.encoder:
        encoder, rate = load_encoder(options.encoder, options.encoder_revision, options.device), RATE
    else:
        encoder, rate = new_encoder([*lines, *(pair.text for pair in pairs)], seed, options.device), NEW_RATE
    if options.encoder_epochs and pairs:
        fit = Fit(options.encoder_epochs, options.encoder_batch, options.encoder_rate or rate)
        train_encoder(encoder, pairs, fit, seed)
        encoder.save(folder / "retriever")
    return Dense(encoder, lines)
