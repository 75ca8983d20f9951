"""Fixtures that more than one room uses. Ray and vLLM are started once for the whole session, and only if asked for."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

ROOT = Path(__file__).parent.parent

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
