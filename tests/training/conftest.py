"""Shared parts of the training tests: a tiny model on disk, and ranks of a training."""

from __future__ import annotations

import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))  # tests are no package; `tiny` lies beside them


@pytest.fixture(scope="session")
def tiny() -> ModuleType:
    import tiny

    return tiny


@pytest.fixture(scope="session")
def base_model(tmp_path_factory: pytest.TempPathFactory, tiny: ModuleType) -> Path:
    return tiny.save_model(tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="session")
def run_ranks(launch: Callable[..., Any]) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Run a job on its workers; `die_after` kills the first rank after that step. Returns the finished process."""

    def run(job: Any, die_after: int | None = None, ranks: int = 2) -> subprocess.CompletedProcess[str]:
        path = Path(job.metrics_file).with_name("job.pickle")
        path.write_bytes(pickle.dumps(job))
        done: subprocess.CompletedProcess[str]
        done = launch(HERE / "rank.py", path, *([die_after] if die_after else []), ranks=ranks).wait()
        return done

    return run


@pytest.fixture(scope="session")
def plain_training(tiny: ModuleType) -> Callable[..., tuple]:
    """The same training in plain torch on one process."""
    return tiny.plain_training
