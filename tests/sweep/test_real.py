"""The command from a sweep's file to its page: real Ray, real ZeRO-3 side by side, fake engines, a kill in between."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import psutil
import pytest

from shard_dist.artefacts import read_json
from shard_dist.ledger.store import Ledger

pytestmark = [pytest.mark.ray, pytest.mark.zero, pytest.mark.e2e, pytest.mark.timeout(1800)]

MAIN = "from shard_dist.cli import main; main()"
SMALL = (
    "models.student.model=shard_dist/demo/seed_model",
    "data.sources[0].limit=60",
    "data.split.test=0.3",
    "train.epochs=1",
    "train.workers=1",
)


def started(root: Path, *words: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-W", "ignore", "-c", MAIN, "sweep", *words]
    return subprocess.Popen(command, cwd=root, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def gone(processes: list[psutil.Process]) -> bool:
    """Whether none of them runs within a minute."""
    return not psutil.wait_procs(processes, timeout=60)[1]


def test_a_sweep_that_is_killed_while_it_trains_ends_as_if_it_had_not_been(
    sweep_file: Callable[..., Path], root: Path, tmp_path: Path
) -> None:
    recipes = {"self": {"recipe.generator": "student"}, "teacher": {"recipe.generator": "teacher"}}
    words = [str(sweep_file({"axes": {"recipe": recipes}})), *SMALL]
    home = tmp_path / "sweep"
    first = started(root, *words)
    while first.poll() is None and not list(home.glob("arms/*/train_job.json")):
        time.sleep(0.2)
    assert first.poll() is None, first.communicate()[0]
    trainings = [child for child in psutil.Process(first.pid).children() if "spawn_main" in " ".join(child.cmdline())]
    first.send_signal(signal.SIGKILL)
    first.wait()
    assert trainings
    assert gone(trainings)
    second = started(root, *words)
    said = second.communicate()[0]
    assert second.returncode == 0, said
    assert "2 of 2 arms done" in said
    state = read_json(home / "sweep.json")
    assert {arm["state"] for arm in state["arms"].values()} == {"done"}
    with closing(Ledger(home / "ledger")) as ledger:
        assert ledger.stats.entries == ledger.stats.lines > 0
    assert (home / "report" / "index.html").is_file()
    dry = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", MAIN, "sweep", *words, "--dry-run", "--json"],
        cwd=root, capture_output=True, text=True, check=True, env={**os.environ},
    )  # fmt: skip
    found = json.loads(dry.stdout)
    assert found["total"]["new"] == 0
    assert [arm["to_do"] for arm in found["arms"]] == [[], []]
