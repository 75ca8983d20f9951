"""A recipe from prompts to a trained model: the seed model behind one real vLLM server, and real ZeRO-3."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from shard_dist.config.load import load_config
from shard_dist.config.schema import Backend, ModelConfig
from shard_dist.progress import Progress
from shard_dist.rundir import Run, Stage, open_run, run_stage
from shard_dist.stages import generate, prompts, select, train
from shard_dist.training import __main__
from shard_dist.training.job import write_job

SeedRun = Callable[..., Run]
# 30 prompts to train on, 6 and 12 for validation and test; answers of a few words; two steps.
SMALL = (
    "data.sources[0].limit=48",
    "data.split={val: 0.2, test: 0.3}",
    "recipe.guideline_sampling.max_tokens=48",
    "recipe.answer_sampling.max_tokens=64",
    "select.keep_benign_ties=true",
    "tracking.wandb=disabled",
    "train={epochs: 1, workers: 1, global_batch_size: 16, micro_batch_size: 4, checkpoint_every: 100, eval_every: 0}",
)


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port: int = found.getsockname()[1]
        return port


@pytest.fixture(scope="session")
def seed_server(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ModelConfig]:
    """The demo's seed model behind vLLM's OpenAI-compatible server."""
    seed_model, port = root / "shard_dist" / "demo" / "seed_model", free_port()
    log = tmp_path_factory.mktemp("server") / "log"
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(seed_model)]
    command += ["--host", "127.0.0.1", "--port", str(port), "--max-model-len", "1024", "--max-num-seqs", "32"]
    command += ["--enforce-eager", "--no-enable-chunked-prefill", "--disable-log-stats"]
    environment = {**os.environ, "VLLM_CPU_KVCACHE_SPACE": "1"}
    address = f"http://127.0.0.1:{port}"
    with log.open("w") as stream:
        server = subprocess.Popen(command, env=environment, stdout=stream, stderr=stream, start_new_session=True)
        while server.poll() is None and not answers(f"{address}/health"):
            time.sleep(0.5)
        assert server.poll() is None, log.read_text()[-4000:]
        yield ModelConfig(Backend.http, str(seed_model), base_url=f"{address}/v1", api_key_env="", window=32)
        os.killpg(server.pid, signal.SIGKILL)  # vLLM's engine core, too
        server.wait()


def answers(address: str) -> bool:
    try:
        with urllib.request.urlopen(address, timeout=5) as reply:
            return bool(reply.status == 200)
    except (urllib.error.URLError, OSError):
        return False


@pytest.fixture
def train_stage(launch: Callable[..., Any]) -> Stage:
    """The stage `train` as torchrun has it, on one process: no Ray."""

    def work(run: Run, progress: Progress) -> dict[str, Any]:
        train.leaks(run, train.test_prompts(run))
        write_job(run / "train_job.json", train.job_of(run))
        done = launch(Path(__main__.__file__), run / "train_job.json", ranks=1).wait()
        assert done.returncode == 0, done.stderr[-3000:]
        return {}

    return replace(train.STAGE, work=work)


@pytest.fixture
def seed_run(
    root: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    ray_cluster: None,
    seed_server: ModelConfig,
    train_stage: Stage,
) -> SeedRun:
    """`seed_run(recipe, "key=value", ...)`: the run of a recipe on a part of the demo's prompts, up to its model.

    Every role of `models` is the seed model, further ones are added by `roles=("teacher",)`.
    """
    monkeypatch.chdir(root)

    def run_recipe(recipe: str, *settings: str, roles: tuple[str, ...] = ()) -> Run:
        words = [f"models.{role}.model={seed_server.model}" for role in roles]
        place = f"run.dir={tmp_path / 'run'}"
        config = load_config("configs/demo.yaml", [f"recipe.name={recipe}", place, *words, *SMALL, *settings])
        # The command line refuses a student behind http: it has no weights to train. This one has: `model` is a folder.
        told = {role: spec.chat_template_kwargs for role, spec in config.models.items()}  # makes a role another model
        models = {role: replace(seed_server, chat_template_kwargs=values) for role, values in told.items()}
        config = replace(config, models=models)
        for stage in (generate.STAGE, select.STAGE):
            stage.check(config)
        run, progress = open_run(config), Progress(Console(quiet=True), 60)
        for stage in (prompts.STAGE, generate.STAGE, select.STAGE, train_stage):
            run_stage(run, stage, progress)
        return run

    return run_recipe
