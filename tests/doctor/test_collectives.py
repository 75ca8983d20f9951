"""The all-reduce: its arithmetic, and what is said where it hangs, fails, or is slow somewhere."""

from __future__ import annotations

import itertools
import subprocess
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shard_dist.doctor import collectives as group
from shard_dist.doctor.allreduce import MOST_ROUNDS, bus_bandwidth, rounds
from shard_dist.doctor.collectives import Outcome, cause, environment, free_port, interface, judge, parts, run_ranks
from shard_dist.doctor.finding import Level
from shard_dist.doctor.machines import Node

NODES = [Node(name, f"10.0.0.{number}") for number, name in enumerate("abcde", 1)]


def plan(nodes: int, each: int = 1) -> dict[str, list[Any]]:
    chosen = NODES[:nodes]
    return parts(chosen, {node.name: each for node in chosen}, "gloo", "10.0.0.1:4000")


def measured(pairs: dict[str, float], *, right: bool = True) -> Outcome:
    return Outcome({"right": [right, True], "bandwidth": [0.1, 2.0], "pairs": pairs})


def test_bandwidth_is_that_of_nccl_tests() -> None:
    """Their example: 8 ranks, so 1.75 times the algorithm's bandwidth; 1 GB in 10 ms is 175 GB/s on the bus."""
    assert bus_bandwidth(10**9, 0.01, 8) == pytest.approx(175.0)
    assert bus_bandwidth(10**9, 0.01, 1) == 0.0


@given(st.lists(st.integers(0, 1000), min_size=2, max_size=40, unique=True))
def test_every_pair_meets_once_and_nobody_is_in_two_places(leaders: list[int]) -> None:
    games = rounds(leaders)
    for meeting in games:
        players = [player for pair in meeting for player in pair]
        assert len(players) == len(set(players))
    met = [pair for meeting in games for pair in meeting]
    assert len(met) == len(set(met))
    assert len(games) <= MOST_ROUNDS
    if len(leaders) <= MOST_ROUNDS + 1:
        assert set(met) == {(min(pair), max(pair)) for pair in itertools.combinations(leaders, 2)}


def test_ranks_count_through_the_nodes() -> None:
    shared = plan(3, each=2)
    assert [part.rank for own in shared.values() for part in own] == list(range(6))
    assert {tuple(part.leaders) for own in shared.values() for part in own} == {(0, 2, 4)}
    assert {part.world for own in shared.values() for part in own} == {6}


def test_a_process_has_one_gpu_and_the_clusters_variables() -> None:
    own = environment({"CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": "/x"}, {"NCCL_SOCKET_IFNAME": "ib0"}, 3)
    assert (own["CUDA_VISIBLE_DEVICES"], own["NCCL_SOCKET_IFNAME"], own["NCCL_DEBUG"]) == ("3", "ib0", "WARN")
    assert environment({"CUDA_VISIBLE_DEVICES": "6,7"}, {}, 1)["CUDA_VISIBLE_DEVICES"] == "7"
    assert environment({"CUDA_VISIBLE_DEVICES": "6,7"}, {"NCCL_DEBUG": "INFO"}, None)["NCCL_DEBUG"] == "INFO"


def test_a_hanging_group_ends_as_a_finding_and_leaves_no_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """One of two processes is started, so that it waits for the other; it is ended after a second."""
    alone = plan(2)
    alone["a"] = [group.replace(alone["a"][0], master=f"127.0.0.1:{free_port('127.0.0.1')}", seconds=60.0)]
    started: list[subprocess.Popen[bytes]] = []

    def popen(*words: Any, **settings: Any) -> subprocess.Popen[bytes]:
        started.append(original(*words, **settings))
        return started[-1]

    original = subprocess.Popen
    monkeypatch.setattr(group.subprocess, "Popen", popen)
    [outcome] = run_ranks(alone["a"], False, {}, 1.0)
    assert outcome.found is None
    assert outcome.said.startswith("has not ended in time")
    assert [process.poll() is not None for process in started] == [True]
    findings = judge("gloo", {"a": alone["a"]}, {"a": [outcome]}, {"a": "eth0"})
    assert [finding.level for finding in findings] == [Level.fail]
    assert "GLOO_SOCKET_IFNAME=eth0" in findings[0].todo


def test_the_reason_is_ncclss_own() -> None:
    log = """some banner
node1:123:456 [0] misc/socket.cc:484 NCCL WARN socketStartConnect: Connect to 10.0.0.2<45000> failed : No route to host
[W1121 21:40:13.079 socket.cpp:207] [c10d] The hostname of the client socket cannot be retrieved. err=-3
Traceback (most recent call last):
torch.distributed.DistBackendError: NCCL error in: NCCLUtils.cpp:93, unhandled system error
  more \x1b[31mof it
"""
    said = cause(log)
    assert said.startswith("socketStartConnect: Connect to 10.0.0.2<45000> failed : No route to host; torch.")
    assert said.endswith("unhandled system error")
    assert cause("") == ""


def test_a_wrong_sum_names_its_node() -> None:
    outcomes = {"a": [measured({})], "b": [measured({}, right=False)]}
    [finding] = judge("nccl", plan(2), outcomes, {})
    assert (finding.node, finding.level) == ("b", Level.fail)


def test_right_sums_show_the_slowest_process() -> None:
    slow = Outcome({"right": [True, True], "bandwidth": [0.05, 1.0], "pairs": {}})
    [finding] = judge("gloo", plan(2), {"a": [measured({})], "b": [slow]}, {})
    assert finding.level == Level.ok
    assert finding.found.endswith("bus bandwidth 0.05 GB/s at 64 KiB and 1 GB/s at 8,192 KiB")


def rates(slow: set[frozenset[int]], nodes: int = 5) -> dict[str, list[Outcome]]:
    return {
        NODES[one].name: [
            measured({str(two): 0.5 if frozenset((one, two)) in slow else 5.0 for two in range(nodes) if two != one})
        ]
        for one in range(nodes)
    }


def test_only_pairs_far_below_the_others_are_warned_of() -> None:
    assert len(judge("gloo", plan(5), rates(set()), {})) == 1
    warned = judge("gloo", plan(5), rates({frozenset((1, 3))}), {})[1:]
    assert [(finding.level, "b and d exchange" in finding.found) for finding in warned] == [(Level.warn, True)]
    node = judge("gloo", plan(5), rates({frozenset((2, other)) for other in (0, 1, 3, 4)}), {})[1:]
    assert ["c and every other node" in finding.found for finding in node] == [True]


def test_the_interface_of_an_address_is_named() -> None:
    assert interface("127.0.0.1") == "lo"
    assert interface("203.0.113.7") == ""


def test_the_package_of_the_program_is_on_its_path(tmp_path: Path) -> None:
    path = environment({"PYTHONPATH": "/x"}, {}, None)["PYTHONPATH"].split(":")
    assert (Path(path[0]) / "shard_dist" / "doctor" / "allreduce.py").is_file()
    assert path[1:] == ["/x"]
