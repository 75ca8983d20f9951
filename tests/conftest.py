"""Fixtures that more than one room uses. Ray and vLLM are started once for the whole session, and only if asked for."""

from __future__ import annotations

import os
from collections.abc import Iterator
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


@pytest.fixture(scope="session")
def ray_cluster() -> Iterator[None]:
    """One Ray cluster on this machine."""
    from shard_dist import cluster
    from shard_dist.config.schema import ClusterConfig

    cluster.join(ClusterConfig(cpus=4))
    yield
    cluster.leave()
