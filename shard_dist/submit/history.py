"""What was submitted from this directory: `runs/submissions.jsonl`, a line each. It never holds a token."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from urllib.parse import urlsplit

FILE = Path("runs") / "submissions.jsonl"
VARIABLES = ("RAY_API_SERVER_ADDRESS", "RAY_ADDRESS")


def remember(job: str, address: str, run: str, directory: str) -> None:
    FILE.parent.mkdir(exist_ok=True)
    line = {"id": job, "address": address, "run": run, "dir": directory, "time": time.strftime("%Y-%m-%dT%H:%M:%S%z")}
    with FILE.open("a", encoding="utf-8") as stream:
        stream.write(json.dumps(line) + "\n")


def address_of(given: str, job: str = "") -> str:
    """The dashboard's address: as given, else of the environment, else where this job or the last one was sent.

    Raises ValueError for none, and for one that is not http(s)://host[:port].
    """
    for name, address in (("--address", given), *((name, os.environ.get(name, "")) for name in VARIABLES)):
        if address and (name == "--address" or address.startswith(("http://", "https://"))):
            return _checked(name, address)
    lines = FILE.read_text(encoding="utf-8").splitlines() if FILE.is_file() else []
    known = [(line["id"], line["address"]) for line in map(json.loads, lines)]
    if not known:
        raise ValueError(
            "--address: name the cluster's dashboard (http://HOST:8265), here or in RAY_API_SERVER_ADDRESS"
        )
    return _checked(str(FILE), dict(known).get(job, known[-1][1]))


def _checked(where: str, address: str) -> str:
    parts = urlsplit(address)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError(f"{where}: {address!r} is no address of a dashboard; write http://HOST:8265")
    if parts.username or parts.password:
        raise ValueError(
            f"{where}: no user or password in an address, which is shown and kept; Ray's token is RAY_AUTH_TOKEN"
        )
    return address.rstrip("/")
