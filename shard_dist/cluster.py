"""Joining a Ray cluster, or starting one on this machine."""

from __future__ import annotations

import logging
import os
import secrets
import warnings
from collections.abc import Sequence
from pathlib import Path

import ray

from shard_dist.config.cluster import ClusterConfig

# Logical CPUs of a cluster on this machine, at least: two training processes are placed on a laptop of one core too.
LEAST_CPUS = 4


def join(config: ClusterConfig, packages: Sequence[Path] = ()) -> None:
    """Have a Ray cluster from now on, unless there is one. Raises ValueError where the named one is not there.

    `packages` are sent to the nodes of a cluster that is joined, whose processes then import these.
    """
    if ray.is_initialized():
        return
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    address = config.address or os.environ.get("RAY_ADDRESS", "")
    if address:
        if config.cpus:
            warnings.warn("cluster.cpus has no effect on a cluster that is joined", stacklevel=2)
        try:
            sent = {"py_modules": [str(package) for package in packages]} if packages else None
            ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR, runtime_env=sent)
        except ConnectionError as error:
            raise ValueError(f"cluster.address: no Ray cluster at {address!r}: {error}") from error
        return
    # Whoever reaches a cluster's ports can run code on it. Ray 2.60 turns token authentication on for clusters that it
    # starts; a token of this run's own keeps Ray from writing one into the home directory.
    os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
    cpus = config.cpus or max(os.cpu_count() or 1, LEAST_CPUS)
    ray.init(address="local", num_cpus=cpus, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)


def nodes() -> list[tuple[str, dict[str, float]]]:
    """Name and all resources, in use or not, of every node that is alive."""
    return [
        (f"{node['NodeManagerAddress']} ({node['NodeID'][:6]})", dict(node["Resources"]))
        for node in ray.nodes()
        if node["Alive"]
    ]


def require(what: str, *, cpus: float, gpus: float) -> None:
    """Raise ValueError where the whole cluster, empty, has less: Ray would wait for ever without a word."""
    have = ray.cluster_resources()
    for name, needed in (("CPU", cpus), ("GPU", gpus)):
        if have.get(name, 0) < needed:
            raise ValueError(f"{what} needs {needed:g} {name}s; the cluster has {have.get(name, 0):g}")


def fits(*, cpus: float, gpus: float) -> int:
    """How many such shares the whole cluster, empty, has."""
    have = ray.cluster_resources()
    shares = [have.get(name, 0) // each for name, each in (("CPU", cpus), ("GPU", gpus)) if each]
    return int(min(shares, default=1))


def address() -> str:
    """host:port of the cluster, for other processes of ours to join."""
    found: str = ray.get_runtime_context().gcs_address
    return found


def leave() -> None:
    """Leave the cluster; one that `join` started ends."""
    ray.shutdown()
