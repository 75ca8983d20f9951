"""Three Ray nodes with addresses of their own on this machine, token authentication on; one is killed in the middle."""

from __future__ import annotations

import json
import os
import secrets
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import yaml

pytestmark = [pytest.mark.ray, pytest.mark.e2e]

RAY = [sys.executable, "-m", "ray.scripts.scripts"]


def sh(*words: str, check: bool = True) -> str:
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 0 or not check, f"{words}: {done.stdout}{done.stderr}"
    return done.stdout


@dataclass
class Nodes:
    """Network namespaces on one bridge, one Ray node in each; `environment` has the cluster's token."""

    names: list[str]
    bridge: str
    temp: Path
    environment: dict[str, str]

    def address(self, number: int) -> str:
        return f"10.213.7.{number + 1}"

    def command(self, number: int, *words: str) -> list[str]:
        return ["ip", "netns", "exec", self.names[number], *words]

    def start(self) -> None:
        sh("ip", "link", "add", self.bridge, "type", "bridge")
        sh("ip", "link", "set", self.bridge, "up")
        for number, name in enumerate(self.names):
            sh("ip", "netns", "add", name)
            sh("ip", "link", "add", f"{name}v", "type", "veth", "peer", "name", "eth0", "netns", name)
            sh("ip", "link", "set", f"{name}v", "master", self.bridge, "up")
            sh(*self.command(number, "ip", "addr", "add", f"{self.address(number)}/24", "dev", "eth0"))
            for device in ("lo", "eth0"):
                sh(*self.command(number, "ip", "link", "set", device, "up"))
        head = ["--head", "--port=6379", "--include-dashboard=false", f"--temp-dir={self.temp}"]
        for number in range(len(self.names)):
            where = head if number == 0 else [f"--address={self.address(0)}:6379"]
            options = [f"--node-ip-address={self.address(number)}", "--num-cpus=1", "--disable-usage-stats"]
            done = subprocess.run(
                self.command(number, *RAY, "start", *where, *options),
                env=self.environment,
                capture_output=True,
                text=True,
                check=False,
                timeout=120,
            )
            assert done.returncode == 0, done.stdout + done.stderr

    def kill(self, number: int) -> None:
        """Every process of a node at once, as when its plug is pulled."""
        pids = sh("ip", "netns", "pids", self.names[number], check=False).split()
        if pids:
            sh("kill", "-9", *pids, check=False)

    def stop(self) -> None:
        for number, name in enumerate(self.names):
            self.kill(number)
            sh("ip", "netns", "del", name, check=False)
        sh("ip", "link", "del", self.bridge, check=False)


@pytest.fixture
def nodes() -> Iterator[Nodes]:
    if os.geteuid() != 0 or not shutil.which("ip"):
        pytest.skip("needs root and iproute2's ip for network namespaces")
    if subprocess.run(["ip", "netns", "add", "sdprobe"], capture_output=True, check=False).returncode:
        pytest.skip("this machine allows no network namespaces")
    sh("ip", "netns", "del", "sdprobe")
    tag = secrets.token_hex(2)
    temp = Path("/tmp") / f"sd{tag}"  # Ray's socket paths must stay below 108 characters
    environment = {**os.environ, "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
    made = Nodes([f"sd{tag}{letter}" for letter in "abc"], f"sd{tag}br", temp, environment)
    try:
        made.start()
        yield made
    finally:
        made.stop()
        shutil.rmtree(temp, ignore_errors=True)


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
