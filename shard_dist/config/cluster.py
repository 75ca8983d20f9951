"""The settings of a cluster: `cluster` of the configuration, one docstring line under every field.

A run reads address, cpus, boots_at_once and wait_for_nodes. The rest describes machines: `plan` reckons with it,
`submit` and `doctor` start and check them by it. None of it decides a result.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from shard_dist.config.launch import LaunchConfig


@dataclass
class NodesConfig:
    count: int = 0
    """Nodes of this kind; 0: not stated."""
    gpus: int = 0
    """GPUs of a node."""
    gpu: str = ""
    """The GPU's name, for people: H100 SXM 80 GB."""
    gpu_memory_gib: float = 0.0
    """Memory of a GPU, as nvidia-smi states it: 79.6 for an H100 of 80 GB."""
    gpu_tflops: float = 0.0
    """Dense bf16 peak of a GPU in TFLOP/s, from its data sheet."""
    gpu_bandwidth: float = 0.0
    """Memory bandwidth of a GPU in TB/s, from its data sheet."""
    cpus: int = 0
    """CPUs of a node."""
    memory_gib: float = 0.0
    """CPU memory of a node."""
    disk_gib: float = 0.0
    """Free space on a node's own disk, for what is offloaded to nvme."""


@dataclass
class StorageConfig:
    path: str = ""
    """Directory that every node sees, at the same path: runs, ledgers and models live there."""
    size_gib: float = 0.0
    """Free space there; 0: not stated."""


@dataclass
class SpeedConfig:
    generation_tokens_per_gpu_second: float = 0.0
    """Completion tokens per GPU and second, measured; 0: reckoned from the GPU's bandwidth and bandwidth_share."""
    training_tokens_per_gpu_second: float = 0.0
    """Tokens per GPU and second in training, measured; 0: reckoned from the GPU's peak and mfu."""
    mfu: float = 0.35
    """Share of the GPU's peak that training reaches, where nothing was measured."""
    bandwidth_share: float = 0.5
    """Share of the GPU's memory bandwidth that decoding reaches, where nothing was measured."""
    gpu_hour: float = 0.0
    """Price of an hour of one GPU, in any currency; 0: no costs are stated."""


@dataclass
class ClusterConfig:
    address: str = ""
    """Ray cluster to join ("auto" or host:port); empty: RAY_ADDRESS if set, else a cluster on this machine."""
    cpus: int = 0
    """CPUs of the cluster on this machine; 0: all of them. No effect where a cluster is joined."""
    boots_at_once: int = 0
    """Engines that may load at the same time, over the whole cluster; 0: two per node."""
    wait_for_nodes: float = 0
    """Seconds to wait for nodes to join before saying that the cluster lacks something (autoscaling clusters)."""
    nodes: NodesConfig = field(default_factory=NodesConfig)
    """What a node has."""
    storage: StorageConfig = field(default_factory=StorageConfig)
    """Where runs are kept."""
    speed: SpeedConfig = field(default_factory=SpeedConfig)
    """What is known of its speed and price."""
    launch: LaunchConfig = field(default_factory=LaunchConfig)
    """How its nodes are started."""
