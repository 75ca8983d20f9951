"""What a run leaves on shared storage, at its most: everything under run.dir, and the models that engines load."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

from shard_dist.config.schema import Config
from shard_dist.plan.account import Account, Line, account
from shard_dist.plan.model import Shape
from shard_dist.plan.training import checkpoint_bytes
from shard_dist.plan.workload import Workload

# A line of the ledger, measured on the 3,640 calls of two runs of the demo: 564 bytes beside its texts (key, settings,
# JSON). Its texts: 4.4 bytes a token of English by Llama 3's tokenizer. Packs take a third of it; lines are the most.
CALL_BYTES, TOKEN_BYTES = 564, 4.4
LABELLED = 8  # bytes of a token that is trained on: itself and its label, int32 each


def storage(config: Config, shapes: Mapping[str, Shape], work: Workload | None) -> Account:
    """Shared storage against cluster.storage.size_gib; without the run's texts where `work` is not known."""
    lines = [
        *_checkpoints(config, shapes["student"]),
        *_models(config, shapes),
        *(_texts(config, work) if work else ()),
    ]
    return account("shared storage", lines, config.cluster.storage.size_gib)


def _checkpoints(config: Config, shape: Shape) -> Iterator[Line]:
    train, one = config.train, checkpoint_bytes(shape, config.train)
    rounds = config.recipe.rounds  # each is a run of its own, and keeps its own
    kept = (train.keep_checkpoints + train.keep_best) * rounds
    yield Line("checkpoints", f"{kept} kept x ({one.formula})", kept * one.bytes)
    yield Line("checkpoint being written", one.formula, one.bytes)
    # training/universal.py: its copy, and as much again until the tool ends.
    copies = f"2 x 12 bytes x {shape.parameters:,}, after a change of train.workers"
    yield Line("checkpoint converted for other workers", copies, 24 * shape.parameters)


def _models(config: Config, shapes: Mapping[str, Shape]) -> Iterator[Line]:
    width, rounds, student = 2 if config.train.bf16 else 4, config.recipe.rounds, shapes["student"]
    # The older export stays until the new one is whole.
    copies = f"{rounds} x " if rounds > 1 else ""
    yield Line("trained model", f"{copies}{student.parameters:,} x {width} bytes", rounds * student.parameters * width)
    for name in dict.fromkeys(shape.name for shape in shapes.values()):
        if not Path(name).is_dir():  # a model of the hub, in the cache that all nodes share
            weights = next(shape for shape in shapes.values() if shape.name == name).parameters
            yield Line(f"weights of {name}", f"{weights:,} x 2 bytes", weights * 2)


def _texts(config: Config, work: Workload) -> Iterator[Line]:
    calls = sum(asked.calls for asked in work.asked)
    tokens = sum(asked.prompt_tokens + asked.completion_tokens for asked in work.asked)
    formula = f"{calls:,.0f} calls x {CALL_BYTES} bytes + {tokens:,.0f} tokens x {TOKEN_BYTES} bytes"
    yield Line("ledger", formula, calls * CALL_BYTES + tokens * TOKEN_BYTES)
    answered = sum(asked.completion_tokens for asked in work.asked)
    yield Line(
        "records, decisions, answers, verdicts", f"{answered:,.0f} tokens x {TOKEN_BYTES} bytes", answered * TOKEN_BYTES
    )
    learnt = work.training.tokens / config.train.epochs
    yield Line("tokenised examples", f"{learnt:,.0f} tokens x {LABELLED} bytes", learnt * LABELLED)
