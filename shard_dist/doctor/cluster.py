"""The nodes of a Ray cluster: one actor on each of them runs what the checks ask."""

from __future__ import annotations

import logging
import os
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from shard_dist import cluster
from shard_dist.config.cluster import ClusterConfig
from shard_dist.doctor.machines import NoAnswer, Node, reason

START = 60.0  # seconds for an actor: its environment is made, a process started
THREADS = 16  # of an actor: a check that hangs holds one, the others go on


class Probe:
    """Runs on its node what it is sent; several functions at a time."""

    def run(self, function: Callable[..., Any], arguments: tuple[Any, ...]) -> Any:
        return function(*arguments)


class Cluster:
    """Every node that is alive, the driver's first. `close` ends what runs there, and leaves a cluster joined here.

    Raises ValueError where there is no cluster at the address.
    """

    def __init__(self, settings: ClusterConfig) -> None:
        if settings.address.startswith(("http://", "https://", "ray://")):
            raise ValueError(
                f"cluster.address {settings.address!r}: doctor runs on a node of the cluster. Log in to one, or run "
                f"`ray job submit --address {settings.address} -- shard-dist doctor --address auto`"
            )
        self.joined = not ray.is_initialized()
        # The nodes may have nothing but the dependencies. A job brings its code along by itself.
        package = Path(__file__).parents[1]
        cluster.join(settings, () if "RAY_JOB_CONFIG_JSON_ENV_VAR" in os.environ else (package,))
        context: Any = ray.init(ignore_reinit_error=True, log_to_driver=False, logging_level=logging.ERROR)
        self.gcs, self.dashboard = cluster.address(), context.dashboard_url or ""
        self.temp = str(context.address_info.get("session_dir", ""))
        self.actors: dict[str, Any] = {}
        self.nodes: Sequence[Node] = ()
        self.silent: Sequence[Node] = ()
        self._start()

    def _start(self) -> None:
        here = ray.get_runtime_context().get_node_id()
        alive = sorted((node for node in ray.nodes() if node["Alive"]), key=lambda node: node["NodeID"] != here)
        addresses = Counter(node["NodeManagerAddress"] for node in alive)
        nodes = []
        for node in alive:
            address = node["NodeManagerAddress"]
            name = address if addresses[address] == 1 else f"{address} ({node['NodeID'][:6]})"
            affinity = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
            options = {"num_cpus": 0, "max_restarts": 0, "max_concurrency": THREADS, "scheduling_strategy": affinity}
            self.actors[name] = ray.remote(Probe).options(**options).remote()
            nodes.append(Node(name, address, dict(node["Resources"])))
        answers = self.ask(len, {node.name: ((),) for node in nodes}, START)
        self.nodes = [node for node in nodes if answers[node.name] == 0]
        self.silent = [
            Node(node.name, node.address, node.resources, answers[node.name].why)
            for node in nodes
            if isinstance(answers[node.name], NoAnswer)
        ]
        if not self.nodes or self.nodes[0] != nodes[0]:
            why = answers[nodes[0].name]
            self.close()
            raise ValueError(f"nothing can be run on the driver's own node: {why.why}")

    def ask(self, function: Callable[..., Any], calls: Mapping[str, tuple[Any, ...]], seconds: float) -> dict[str, Any]:
        refs = {name: self.actors[name].run.remote(function, arguments) for name, arguments in calls.items()}
        done, _ = ray.wait(list(refs.values()), num_returns=len(refs), timeout=seconds) if refs else ([], [])
        return {
            name: _answer(ref) if ref in done else NoAnswer(f"no answer within {seconds:g} s")
            for name, ref in refs.items()
        }

    def close(self) -> None:
        for actor in self.actors.values():
            ray.kill(actor)
        if self.joined:
            cluster.leave()


def _answer(ref: Any) -> Any:
    try:
        return ray.get(ref)
    except Exception as error:  # of the function, of its process, or of what was to be sent
        return NoAnswer(reason(error))
