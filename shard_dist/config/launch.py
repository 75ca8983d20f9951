"""How a cluster's nodes are started: `cluster.launch` of the configuration, one docstring line under every field."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass
class SlurmConfig:
    partition: str = ""
    """Partition; empty: the site's default."""
    account: str = ""
    """Account that pays; empty: the user's default."""
    time: str = "24:00:00"
    """Wall-clock limit."""
    options: list[str] = field(default_factory=list)
    """Further #SBATCH options, each as it would stand there: --qos=high, --exclusive."""


@dataclass
class KubeRayConfig:
    namespace: str = "default"
    """Kubernetes namespace."""
    service_account: str = ""
    """Service account of the pods; empty: the namespace's default."""
    claim: str = ""
    """PersistentVolumeClaim (ReadWriteMany) that is mounted at cluster.storage.path."""
    secret: str = ""
    """Kubernetes Secret whose keys become environment variables: HF_TOKEN and the like."""
    node_selector: dict[str, str] = field(default_factory=dict)
    """Labels of the nodes that workers go to."""


@dataclass
class LaunchConfig:
    python: str = ""
    """Interpreter on the nodes that has shard_dist's dependencies, absolute; empty: the one that Ray itself runs in."""
    image: str = ""
    """Container image (docker/Dockerfile) for kuberay and ray-launcher; for slurm, where nodes have Apptainer."""
    environment: dict[str, str] = field(default_factory=dict)
    """Environment variables of every process. No secrets: they would stand in manifests and job descriptions."""
    setup: list[str] = field(default_factory=list)
    """Shell lines that each node runs before Ray starts: module load cuda, source /shared/venv/bin/activate."""
    slurm: SlurmConfig = field(default_factory=SlurmConfig)
    """For submit --target slurm."""
    kuberay: KubeRayConfig = field(default_factory=KubeRayConfig)
    """For submit --target kuberay."""
    provider: dict[str, Any] = field(default_factory=dict)
    """For submit --target ray-launcher: the provider section of Ray's cluster launcher (type, region, ...)."""
    auth: dict[str, Any] = field(default_factory=dict)
    """For the same: how its nodes are logged in to (ssh_user, ssh_private_key)."""
    node_config: dict[str, Any] = field(default_factory=dict)
    """For the same, but for the provider `local`: the provider's words for a node (InstanceType, ...)."""
