"""Real runs behind the model of 64 nodes: the pool with fake engines, and Ray Train's groups, on Ray nodes that are
network namespaces of this machine. Needs root and iproute2's ip; minutes.

A run is a process of its own in the head's namespace (`python node_runs.py pool|train SETTINGS`), because the driver's
CPU seconds are a figure too. CPU seconds are of whole processes, so they hold on a busy machine.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
import threading
import time
from collections import defaultdict
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import psutil
from barriers import Program, lengths
from fakes import HOME, Stamped

from shard_dist import cluster
from shard_dist.config.cluster import ClusterConfig
from shard_dist.config.schema import Backend, FakeConfig, ModelConfig
from shard_dist.engines.pool import EnginePool
from shard_dist.engines.rows import ListRows
from shard_dist.engines.spool import Spool
from shard_dist.engines.telemetry import Telemetry
from shard_dist.engines.worker import ModelIdentity, Role
from shard_dist.records import Prompt

sys.path.insert(0, str(Path(__file__).parents[1] / "e2e"))
from nodes import Nodes, ray_nodes

SAMPLE = 0.5  # seconds between looks at the processes' CPU time
ACTORS = re.compile(r"ray::(EngineActor|RowQueue)|(raylet)/raylet|(gcs)_server|(node_runs)\.py")


@dataclass(frozen=True)
class Settings:
    """One run of the pool: engines over all nodes, rows of SHARD, a decoding step's seconds."""

    nodes: int
    engines: int
    slots: int
    rows: int
    step: float
    lose: bool = False  # the last node, when a third of the rows are done


RUNS = {
    "one node": Settings(1, 1, 16, 360, 0.005),
    "two nodes": Settings(2, 2, 16, 360, 0.005),
    "three nodes": Settings(3, 3, 16, 360, 0.005),
    "three nodes, half the slots, faster steps": Settings(3, 3, 8, 360, 0.003),
    "three nodes, eight engines": Settings(3, 8, 8, 360, 0.005),
    "three nodes, one lost": Settings(3, 3, 16, 360, 0.005, lose=True),
}
GROUPS = {"1": (1, 2, False), "2": (2, 4, False), "3": (3, 6, False), "3, one lost": (3, 6, True)}  # nodes, workers


class CpuSeconds:
    """CPU seconds, user and system, of the processes in the nodes' namespaces by kind, sampled while a block runs."""

    def __init__(self, nodes: Nodes) -> None:
        self.nodes, self.seen, self.kinds = nodes, dict[int, float](), dict[int, str]()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> CpuSeconds:
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._over.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._over.wait(SAMPLE):
            for name in self.nodes.names:
                found = subprocess.run(["ip", "netns", "pids", name], capture_output=True, text=True, check=False)
                for pid in map(int, found.stdout.split()):
                    with suppress(psutil.Error):
                        self._look(psutil.Process(pid))

    def _look(self, process: psutil.Process) -> None:
        kind = ACTORS.search(" ".join(process.cmdline()))
        if kind:
            times = process.cpu_times()
            self.kinds[process.pid] = next(filter(None, kind.groups()))
            self.seen[process.pid] = times.user + times.system

    def sums(self) -> dict[str, float]:
        total: dict[str, float] = defaultdict(float)
        for pid, seconds in self.seen.items():
            total[self.kinds[pid]] += seconds
        return dict(total)


def on_nodes(number: int, what: str, settings: Any) -> dict[str, Any]:
    """Start the nodes, and `what` with `settings` in the head's namespace; what it found and the CPU it all took."""
    here = Path(__file__).parent
    os.environ["PYTHONPATH"] = os.pathsep.join([str(here), str(here.parents[1]), str(here.parents[1] / "kernels")])
    os.environ["GLOO_SOCKET_IFNAME"] = "eth0"  # the machine's name stands for 127.0.0.1 in every namespace
    load = os.getloadavg()[0]
    with tempfile.TemporaryDirectory(prefix="bench-nodes-") as home, ray_nodes(number) as nodes:
        work = Path(home) / "settings.json"
        work.write_text(json.dumps({"address": f"{nodes.address(0)}:6379", "home": home, **settings}))
        with CpuSeconds(nodes) as cpu:
            command = nodes.command(0, sys.executable, __file__, what, str(work))
            with subprocess.Popen(command, env=nodes.environment) as process:
                _plug_pulled(nodes, Path(home), process)
        assert process.returncode == 0, f"{what} {settings}"
        found: dict[str, Any] = json.loads((Path(home) / "found.json").read_text())
    return {**found, "cpu_seconds": cpu.sums(), "load_average": load}


def _plug_pulled(nodes: Nodes, home: Path, process: subprocess.Popen[bytes]) -> None:
    """Wait for the run; kill the last node when the run asks for it."""
    while process.poll() is None:
        time.sleep(0.05)
        if (home / "kill").exists():
            nodes.kill(len(nodes.names) - 1)
            (home / "kill").rename(home / f"killed {time.monotonic()}")


def prompts(rows: int) -> list[Prompt]:
    return [
        Prompt("nodes", str(n), f"How do I repair lamp number {n} of the long corridor?", f"kind {n % 12}")
        for n in range(rows)
    ]


def pool_run(address: str, home: str, **settings: Any) -> dict[str, Any]:
    """Boot, run, stop; seconds of each, and every row's lengths in tokens as the engines drew them."""
    asked, root = Settings(**settings), Path(home)
    fake = FakeConfig(slots=asked.slots, step_seconds=asked.step)
    spec = ModelConfig(backend=Backend.fake, model="fake", fake=fake, engines=asked.engines, cpus=0.01)
    role = Role(HOME, spec, ModelIdentity("fake", "0"), str(root / "ledger"), root / "logs")
    cluster.join(ClusterConfig(address=address))
    begin = time.monotonic()

    def progress(done: int) -> None:
        if asked.lose and 3 * done >= asked.rows and not list(root.glob("kill*")):
            (root / "kill").touch()

    with EnginePool([role], ClusterConfig(), Telemetry(root / "engines.jsonl", "nodes", clock=time.monotonic)) as pool:
        ready, cpu = time.monotonic(), time.process_time()
        pool.run(Stamped(Program()), ListRows(prompts(asked.rows)), HOME, root / "spool", progress)
        ran, cpu = time.monotonic(), time.process_time() - cpu
        places = [life.node[:6] for life in pool.fleet.lives]
    stopped = time.monotonic()
    cluster.leave()
    times = {"begin": begin, "ready": ready, "ran": ran}
    return {**_seconds(asked, root, times), "stop_seconds": stopped - ran, "places": places, "driver_cpu": cpu}


def _seconds(asked: Settings, root: Path, times: dict[str, float]) -> dict[str, Any]:
    """What a run's files say of it, beside the driver's clock when it began, had an engine, and was over."""
    begin, ready, ran = times["begin"], times["ready"], times["ran"]
    results = list(Spool(root / "spool", asked.rows).ordered())
    events = [line for line in map(json.loads, (root / "engines.jsonl").read_text().splitlines()) if "event" in line]
    found = {
        **asdict(asked),
        "first_engine_seconds": ready - begin,
        "run_seconds": ran - ready,
        "first_row_seconds": min(start for start, _, _ in results) - ready,
        "rows_seconds": max(end for _, end, _ in results) - min(start for start, _, _ in results),
        "last_row_to_return": ran - max(end for _, end, _ in results),
        "booted": [line["time"] - begin for line in events if line["event"] == "booted"],
        "lengths": lengths([calls for _, _, calls in results], root / "ledger"),
    }
    if asked.lose:
        (killed,) = root.glob("killed *")
        died = [line["time"] for line in events if line["event"] in ("died", "silent", "node_gone")]
        kill = float(killed.name.split()[1])
        found |= {"killed_after_seconds": kill - ready, "notice_seconds": min(died) - kill}
    return found


def _loop(config: dict[str, str]) -> None:
    """A worker of a trivial trainer: says that it has started, waits until it may end."""
    import ray.train

    context = ray.train.get_context()
    note = Path(config["home"]) / f"started {context.get_world_rank()} {time.monotonic()}"
    note.touch()
    while not (Path(config["home"]) / "end").exists():
        time.sleep(0.05)


def train_run(address: str, home: str, workers: int, lose: bool) -> dict[str, Any]:
    """Seconds until the last of `workers` runs; and, where a node is lost, until the last of the new ones runs."""
    from ray.train.v2.api.config import FailureConfig, RunConfig, ScalingConfig
    from ray.train.v2.torch.torch_trainer import TorchTrainer

    root = Path(home)
    os.environ["RAY_TRAIN_HEALTH_CHECK_INTERVAL_S"] = "0.5"  # as training/supervise.py has it
    cluster.join(ClusterConfig(address=address))
    trainer = TorchTrainer(
        _loop,
        train_loop_config={"home": home},
        scaling_config=ScalingConfig(
            num_workers=workers, resources_per_worker={"CPU": 0.2}, placement_strategy="SPREAD"
        ),
        run_config=RunConfig(
            name="nodes", storage_path=str(root / "ray"), failure_config=FailureConfig(max_failures=2)
        ),
    )
    begin = time.monotonic()
    thread = threading.Thread(target=trainer.fit)
    thread.start()
    started = _wait_for(root, workers) - begin
    found: dict[str, Any] = {"workers": workers, "start_seconds": started}
    if lose:
        (root / "kill").touch()
        last = _wait_for(root, 2 * workers)
        (killed,) = root.glob("killed *")
        found["restart_seconds"] = last - float(killed.name.split()[1])
    (root / "end").touch()
    thread.join()
    found["whole_seconds"] = time.monotonic() - begin
    cluster.leave()
    return found


def _wait_for(root: Path, workers: int) -> float:
    """When the last of so many workers started."""
    while len(notes := list(root.glob("started *"))) < workers:
        time.sleep(0.05)
    return max(float(note.name.split()[2]) for note in notes)


def measure() -> dict[str, Any]:
    """Every run of RUNS and every group of GROUPS, one after the other."""
    pools = {name: on_nodes(run.nodes, "pool", asdict(run)) for name, run in RUNS.items()}
    groups = {
        name: on_nodes(nodes, "train", {"workers": workers, "lose": lose})
        for name, (nodes, workers, lose) in GROUPS.items()
    }
    return {"pool": pools, "groups": groups}


if __name__ == "__main__":
    work = Path(sys.argv[2])
    runs = {"pool": pool_run, "train": train_run}
    result = runs[sys.argv[1]](**json.loads(work.read_text()))
    (work.parent / "found.json").write_text(json.dumps(result))
