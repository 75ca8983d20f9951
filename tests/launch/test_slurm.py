"""The batch script on a Slurm whose srun starts its processes here, with a Ray that writes down what it is asked."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from shard_dist.config.load import include
from shard_dist.config.schema import Config

FAKE = Path(__file__).parent / "fake_cluster"


@dataclass
class Site:
    """A cluster without machines: its shared storage, and what its Ray was asked."""

    storage: Path
    written: Callable[..., str]
    jobs: list[subprocess.Popen[str]] = field(default_factory=list)

    @property
    def log(self) -> list[str]:
        file = self.storage / "log"
        return file.read_text().splitlines() if file.exists() else []

    def start(
        self, *settings: str, run: str = "0", start: str = "", nodes: int = 3, overrides: tuple[str, ...] = ()
    ) -> subprocess.Popen[str]:
        """The script as Slurm would start it, with a process group of its own."""
        places = (f"cluster.storage.path={self.storage}/space '", f"cluster.launch.python={FAKE}/python")
        (self.storage / "space '").mkdir(exist_ok=True)
        counts = (f"cluster.nodes.count={nodes}", "cluster.launch.image=''")
        script = self.storage / "job.sbatch"
        script.write_text(self.written("slurm", *places, *counts, *settings, overrides=overrides))
        names = ",".join(f"node{number}" for number in range(nodes))
        slurm = {"SLURM_JOB_NODELIST": names, "SLURM_JOB_NUM_NODES": str(nodes), "SLURM_JOB_ID": "7"}
        fakes = {"FAKE_LOG": str(self.storage / "log"), "FAKE_RUN": run, "FAKE_START": start}
        path = {"PATH": f"{FAKE}:{os.environ['PATH']}", "SLURM_CPUS_PER_TASK": "96"}
        environment = {**os.environ, **slurm, **fakes, **path}
        self.jobs.append(subprocess.Popen(["bash", script], env=environment, text=True, start_new_session=True))
        return self.jobs[-1]

    def waits_for(self, beginning: str) -> None:
        for _ in range(1000):
            if any(line.startswith(beginning) for line in self.log):
                return
            time.sleep(0.02)
        raise AssertionError(f"no {beginning!r} in {self.log}")

    def is_clean(self) -> bool:
        """No token is left, and every node that started has ended."""
        started = sum(line.startswith("start") for line in self.log)
        return not any((self.storage / "space '").iterdir()) and self.log.count("node ended") == started


@pytest.fixture
def site(tmp_path: Path, written: Callable[..., str]) -> Iterator[Site]:
    made = Site(tmp_path, written)
    yield made
    for job in made.jobs:
        with suppress(ProcessLookupError):
            os.killpg(job.pid, signal.SIGKILL)


def test_a_ray_node_on_every_slurm_node_and_the_runs_own_exit_code(site: Site, root: Path) -> None:
    words = ("run.name=it's $(id) `id`", 'a="b c"')
    assert site.start(run="7", overrides=words).wait(60) == 7
    starts = [line for line in site.log if line.startswith("start")]
    assert len(starts) == 3
    # Directory 0700, file 0600, 64 hexadecimal digits, and never on a command line.
    assert all(line.startswith("start 700 600 token 64 ") for line in starts)
    (address,) = {word for line in starts for word in line.split() if word.startswith("--address=")}
    assert re.fullmatch(r"--address=[0-9.]+:20007", address)
    assert all("--num-gpus=8" in line and "--num-cpus=96" in line for line in starts)
    head = next(line for line in starts if " --head " in line)
    assert "--include-dashboard=false" in head
    run = next(line for line in site.log if line.startswith("run"))
    assert run == f"run {address.removeprefix('--address=')} {root}/configs/demo.yaml {words[0]} {words[1]}"
    assert site.is_clean()


def test_one_node_is_a_cluster_too_and_the_next_job_has_another_token(site: Site) -> None:
    assert [site.start(nodes=1).wait(60) for _ in range(2)] == [0, 0]
    tokens = [line for line in site.log if line.startswith("token")]
    assert len(set(tokens)) == 2
    assert not any(" --address=" in line for line in site.log)
    assert site.is_clean()


def test_scancel_ends_the_run_and_every_node(site: Site) -> None:
    job = site.start(run="waits")
    site.waits_for("run")
    job.send_signal(signal.SIGTERM)
    assert job.wait(60) == 143
    assert "run ended" in site.log
    assert site.is_clean()


@pytest.mark.parametrize(("run", "code"), [("drained", 3), ("waits", 75)])
def test_before_the_time_limit_nodes_are_drained_and_the_run_has_time_to_leave(site: Site, run: str, code: int) -> None:
    """It may end by itself, with its own exit code; one that stays is ended, and 75 says that the run can go on."""
    job = site.start("cluster.launch.slurm.time='0:08'", run=run)
    site.waits_for("run")
    job.send_signal(signal.SIGUSR1)
    assert job.wait(60) == code
    drains = [line for line in site.log if line.startswith("drain")]
    assert sorted(line.split()[-1] for line in drains) == ["1", "2", "3"]
    assert all("PREEMPTION" in line and "--deadline-remaining-seconds=2" in line for line in drains)
    assert site.is_clean()


def test_nodes_that_do_not_start_end_the_job_at_once(site: Site) -> None:
    assert site.start(start="fails").wait(60) == 1
    assert not any(line.startswith("run") for line in site.log)
    assert site.is_clean()


@pytest.mark.parametrize("setting", ["cluster.nodes.gpus=8", "cluster.nodes.gpus=0", "cluster.launch.image=x.sif"])
def test_bash_and_shellcheck_accept_the_script(written: Callable[..., str], tmp_path: Path, setting: str) -> None:
    script = tmp_path / "job.sbatch"
    options = "cluster.launch.slurm={partition: gpu, account: it's, options: [--qos=high, --exclusive]}"
    words = ("cluster.launch.setup=[module load cuda]", 'cluster.launch.environment={A: "it\'s"}')
    script.write_text(written("slurm", setting, options, *words, overrides=("run.name=it's",)))
    subprocess.run(["bash", "-n", script], check=True)
    checker = shutil.which("shellcheck", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    if checker is None:
        pytest.skip("shellcheck is not installed")
    subprocess.run([checker, script], check=True)


def test_directives_say_what_the_cluster_is(written: Callable[..., str]) -> None:
    slurm = "cluster.launch.slurm={partition: gpu, time: 2-00, options: [--qos=high]}"
    lines = written("slurm", slurm).splitlines()
    asked = {line.removeprefix("#SBATCH ") for line in lines if line.startswith("#SBATCH ")}
    assert asked >= {"--nodes=3", "--gpus-per-node=8", "--cpus-per-task=96", "--mem=1500G", "--time=2-00"}
    assert asked >= {"--partition=gpu", "--qos=high", "--signal=B:USR1@360", "--requeue", "--no-kill"}
    assert "--gpus-per-node" not in written("slurm", "cluster.nodes.gpus=0")
    assert "apptainer exec --nv --bind /shared docker://" in written("slurm")
    assert "apptainer exec --bind /shared docker://" in written("slurm", "cluster.nodes.gpus=0")


def test_every_described_cluster_can_be_started_by_slurm(written: Callable[..., str], root: Path) -> None:
    descriptions = sorted((root / "configs" / "clusters").glob("*.yaml"))
    assert descriptions
    for file in descriptions:
        tree = include(OmegaConf.merge(OmegaConf.structured(Config)), file)
        nodes = tree.cluster.nodes
        script = written("slurm", f"cluster={json.dumps(OmegaConf.to_container(tree.cluster))}")
        assert f"\n#SBATCH --nodes={nodes.count}\n" in script, file
        assert (f"\n#SBATCH --gpus-per-node={nodes.gpus}\n" in script) == bool(nodes.gpus), file
