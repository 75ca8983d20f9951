"""The ledger at scale: opening, reading, appending, sealing, compaction. Prints one JSON object and writes it.

    python tests/benchmarks/ledger.py [--entries 1000000] [--out build/bench/ledger.json] [--dir DIRECTORY]

The packs are made first, 16 MiB of lines each; opening is measured in a process of its own.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from shard_dist.ledger import store
from shard_dist.ledger.compact import compact
from shard_dist.ledger.entry import encode
from shard_dist.ledger.key import call_key
from shard_dist.ledger.lines import HEADER, new_name
from shard_dist.ledger.sealing import seal
from shard_dist.ledger.store import Ledger
from shard_dist.records import Call, Completion, Sampling

GETS = 20_000
SEGMENT_LINES = 10_000  # about 16 MiB
WORDS = [hashlib.md5(str(number).encode()).hexdigest()[: 2 + number % 8] for number in range(5000)]


def key(number: int) -> str:
    return hashlib.sha256(str(number).encode()).hexdigest()


def entry(number: int) -> tuple[Call, Completion]:
    """About 1.6 KB of JSON; the same for the same number."""
    draw = random.Random(number)
    system, asked = " ".join(WORDS[:40]), " ".join(draw.choices(WORDS, k=60))
    messages = ({"role": "system", "content": system}, {"role": "user", "content": asked})
    call = Call("meta-llama/Llama-3.1-70B-Instruct", "f" * 64, messages, Sampling(seed=number))
    return call, Completion((" ".join(draw.choices(WORDS, k=75)),), ("stop",), 180, 120, ("",))


def microseconds(work: Callable[[int], Any], numbers: list[int]) -> dict[str, float]:
    """Of single calls of `work`."""
    taken = []
    for number in numbers:
        start = time.perf_counter()
        work(number)
        taken.append((time.perf_counter() - start) * 1e6)
    taken.sort()
    return {
        "mean": round(statistics.fmean(taken), 1),
        "median": round(statistics.median(taken), 1),
        "p99": round(taken[int(len(taken) * 0.99)], 1),
        "worst": round(taken[-1], 1),
    }


def peak_memory() -> int:
    """Most MiB that were ever resident. Not getrusage, which starts from the parent's."""
    (line,) = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM")]
    return int(line.split()[1]) >> 10


def fill(directory: Path, entries: int) -> dict[str, float]:
    """Packs of SEGMENT_LINES; seconds that sealing one takes."""
    location = Ledger(directory).location
    taken = []
    bytes_of_lines = 0
    for first in range(0, entries, SEGMENT_LINES):
        segment = directory / new_name()
        lines = [encode(key(number), *entry(number)) for number in range(first, min(first + SEGMENT_LINES, entries))]
        bytes_of_lines += segment.write_bytes(HEADER + b"".join(lines))
        start = time.perf_counter()
        seal(location, segment)
        taken.append(time.perf_counter() - start)
    packed = sum(path.stat().st_size for path in directory.glob("*.parquet"))
    return {
        "seal_segment_s": round(statistics.median(taken), 3),
        "line_bytes": round(bytes_of_lines / entries),
        "packed_bytes": round(packed / entries),
    }


def reading(directory: Path, entries: int) -> dict[str, Any]:
    """Runs in a fresh process: open, then get in the order of insertion, at random, and what is not there."""
    start = time.perf_counter()
    before = peak_memory()
    ledger = Ledger(directory)
    opened = time.perf_counter() - start
    assert ledger.stats.entries == entries
    peak = peak_memory()
    gets = min(GETS, entries)
    draw = random.Random(0)
    for number in draw.sample(range(entries), 20):
        assert ledger.get(key(number)) == entry(number)[1]
    keys = {number: key(number) for number in [*range(gets), *range(-gets, 0)]}
    chosen = [draw.randrange(entries) for _ in range(gets // 4)]
    keys |= {number: key(number) for number in chosen}
    times = {
        "get_in_order_us": microseconds(lambda number: ledger.get(keys[number]), list(range(gets))),
        "get_at_random_us": microseconds(lambda number: ledger.get(keys[number]), chosen),
        "get_missing_us": microseconds(lambda number: ledger.get(keys[number]), list(range(-gets, 0))),
    }
    after = peak_memory()
    return {
        "open_s": round(opened, 3),
        "rss_imports_mb": before,
        "rss_open_mb": peak,
        "rss_after_gets_mb": after,
        **times,
    }


def appending(directory: Path) -> dict[str, Any]:
    """Append as fast as it goes over three seals; then at 1,000 a second, as an engine does."""
    entries = [entry(number) for number in range(SEGMENT_LINES)]
    calls = {number: entries[number % SEGMENT_LINES] for number in range(4 * SEGMENT_LINES)}
    keys = {number: key(-number - 1) for number in calls}
    ledger = Ledger(directory)
    hammered = microseconds(lambda number: ledger.append(keys[number], *calls[number]), list(range(3 * SEGMENT_LINES)))
    paced = []
    for number in range(3 * SEGMENT_LINES, 4 * SEGMENT_LINES):
        start = time.perf_counter()
        ledger.append(keys[number], *calls[number])
        paced.append((time.perf_counter() - start) * 1e6)
        time.sleep(0.0007)
    start = time.perf_counter()
    ledger.close()
    return {
        "append_us": hammered,
        "append_paced_worst_us": round(max(paced), 1),
        "close_s": round(time.perf_counter() - start, 3),
        "call_key_us": microseconds(lambda number: call_key(calls[number][0]), list(range(SEGMENT_LINES))),
        "sealed_at_mib": store.SEAL_BYTES >> 20,
    }


def compacting(directory: Path) -> dict[str, Any]:
    start = time.perf_counter()
    done = compact(directory, everything=True)
    taken = time.perf_counter() - start
    return {"compact_s": round(taken, 3), "packs_before": done.merged, "packs_after": done.made}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--entries", type=int, default=1_000_000)
    parser.add_argument("--out", type=Path, default=Path("build/bench/ledger.json"))
    parser.add_argument("--dir", type=Path, help="work here; default: a new temporary directory")
    parser.add_argument("--read", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.read:
        print(json.dumps(reading(arguments.read, arguments.entries)))
        return
    root = Path(tempfile.mkdtemp(prefix="bench-ledger-", dir=arguments.dir))
    try:
        (root / "packs").mkdir()
        outcome: dict[str, Any] = {"entries": arguments.entries, **fill(root / "packs", arguments.entries)}
        read = [sys.executable, __file__, "--entries", str(arguments.entries), "--read", str(root / "packs")]
        outcome["sealed"] = json.loads(subprocess.run(read, capture_output=True, text=True, check=True).stdout)
        outcome |= compacting(root / "packs")
        outcome["compacted"] = json.loads(subprocess.run(read, capture_output=True, text=True, check=True).stdout)
        outcome |= appending(root / "appends")
    finally:
        shutil.rmtree(root)
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps(outcome, indent=2) + "\n")
    print(json.dumps(outcome, indent=2))


if __name__ == "__main__":
    main()
