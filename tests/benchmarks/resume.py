"""A run of a million rows that was interrupted at 99 %: seconds from a new process' start to its first new row."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from fakes import HOME, OneCall, Stamped, fake_pool, prompt_table
from memory import PeakMemory
from scale import ENGINES, FAKE, MANY, memory_ratios, nearly_done

from shard_dist.artefacts import write_rows
from shard_dist.engines.spool import Spool

SCHEMA = pa.schema([("begin", pa.float64()), ("end", pa.float64()), ("answer", pa.string())])


def measure(work: Path, long: bool) -> dict[str, Any]:
    """Goes on with the run that `scale` interrupted, or with one of its own."""
    home = work / "many"
    if not home.is_dir():
        nearly_done(home)
    out = home / "resumed.json"
    command = [sys.executable, __file__, str(home), str(MANY), str(out), str(time.monotonic())]
    subprocess.run(command, check=True)
    found = json.loads(out.read_text())
    return {
        "what": "seconds from the start of the process: imports, cluster, boots with the ledger opened, spool read; "
        "memory up to the finished table",
        **found,
        "ratios": [
            {"name": "seconds to the first new row", "value": found["seconds_to_first_row"], "at_most": 60},
            *memory_ratios(found["peak_bytes"]),
        ],
    }


def resume(home: Path, rows: int, out: Path, started: float) -> None:
    with PeakMemory() as memory, fake_pool(home, FAKE, ENGINES) as pool:
        booted = time.monotonic()
        table = prompt_table(home / "prompts.parquet")
        pool.run(Stamped(OneCall()), table, HOME, home / "spool", lambda done: None)
        finished = time.monotonic()
        results = Spool(home / "spool", rows).ordered()
        write_rows(home / "answers.parquet", (dict(zip(SCHEMA.names, one, strict=True)) for one in results), SCHEMA)
        written = time.monotonic()
        counters = pool.counts().counters
    begins = pq.read_table(home / "answers.parquet", columns=["begin"])["begin"].to_numpy()
    new = begins[begins > started]
    assert 0 < len(new) < 0.02 * rows
    found = {
        "seconds_to_engines": booted - started,
        "seconds_to_first_row": float(new.min()) - started,
        "seconds_to_last_row": finished - started,
        "seconds_to_table": written - started,
        "new_rows": len(new),
        "calls_made": counters.made,
        "ledger_hits": counters.hits,
        "peak_bytes": memory.peaks,
    }
    out.write_text(json.dumps(found))


if __name__ == "__main__":
    home, rows, out, started = sys.argv[1:]
    resume(Path(home), int(rows), Path(out), float(started))
