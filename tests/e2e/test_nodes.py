"""Three Ray nodes with addresses of their own on this machine, token authentication on; one is killed in the middle."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import yaml
from nodes import Nodes, impossible, ray_nodes

pytestmark = [pytest.mark.ray, pytest.mark.e2e]


@pytest.fixture
def nodes() -> Iterator[Nodes]:
    if reason := impossible():
        pytest.skip(reason)
    with ray_nodes() as made:
        yield made


def config(root: Path, rows: int) -> Path:
    lines = ["id,text,category", *(f"{n},How do I mend thing number {n}?,kind {n % 4}" for n in range(rows))]
    (root / "prompts.csv").write_text("\n".join(lines) + "\n")
    columns = {name: name for name in ("id", "text", "category")}
    source = {"kind": "table", "name": "t", "path": "prompts.csv", "columns": columns}
    fake = {"latency": 0.2, "slots": 8}
    tree = {
        "data": {"sources": [source]},
        "models": {"student": {"backend": "fake", "model": "fake", "engines": 3, "fake": fake}},
        "select": {"judge": "rule"},
        "evaluate": {"judge": "rule"},
    }
    path = root / "nodes.yaml"
    path.write_text(yaml.safe_dump(tree))
    return path


def events(run: Path) -> list[dict[str, str]]:
    path = run / "engines.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    return [line for line in map(json.loads, lines) if line["kind"] == "event"]


def test_a_run_over_three_nodes_survives_the_loss_of_one(nodes: Nodes, tmp_path: Path) -> None:
    """Paths are relative to the driver's working directory, which is not that of the nodes."""
    run, path = tmp_path / "run", config(tmp_path, 600)
    words = ["run.dir=run", f"cluster.address={nodes.address(0)}:6379"]
    cli = [sys.executable, "-c", "from shard_dist.cli import main; main()"]
    environment = nodes.environment
    subprocess.run([*cli, "prompts", str(path), *words], cwd=tmp_path, env=environment, check=True, capture_output=True)
    with subprocess.Popen(
        nodes.command(0, *cli, "generate", str(path), *words),
        cwd=tmp_path,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as process:
        try:
            limit = time.monotonic() + 120
            while (
                sum(event["event"] == "booted" for event in events(run)) < 3
                and time.monotonic() < limit
                and process.poll() is None
            ):
                time.sleep(0.2)
            time.sleep(3)
            assert process.poll() is None, process.stdout and process.stdout.read()
            nodes.kill(2)
            output, _ = process.communicate(timeout=240)
        finally:
            process.kill()
    assert process.returncode == 0, output
    split = pq.read_table(run / "prompts.parquet")["split"].to_pylist()
    records = pq.read_table(run / "records")
    assert len(records) == sum(part in ("train", "val") for part in split)
    assert set(records["failure"].to_pylist()) == {""}
    assert len(set(records["id"].to_pylist())) == len(records)
    assert "node_gone" in [event["event"] for event in events(run)]
    assert not set(nodes.environment["RAY_AUTH_TOKEN"].split()) & set(output.split())
