"""What is serial in a run over many engines, measured piece by piece: CPU seconds of the code itself, so that the other
processes of a small machine do not show. The least of a few passes each.
"""

from __future__ import annotations

import json
import os
import tempfile
import time
from collections.abc import Callable
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import ray
from ledger import entry, key

from shard_dist import cluster
from shard_dist.artefacts import write_rows
from shard_dist.config.cluster import ClusterConfig
from shard_dist.engines.protocol import EngineStats
from shard_dist.engines.queue import RowQueue
from shard_dist.engines.rows import ListRows
from shard_dist.engines.spool import Spool, SpoolWriter
from shard_dist.engines.telemetry import Telemetry
from shard_dist.engines.worker import Counters
from shard_dist.ledger.store import Ledger
from shard_dist.records import Prompt, Record
from shard_dist.stages.generate import RECORD_SCHEMA, record_of, record_row

ENGINES = (2, 64, 512)
OPEN = 1_128  # rows: four windows of 1.1 x 256
PASSES = 3
ROWS, TALKS, LINES = 20_000, 2_000, 20_000
WORDS = "a reply of the usual length has some four hundred words, so it is about two kilobytes of text " * 20


def least(work: Callable[[], float]) -> float:
    return min(work() for _ in range(PASSES))


def cpu(work: Callable[[], Any]) -> float:
    begin = time.process_time()
    work()
    return time.process_time() - begin


def queue_rows(engines: int, each: int = 8) -> float:
    """Seconds per row that the queue leases and takes back, `each` of them a talk, with so many engines at work."""
    queue = RowQueue(ListRows(range(ROWS)), np.arange(ROWS))
    for number in range(engines):
        queue.join(str(number), 256)

    def work() -> None:
        out: list[list[int]] = [[] for _ in range(engines)]
        for turn in count():
            at = turn % engines
            reply = queue.exchange(str(at), out[at], [], each)
            out[at] = [lease.index for lease in reply.leases]
            if reply.over or (not out[at] and not any(out)):
                return

    return cpu(work) / ROWS


def queue_talk(engines: int, dry: bool) -> float:
    """Seconds per talk that moves no row: of an engine with its rows out, or of one that has run dry and asks for some
    of the fullest one's. Engines have up to OPEN rows out, as those of 256 slots have."""
    rows = engines * OPEN // 2 if dry else engines * OPEN
    queue = RowQueue(ListRows(range(rows)), np.arange(rows))
    for number in range(engines):
        queue.join(str(number), 256)
        queue.exchange(str(number), [], [], OPEN)
    names = [name for name, out in queue.out.items() if bool(out) != dry] or ["0"]
    room = 100 if dry else 0
    return cpu(lambda: [queue.exchange(names[n % len(names)], [], [], room) for n in range(TALKS)]) / TALKS


def queue_actor() -> dict[str, float]:
    """The queue as an actor: CPU seconds of its process per talk, and talks per second of one that is kept busy."""
    cluster.join(ClusterConfig())
    try:
        actor: Any = ray.remote(num_cpus=0)(RowQueue).remote(ListRows(range(ROWS)), np.arange(ROWS))
        ray.get([actor.join.remote(str(number), 256) for number in range(8)])

        def talks() -> tuple[float, float]:
            before, begin = ray.get(actor.__ray_call__.remote(lambda queue: time.process_time())), time.monotonic()
            ray.get([actor.exchange.remote(str(n % 8), [], [], 0) for n in range(TALKS)])
            wall = time.monotonic() - begin
            return ray.get(actor.__ray_call__.remote(lambda queue: time.process_time())) - before, wall

        talks()
        passes = [talks() for _ in range(PASSES)]
        return {
            "talk_cpu": min(cpu for cpu, _ in passes) / TALKS,
            "talks_per_second": TALKS / min(wall for _, wall in passes),
        }
    finally:
        cluster.leave()


def a_record(number: int) -> Record:
    """Some 4 KB: draft, rewrite and answer, and the keys of their calls."""
    prompt = Prompt("bench", str(number), f"How do I repair lamp number {number}?", f"kind {number % 12}")
    fields = {"draft": WORDS[:1800], "rewritten_prompt": WORDS[:120], "reframed": WORDS[:1800]}
    return Record(prompt, "shard", fields, {step: [key(number)] for step in ("draft", "rewrite", "reframe")}, "")


def driver_end(home: Path) -> float:
    """Seconds per row from the spool to the table of records: the driver's own work after the last row."""
    writers = [SpoolWriter(home / "spool", str(number)) for number in range(8)]
    for number in range(ROWS):
        writers[number % 8].append(number, record_row(a_record(number)))

    def work() -> None:
        records = map(record_of, Spool(home / "spool", ROWS).ordered())
        write_rows(home / "records.parquet", map(record_row, records), RECORD_SCHEMA)

    return least(lambda: cpu(work)) / ROWS


def spool_look(home: Path) -> float:
    """Seconds per row to find which rows are done: before the first engine starts, and at the end."""
    return least(lambda: cpu(lambda: Spool(home / "spool", ROWS).missing)) / ROWS


def ledger_lines(home: Path) -> dict[str, float]:
    """Per call: appended; read by an engine that looks for what others added. Per file of another engine: opened."""
    calls = [(key(number), *entry(number)) for number in range(LINES)]
    writer = Ledger(home / "ledger")
    append = cpu(lambda: [writer.append(*call) for call in calls]) / LINES
    size = sum(path.stat().st_size for path in (home / "ledger").rglob("*") if path.is_file())
    read = cpu(lambda: Ledger(home / "ledger").close()) / LINES
    others = [Ledger(home / "many") for _ in range(512)]
    for ledger, call in zip(others, calls, strict=False):
        ledger.append(*call)
    files = least(lambda: cpu(lambda: Ledger(home / "many").close())) / len(others)
    writer.close()
    return {"append": append, "read": read, "bytes": size / LINES, "open_per_file": files}


def watch(engines: int) -> float:
    """Seconds of the driver's book-keeping per pulse of an engine, without Ray."""
    telemetry = Telemetry(None, "generate")
    counters, stats = Counters(), EngineStats()
    for number in range(engines):
        telemetry.sample(f"student-{number}", f"student-{number}-0", counters, stats)

    def work() -> None:
        for number in range(TALKS):
            telemetry.sample(f"student-{number % engines}", f"student-{number % engines}-0", counters, stats)

    return cpu(work) / TALKS


def measure() -> dict[str, Any]:
    load = os.getloadavg()[0]
    with tempfile.TemporaryDirectory(prefix="bench-nodes-") as directory:
        home = Path(directory)
        return {
            "load_average": load,
            "queue_row_by_engines": {str(n): least(lambda n=n: queue_rows(n)) for n in ENGINES},
            "queue_talk_by_engines": {str(n): least(lambda n=n: queue_talk(n, dry=False)) for n in ENGINES},
            "queue_dry_talk_by_engines": {str(n): least(lambda n=n: queue_talk(n, dry=True)) for n in ENGINES},
            "queue_actor": queue_actor(),
            "driver_end_row": driver_end(home),
            "spool_look_row": spool_look(home),
            "ledger": ledger_lines(home),
            "watch_by_engines": {str(n): least(lambda n=n: watch(n)) for n in ENGINES},
        }


if __name__ == "__main__":
    print(json.dumps(measure(), indent=2))
