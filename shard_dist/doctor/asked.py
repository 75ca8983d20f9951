"""What the examination is for: a configuration, a cluster's description, or nothing but this machine."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from shard_dist.config.cluster import ClusterConfig
from shard_dist.config.load import include, load_config, override
from shard_dist.config.schema import Backend, Config


@dataclass(frozen=True)
class Asked:
    """`storage` is the directory that runs are kept in, absolute; `config` is None where no run is meant."""

    cluster: ClusterConfig = field(default_factory=ClusterConfig)
    storage: str = ""
    config: Config | None = None

    @property
    def needs_vllm(self) -> bool:
        return self.config is not None and any(model.backend == Backend.vllm for model in self.config.models.values())


def read(words: Sequence[str], cluster_file: Path | None = None, address: str = "") -> Asked:
    """From `[CONFIG.yaml] [key=value ...]`, a cluster's file (over CONFIG) and an address (over both).

    Without CONFIG the settings may only be those of `cluster`. Raises ValueError.
    """
    config = None
    if words and "=" not in words[0]:
        config = load_config(words[0], words[1:], cluster_file)
        cluster = config.cluster
    else:
        cluster = _described(words, cluster_file)
    address = address or cluster.address or os.environ.get("RAY_ADDRESS", "")
    runs = Path(config.run.dir).absolute().parent if config else Path.cwd()
    return Asked(replace(cluster, address=address), cluster.storage.path or str(runs), config)


def _described(words: Sequence[str], file: Path | None) -> ClusterConfig:
    """Of a cluster's file and settings alone."""
    tree: Any = OmegaConf.structured(Config)
    tree = include(tree, file) if file else tree
    for word in words:
        if not word.startswith("cluster."):
            raise ValueError(f"{word!r}: without a configuration only settings of cluster have an effect")
        tree = override(tree, word)
    cluster = OmegaConf.to_object(tree.cluster)
    assert isinstance(cluster, ClusterConfig)
    return cluster
