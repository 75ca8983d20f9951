"""An all-reduce over all nodes: NCCL with one process per GPU, gloo with one per node where there are none."""

from __future__ import annotations

import fcntl
import json
import os
import re
import signal
import socket
import statistics
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from shard_dist.doctor.allreduce import Part, words
from shard_dist.doctor.asked import Asked
from shard_dist.doctor.finding import Finding, Level
from shard_dist.doctor.gpus import nvidia
from shard_dist.doctor.machines import Machines, NoAnswer, Node, answered, everywhere

# Bytes: latency shows at the first, bandwidth at the second.
SIZES = {"nccl": [1 << 20, 256 << 20], "gloo": [1 << 16, 8 << 20]}
PAIR_SIZE = {"nccl": 64 << 20, "gloo": 4 << 20}
PATIENCE = {"nccl": 60.0, "gloo": 45.0}  # seconds for everything, torch's import included
FAR = 3.0  # times slower than the median pair: a node on another switch, a link at a lower rate, a cable
TRY = (
    "see that the nodes reach each other on every port, name the interface ({backend}_SOCKET_IFNAME={interface} in "
    "cluster.launch.environment), give /dev/shm 1 GiB or more"
)


@dataclass(frozen=True)
class Outcome:
    """What one process measured, or what it said before it ended without a result."""

    found: dict[str, Any] | None
    said: str = ""


def free_port(address: str) -> int:
    with socket.socket() as probe:
        probe.bind((address, 0))
        port: int = probe.getsockname()[1]
        return port


def run_ranks(parts: Sequence[Part], gpus: bool, extra: Mapping[str, str], seconds: float) -> list[Outcome]:
    """One process for each part, on GPU 0, 1, ... of this node where `gpus`; all ended when this returns."""
    with tempfile.TemporaryDirectory(prefix="shard-doctor-") as folder:
        processes = []
        try:
            for number, part in enumerate(parts):
                out, log = Path(folder) / f"{number}.json", Path(folder) / f"{number}.log"
                with log.open("wb") as stream:
                    processes.append(
                        subprocess.Popen(
                            [sys.executable, "-m", "shard_dist.doctor.allreduce", words(replace(part, out=str(out)))],
                            env=environment(os.environ, extra, number if gpus else None),
                            stdout=stream,
                            stderr=stream,
                            stdin=subprocess.DEVNULL,
                            cwd=folder,
                            start_new_session=True,
                        )
                    )
            end = time.monotonic() + seconds
            for process in processes:
                with suppress(subprocess.TimeoutExpired):
                    process.wait(max(0.0, end - time.monotonic()))
            return [_outcome(Path(folder), number, process) for number, process in enumerate(processes)]
        finally:
            for process in processes:
                with suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                process.wait()


def _outcome(folder: Path, number: int, process: subprocess.Popen[bytes]) -> Outcome:
    out, log = folder / f"{number}.json", folder / f"{number}.log"
    if process.returncode == 0 and out.is_file():
        return Outcome(json.loads(out.read_text(encoding="utf-8")))
    said = cause(log.read_text(encoding="utf-8", errors="replace"))
    ended = "has not ended in time" if process.returncode is None else f"ended with code {process.returncode}"
    return Outcome(None, f"{ended}: {said}" if said else ended)


def environment(base: Mapping[str, str], extra: Mapping[str, str], gpu: int | None) -> dict[str, str]:
    """Of one process: the node's, the cluster's, and the one GPU that is its own."""
    package = str(Path(__file__).parents[2])
    path = os.pathsep.join(filter(None, [package, base.get("PYTHONPATH", "")]))
    own = {**base, "OMP_NUM_THREADS": "1", **extra, "PYTHONPATH": path}
    own.setdefault("NCCL_DEBUG", "WARN")
    if gpu is None:
        return own
    # Ray hides all GPUs (an empty list) from a process that was given none.
    shown = [word for word in base.get("CUDA_VISIBLE_DEVICES", "").split(",") if word]
    return {**own, "CUDA_VISIBLE_DEVICES": shown[gpu] if gpu < len(shown) else str(gpu)}


def cause(log: str) -> str:
    """What explains a failure: NCCL's own warnings, then the last line of the error."""
    # c10d's warnings look like [W1121 21:40:13.079 socket.cpp:207] and come with every start.
    lines = [line.strip() for line in log.splitlines() if line.strip() and not line.startswith("[W")]
    warned = [line.partition("NCCL WARN")[2].strip() for line in lines if "NCCL WARN" in line]
    errors = [line for line in lines if re.match(r"[\w.]*(Error|Exception)\b", line)]
    return "; ".join(dict.fromkeys([*warned[:3], *errors[-1:]])) or " ".join(lines[-1:])


def interface(address: str) -> str:
    """Name of the network interface that has an IPv4 address; "" where none has."""
    for _, name in socket.if_nameindex():
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe, suppress(OSError):
            # SIOCGIFADDR of <linux/sockios.h>; the address lies in bytes 20 to 23 of the ifreq.
            answer = fcntl.ioctl(probe, 0x8915, struct.pack("256s", name.encode()[:15]))
            if socket.inet_ntoa(answer[20:24]) == address:
                return name
    return ""


def collectives(machines: Machines, asked: Asked) -> list[Finding]:
    """Right sums, the bandwidth at two sizes, and pairs of nodes that are far slower than the others."""
    shown, findings = answered("all-reduce", machines.ask(nvidia, everywhere(machines), 70))
    counts = {name: len(there[0]) for name, there in shown.items()}
    backend = "nccl" if any(counts.values()) else "gloo"
    nodes = [node for node in machines.nodes if counts.get(node.name, 0 if backend == "nccl" else -1) > 0] or [
        node for node in machines.nodes if node.name in counts
    ]
    if not nodes:
        return findings
    # A machine alone without GPUs has two, so that there is something to add up.
    ranks = {node.name: counts[node.name] or (2 if len(nodes) == 1 else 1) for node in nodes}
    port = machines.ask(free_port, {nodes[0].name: (nodes[0].address,)}, 10)[nodes[0].name]
    if isinstance(port, NoAnswer):
        return [*findings, Finding("all-reduce", nodes[0].name, Level.fail, f"no free port: {port.why}")]
    plan = parts(nodes, ranks, backend, f"{nodes[0].address}:{port}")
    seconds, extra = PATIENCE[backend], asked.cluster.launch.environment
    calls: dict[str, tuple[Any, ...]] = {name: (own, backend == "nccl", extra, seconds) for name, own in plan.items()}
    done = machines.ask(run_ranks, calls, seconds + 10)
    outcomes, silent = answered("all-reduce", done)
    names = machines.ask(interface, {node.name: (node.address,) for node in nodes}, 10)
    return findings + silent + judge(backend, plan, outcomes, names)


def parts(nodes: Sequence[Node], ranks: Mapping[str, int], backend: str, master: str) -> dict[str, list[Part]]:
    """Every node's parts, by its name; ranks count through the nodes in order."""
    world = sum(ranks.values())
    starts = [sum(ranks[node.name] for node in nodes[:number]) for number in range(len(nodes))]
    shape = (world, master, backend, SIZES[backend], PAIR_SIZE[backend], starts, PATIENCE[backend] - 5, "")
    return {
        node.name: [Part(rank, *shape) for rank in range(start, start + ranks[node.name])]
        for node, start in zip(nodes, starts, strict=True)
    }


def judge(
    backend: str, plan: Mapping[str, list[Part]], outcomes: Mapping[str, list[Outcome]], interfaces: Mapping[str, Any]
) -> list[Finding]:
    """From what the processes of each node measured or said."""
    findings = []
    for name, own in outcomes.items():
        todo = TRY.format(backend=backend.upper(), interface=interfaces.get(name) or "<the fast network's>")
        said = list(dict.fromkeys(outcome.said for outcome in own if outcome.found is None))
        if said:
            findings.append(Finding("all-reduce", name, Level.fail, f"{backend}: {'; '.join(said)}", todo))
        wrong = [outcome for outcome in own if outcome.found and not all(outcome.found["right"])]
        if wrong:
            text = f"{backend}: the sum is wrong in {len(wrong)} of {len(own)} processes"
            todo = "a GPU or a link corrupts data: take the node out, look at nvidia-smi -q -d ECC and dmesg (Xid)"
            findings.append(Finding("all-reduce", name, Level.fail, text, todo))
    if findings or set(outcomes) != set(plan):
        return findings
    world = sum(map(len, plan.values()))
    # The slowest process's time is the group's.
    rates = [
        min(outcome.found["bandwidth"][size] for own in outcomes.values() for outcome in own if outcome.found)
        for size in range(2)
    ]
    text = f"{backend}, {world} processes on {len(plan)} nodes: right sums"
    if world > 1:
        sizes = [f"{rate:.3g} GB/s at {size >> 10:,} KiB" for rate, size in zip(rates, SIZES[backend], strict=True)]
        text += f", bus bandwidth {' and '.join(sizes)}"
    return [Finding("all-reduce", "", Level.ok, text), *slow_pairs(plan, outcomes)]


def slow_pairs(plan: Mapping[str, list[Part]], outcomes: Mapping[str, list[Outcome]]) -> list[Finding]:
    """Pairs of nodes far below the median one, by exchanges between first processes; nodes all of whose pairs are."""
    first = {own[0].rank: name for name, own in plan.items()}
    rates: dict[tuple[str, str], float] = {}
    for name, own in outcomes.items():
        for other, rate in (own[0].found or {"pairs": {}})["pairs"].items():
            one, two = sorted((name, first[int(other)]))
            rates[one, two] = min(rate, rates.get((one, two), rate))
    if len(rates) < 3:  # too few to say which is the exception
        return []
    middle = statistics.median(rates.values())
    slow = {pair: rate for pair, rate in rates.items() if rate * FAR < middle}
    lame = [name for name in plan if all(pair in slow for pair in rates if name in pair)]
    what = [(f"{name} and every other node", max(slow[pair] for pair in slow if name in pair)) for name in lame]
    what += [(" and ".join(pair), rate) for pair, rate in slow.items() if not set(pair) & set(lame)]
    size = next(iter(plan.values()))[0].pair_size >> 20
    return [
        Finding(
            "slow pairs",
            "",
            Level.warn,
            f"{who} exchange {size} MiB at {rate:.3g} GB/s each way; the median pair has {middle:.3g}",
            "look at that link: rate (ethtool, ibstat), cable, switch, other jobs on it",
        )
        for who, rate in what
    ]
