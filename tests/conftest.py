"""Fixtures that more than one room uses. Ray and vLLM are started once for the whole session, and only if asked for."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import count
from pathlib import Path

import pytest
import torch
from hypothesis import settings

ROOT = Path(__file__).parent.parent

if not torch.cuda.is_available():
    # Kernels run in Triton's interpreter, which has to be chosen before Triton is first imported; only in this process:
    # an engine or a worker that inherited the choice would interpret its own kernels too.
    os.environ["TRITON_INTERPRET"] = "1"
    import triton

    triton.knobs.propagate_env = False
    triton.knobs.runtime.interpret = True
    del os.environ["TRITON_INTERPRET"]

# No deadlines: a busy machine is no fault of the code. Timings are benchmarks, never assertions.
settings.register_profile("house", deadline=None)
settings.load_profile("house")


@pytest.fixture(scope="session")
def root() -> Path:
    """The repository."""
    return ROOT


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Real data sets, kept beside the repository and never in it."""
    path = Path(os.environ.get("SHARD_SHARED_DATA", ROOT.parent / "shared" / "data"))
    if not path.is_dir():
        pytest.skip(f"no shared data at {path}; set SHARD_SHARED_DATA")
    return path


@dataclass(frozen=True)
class Ranks:
    """A process group that was launched; what it printed is in the `stderr` of what `wait` returns."""

    output: Path
    done: Path

    def wait(self, timeout: float = 300) -> subprocess.CompletedProcess[str]:
        end = time.monotonic() + timeout
        while not self.done.exists():
            assert time.monotonic() < end, f"the ranks have not ended: {self.output.read_text()[-3000:]}"
            time.sleep(0.02)
        printed = self.output.read_text(errors="replace")
        return subprocess.CompletedProcess([], int(self.done.read_text()), stderr=printed)


@pytest.fixture(scope="session")
def launch(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., Ranks]]:
    """`launch(script, *arguments, ranks=2)`: the script in so many processes, as torchrun starts it, but warm."""
    place, numbers = tmp_path_factory.mktemp("ranks"), count()
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu", "PYTHONWARNINGS": "ignore"}
    command = [sys.executable, str(ROOT / "tests" / "warm_ranks.py")]
    server = subprocess.Popen(command, env=environment, stdin=subprocess.PIPE, text=True, start_new_session=True)
    assert server.stdin is not None
    requests = server.stdin

    def start(script: Path, *arguments: object, ranks: int = 2) -> Ranks:
        number = next(numbers)
        started = Ranks(place / f"{number}.output", place / f"{number}.done")
        started.output.touch()
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        words = {"script": str(script), "arguments": list(map(str, arguments)), "ranks": ranks, "port": port}
        requests.write(json.dumps({**words, "output": str(started.output), "done": str(started.done)}) + "\n")
        requests.flush()
        return started

    yield start
    os.killpg(server.pid, signal.SIGKILL)
    server.wait()


@pytest.fixture(scope="session")
def ray_cluster() -> Iterator[None]:
    """One Ray cluster on this machine."""
    from shard_dist import cluster
    from shard_dist.config.cluster import ClusterConfig

    cluster.join(ClusterConfig(cpus=4))
    yield
    cluster.leave()
