"""Training, top to bottom: the same function under Ray Train and under torchrun.

A step's loss is the sum over the supervised tokens of the whole global batch divided by their number, whatever the
ranks, the accumulation and the padding. Every rank knows every example's length, so nobody asks for that number.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from shard_dist.artefacts import replacing
from shard_dist.training import checkpoint, zero
from shard_dist.training.base_model import load_config, load_tokenizer
from shard_dist.training.examples import read_examples
from shard_dist.training.export import export
from shard_dist.training.head import CausalLoss, head_options
from shard_dist.training.job import TrainJob
from shard_dist.training.objectives import Tokens, collate, encode
from shard_dist.training.order import deal, global_batch, total_steps
from shard_dist.training.schedule import learning_rate

OnCheckpoint = Callable[[int, str, dict[str, float]], None]  # step, directory, metrics; called on every rank


@dataclass(frozen=True)
class Data:
    """Tokenised examples; the same on every rank."""

    train: list[Tokens]
    val: list[Tokens]
    too_long: int


def train_loop(job: TrainJob, on_checkpoint: OnCheckpoint | None = None) -> dict[str, Any]:
    """Train from the newest complete checkpoint, or from the base model, to the exported model. Runs on every rank.

    Returns counts and final losses. Raises ValueError for input that cannot be trained on, before the model is
    loaded where that can be known.
    """
    config = job.config
    device = zero.prepare_process(config)
    tokenizer = load_tokenizer(job.model, job.revision, job.tokenizer, job.trust_remote_code)
    data = load_data(job, tokenizer)
    steps = total_steps(len(data.train), config.global_batch_size, config.epochs)
    start = _agree(lambda: checkpoint.newest(Path(job.checkpoint_dir), job.identity, dist.get_world_size()))

    model = zero.load_model(job.model, job.revision, job.trust_remote_code, config)
    engine = zero.start_engine(CausalLoss(model, head_options(config)), config)
    engine.train()  # from_pretrained leaves a model in eval mode, where dropout and recomputation are off
    if start is not None:
        checkpoint.load(engine, Path(job.checkpoint_dir), start)
    done = start.step if start is not None else 0
    metrics = Metrics(Path(job.metrics_file), done, dist.get_rank() == 0)

    for step in range(done, steps):
        last = step + 1 == steps
        line = optimizer_step(engine, data.train, step, steps, job, device)
        metrics.write(line)
        if data.val and (last or (config.eval_every and (step + 1) % config.eval_every == 0)):
            metrics.write({"step": step + 1, "val_loss": evaluate(engine, data.val, config.micro_batch_size, device)})
        if last or (step + 1) % config.checkpoint_every == 0:
            marker = checkpoint.Marker(step + 1, job.identity, dist.get_world_size())
            checkpoint.save(engine, Path(job.checkpoint_dir), marker, config.keep_checkpoints)
            if on_checkpoint is not None:
                on_checkpoint(step + 1, job.checkpoint_dir, {"loss": line["loss"]})

    export(model, tokenizer, job.model, job.revision, base_dtype(job), Path(job.model_dir))
    counts = {"examples": len(data.train), "val_examples": len(data.val), "too_long": data.too_long}
    return {"steps": steps, **counts, **_agree(lambda: summary(Path(job.metrics_file))), "resumed_from": done}


def base_dtype(job: TrainJob) -> torch.dtype:
    """The precision of the base model's files, which the export keeps; the training's where they do not say."""
    named = load_config(job.model, job.revision, job.trust_remote_code).dtype
    trained = torch.bfloat16 if job.config.bf16 else torch.float32
    return named if isinstance(named, torch.dtype) else trained


def load_data(job: TrainJob, tokenizer: Any) -> Data:
    """Both files, tokenised. Raises ValueError where nothing is left to train on."""
    template, longest = job.chat_template_kwargs, job.config.max_tokens
    train, long_train = encode(read_examples(Path(job.train_examples)), tokenizer, template, longest)
    val, long_val = encode(read_examples(Path(job.val_examples)), tokenizer, template, longest)
    if not train:
        raise ValueError(
            f"no example of at most train.max_tokens={longest} tokens in {job.train_examples} "
            f"({long_train} are longer); nothing to train on"
        )
    return Data(train, val, long_train + long_val)


def optimizer_step(
    engine: Any, examples: Sequence[Tokens], step: int, steps: int, job: TrainJob, device: torch.device
) -> dict[str, Any]:
    """Forward and backward over this rank's share of the global batch, then one update. Returns the metrics line."""
    began = time.perf_counter()
    config, rank, ranks = job.config, dist.get_rank(), dist.get_world_size()
    batch = global_batch(job.seed, step, len(examples), config.global_batch_size)
    supervised = sum(examples[index].supervised for index in batch)
    # Dropout, where a model has any, is a function of (seed, step, rank) too, so that a resumed run repeats it.
    torch.manual_seed((job.seed * 1_000_003 + step) * ranks + rank)
    rate = learning_rate(step, steps, config)
    for group in engine.optimizer.param_groups:
        group["lr"] = rate
    total = torch.zeros((), device=device)
    lengths = {index: len(examples[index].ids) for index in batch}
    shares = deal(lengths, rank, ranks, config.micro_batch_size)
    for number, share in enumerate(shares):
        # A short batch has fewer micro-batches than the configured accumulation, so the boundary is ours to name.
        engine.set_gradient_accumulation_boundary(number + 1 == len(shares))
        micro = collate([examples[index] for index in share]).to(device)
        # DeepSpeed averages gradients over the ranks: the factor takes that back.
        loss = engine(micro.ids_BL, micro.rows_N, micro.targets_N, supervised / ranks)
        engine.backward(loss, scale_wrt_gas=False)
        total += loss.detach()
    engine.step()

    dist.all_reduce(total)
    loss_value = total.item() / ranks
    if not (math.isfinite(loss_value) and engine.was_step_applied()):  # DeepSpeed skips a step of infinite gradients
        raise ValueError(f"step {step + 1}: loss {loss_value} or its gradient is not finite; lower train.learning_rate")
    return {
        "step": step + 1,
        "total_steps": steps,
        "loss": loss_value,
        "lr": rate,
        "grad_norm": float(engine.get_global_grad_norm()),
        "tokens": sum(lengths.values()),
        "supervised_tokens": supervised,
        "seconds": time.perf_counter() - began,
    }


@torch.no_grad()
def evaluate(engine: Any, examples: Sequence[Tokens], micro_batch_size: int, device: torch.device) -> float:
    """Mean loss per supervised token over all examples, in nats; a collective call."""
    engine.eval()
    total = torch.zeros((), device=device, dtype=torch.float64)
    lengths = {index: len(tokens.ids) for index, tokens in enumerate(examples)}
    for share in deal(lengths, dist.get_rank(), dist.get_world_size(), micro_batch_size):
        micro = collate([examples[index] for index in share]).to(device)
        total += engine(micro.ids_BL, micro.rows_N, micro.targets_N, 1.0)
    engine.train()
    dist.all_reduce(total)
    return total.item() / sum(tokens.supervised for tokens in examples)


class Metrics:
    """The metrics file of rank 0. Lines of steps that will be done again are dropped at the start."""

    def __init__(self, path: Path, done: int, writer: bool) -> None:
        self.path = path
        self.stream = None
        if writer:
            kept = [line for line in read_metrics(path) if line["step"] <= done]
            with replacing(path) as partial:
                partial.write_text("".join(json.dumps(line) + "\n" for line in kept), encoding="utf-8")
            self.stream = path.open("a", encoding="utf-8", buffering=1)

    def write(self, line: dict[str, Any]) -> None:
        if self.stream is None:
            return
        try:
            self.stream.write(json.dumps(line) + "\n")
        except OSError as error:
            raise ValueError(f"cannot write {self.path}: {error}; run the same command again to go on") from error


def read_metrics(path: Path) -> Iterator[dict[str, Any]]:
    """The whole lines of a metrics file; a last line that a kill has torn is left out."""
    if path.is_file():
        for line in path.read_text(encoding="utf-8").splitlines(keepends=True):
            if line.endswith("\n"):
                yield json.loads(line)


def summary(path: Path) -> dict[str, Any]:
    """Totals of a finished training, from its metrics file."""
    lines = list(read_metrics(path))
    steps = [line for line in lines if "loss" in line]
    val = [line["val_loss"] for line in lines if "val_loss" in line]
    totals = {name: sum(line[name] for line in steps) for name in ("tokens", "supervised_tokens", "seconds")}
    return {"final_loss": steps[-1]["loss"], "val_loss": val[-1] if val else None, **totals}


def _agree(choose: Callable[[], Any]) -> Any:
    """What rank 0 chooses, on every rank: others may see shared storage later. Its ValueError is every rank's."""
    box: list[Any] = [None]
    if dist.get_rank() == 0:
        try:
            box[0] = choose()
        except ValueError as error:
            box[0] = error
    dist.broadcast_object_list(box)
    if isinstance(box[0], ValueError):
        raise box[0]
    return box[0]
