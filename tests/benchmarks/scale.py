"""A million rows: rows per second and memory against ten thousand; interrupted at 99 %, for `resume` to go on with."""

from __future__ import annotations

import json
import math
import os
import statistics
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from fakes import HOME, OneCall, Stamped, fake_pool, prompt_table, write_prompts
from memory import PeakMemory

from shard_dist.config.schema import FakeConfig
from shard_dist.engines.pool import EnginePool

FEW, MANY, ENGINES = 10_000, 1_000_000, 2
PASSES = 5  # of the few: one takes a second
# No latency: the framework is the limit.
FAKE = FakeConfig(slots=64)


class Interrupted(Exception):
    pass


def interrupted(pool: EnginePool, rows: int, home: Path, most: float) -> float:
    """Run until that share of the rows is done, and go away without a word; when that was."""

    def progress(done: int) -> None:
        if done >= most * rows:
            raise Interrupted

    with suppress(Interrupted):
        pool.run(Stamped(OneCall()), prompt_table(home / "prompts.parquet"), HOME, home / "spool", progress)
    return time.monotonic()


def rates(home: Path, until: float) -> tuple[float, list[float]]:
    """Rows per second from the first row's beginning to the last row's end, and of every tenth of the rows' ends.

    Rows that end while the engines shut down are left out.
    """
    first, ends = math.inf, []
    for path in (home / "spool").glob("*.jsonl"):
        with path.open(encoding="utf-8") as stream:
            for line in stream:
                _, (begin, end, _) = json.loads(line)
                first = min(first, begin)
                if end <= until:
                    ends.append(end)
    marks = np.quantile([first, *ends], np.linspace(0, 1, 11))
    return len(ends) / (marks[-1] - marks[0]), [len(ends) / 10 / seconds for seconds in np.diff(marks)]


def one_size(home: Path, rows: int, most: float = 1.0) -> dict[str, Any]:
    home.mkdir()
    write_prompts(home / "prompts.parquet", rows)
    with PeakMemory() as memory, fake_pool(home, FAKE, ENGINES) as pool:
        until = interrupted(pool, rows, home, most)
    whole, tenths = rates(home, until)
    return {
        "rows": rows,
        "rows_per_second": whole,
        "rows_per_second_by_tenth": tenths,
        "peak_bytes": memory.peaks,
        "load_average": os.getloadavg()[0],
    }


def nearly_done(home: Path) -> dict[str, Any]:
    # The driver looks five times a second: about a thousandth of the rows later it is 99 %.
    return one_size(home, MANY, 0.988)


def measure(work: Path, long: bool) -> dict[str, Any]:
    few = [one_size(work / f"few-{number}", FEW) for number in range(PASSES)]
    many = nearly_done(work / "many")
    typical = statistics.median(one["rows_per_second"] for one in few)
    return {
        "what": f"one-call rows of 100 bytes through {ENGINES} fake engines without latency, the many up to about 99 "
        "%; rows/s from the first row's beginning to the last row's end; memory: VmRSS less shared memory, the largest "
        "of each class",
        "few": few,
        "many": many,
        "ratios": [
            {"name": "rows/s at 10,000 rows, median", "value": typical},
            {"name": "rows/s at 1,000,000 rows", "value": many["rows_per_second"]},
            {
                "name": "rows/s at 1,000,000 rows over those at 10,000",
                "value": many["rows_per_second"] / typical,
                "at_least": 0.9,
            },
            *memory_ratios(many["peak_bytes"]),
        ],
    }


def memory_ratios(peaks: dict[str, int]) -> list[dict[str, Any]]:
    return [{"name": f"peak GB of {name}", "value": peak / 1e9, "at_most": 1.0} for name, peak in peaks.items()]
