"""Hold a finished demo sweep against what it promises: python tests/soak/check_sweep.py [SWEEP_DIRECTORY]

Prints one line a promise and exits with 1 if one is broken.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from shard_dist.ledger.catalogue import catalogue
from shard_dist.ledger.location import locate
from shard_dist.ledger.queries import entries


def manifests(sweep: Path) -> Iterator[dict[str, Any]]:
    """Of every stage of every arm, and of the comparison."""
    for path in (*sweep.glob("arms/*/*.json"), *sweep.glob("comparison/*.json")):
        value = json.loads(path.read_text())
        if "counts" in value and "seconds" in value:
            yield value


def main() -> int:
    sweep = Path(sys.argv[1] if len(sys.argv) > 1 else "runs/demo_sweep")
    arms = json.loads((sweep / "sweep.json").read_text())["arms"]
    done = sum(arm["state"] == "done" for arm in arms.values())
    counts = [stage["counts"] for stage in manifests(sweep)]
    asked, made = (sum(count.get(name, 0) for count in counts) for name in ("calls", "calls_made"))
    keys = [entry.key for entry in entries(catalogue(locate(str(sweep / "ledger"))))]
    minutes = sum(stage["seconds"] for stage in manifests(sweep)) / 60
    page = sweep / "report" / "index.html"
    promises = [
        ("arms that are done, of six", done, done == len(arms) == 6),
        ("calls made, each with a key of its own in the ledger", made, made == len(keys) == len(set(keys))),
        ("share of the calls that the arms would make alone, at most 0.6", made / asked, made / asked <= 0.6),
        ("minutes of all stages, at most 25", minutes, minutes <= 25),
        ("kB of the page", page.stat().st_size / 1000, page.stat().st_size > 10_000),
    ]
    for promise, value, holds in promises:
        print(f"{'ok  ' if holds else 'FAIL'} {value:8.3f}  {promise}")
    return 0 if all(holds for _, _, holds in promises) else 1


if __name__ == "__main__":
    sys.exit(main())
