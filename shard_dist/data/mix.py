"""Examples of files beside a recipe's own: how many of them, in which split, and none that repeats a test prompt."""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path

from shard_dist.config.schema import MixConfig, Objective, SplitConfig
from shard_dist.data.interchange import read_examples
from shard_dist.data.near import Near
from shard_dist.data.split import digest, split_of
from shard_dist.records import Example, Prompt

KEPT = "kept_from_file"
REPEATS = "repeats_test_prompt"
OF_FILES = "mix/"


def draw(examples: Iterable[Example], limit: int, seed: int) -> Iterator[Example]:
    """`limit` of them (0: all) in their order, by (seed, dataset, id) alone: a smaller draw is part of a larger one."""
    if not limit:
        yield from examples
        return
    ranked = ((digest(seed, "mix", each.dataset, each.id), place, each) for place, each in enumerate(examples))
    chosen = heapq.nsmallest(limit, ranked, key=lambda rank: rank[:2])
    yield from (each for _, _, each in sorted(chosen, key=lambda rank: rank[1]))


def of_file(mix: MixConfig, seed: int) -> Iterator[Example]:
    """The drawn examples of one file, in its order. Raises ValueError for what cannot serve the wanted objective."""
    for example in draw(read_examples(Path(mix.path), mix.format), mix.limit, seed):
        objective = example.objective if mix.objective == Objective.own else str(mix.objective)
        if objective != "sft" and not example.rejected:
            raise ValueError(
                f"{mix.path}: example {example.id} has no rejected answer, which {objective} needs; set its objective "
                "to sft, or give a file of pairs"
            )
        rejected = "" if objective == "sft" else example.rejected
        yield replace(example, objective=objective, rejected=rejected)


def placed(
    examples: Iterable[Example], near: Near, shares: SplitConfig, seed: int, reasons: Counter[str]
) -> Iterator[tuple[str, Example]]:
    """(train or val, example) of those that repeat no test prompt; `reasons` counts all of them.

    Their dataset becomes `mix/<dataset>`, which no prompt's is, so that their keys are theirs alone.
    """
    without_test = SplitConfig(val=shares.val / (1 - shares.test), test=0.0)
    for example in examples:
        texts = [message["content"] for message in example.messages if message["role"] == "user"]
        if any(near.find(text) for text in texts):
            reasons[REPEATS] += 1
            continue
        reasons[KEPT] += 1
        moved = replace(example, dataset=f"{OF_FILES}{example.dataset}")
        yield split_of(Prompt(moved.dataset, moved.id, ""), without_test, seed), moved
