"""Between the nodes: clocks that agree, ports that are open, and who may use the cluster."""

from __future__ import annotations

import os
import secrets
import socket
import threading
import time
from collections.abc import Sequence
from contextlib import closing

from shard_dist.doctor.asked import Asked
from shard_dist.doctor.finding import Finding, Level
from shard_dist.doctor.machines import Machines, NoAnswer, answered, everywhere

SKEWED, BROKEN = 1.0, 10.0  # seconds between clocks: file times and log lines mislead; tokens and certificates fail
ROUNDS = 5
OPEN = 60.0  # seconds that a listener waits
Target = tuple[str, str, int, str]


def clocks(machines: Machines, asked: Asked) -> list[Finding]:
    """Every node's clock against the driver process's."""
    findings = [judge_clock(node.name, 0, 0) for node in machines.nodes[:1] if len(machines.nodes) > 1]
    for node in machines.nodes[1:]:
        samples: list[tuple[float, float, float]] = []
        while len(samples) < ROUNDS:
            sent = time.time()
            there, silent = answered("clocks", machines.ask(time.time, {node.name: ()}, 10))
            if silent:
                findings += silent
                break
            samples.append((sent, there[node.name], time.time()))
        else:
            findings.append(judge_clock(node.name, *offset(samples)))
    return findings


def offset(samples: Sequence[tuple[float, float, float]]) -> tuple[float, float]:
    """Seconds that a clock is ahead and how sure that is, from (sent, its time, received), as NTP reckons (RFC 5905).

    The shortest round trip decides: half of it is the most that the answer can be wrong.
    """
    sent, there, received = min(samples, key=lambda sample: sample[2] - sample[0])
    return there - (sent + received) / 2, (received - sent) / 2


def judge_clock(node: str, ahead: float, unsure: float) -> Finding:
    distance = abs(ahead)
    where = "ahead of" if ahead > 0 else "behind"
    if distance - unsure < SKEWED:
        return Finding("clocks", node, Level.ok, f"within {SKEWED:g} s of the driver's")
    text = f"{distance:,.3g} s {where} the driver's clock (give or take {unsure:.3f})"
    level = Level.fail if distance - unsure >= BROKEN else Level.warn
    return Finding("clocks", node, level, text, "run chrony or systemd-timesyncd on every node (timedatectl)")


def listen(address: str, word: str) -> int:
    """A port that says `word` to whoever connects, for a minute at most."""
    server = socket.create_server((address, 0), backlog=256)
    server.settimeout(OPEN)

    def serve() -> None:
        with server:
            try:
                while True:
                    stream, _ = server.accept()
                    with stream:
                        stream.sendall(word.encode())
            except OSError:  # nobody came any more
                return

    port: int = server.getsockname()[1]
    threading.Thread(target=serve, daemon=True).start()
    return port


def connect(targets: Sequence[Target], seconds: float) -> dict[str, str]:
    """Label -> why (label, host, port, word) cannot be reached, or does not say the word; "" where all is well."""
    return {label: _connect(host, port, word, seconds) for label, host, port, word in targets}


def _connect(host: str, port: int, word: str, seconds: float) -> str:
    try:
        with closing(socket.create_connection((host, port), timeout=seconds)) as stream:
            if word and stream.recv(len(word)).decode(errors="replace") != word:
                return "somebody else answers there"
    except OSError as error:
        return error.strerror or str(error)
    return ""


def ports(machines: Machines, asked: Asked) -> list[Finding]:
    """From each node to the driver's node (Ray's GCS, a free port) and back (a free port)."""
    if len(machines.nodes) < 2:
        return []
    word, driver = secrets.token_hex(8), machines.nodes[0]
    calls = {node.name: (node.address, word) for node in machines.nodes}
    open_ports, findings = answered("ports", machines.ask(listen, calls, 15))
    to_driver: list[Target] = []
    if driver.name in open_ports:
        to_driver.append((f"port {open_ports[driver.name]}", driver.address, open_ports[driver.name], word))
    if machines.gcs:
        host, _, port = machines.gcs.rpartition(":")
        to_driver.append((f"Ray's port {port}", host, int(port), ""))
    reached, silent = answered("ports", machines.ask(connect, everywhere(machines, to_driver, 3.0), 30))
    back: list[Target] = [
        (node.name, node.address, open_ports[node.name], word)
        for node in machines.nodes
        if node.name in open_ports and node.name != driver.name
    ]
    returned = machines.ask(connect, {driver.name: (back, 3.0)}, 3.0 * len(back) + 10)[driver.name]
    findings += silent
    for name, answers in reached.items():
        problems = [f"{label} of {driver.name}: {why}" for label, why in answers.items() if why]
        if not isinstance(returned, NoAnswer) and returned.get(name):
            problems.append(f"from {driver.name} to port {open_ports[name]} there: {returned[name]}")
        findings.append(judge_ports(name, problems))
    return findings


def judge_ports(node: str, problems: Sequence[str]) -> Finding:
    if problems:
        todo = "let the nodes reach each other on every TCP port above 1023 (firewall, security group, network policy)"
        return Finding("ports", node, Level.fail, "; ".join(problems), todo)
    return Finding("ports", node, Level.ok, "open to the driver's node and back")


def authentication() -> str:
    """How Ray on this node knows its users: "token", or "" for not at all."""
    return os.environ.get("RAY_AUTH_MODE", "")


def access(machines: Machines, asked: Asked) -> list[Finding]:
    """Whoever reaches a Ray cluster without token authentication runs code on it; nothing to say without Ray."""
    if not machines.gcs:
        return []
    found, findings = answered("access", machines.ask(authentication, everywhere(machines), 15))
    return findings + [judge_access(name, mode, machines.dashboard) for name, mode in found.items()]


def judge_access(node: str, mode: str, dashboard: str) -> Finding:
    """`dashboard` is its host:port, "" where none runs."""
    host = dashboard.rpartition(":")[0].strip("[]")
    local = not host or host == "localhost" or host.startswith("127.") or host == "::1"
    if mode == "token":
        return Finding("access", node, Level.ok, "token authentication is on")
    text = "token authentication is off: whoever reaches Ray's ports can run code here"
    if not local:
        text += f", and the dashboard listens on {dashboard} for everyone"
    todo = "start every node with RAY_AUTH_MODE=token and the same RAY_AUTH_TOKEN"
    todo += "" if local else ", and the head with --dashboard-host=127.0.0.1"
    return Finding("access", node, Level.warn, text, todo)
