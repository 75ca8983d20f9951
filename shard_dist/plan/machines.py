"""The machines that a plan is for: `cluster.nodes` of the configuration, else this machine. No cluster is asked."""

from __future__ import annotations

import os
from dataclasses import replace

from shard_dist.cluster import LEAST_CPUS
from shard_dist.config.cluster import NodesConfig
from shard_dist.config.schema import Config
from shard_dist.engines.placement import Node
from shard_dist.plan.account import GIB

# A count that limits nothing, where nobody stated how many CPUs a node has.
UNLIMITED_CPUS = 1e6


def with_machines(config: Config) -> tuple[Config, str]:
    """The configuration with `cluster.nodes` filled in, and where they come from, in words.

    Raises ValueError where nothing is stated and this machine cannot stand in for what the configuration wants.
    """
    nodes = config.cluster.nodes
    if nodes.count:
        return config, "stated"
    if nodes != NodesConfig():
        raise ValueError("cluster.nodes.count is not stated, though other facts of cluster.nodes are; set it")
    found = _this_machine(config)
    return replace(config, cluster=replace(config.cluster, nodes=found)), "this machine"


def _this_machine(config: Config) -> NodesConfig:
    # As cluster.join starts Ray here.
    cpus = config.cluster.cpus or max(os.cpu_count() or 1, LEAST_CPUS)
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / GIB
    here = NodesConfig(count=1, cpus=cpus, memory_gib=memory)
    if not config.train.gpus_per_worker:
        return here
    import torch  # seconds: only where it can tell more

    if not torch.cuda.is_available():
        raise ValueError(
            "cluster.nodes is not stated and this machine has no GPU: say what the cluster's nodes are, by "
            "--cluster configs/clusters/h100_1x8.yaml or by cluster.nodes.count=1 cluster.nodes.gpus=8 "
            "cluster.nodes.gpu_memory_gib=79.6"
        )
    gpu = torch.cuda.get_device_properties(0)
    return replace(here, gpus=torch.cuda.device_count(), gpu=gpu.name, gpu_memory_gib=gpu.total_memory / GIB)


def nodes_of(nodes: NodesConfig) -> list[Node]:
    """The nodes as `engines/placement.py` wants them."""
    resources = {"CPU": float(nodes.cpus or UNLIMITED_CPUS), **({"GPU": float(nodes.gpus)} if nodes.gpus else {})}
    return [Node(f"node-{number}", resources) for number in range(1, nodes.count + 1)]


def places(nodes: NodesConfig, *, cpus: float, gpus: float) -> int:
    """How many processes of this size the machines hold; each stays on one node."""
    have = ((nodes.cpus or UNLIMITED_CPUS, cpus), (nodes.gpus, gpus))
    return nodes.count * min(int(amount / each + 1e-9) for amount, each in have if each)
