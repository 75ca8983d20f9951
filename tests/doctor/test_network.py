"""Clocks, ports and who may use the cluster."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Mapping
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shard_dist.doctor.asked import Asked
from shard_dist.doctor.finding import Level
from shard_dist.doctor.machines import Node
from shard_dist.doctor.network import (
    access,
    authentication,
    clocks,
    connect,
    judge_access,
    judge_clock,
    listen,
    offset,
    ports,
)


@given(
    st.floats(-1e6, 1e6),
    st.lists(st.tuples(st.floats(0, 5), st.floats(0, 5)), min_size=1),
)
def test_an_offset_is_never_further_off_than_it_says(ahead: float, ways: list[tuple[float, float]]) -> None:
    """Whatever the two ways take, half the round trip bounds the error (RFC 5905)."""
    samples = [(1e6, 1e6 + there + ahead, 1e6 + there + back) for there, back in ways]
    found, unsure = offset(samples)
    assert abs(found - ahead) <= unsure + 1e-6
    assert unsure == pytest.approx(min(there + back for there, back in ways) / 2, abs=1e-6)


@pytest.mark.parametrize(("ahead", "level"), [(0.4, Level.ok), (-3.0, Level.warn), (3600.0, Level.fail)])
def test_a_skewed_clock_is_found(scripted: Callable[..., Any], ahead: float, level: Level) -> None:
    machines = scripted({}, "abc")
    machines.ask = lambda function, calls, seconds: {
        name: time.time() + (ahead if name == "c" else 0.0) for name in calls
    }
    found = {finding.node: finding for finding in clocks(machines, Asked())}
    assert {name: finding.level for name, finding in found.items()} == {"a": Level.ok, "b": Level.ok, "c": level}
    assert ("behind" in found["c"].found) == (ahead < -1)


def test_a_slow_answer_is_no_skew() -> None:
    """1.5 s of difference in a round trip of 4 s prove nothing; in one of 0.2 s they do."""
    assert offset([(0.0, 1.5, 4.0)]) == (-0.5, 2.0)
    assert judge_clock("a", -1.5, 2.0).level == Level.ok
    assert judge_clock("a", -1.5, 0.1).level == Level.warn


def test_a_port_that_speaks_is_open_and_one_that_is_somebody_elses_is_not() -> None:
    port = listen("127.0.0.1", "word")
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        shut = closed.getsockname()[1]
        targets = [("a", "127.0.0.1", port, "word"), ("b", "127.0.0.1", port, "else"), ("c", "127.0.0.1", shut, "")]
        found = connect(targets, 2.0)
    assert (found["a"], found["b"], found["c"]) == ("", "somebody else answers there", "Connection refused")


def test_a_firewall_on_one_node_is_told_in_both_directions(scripted: Callable[..., Any]) -> None:
    def ask(function: Callable[..., Any], calls: Mapping[str, Any], seconds: float) -> dict[str, Any]:
        if function is listen:
            return dict.fromkeys(calls, 40000)
        closed = {label: "timed out" if name == "b" else "" for name in calls for label, *_ in calls[name][0]}
        back = {label: "timed out" if label == "b" else "" for label, *_ in calls.get("a", [[]])[0]}
        return {name: back if set(calls) == {"a"} else {k: closed[k] if name == "b" else "" for k in closed}
                for name in calls}  # fmt: skip

    found = ports(scripted({}, gcs="10.0.0.1:6379", ask=ask), Asked())
    assert [(finding.node, finding.level) for finding in found] == [("a", Level.ok), ("b", Level.fail)]
    assert found[1].found == (
        "port 40000 of a: timed out; Ray's port 6379 of a: timed out; from a to port 40000 there: timed out"
    )


def test_one_machine_has_no_ways_to_others(scripted: Callable[..., Any]) -> None:
    assert ports(scripted({}, "a"), Asked()) == []
    assert clocks(scripted({}, "a"), Asked()) == []


@pytest.mark.parametrize(
    ("mode", "dashboard", "level", "word"),
    [
        ("token", "0.0.0.0:8265", Level.ok, ""),
        ("", "127.0.0.1:8265", Level.warn, "off"),
        ("disabled", "10.0.0.1:8265", Level.warn, "dashboard listens on 10.0.0.1:8265"),
        ("", "[::1]:8265", Level.warn, "off"),
    ],
)
def test_an_open_cluster_is_warned_of(mode: str, dashboard: str, level: Level, word: str) -> None:
    finding = judge_access("a", mode, dashboard)
    assert finding.level == level
    assert word in finding.found
    assert ("for everyone" in finding.found) == (level != Level.ok and dashboard.startswith("10."))


def test_access_is_asked_on_every_node_of_a_cluster_only(scripted: Callable[..., Any]) -> None:
    answers = {authentication: {"a": "token", "b": ""}}
    assert [finding.level for finding in access(scripted(answers, gcs="h:1"), Asked())] == [Level.ok, Level.warn]
    assert access(scripted(answers), Asked()) == []
    assert Node("a").resources == {}
