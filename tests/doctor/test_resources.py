"""Memory, disks and limits beside what was stated."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from shard_dist.config.cluster import ClusterConfig, NodesConfig
from shard_dist.doctor.asked import Asked
from shard_dist.doctor.finding import Finding, Level
from shard_dist.doctor.machines import Node
from shard_dist.doctor.resources import GIB, JUDGES, Disk, Machine, disk, look, resources

GOOD = Machine(
    cpus=96,
    memory=1000 * GIB,
    available=900 * GIB,
    shm=64 * GIB,
    open_files=65536,
    tmp=Disk("/tmp", 1000 * GIB, 500 * GIB),
    cache=Disk("/cache", 1000 * GIB, 500 * GIB),
    gpus=8,
)


def judged(there: Machine) -> dict[str, Level]:
    return {finding.check: finding.level for judge in JUDGES if (finding := judge("a", there)).level != Level.ok}


def test_this_machine_can_be_looked_at(tmp_path: Path) -> None:
    there = look(str(tmp_path))
    assert 0 < there.available <= there.memory
    assert 0 < there.cpus <= (os.cpu_count() or 1)
    assert there.tmp.path == str(tmp_path)
    assert disk(str(tmp_path / "not" / "there")).free > 0


@pytest.mark.parametrize(
    ("there", "bad"),
    [
        (GOOD, {}),
        (replace(GOOD, available=50 * GIB), {"memory": Level.warn}),
        (replace(GOOD, open_files=1024), {"open files": Level.warn}),
        (replace(GOOD, open_files=-1), {}),  # unlimited
        (replace(GOOD, shm=64 << 20), {"shared memory": Level.fail}),
        (replace(GOOD, shm=64 << 20, gpus=0), {"shared memory": Level.warn}),
        (replace(GOOD, tmp=Disk("/tmp", 1000 * GIB, 40 * GIB)), {"Ray's disk": Level.fail}),
        (replace(GOOD, tmp=Disk("/tmp", 1000 * GIB, 90 * GIB)), {"Ray's disk": Level.warn}),
        (replace(GOOD, cache=Disk("/cache", 1000 * GIB, GIB)), {"model cache": Level.warn}),
    ],
)
def test_each_lack_is_found_and_nothing_else(there: Machine, bad: dict[str, Level]) -> None:
    assert judged(there) == bad


def cluster_nodes(scripted: Callable[..., Any], wanted: NodesConfig, nodes: list[Node]) -> list[Finding]:
    free = {node.name: Disk("/tmp", 1000 * GIB, 500 * GIB) for node in nodes}
    machines = scripted({look: dict.fromkeys(free, GOOD), disk: free}, nodes=nodes)
    found = resources(machines, Asked(ClusterConfig(nodes=wanted)))
    return [finding for finding in found if finding.check == "cluster.nodes"]


def test_a_head_without_gpus_may_be_beside_the_stated_nodes(scripted: Callable[..., Any]) -> None:
    workers = [Node(f"w{number}", resources={"CPU": 96.0, "GPU": 8.0}) for number in range(2)]
    wanted = NodesConfig(count=2, gpus=8, cpus=96, memory_gib=1000)
    findings = cluster_nodes(scripted, wanted, [Node("head", resources={"CPU": 4.0}), *workers])
    assert [finding.level for finding in findings] == [Level.ok]


def test_too_few_nodes_are_told_with_what_each_lacks(scripted: Callable[..., Any]) -> None:
    nodes = [Node("a", resources={"CPU": 96.0, "GPU": 8.0}), Node("b", resources={"CPU": 96.0, "GPU": 7.0})]
    wanted = NodesConfig(count=2, gpus=8, memory_gib=1100, disk_gib=600)
    findings = cluster_nodes(scripted, wanted, nodes)
    assert all(finding.level == Level.fail for finding in findings)
    assert findings[0].found.startswith("0 of 2 nodes")
    assert findings[2].found == "7 GPUs of 8, 1000 GiB of memory of 1100, 500 GiB free in /tmp of 600"


def test_nothing_stated_is_not_compared(scripted: Callable[..., Any]) -> None:
    assert cluster_nodes(scripted, NodesConfig(), [Node("a")]) == []
