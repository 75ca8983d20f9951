"""Rows through two roles of fake engines while something breaks every few seconds; all must come out as they should.

    python tests/soak/generation.py [--minutes 10] [--seed N] [--rows 12000] [--json FILE]

Round after round until the time is up. A driver process runs the rows; meanwhile, seeded, an engine's process is killed
or stopped, or the driver itself is killed and started again; engines also die, fall silent and fail by themselves, and
a few rows kill whatever they meet. Fake answers are a function of the call, so the results of a round must equal those
of a run without faults, and its poison rows must be quarantined. Prints a JSON object; exit code 1 if anything differs
or is left behind.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import ray
from ray.util import placement_group_table

from shard_dist import cluster
from shard_dist.config.cluster import ClusterConfig
from shard_dist.config.schema import Backend, FakeConfig, ModelConfig
from shard_dist.engines.fake import FakeEngine
from shard_dist.engines.pool import EnginePool
from shard_dist.engines.protocol import CallRefused
from shard_dist.engines.queue import Lease, Reply, RowQueue
from shard_dist.engines.rows import ListRows
from shard_dist.engines.spool import Spool
from shard_dist.engines.telemetry import Telemetry
from shard_dist.engines.worker import Counters, LocalBackend, ModelIdentity, Role, RowAsk, RowState, Worker
from shard_dist.ledger.store import Ledger
from shard_dist.records import Sampling

IDENTITIES = {name: ModelIdentity(name, "0") for name in ("student", "judge")}
POISON = "venom"
# Kinds of fault from outside, with weights: a driver that dies costs the most time.
FAULTS = {"kill engine": 5, "stop engine": 2, "kill driver": 2}


class Chain:
    """Draft and rewrite at once, then a reframed answer, then a judge's word on it: SHARD's shape, two roles."""

    async def __call__(self, row: str, ask: RowAsk) -> list[str]:
        async def one(role: str, text: str) -> str:
            return (await ask(role, "x", ({"role": "user", "content": text},), Sampling())).text

        try:
            draft, rewrite = await asyncio.gather(
                one("student", f"draft {row}"), one("student", f"rewrite {row}"), return_exceptions=True
            )
            for outcome in (draft, rewrite):
                if isinstance(outcome, BaseException):
                    raise outcome
            reframed = await one("student", f"reframe {draft} {rewrite}")
            return [row, reframed, await one("judge", f"judge {reframed}")]
        except CallRefused as error:
            return [row, error.reason]


def rows_of(number: int, seed: int) -> list[str]:
    """Rows, three of them poison."""
    poison = set(random.Random(f"poison {seed}").sample(range(number), 3))
    return [f"{seed} row {index}{' ' + POISON if index in poison else ''}" for index in range(number)]


def roles(root: Path) -> list[Role]:
    faults = {"latency": 0.01, "slots": 8, "error_rate": 0.01, "death_rate": 2e-5, "silence_rate": 1e-5}
    made = []
    for name, engines, poison in (("student", 3, POISON), ("judge", 2, "")):
        fake = FakeConfig(**faults, poison=poison)
        spec = ModelConfig(
            Backend.fake, name, engines=engines, cpus=0.5, silent_timeout=3, max_deaths=50, boot_attempts=20, fake=fake
        )
        made.append(Role(name, spec, IDENTITIES[name], str(root / "ledger"), root / "logs"))
    return made


def drive(root: Path, address: str, rows: list[str]) -> None:
    """The driver: the same command after every kill."""
    cluster.join(ClusterConfig(address=address))
    telemetry = Telemetry(root / "engines.jsonl", "soak")
    with EnginePool(roles(root), ClusterConfig(boots_at_once=8), telemetry) as pool:
        pool.run(Chain(), ListRows(rows), "student", root / "spool", lambda done: None)
    telemetry.close()


def without_faults(rows: Sequence[str], root: Path) -> list[Any]:
    """What must come out: one worker, engines without faults, no Ray."""
    backends: Any = {}
    for name, identity in IDENTITIES.items():
        engine = FakeEngine(ModelConfig(Backend.fake, identity.model))
        backends[name] = LocalBackend(engine, Ledger(root / name), 64, Counters())
    results: dict[int, Any] = {}
    queue = RowQueue(ListRows(rows), np.arange(len(rows)))
    queue.join("w", 64)

    async def exchange(finished: list[int], returned: list[Lease], room: int) -> Reply:
        return queue.exchange("w", finished, returned, room)

    def new_ask(state: RowState) -> RowAsk:
        return RowAsk(backends, IDENTITIES, state)

    asyncio.run(Worker(Chain(), exchange, ListRows(rows).read, results.__setitem__, new_ask, 256).work())
    for index, row in enumerate(rows):
        if POISON in row:
            results[index] = [row, "quarantined"]
    return [results[index] for index in range(len(rows))]


def processes(title: str) -> list[psutil.Process]:
    """Of this cluster, which is ours: every process of it is below this one."""
    found = []
    for process in psutil.Process().children(recursive=True):
        with suppress(psutil.NoSuchProcess):
            if process.name().startswith(title):
                found.append(process)
    return found


def break_something(kind: str, driver: subprocess.Popen[bytes], chance: random.Random) -> bool:
    """Whether there was something to break."""
    if kind == "kill driver":
        driver.kill()
        driver.wait()
        return True
    engines = sorted(processes("ray::EngineActor"), key=lambda process: process.pid)
    if not engines:
        return False
    try:
        chance.choice(engines).send_signal(signal.SIGKILL if kind == "kill engine" else signal.SIGSTOP)
    except psutil.NoSuchProcess:
        return False
    return True


def one_round(root: Path, seed: int, number: int) -> dict[str, Any]:
    """Run the rows of a seed under faults and compare."""
    chance, faults = random.Random(seed), Counter[str]()
    address = ray.get_runtime_context().gcs_address
    command = [sys.executable, __file__, "--drive", str(root), "--address", address, "--seed", str(seed)]
    start, driver = time.monotonic(), None
    while driver is None or driver.poll() is None or driver.returncode < 0:
        if driver is None or driver.poll() is not None:
            driver = subprocess.Popen([*command, f"--rows={number}"], stderr=(root / "driver.log").open("ab"))
            lives = faults["driver starts"] = faults["driver starts"] + 1
        pause = time.monotonic() + chance.uniform(1, 5) + 3 * (lives == 1)
        while time.monotonic() < pause and driver.poll() is None:
            time.sleep(0.1)
        kind = chance.choices(list(FAULTS), list(FAULTS.values()))[0]
        if driver.poll() is None and break_something(kind, driver, chance):
            faults[kind] += 1
    rows = rows_of(number, seed)
    found = list(Spool(root / "spool", number).ordered()) if driver.returncode == 0 else []
    expected = without_faults(rows, root / "expected")
    lines = [json.loads(line) for line in (root / "engines.jsonl").read_bytes().splitlines() if line.endswith(b"}")]
    return {
        "seed": seed,
        "rows": number,
        "seconds": round(time.monotonic() - start, 1),
        "exit_code": driver.returncode,
        "faults_from_outside": dict(faults),
        "events": dict(Counter(line["event"] for line in lines if line["kind"] == "event")),
        "different": [pair for pair in zip(found, expected, strict=False) if pair[0] != pair[1]][:10],
        "missing": number - len(found),
    }


def left_behind() -> list[str]:
    """Engines and queues that still run, placement groups, and resources that are not free again."""
    limit = time.monotonic() + 15
    while True:
        found = [f"{title} {p.pid}" for title in ("ray::EngineActor", "ray::RowQueue") for p in processes(title)]
        found += [group["state"] for group in placement_group_table().values() if group["state"] != "REMOVED"]
        total, free = ray.cluster_resources(), ray.available_resources()
        found += [kind for kind in ("CPU", "GPU") if free.get(kind, 0) < total.get(kind, 0)]
        if not found or time.monotonic() > limit:
            return found
        time.sleep(0.5)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--rows", type=int, default=12_000, help="of a round")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--drive", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--address", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.drive:
        drive(arguments.drive, arguments.address, rows_of(arguments.rows, arguments.seed))
        return 0
    shared_memory = set(os.listdir("/dev/shm"))
    cluster.join(ClusterConfig(cpus=6))
    limit, rounds = time.monotonic() + 60 * arguments.minutes, []
    while not rounds or time.monotonic() < limit:
        with tempfile.TemporaryDirectory() as directory:
            seed = arguments.seed + len(rounds)
            rounds.append(one_round(Path(directory), seed, arguments.rows))
            print(json.dumps(rounds[-1]), file=sys.stderr, flush=True)
    left = left_behind()
    cluster.leave()
    time.sleep(2)
    left += sorted(set(os.listdir("/dev/shm")) - shared_memory)
    faults = sum((Counter(each["faults_from_outside"]) for each in rounds), Counter[str]())
    outcome = {"rounds": rounds, "faults_from_outside": dict(faults), "left_behind": left}
    text = json.dumps(outcome, indent=2)
    print(text)
    if arguments.json:
        arguments.json.parent.mkdir(parents=True, exist_ok=True)
        arguments.json.write_text(text + "\n")
    return int(bool(left) or any(each["exit_code"] or each["different"] or each["missing"] for each in rounds))


if __name__ == "__main__":
    sys.exit(main())
