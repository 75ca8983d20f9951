"""What starts nodes and run where nobody has a Ray cluster yet: files for Slurm, KubeRay and Ray's cluster launcher.

They are the templates in the repository's `launch/`, filled in from `cluster` of the configuration. Every value goes
through a filter that quotes it for the language around it, so that none becomes a command or a key of its own.
"""

from __future__ import annotations

import importlib.metadata
import json
import math
import os
import re
import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from operator import attrgetter
from pathlib import Path
from typing import Any

import jinja2
import yaml

import shard_dist
from shard_dist.config.schema import Config
from shard_dist.submit.request import PASSED_ON, refuse_secrets

ROOT = Path(shard_dist.__file__).parents[1]
# Seconds before its end at which Slurm tells a job. A checkpoint of a 70 B model, 1.1 TB, takes 220 at 5 GB/s.
NOTICE = 360
# For Ray's own services and the driver, which took 0.26 GB for a million rows; no more than a node of the cluster has.
HEAD_CPUS, HEAD_MEMORY_GIB = 4, 16


@dataclass(frozen=True)
class Job:
    """What a file is written for; `config` is what the file and the overrides give."""

    config_file: Path
    overrides: Sequence[str]
    config: Config

    def words(self, config_file: Path) -> list[str]:
        """What Python is to run, with the configuration under the path that it has there."""
        stated = {name: getattr(self.config.cluster, name) for name in PASSED_ON}
        passed = [f"cluster.{name}={value}" for name, value in stated.items() if value]
        # The nodes find their cluster by RAY_ADDRESS, which an address in the configuration would override.
        here = ["cluster.address=''"] if self.config.cluster.address else []
        return ["-m", "shard_dist", "run", str(config_file), *self.overrides, *passed, *here]


@dataclass(frozen=True)
class Target:
    """A template of `launch/`, the command that starts its file, the keys of `cluster` that it cannot do without, and
    what it alone reads."""

    template: str
    start: str
    needs: tuple[str, ...]
    values: Callable[[Job], dict[str, Any]]


def write(config_file: Path, overrides: Sequence[str], config: Config, target: str) -> str:
    """The file for `target`, a key of TARGETS, complete; those of slurm and kuberay also run the configuration.

    `config` is what `config_file` and `overrides` give. Raises ValueError, which names the key, where `cluster` lacks
    something, where a value cannot stand in such a file, or where a secret would.
    """
    if target not in TARGETS:
        raise ValueError(f"target {target!r}: there are {', '.join(TARGETS)}")
    job, chosen = Job(config_file, overrides, config), TARGETS[target]
    lacking = [f"cluster.{key}" for key in chosen.needs if not attrgetter(key)(config.cluster)]
    if lacking:
        raise ValueError(f"target {target} needs {', '.join(lacking)}: state it in a file under configs/clusters/")
    _check_names(config)
    refuse_secrets(config)
    if not (ROOT / "launch").is_dir():
        raise ValueError(f"no templates in {ROOT / 'launch'}: work from a clone, `pip install -e .`")
    values = {**vars(config.cluster.launch), **_cluster(config), **chosen.values(job)}
    return _environment().get_template(chosen.template).render(values)


def _check_names(config: Config) -> None:
    for name in config.cluster.launch.environment:
        if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name):
            raise ValueError(f"cluster.launch.environment: {name!r} is no name of an environment variable")


def _cluster(config: Config) -> dict[str, Any]:
    nodes = config.cluster.nodes
    return {
        "name": f"shard-{re.sub('[^a-z0-9]+', '-', config.run.name.lower())[:40].strip('-')}".rstrip("-"),
        "python": config.cluster.launch.python or "python",
        "nodes": nodes,
        "memory_gib": math.floor(nodes.memory_gib),
        "storage": config.cluster.storage.path,
    }


def _slurm(job: Job) -> dict[str, Any]:
    launch, nodes = job.config.cluster.launch, job.config.cluster.nodes
    stated = {"partition": launch.slurm.partition, "account": launch.slurm.account}
    named = [_directive(f"--{key}={value}") for key, value in stated.items() if value]
    for option in launch.slurm.options:
        if not option.startswith("-") or not option.isprintable():
            raise ValueError(f"cluster.launch.slurm.options: {option!r} is no option in one line")
    image = launch.image if "://" in launch.image or launch.image.endswith(".sif") else f"docker://{launch.image}"
    nvidia = ["--nv"] if nodes.gpus else []
    container = ["apptainer", "exec", *nvidia, "--bind", job.config.cluster.storage.path, image]
    return {
        "container": container if launch.image else [],
        "command": job.words(job.config_file),
        "options": [*named, *launch.slurm.options],
        "notice": min(NOTICE, _seconds(launch.slurm.time) // 4),
    }


def _seconds(time: str) -> int:
    """Slurm's time limit: minutes, minutes:seconds, hours:minutes:seconds, or days-hours with the same behind it."""
    found = re.fullmatch(r"(?:(\d+)-)?(\d+)(?::(\d+))?(?::(\d+))?", time)
    if found is None:
        raise ValueError(f"cluster.launch.slurm.time={time}: write hours:minutes:seconds or days-hours")
    days, *rest = (int(number) if number else 0 for number in found.groups())
    if found[1] is None and found[4] is None:
        rest = [0, *rest[:2]]
    return ((days * 24 + rest[0]) * 60 + rest[1]) * 60 + rest[2]


def _pods(job: Job) -> dict[str, Any]:
    nodes = job.config.cluster.nodes
    if job.config.cluster.launch.setup:
        raise ValueError("cluster.launch.setup: pods run no such lines; do it in the image")
    return {
        "ray_version": importlib.metadata.version("ray"),
        "head_cpus": min(HEAD_CPUS, nodes.cpus),
        "head_memory_gib": min(HEAD_MEMORY_GIB, math.floor(nodes.memory_gib)),
    }


def _pods_and_run(job: Job) -> dict[str, Any]:
    storage, run = job.config.cluster.storage.path, job.config.run.dir
    config_file = job.config_file.resolve()
    if not Path(os.path.normpath(run)).is_relative_to(storage):
        raise ValueError(f"run.dir={run} would be lost with its pod: put it under cluster.storage.path, {storage}")
    if config_file.is_relative_to(ROOT):
        config_file = config_file.relative_to(ROOT)  # the image's working directory is a copy of the clone
    elif not config_file.is_relative_to(storage):
        raise ValueError(f"{config_file}: pods see the files of their image, which are the clone's, and {storage}")
    python = job.config.cluster.launch.python or "python"
    return {**_pods(job), "entrypoint": shlex.join([python, *job.words(config_file)])}


def _ray_launcher(job: Job) -> dict[str, Any]:
    cluster = job.config.cluster
    resources = {"CPU": cluster.nodes.cpus, "GPU": cluster.nodes.gpus}
    storage = shlex.quote(f"{cluster.storage.path}:{cluster.storage.path}")
    return {
        "resources": {name: number for name, number in resources.items() if number},
        "run_options": ["--ulimit nofile=65536:65536", *([f"-v {storage}"] if cluster.storage.path else [])],
    }


MACHINES = ("nodes.count", "nodes.cpus")
PODS = (*MACHINES, "nodes.memory_gib", "storage.path", "launch.image", "launch.kuberay.claim")
TARGETS = {
    "slurm": Target("slurm/ray.sbatch.j2", "sbatch", (*MACHINES, "storage.path"), _slurm),
    "kuberay": Target("kuberay/rayjob.yaml.j2", "kubectl apply -f", PODS, _pods_and_run),
    "kuberay-cluster": Target("kuberay/raycluster.yaml.j2", "kubectl apply -f", PODS, _pods),
    "ray-launcher": Target("ray/cluster.yaml.j2", "ray up", (*MACHINES, "launch.provider"), _ray_launcher),
}


def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(ROOT / "launch"),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {"word": _word, "directive": _directive, "scalar": _scalar}
    return environment


def _word(value: str) -> str:
    """One word for a POSIX shell."""
    if "\0" in value:
        raise ValueError(f"{value!r} cannot stand in a shell's command")
    return shlex.quote(value)


def _directive(option: str) -> str:
    """One option for a line of #SBATCH, which the shell's quotes hold together but no line break may end."""
    if not option.isprintable():
        raise ValueError(f"{option!r} cannot stand in a line of #SBATCH")
    return shlex.quote(option)


def _scalar(value: Any) -> str:
    """`value` in one line of YAML, in flow style with every string quoted, so that it fits in anywhere."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{_scalar(key)}: {_scalar(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(_scalar, value)) + "]"
    if isinstance(value, str):
        return yaml.safe_dump(value, default_style='"', width=math.inf).strip()
    return json.dumps(value)
