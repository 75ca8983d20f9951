"""What is submitted: the driver's words, its environment and its package. Nothing here talks to a cluster."""

from __future__ import annotations

import re
import secrets
import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from shard_dist.config.check import check
from shard_dist.config.load import as_dict, config_of, read_tree, redacted
from shard_dist.config.schema import Backend, Config
from shard_dist.submit.package import Package, collect, words_of

PASSED_ON = ("boots_at_once", "wait_for_nodes")  # of `cluster`: what a driver reads of it beside the address
NAMES_OF_SECRETS = "cluster.launch.kuberay"  # they name a Kubernetes object, they are none


@dataclass(frozen=True)
class Request:
    """`words` follow the interpreter on the driver's command line; paths among them are from the directory's top."""

    job: str
    config: Config
    words: tuple[str, ...]
    package: Package

    @property
    def directory(self) -> str:
        """Of the run, on the cluster."""
        return self.config.run.dir

    @property
    def needs_vllm(self) -> bool:
        return any(spec.backend == Backend.vllm for spec in self.config.models.values())

    def entrypoint(self, interpreter: str) -> str:
        return shlex.join([interpreter, "-m", "shard_dist", *self.words])

    def environment(self, archive: Path) -> dict[str, Any]:
        """Ray's runtime environment. The archive is unpacked on every node and is on every process's path."""
        launch = self.config.cluster.launch
        found: dict[str, Any] = {"working_dir": str(archive), "env_vars": dict(launch.environment)}
        return {**found, "py_executable": launch.python} if launch.python else found


def load(config_file: Path, overrides: Sequence[str], cluster: Path | None) -> Config:
    """The configuration; a description of the cluster comes over the file and under the overrides.

    Checked, unless it names a place that is on the cluster alone: then the driver checks it, as its first act.
    """
    config = config_of(read_tree(config_file, overrides, {}, cluster=cluster), config_file)
    if all(Path(word).exists() for word in words_of(config) if word.startswith("/")):
        check(config)
    return config


def request(config_file: Path, overrides: Sequence[str], config: Config, directory: Path) -> Request:
    """What a person who stands in `directory` submits with `config`, which was loaded from the first two.

    Raises ValueError for secrets, for results that would be lost with a node, and for files that cannot travel.
    """
    refuse_secrets(config)
    words = [word for word in overrides if not word.startswith(("run.dir=", "run.ledger=", "cluster."))]
    words += on_storage(config)
    # RAY_ADDRESS, which Ray gives its jobs, is the only address that is sure to be right there.
    words += [f"cluster.{name}={value}" for name in PASSED_ON if (value := getattr(config.cluster, name))]
    package = collect(directory, config_file, config)
    place = config_file.absolute().relative_to(directory.absolute())
    job = f"{re.sub('[^A-Za-z0-9_-]+', '-', config.run.name)[:40]}-{secrets.token_hex(4)}"
    return Request(job, config, ("run", str(place), *words, "cluster.address=''", "cluster.cpus=0"), package)


def on_storage(config: Config) -> list[str]:
    """Set run.dir, and run.ledger where there is one, to where they outlive their node; as overrides.

    A relative path would lie in Ray's copy of the directory, which goes with the node. Raises ValueError where nothing
    says where the storage is.
    """
    storage, run = config.cluster.storage.path, config.run
    for name in ("dir", "ledger"):
        place = getattr(run, name)
        if not place or "://" in place or Path(place).is_absolute():
            continue
        if not Path(storage).is_absolute():
            raise ValueError(
                f"run.{name}={place} would be lost with the node that the driver runs on: set cluster.storage.path to "
                f"a directory that every node sees (in the file for --cluster), or run.{name} to a path there"
            )
        setattr(run, name, str(Path(storage) / place))
    return [f"run.dir={run.dir}", *([f"run.ledger={run.ledger}"] if run.ledger else [])]


def refuse_secrets(config: Config) -> None:
    """Raise ValueError for a setting that looks like a secret: the configuration travels, and job lists show it."""
    tree = as_dict(config)
    found = sorted(set(_differences(tree, redacted(tree), "")))
    if found:
        raise ValueError(
            f"{', '.join(found)}: looks like a secret, and what is submitted is kept on the cluster and shown in its "
            "job list. Secrets belong into the environment that Ray is started in on the nodes: a Kubernetes Secret "
            "(cluster.launch.kuberay.secret), a file that cluster.launch.setup reads, or the token file of the library"
        )


def _differences(value: Any, other: Any, path: str) -> Iterator[str]:
    if path.startswith(NAMES_OF_SECRETS):
        return
    if isinstance(value, dict):
        for key, item in value.items():
            yield from _differences(item, other[key], f"{path}.{key}" if path else str(key))
    elif isinstance(value, list):
        for item, hidden in zip(value, other, strict=True):
            yield from _differences(item, hidden, path)
    elif value != other:
        yield path
