"""train: examples -> model. Full-parameter ZeRO-3 under Ray Train, from the newest checkpoint if there is one."""

from __future__ import annotations

import json
import os
import shutil
import threading
import time
from collections.abc import Callable
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

from shard_dist.artefacts import value_hash, whole_path
from shard_dist.config.load import identity
from shard_dist.config.schema import OnChange
from shard_dist.data.examples import stream_examples
from shard_dist.data.load import read_prompts
from shard_dist.evaluation.leaks import check_leaks
from shard_dist.progress import Bar, Progress
from shard_dist.records import Prompt
from shard_dist.rundir import Run, Stage, config_text, git_state
from shard_dist.stages.roles import identify
from shard_dist.tracking import Tracker, tracking
from shard_dist.training.job import TrainJob, write_job

LOOK = 10.0  # seconds between looks at whether the cluster still has what the training needs


def inputs(run: Run) -> dict[str, Any]:
    return {
        "train": run.file_hash("examples/train.parquet"),
        "val": run.file_hash("examples/val.parquet"),
        **decisive(run),
    }


def decisive(run: Run) -> dict[str, str]:
    """What decides the result beside the examples, part by part."""
    config = run.config
    settings = {key: digest for key, digest in identity(config).items() if key.startswith("train.")}
    return {
        "settings": value_hash(settings),
        "seed": str(config.run.seed),
        "model": identify(config.models["student"]).fingerprint,
    }


def work(run: Run, progress: Progress) -> dict[str, Any]:
    from shard_dist import cluster
    from shard_dist.training.supervise import run_training

    config, settings = run.config, run.config.train
    job = job_of(run)
    leaks(run, test_prompts(run))
    write_job(run / "train_job.json", job)  # what torchrun can be given, without Ray
    if config.run.on_change == OnChange.redo:
        leave_others(job, progress)
    cluster.join(config.cluster)
    workers = settings.workers
    require = partial(
        cluster.require,
        f"train.workers = {workers}",
        cpus=workers * settings.cpus_per_worker,
        gpus=workers * settings.gpus_per_worker,
    )
    require()
    with tracking(config, run.path) as tracker, progress.bar("steps", 0) as bar:
        follower = Follower(run / "train_metrics.jsonl", tracker, bar, require)
        try:
            counts = run_training(job, str(run / "logs" / "train"))
        finally:
            follower.stop()
    (run / "model" / "shard_dist.yaml").write_text(config_text(config), encoding="utf-8")
    return counts


def test_prompts(run: Run) -> list[Prompt]:
    return [prompt for prompt in read_prompts(run.require("prompts.parquet", "prompts")) if prompt.split == "test"]


def leaks(run: Run, test: list[Prompt]) -> dict[str, Any]:
    """What was compared, where no example repeats a test prompt; ValueError where one does."""
    files = (run.require(f"examples/{split}.parquet", "select") for split in ("train", "val"))
    return check_leaks(test, chain.from_iterable(map(stream_examples, files)), run.config.data.near_duplicates)


def job_of(run: Run) -> TrainJob:
    config, student = run.config, run.config.models["student"]
    return TrainJob(
        model=whole_path(student.model),
        revision=student.revision,
        tokenizer=whole_path(student.tokenizer),
        trust_remote_code=student.trust_remote_code,
        train_examples=str(run.require("examples/train.parquet", "select")),
        val_examples=str(run.require("examples/val.parquet", "select")),
        tokens_dir=str(run / "tokens"),
        checkpoint_dir=str(run / "checkpoints"),
        model_dir=str(run / "model"),
        metrics_file=str(run / "train_metrics.jsonl"),
        identity=decisive(run),
        config=config.train,
        seed=config.run.seed,
        chat_template_kwargs=student.chat_template_kwargs,
        recipe=config.recipe.name,
        commit=git_state()["git_commit"],
    )


def leave_others(job: TrainJob, progress: Progress) -> None:
    """run.on_change=redo: checkpoints of other settings or examples go. Without it they are refused."""
    from shard_dist.training.checkpoint import complete
    from shard_dist.training.prepare import prepare

    mine = prepare(job).identity
    if any(marker.identity != mine for marker in complete(Path(job.checkpoint_dir))):
        progress.note("the checkpoints here are of other examples or settings: starting anew")
        shutil.rmtree(job.checkpoint_dir)


class Follower:
    """Reads what the training processes write, line by line, for the person who watches and for the trackers.

    The processes may be on other machines; a file on the run's storage is all that they share with us. `require`
    raises ValueError while the cluster has too little for them, as after the loss of a node: Ray then waits for one
    without a word.
    """

    def __init__(self, path: Path, tracker: Tracker, bar: Bar, require: Callable[[], None] = lambda: None) -> None:
        self.path, self.tracker, self.bar, self.require = path, tracker, bar, require
        self.lack, self.looked = "", time.monotonic()
        self.file, self.position = (path.stat().st_ino, path.stat().st_size) if path.exists() else (0, 0)
        self.last = 0
        self.val_loss: float | None = None
        self.ended = threading.Event()
        self.thread = threading.Thread(target=self._follow, daemon=True)
        self.thread.start()

    def _follow(self) -> None:
        while not self.ended.wait(0.5):
            self._read()
            if time.monotonic() - self.looked >= LOOK:
                self._look()
        self._read()

    def _look(self) -> None:
        before, self.lack, self.looked = self.lack, "", time.monotonic()
        try:
            self.require()
        except ValueError as error:
            self.lack = str(error)
        if self.lack not in ("", before):
            self.bar.progress.note(f"{self.lack}: a node is gone, and training waits for another")

    def _read(self) -> None:
        if not self.path.exists():
            return
        with self.path.open("rb") as stream:
            file = os.fstat(stream.fileno()).st_ino
            if file != self.file:  # a training that resumes writes the lines of the steps that stand to a new file
                self.file, self.position = file, 0
            stream.seek(self.position)
            for line in stream:
                if not line.endswith(b"\n"):
                    break  # still being written
                self.position += len(line)
                values = json.loads(line)
                if values["step"] >= self.last:
                    self._show(values)

    def _show(self, values: dict[str, Any]) -> None:
        step = self.last = values.pop("step")
        self.tracker.log(tracked(values), step)
        if warning := values.get("warning"):
            self.bar.progress.note(f"step {step}: {warning}")
        self.val_loss = values.get("val_loss", self.val_loss)
        if "loss" in values:
            self.bar.total = int(values.get("total_steps", 0))
            rate = values["tokens"] / max(values["seconds"], 1e-6)
            parts = [f"loss {values['loss']:.4f}", f"{rate:.0f} tokens/s"]
            parts += [f"validation {self.val_loss:.4f}"] if self.val_loss is not None else []
            parts += [f"MFU {values['mfu']:.0%}"] if "mfu" in values else []
            self.bar.update(step, ", ".join(parts))

    def stop(self) -> None:
        self.ended.set()
        self.thread.join()


def tracked(values: dict[str, Any]) -> dict[str, Any]:
    """A metrics line's numbers by their names in a tracker: `losses` {"a/sft": 1.0} becomes train/loss/a/sft."""
    flat = {f"train/{name}": value for name, value in values.items() if not isinstance(value, dict | str)}
    for name in ("losses", "val_losses"):
        flat |= {f"train/{name.removesuffix('es')}/{part}": value for part, value in values.get(name, {}).items()}
    return flat


STAGE = Stage("train", inputs, ("model",), work)
