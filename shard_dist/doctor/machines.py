"""The machines under examination: functions are run on each of them, and no answer is waited for without end."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from shard_dist.doctor.finding import Finding, Level


@dataclass(frozen=True)
class NoAnswer:
    """Why a machine gave none: an error of the function, or its silence."""

    why: str


@dataclass(frozen=True)
class Node:
    """A machine: its address, and what Ray hands out there (CPU, GPU); `problem` where nothing can be run on it."""

    name: str
    address: str = ""
    resources: Mapping[str, float] = field(default_factory=dict)
    problem: str = ""


class Machines(Protocol):
    """`nodes` that answer, the driver's first, and `silent` ones. Addresses are host:port, "" where there is none.

    `temp` is the directory of Ray's session on every node.
    """

    nodes: Sequence[Node]
    silent: Sequence[Node]
    gcs: str
    dashboard: str
    temp: str

    def ask(self, function: Callable[..., Any], calls: Mapping[str, tuple[Any, ...]], seconds: float) -> dict[str, Any]:
        """Run `function` on each named node with its arguments, all at once: name -> what it returned, or NoAnswer."""


class Here:
    """This machine alone, without Ray."""

    gcs = dashboard = temp = ""
    silent: Sequence[Node] = ()

    def __init__(self) -> None:
        self.nodes: Sequence[Node] = (Node(socket.gethostname(), "127.0.0.1"),)

    def ask(self, function: Callable[..., Any], calls: Mapping[str, tuple[Any, ...]], seconds: float) -> dict[str, Any]:
        return {name: _within(seconds, function, arguments) for name, arguments in calls.items()}


def _within(seconds: float, function: Callable[..., Any], arguments: tuple[Any, ...]) -> Any:
    """What it returns. A thread that hangs (a dead file server) is left behind: it ends with this process."""
    answer: list[Any] = []

    def run() -> None:
        try:
            answer.append(function(*arguments))
        except Exception as error:
            answer.append(NoAnswer(reason(error)))

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(seconds)
    return answer[0] if answer else NoAnswer(f"no answer within {seconds:g} s")


def reason(error: Exception) -> str:
    """The last line of an error that came from another process is the error itself; what is above it is its trace."""
    lines = [line for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__


def everywhere(machines: Machines, *arguments: Any) -> dict[str, tuple[Any, ...]]:
    """The same call on every node."""
    return {node.name: arguments for node in machines.nodes}


def answered(check: str, answers: Mapping[str, Any]) -> tuple[dict[str, Any], list[Finding]]:
    """The answers, and a finding for each node that gave none."""
    good = {name: answer for name, answer in answers.items() if not isinstance(answer, NoAnswer)}
    todo = "see why on that node: a file server that hangs, a process out of memory, a lost network"
    bad = [
        Finding(check, name, Level.fail, f"could not be checked: {answer.why}", todo)
        for name, answer in answers.items()
        if isinstance(answer, NoAnswer)
    ]
    return good, bad
