"""The checks of a cluster on a real Ray."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
import ray

from shard_dist import cluster
from shard_dist.config.cluster import ClusterConfig, NodesConfig
from shard_dist.doctor.asked import Asked
from shard_dist.doctor.cluster import Cluster
from shard_dist.doctor.examine import examine
from shard_dist.doctor.finding import Level
from shard_dist.doctor.machines import NoAnswer

pytestmark = pytest.mark.ray


@pytest.mark.usefixtures("ray_cluster")
def test_every_check_runs_on_a_cluster_and_leaves_it_as_it_was(tmp_path: Path) -> None:
    settings = ClusterConfig(address=cluster.address(), nodes=NodesConfig(count=2))
    report = examine(Asked(settings, str(tmp_path)))
    levels = {finding.check: finding.level for finding in report.findings}
    assert levels.pop("cluster.nodes") == Level.fail  # one node, not two
    # Warnings are the machine's own affair: its disks and its load.
    assert not [finding for finding in report.findings if finding.check in levels and finding.level == Level.fail]
    assert {"nodes", "versions", "libraries load", "shared storage", "rename", "access", "all-reduce"} <= set(levels)
    assert ray.is_initialized()
    assert not list(tmp_path.iterdir())


@pytest.mark.usefixtures("ray_cluster")
def test_an_actor_that_hangs_or_fails_is_no_answer() -> None:
    machines = Cluster(ClusterConfig(address=cluster.address()))
    name = machines.nodes[0].name
    assert machines.ask(time.sleep, {name: (60,)}, 0.1)[name] == NoAnswer("no answer within 0.1 s")
    failed = machines.ask(int, {name: ("x",)}, 10)[name]
    assert "invalid literal" in failed.why
    machines.close()


def test_an_address_of_the_job_server_is_told_what_to_do() -> None:
    with pytest.raises(ValueError, match="ray job submit --address http://head:8265 -- shard-dist doctor"):
        Cluster(ClusterConfig(address="http://head:8265"))
