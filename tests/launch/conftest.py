"""Configurations with a described cluster, for every test of `launch/`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from shard_dist.config.load import override
from shard_dist.config.schema import Config, DataConfig, RunConfig
from shard_dist.submit.targets import write

CLUSTER = {
    "nodes": {"count": 3, "gpus": 8, "cpus": 96, "memory_gib": 1500},
    "storage": {"path": "/shared"},
    "launch": {
        "image": "registry.example/shard_dist:gpu",
        "kuberay": {"claim": "shared"},
        "provider": {"type": "local", "head_ip": "10.0.0.1", "worker_ips": ["10.0.0.2", "10.0.0.3"]},
    },
}


@pytest.fixture(scope="session")
def written(root: Path) -> Callable[..., str]:
    """`written(target, *settings, overrides=(), config=...)`: what `write` makes of that cluster so changed."""
    blank = Config(run=RunConfig(name="demo", dir="/shared/runs/demo"), data=DataConfig(sources=[]), models={})
    described = OmegaConf.merge(OmegaConf.structured(blank), {"cluster": CLUSTER})

    def fill(
        target: str, *settings: str, overrides: tuple[str, ...] = (), config: Path = root / "configs/demo.yaml"
    ) -> str:
        tree = described
        for word in settings:
            tree = override(tree, word)
        return write(config, overrides, OmegaConf.to_object(tree), target)

    return fill
