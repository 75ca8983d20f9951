"""The demo, submitted from a clean directory to a cluster of three nodes whose nodes and whose submitter die."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from nodes import Nodes, impossible, ray_nodes, sh

from shard_dist.ledger.store import Ledger

pytestmark = [pytest.mark.ray, pytest.mark.vllm, pytest.mark.zero, pytest.mark.e2e, pytest.mark.timeout(1800)]

WAIT = 900  # seconds; a busy machine needs minutes for what an idle one does in half of one
LEFT = (".git", ".venv", "runs", "build", "wandb", "__pycache__", "*.egg-info", ".*_cache", ".hypothesis")
# Engines fill a worker each and the head has no room for them; the two training processes fit on a worker together,
# where Ray packs them. Rows and steps are enough to lose a node on the way.
SETTINGS = [
    *("models.student.engines=2", "models.student.cpus=2", "data.sources[0].limit=200"),
    *("train.epochs=8", "train.checkpoint_every=4", "tracking.heartbeat=1"),
]


@pytest.fixture
def nodes() -> Iterator[Nodes]:
    if reason := impossible():
        pytest.skip(reason)
    with ray_nodes(cpus=(1, 2, 2), dashboard=True) as made:
        yield made


@dataclass
class Person:
    """Stands in a fresh copy of the repository, on a machine that reaches the head's dashboard."""

    nodes: Nodes
    place: Path
    storage: Path

    @property
    def run(self) -> Path:
        return self.storage / "runs" / "demo"

    def start(self, *words: str) -> subprocess.Popen[str]:
        """A command; its output goes to `<first word>.txt` beside the copy."""
        # The copy's own code, not the one that is installed here.
        environment = {**self.nodes.environment, "PYTHONPATH": str(self.place / "kernels")}
        with (self.place.parent / f"{words[0]}.txt").open("w") as output:
            return subprocess.Popen(
                self.nodes.command(0, sys.executable, "-m", "shard_dist", *words),
                cwd=self.place,
                env=environment,
                stdout=output,
                stderr=subprocess.STDOUT,
                text=True,
            )

    def said(self, word: str) -> str:
        return (self.place.parent / f"{word}.txt").read_text()

    def do(self, *words: str) -> str:
        assert self.start(*words).wait(WAIT) == 0, self.said(words[0])
        return self.said(words[0])

    def wait(self, until: Callable[[], bool], following: subprocess.Popen[str]) -> None:
        limit = time.monotonic() + WAIT
        while not until() and following.poll() is None and time.monotonic() < limit:
            time.sleep(0.1)
        assert until(), "\n".join(file.read_text() for file in self.place.parent.glob("*.txt"))

    def at(self, title: str) -> list[int]:
        """Workers with a process of this title, each as often as it has one."""
        lines = ((number, Path(f"/proc/{pid}/cmdline")) for number in (1, 2) for pid in self.nodes.processes(number))
        return [number for number, line in lines if line.exists() and line.read_bytes().startswith(title.encode())]

    def writes(self, log: str) -> list[int]:
        """Workers with a process that has this log of the run open."""
        places = ((number, Path(f"/proc/{pid}/fd")) for number in (1, 2) for pid in self.nodes.processes(number))
        return [
            number
            for number, place in places
            for one in (place.iterdir() if place.exists() else ())
            if one.exists() and one.samefile(self.run / "logs" / log)
        ]

    def events(self, kind: str) -> list[str]:
        """Engines to which this happened."""
        path = self.run / "engines.jsonl"
        lines = map(json.loads, path.read_text().splitlines() if path.exists() else [])
        return [line["engine"] for line in lines if line["kind"] == "event" and line["event"] == kind]


@pytest.fixture
def person(nodes: Nodes, root: Path, tmp_path: Path) -> Person:
    place, storage = tmp_path / "clone", tmp_path / "shared"
    shutil.copytree(root, place, ignore=shutil.ignore_patterns(*LEFT))
    storage.mkdir()
    return Person(nodes, place, storage)


def test_the_demo_outlives_two_nodes_and_its_submitter(person: Person, nodes: Nodes) -> None:
    """One worker is lost while it generates, another while it trains; a new node takes the place of each."""
    address, place = f"--address=http://{nodes.address(0)}:8265", f"cluster.storage.path={person.storage}"
    submitter = person.start("submit", "configs/demo.yaml", *SETTINGS, place, address)
    person.wait(lambda: len(person.events("booted")) > 0, submitter)
    submitter.kill()
    submitter.wait()
    job = json.loads((person.place / "runs" / "submissions.jsonl").read_text())["id"]
    follower = person.start("attach", job)
    try:
        person.wait(lambda: calls(person.run) > 40, follower)
        first = person.writes(f"{person.events('booted')[0]}.log")[0]
        nodes.kill(first)
        person.wait((person.run / "generate.json").exists, follower)
        nodes.join(first)
        person.wait(lambda: steps(person.run) >= 6, follower)
        second = person.at("ray::RayTrainWorker")
        assert second in ([1, 1], [2, 2]), "training was to be on one worker"
        nodes.kill(second[0])
        nodes.join(second[0])
        assert follower.wait(WAIT) == 0, person.said("attach")
    finally:
        follower.kill()
        print(person.said("attach"))
    check_run(person)
    check_words(person, job)
    check_token(person, job)


def calls(run: Path) -> int:
    with closing(Ledger(run / "ledger")) as ledger:
        return ledger.stats.lines


def steps(run: Path) -> int:
    path = run / "train_metrics.jsonl"
    return path.read_bytes().count(b'"loss"') if path.exists() else 0


def check_run(person: Person) -> None:
    """Everything that was asked for is there, once."""
    assert (person.run / "report" / "index.html").is_file()
    split = pq.read_table(person.run / "prompts.parquet")["split"].to_pylist()
    records = pq.read_table(person.run / "records")
    assert len(set(records["id"].to_pylist())) == len(records) == sum(part in ("train", "val") for part in split)
    assert set(records["failure"].to_pylist()) == {""}
    assert person.events("died"), "no engine was lost"
    assert " 0 wrong" in person.do("ledger", "verify", str(person.run))
    metrics = [json.loads(line) for line in (person.run / "train_metrics.jsonl").read_text().splitlines()]
    numbers = [line["step"] for line in metrics if "loss" in line]
    assert numbers == list(range(1, len(numbers) + 1)), "a step is missing or stands twice"


def check_words(person: Person, job: str) -> None:
    """What people and files were told: the outcome, every line of the log once, and no token."""
    said = person.said("attach")
    assert f"job {job} succeeded; report: {person.run}/report/index.html" in said
    assert f"submitted {job}" in person.said("submit")
    assert "working_dir_files" in said, "engines did not read the model from what was sent"
    log = person.do("logs", job)
    assert [line for line in said.splitlines() if line in set(log.splitlines())] == log.splitlines()
    assert "succeeded" in person.do("status", job)


def check_token(person: Person, job: str) -> None:
    """It is in no file of person, run or Ray, and not in what the cluster tells of the job."""
    nodes, token = person.nodes, person.nodes.environment["RAY_AUTH_TOKEN"]
    program = (
        "import os, requests; token = os.environ['RAY_AUTH_TOKEN'];"
        f"address = 'http://{nodes.address(0)}:8265/api/jobs/';"
        "print(requests.get(address, headers={'Authorization': f'Bearer {token}'}).text)"
    )
    jobs = sh(*nodes.command(0, sys.executable, "-c", program), env=nodes.environment)
    assert job in jobs
    assert token not in jobs
    places = [person.place.parent, *nodes.temp.parent.glob(f"{nodes.temp.name}*")]
    files = [path for place in places for path in place.rglob("*") if path.is_file()]
    assert not [path for path in files if token.encode() in path.read_bytes()]
