"""Shared parts of the training tests: a tiny model on disk, and two ranks under torchrun."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

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
def torchrun() -> Callable[..., subprocess.CompletedProcess[str]]:
    """Run a job on its workers; `die_after` kills the first rank after that step. Returns the finished process."""

    def run(job: object, die_after: int | None = None, ranks: int = 2) -> subprocess.CompletedProcess[str]:
        path = Path(job.metrics_file).with_name("job.pickle")
        path.write_bytes(pickle.dumps(job))
        launcher = [
            sys.executable,
            "-m",
            "torch.distributed.run",
            "--standalone",
            f"--nproc-per-node={ranks}",
        ]
        arguments = [str(HERE / "rank.py"), str(path), *([str(die_after)] if die_after else [])]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        command = [*launcher, *arguments]
        return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)

    return run


@pytest.fixture(scope="session")
def plain_training(tiny: ModuleType) -> Callable[..., tuple]:
    """The same training in plain torch on one process."""
    return tiny.plain_training
