"""Kill the demo's driver with SIGKILL in generation, training and evaluation, start it again each time, and count.

    python tests/soak/kill_demo.py [--config configs/demo.yaml] [--run DIR] [--seed N] [--json FILE] [key=value ...]

A person's check, longer than a test should be. Prints one JSON object and exits with 1 unless every kill came in
time, the run finishes, no finished call was made twice, and no row is lost or doubled.
"""

from __future__ import annotations

import argparse
import json
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable
from contextlib import closing
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from shard_dist.ledger.store import Ledger, LedgerStats

POLL = 0.1  # seconds between looks at the run's files


def ledger_stats(run: Path) -> LedgerStats:
    with closing(Ledger(run / "ledger")) as ledger:
        return ledger.stats


def progress_of(run: Path, phase: str) -> float:
    """How far a phase is: calls in the ledger, or optimizer steps."""
    if phase == "training":
        path = run / "train_metrics.jsonl"
        return path.read_bytes().count(b"\n") if path.exists() else 0
    return ledger_stats(run).lines


def killed_in(
    phase: str, after: str, before: str, chance: random.Random, run: Path, command: list[str]
) -> dict[str, Any]:
    """Start the run, wait until `after`.json stands and the phase has made some way, and kill the driver."""
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.STDOUT)
    start: float | None = None
    more = chance.randint(1, 8) if phase == "training" else chance.randint(5, 60)
    while process.poll() is None and not (run / f"{before}.json").exists():
        if (run / f"{after}.json").exists():
            done = progress_of(run, phase)
            start = done if start is None else start
            if done >= start + more:
                break
        time.sleep(POLL)
    in_time = process.poll() is None and not (run / f"{before}.json").exists()
    process.send_signal(signal.SIGKILL)
    process.wait()
    return {"phase": phase, "killed_in_time": in_time, "progress_at_kill": progress_of(run, phase)}


def table(path: Path) -> list[dict[str, Any]]:
    return pq.read_table(path).to_pylist()


def keys_of(rows: Iterable[dict[str, Any]]) -> list[tuple[str, str]]:
    return sorted((row["dataset"], row["id"]) for row in rows)


def check(run: Path, code: int) -> dict[str, Any]:
    """What is left: duplicates in the ledger, rows against prompts."""
    ledger = ledger_stats(run)
    prompts = table(run / "prompts.parquet")
    wanted = {split: keys_of(row for row in prompts if row["split"] == split) for split in ("train", "val", "test")}
    records = keys_of(table(run / "records"))
    answers = [keys_of(table(run / "answers" / f"{arm}.parquet")) for arm in ("base", "tuned")]
    selection = json.loads((run / "selection.json").read_text())
    return {
        "exit_code": code,
        "calls": ledger.lines,
        "calls_made_twice": ledger.lines - ledger.entries,
        "records_match_prompts": records == sorted(wanted["train"] + wanted["val"]),
        "answers_match_prompts": all(rows == wanted["test"] for rows in answers),
        "kept_plus_dropped_is_all": selection["kept"] + selection["dropped"] == len(records),
        "report": (run / "report" / "index.html").is_file(),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--config", default="configs/demo.yaml")
    parser.add_argument("--seed", type=int, default=int(time.time()))
    parser.add_argument("--run", type=Path, help="run directory; default: a new temporary one")
    parser.add_argument("--json", type=Path, help="write the outcome here, too")
    parser.add_argument("settings", nargs="*")
    arguments = parser.parse_args()
    run = arguments.run or Path(tempfile.mkdtemp(prefix="kill-demo-")) / "run"
    program = "from shard_dist.cli import main; main()"
    command = [sys.executable, "-c", program, "run", arguments.config, f"run.dir={run}", *arguments.settings]
    chance = random.Random(arguments.seed)
    kills = [
        killed_in("generation", "prompts", "generate", chance, run, command),
        killed_in("training", "select", "train", chance, run, command),
        killed_in("evaluation", "train", "evaluate", chance, run, command),
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    outcome = {"seed": arguments.seed, "run": str(run), "kills": kills, **check(run, done.returncode)}
    print(json.dumps(outcome, indent=2))
    if arguments.json:
        arguments.json.write_text(json.dumps(outcome, indent=2) + "\n")
    good = ("records_match_prompts", "answers_match_prompts", "kept_plus_dropped_is_all", "report")
    ok = done.returncode == 0 and not outcome["calls_made_twice"] and all(outcome[name] for name in good)
    return 0 if ok and all(kill["killed_in_time"] for kill in kills) else 1


if __name__ == "__main__":
    sys.exit(main())
