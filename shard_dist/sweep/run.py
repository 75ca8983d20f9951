"""A sweep, phase by phase over all of its arms:

    prompts ──> generate + select ──> train ──> evaluate ──> report ──> comparison
    all arms    one after the other   side by   one after    all arms   and its page
                                      side      the other

Engines fill the whole cluster by themselves, and arms whose engines follow each other find each other's calls in the
ledger: every call is made once, without locks. Trainings are side by side, as many as the cluster holds. An arm that
fails is left out of what follows and the others go on; the same command tries it again.
"""

from __future__ import annotations

import io
import os
import sys
import threading
import traceback
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing import get_context, parent_process
from typing import Any, TextIO, cast

from rich.console import Console

from shard_dist.artefacts import write_json
from shard_dist.cluster import address, fits, join, leave
from shard_dist.config.cluster import ClusterConfig
from shard_dist.progress import Progress
from shard_dist.rundir import Run, finished, locked, open_run, run_stage
from shard_dist.stages import evaluate, generate, prompts, report, rounds, select, train
from shard_dist.sweep.compare import compare
from shard_dist.sweep.plan import Arm, Sweep

STATE = "sweep.json"
Row = dict[str, Any]
Trainer = Callable[[Arm, Progress], None]


class State:
    """sweep.json, written with every change: what became of each arm.

    {"name", "axes", "compare", "arms": {name: {"values", "settings", "state": waiting, running, done or failed,
    "stage": the last one that began, "error", "seconds": of its finished stages, "counts": {stage: counts}}}}
    """

    def __init__(self, sweep: Sweep) -> None:
        self.sweep, self.lock = sweep, threading.Lock()
        self.arms: dict[str, Row] = {
            arm.name: {"values": arm.values, "settings": arm.settings, "state": "waiting", "stage": "", "error": ""}
            for arm in sweep.arms
        }
        for arm in sweep.arms:
            self.note(arm)

    def note(self, arm: Arm, **changes: str) -> None:
        with self.lock:
            manifests = {stage.name: arm.run.manifest(stage.name) for stage in arm.stages}
            known = {name: manifest for name, manifest in manifests.items() if manifest}
            seconds = round(sum(manifest["seconds"] for manifest in known.values()), 3)
            counts = {name: manifest["counts"] for name, manifest in known.items()}
            self.arms[arm.name] |= {**changes, "seconds": seconds, "counts": counts}
            axes, compared = self.sweep.axes, self.sweep.compare
            write_json(
                self.sweep.path / STATE,
                {"name": self.sweep.name, "axes": axes, "compare": compared, "arms": self.arms},
            )

    def alive(self) -> list[Arm]:
        return [arm for arm in self.sweep.arms if self.arms[arm.name]["state"] != "failed"]

    @property
    def failed(self) -> dict[str, str]:
        """Arm -> its error."""
        return {name: arm["error"] for name, arm in self.arms.items() if arm["state"] == "failed"}

    def summary(self) -> str:
        lines = [f"{name} failed in {self.arms[name]['stage']}: {error}" for name, error in self.failed.items()]
        return "\n".join([*lines, f"{len(self.alive())} of {len(self.arms)} arms done"])

    @contextmanager
    def at(self, arm: Arm, stage: str, progress: Progress) -> Iterator[None]:
        """What the arm does within is its own: an error is kept and shown, and ends nothing but this arm."""
        self.note(arm, state="running", stage=stage)
        try:
            yield
        except Exception as error:
            said = str(error) if isinstance(error, ValueError) else f"{type(error).__name__}: {error}"
            self.note(arm, state="failed", error=said)
            progress.note(f"{arm.name} failed in {stage}: {said}")
            if not isinstance(error, ValueError):  # ours to put right, not the user's
                trace = arm.run / "logs" / "sweep_error.txt"
                trace.parent.mkdir(parents=True, exist_ok=True)
                trace.write_text(traceback.format_exc(), encoding="utf-8")
        else:
            self.note(arm, state="waiting")


def run_sweep(sweep: Sweep, progress: Progress, trainer: Trainer | None = None) -> State:
    """Everything that is not done yet. Raises ValueError, before any call, for what concerns more than one arm.

    `trainer` trains one arm, by default in a process of its own.
    """
    _open(sweep)
    with locked(Run(sweep.config, sweep.path)):
        for arm in sweep.arms:
            _open_arm(arm)
        state = State(sweep)
        try:
            _one_by_one(state, (prompts.STAGE.name,), progress)
            _same_test_set(state.alive())
            _one_by_one(state, (generate.STAGE.name, select.STAGE.name, rounds.STAGE.name), progress)
            _side_by_side(state, trainer or train_apart, progress)
            _one_by_one(state, (evaluate.STAGE.name,), progress)
            _one_by_one(state, (report.STAGE.name,), progress)
            for arm in state.alive():
                state.note(arm, state="done")
            if state.alive():
                progress.note(f"comparison: {compare(sweep, progress)}")
        finally:
            leave()  # a stage joins the cluster when it needs one
    return state


def _open(sweep: Sweep) -> None:
    """Raises ValueError where the directory belongs to something else."""
    if sweep.path.is_dir() and any(sweep.path.iterdir()) and not (sweep.path / STATE).is_file():
        raise ValueError(f"run.dir: {sweep.path} is not empty and no sweep of ours; choose another directory")
    sweep.path.mkdir(parents=True, exist_ok=True)
    if not (sweep.path / STATE).is_file():
        write_json(sweep.path / STATE, {"name": sweep.name, "arms": {}})


def _open_arm(arm: Arm) -> None:
    try:
        open_run(arm.config)
    except ValueError as error:
        raise ValueError(f"sweep arm {arm.name}: {error}") from error


def _one_by_one(state: State, names: Sequence[str], progress: Progress) -> None:
    for arm in state.alive():
        progress.started(arm.name)
        for stage in (stage for stage in arm.stages if stage.name in names):
            if arm in state.alive():
                with state.at(arm, stage.name, progress), locked(arm.run):
                    run_stage(arm.run, stage, progress)


def _same_test_set(arms: list[Arm]) -> None:
    """Students whose contexts differ may differ in the prompts that fit."""
    test = {arm.name: {prompt.key for prompt in train.test_prompts(arm.run)} for arm in arms}
    for name, keys in test.items():
        first = next(iter(test))
        if differ := sorted(keys ^ test[first]):
            raise ValueError(
                f"sweep arms {first} and {name} differ in {len(differ)} test prompts, such as {differ[0]}: "
                "their models hold prompts of different length; lower recipe.answer_sampling.max_tokens or "
                "data.max_chars"
            )


def _side_by_side(state: State, trainer: Trainer, progress: Progress) -> None:
    """Train, at once as many arms as the empty cluster holds."""
    waiting = []
    for arm in (arm for arm in state.alive() if train.STAGE in arm.stages):
        if known := finished(arm.run, train.STAGE, train.inputs(arm.run)):
            progress.skipped(f"{arm.name}: {train.STAGE.name}", known["counts"])
        else:
            waiting.append(arm)
    if not waiting:
        return
    join(state.sweep.config.cluster)
    room = max(1, min(_fitting(arm) for arm in waiting))
    progress.note(f"training {len(waiting)} arms, {min(room, len(waiting))} at once")

    def one(arm: Arm) -> None:
        with state.at(arm, train.STAGE.name, progress):
            trainer(arm, progress)

    with ThreadPoolExecutor(room) as pool:
        list(pool.map(one, waiting))


def _fitting(arm: Arm) -> int:
    settings = arm.config.train
    return fits(cpus=settings.workers * settings.cpus_per_worker, gpus=settings.workers * settings.gpus_per_worker)


def train_apart(arm: Arm, progress: Progress) -> None:
    """Train in a process of its own on this process's cluster; Ray Train holds one training per process."""
    with ProcessPoolExecutor(1, get_context("spawn")) as pool:
        try:
            pool.submit(_train, arm, address(), progress.heartbeat, progress.console.stderr).result()
        except BrokenProcessPool as error:
            raise RuntimeError(
                f"the process that trained {arm.name} died; its logs are in {arm.run / 'logs'}"
            ) from error


def _train(arm: Arm, cluster: str, heartbeat: float, aside: bool) -> None:
    threading.Thread(target=_end_with_parent, daemon=True).start()
    output = Prefixed(sys.stderr if aside else sys.stdout, f"{arm.name} | ")
    progress = Progress(Console(file=cast(TextIO, output), soft_wrap=True), heartbeat)
    join(ClusterConfig(address=cluster))
    try:
        with locked(arm.run):
            run_stage(arm.run, train.STAGE, progress)
    finally:
        leave()


def _end_with_parent() -> None:
    """A sweep that is killed leaves no training behind: it would hold its arm's directory against the next one."""
    parent = parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


class Prefixed(io.TextIOBase):
    """Lines of several processes in one output."""

    def __init__(self, stream: TextIO, prefix: str) -> None:
        self.stream, self.prefix = stream, prefix

    def write(self, text: str) -> int:
        self.stream.write("".join(f"{self.prefix}{line}" for line in text.splitlines(keepends=True)))
        return len(text)

    def flush(self) -> None:
        self.stream.flush()
