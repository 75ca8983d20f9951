"""train: examples -> model. Full-parameter ZeRO-3 under Ray Train, from the newest checkpoint if there is one."""

from __future__ import annotations

import json
import os
import shutil
import threading
from pathlib import Path
from typing import Any

from shard_dist.artefacts import value_hash
from shard_dist.config.load import identity
from shard_dist.progress import Bar, Progress
from shard_dist.rundir import Run, Stage, config_text
from shard_dist.stages.roles import identify
from shard_dist.tracking import Tracker, tracking


def inputs(run: Run) -> dict[str, Any]:
    config = run.config
    decisive = {key: digest for key, digest in identity(config).items() if key.startswith("train.")}
    return {
        "train": run.file_hash("examples/train.parquet"),
        "val": run.file_hash("examples/val.parquet"),
        "settings": value_hash(decisive),
        "seed": config.run.seed,
        "student": identify(config.models["student"]).fingerprint,
    }


def work(run: Run, progress: Progress) -> dict[str, Any]:
    from shard_dist import cluster
    from shard_dist.training.checkpoint import complete
    from shard_dist.training.supervise import TrainJob, run_training

    config, student = run.config, run.config.models["student"]
    job = TrainJob(
        model=student.model,
        revision=student.revision,
        tokenizer=student.tokenizer,
        trust_remote_code=student.trust_remote_code,
        train_examples=str(run.require("examples/train.parquet", "select")),
        val_examples=str(run.require("examples/val.parquet", "select")),
        checkpoint_dir=str(run / "checkpoints"),
        model_dir=str(run / "model"),
        metrics_file=str(run / "train_metrics.jsonl"),
        identity=value_hash(inputs(run)),
        config=config.train,
        seed=config.run.seed,
        chat_template_kwargs=student.chat_template_kwargs,
    )
    if any(marker.identity != job.identity for marker in complete(run / "checkpoints")):
        progress.note("the checkpoints here are of other examples or settings: starting anew")
        shutil.rmtree(run / "checkpoints")
    cluster.join(config.cluster)
    workers, settings = config.train.workers, config.train
    cluster.require(
        f"train.workers = {workers}", cpus=workers * settings.cpus_per_worker, gpus=workers * settings.gpus_per_worker
    )
    with tracking(config, run.path) as tracker, progress.bar("steps", 0) as bar:
        follower = Follower(run / "train_metrics.jsonl", tracker, bar)
        try:
            counts = run_training(job, str(run / "logs" / "train"))
        finally:
            follower.stop()
    (run / "model" / "shard_dist.yaml").write_text(config_text(config), encoding="utf-8")
    return counts


class Follower:
    """Reads what the training processes write, line by line, for the person who watches and for the trackers.

    The processes may be on other machines; a file on the run's storage is all that they share with us.
    """

    def __init__(self, path: Path, tracker: Tracker, bar: Bar) -> None:
        self.path, self.tracker, self.bar = path, tracker, bar
        self.file, self.position = (path.stat().st_ino, path.stat().st_size) if path.exists() else (0, 0)
        self.last = 0
        self.ended = threading.Event()
        self.thread = threading.Thread(target=self._follow, daemon=True)
        self.thread.start()

    def _follow(self) -> None:
        while not self.ended.wait(0.5):
            self._read()
        self._read()

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
        self.tracker.log({f"train/{name}": value for name, value in values.items()}, step)
        if "loss" in values:
            self.bar.total = int(values.get("total_steps", 0))
            rate = values["tokens"] / max(values["seconds"], 1e-6)
            self.bar.update(step, f"loss {values['loss']:.4f}, {rate:.0f} tokens/s")

    def stop(self) -> None:
        self.ended.set()
        self.thread.join()


STAGE = Stage("train", inputs, ("model",), work)
