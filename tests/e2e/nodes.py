"""Ray nodes with addresses of their own on one machine: network namespaces on a bridge, token authentication on."""

from __future__ import annotations

import os
import secrets
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

RAY = [sys.executable, "-m", "ray.scripts.scripts"]


def sh(*words: str, check: bool = True, env: dict[str, str] | None = None) -> str:
    done = subprocess.run(words, capture_output=True, text=True, check=False, env=env)
    assert done.returncode == 0 or not check, f"{words}: {done.stdout}{done.stderr}"
    return done.stdout


@dataclass
class Nodes:
    """Network namespaces on one bridge, one Ray node in each; `environment` has the cluster's token."""

    names: list[str]
    bridge: str
    temp: Path
    environment: dict[str, str]
    cpus: Sequence[int]
    dashboard: bool

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
            self.join(number)

    def join(self, number: int) -> None:
        """Start Ray there, the head first; a node that was killed comes back as a new one."""
        where = [f"--address={self.address(0)}:6379"]
        if number == 0:
            board = f"--include-dashboard={str(self.dashboard).lower()}"
            where = ["--head", "--port=6379", board, f"--dashboard-host={self.address(0)}", f"--temp-dir={self.temp}"]
        options = [f"--node-ip-address={self.address(number)}", f"--num-cpus={self.cpus[number]}"]
        done = subprocess.run(
            self.command(number, *self._own_disk(number), *RAY, "start", *where, *options, "--disable-usage-stats"),
            env=self.environment,
            capture_output=True,
            text=True,
            check=False,
            timeout=120,
        )
        assert done.returncode == 0, done.stdout + done.stderr

    def _own_disk(self, number: int) -> list[str]:
        """A directory of its own under the same name, as on a machine of its own: nodes unpack jobs' files there.

        `ip netns exec` gives every command its own view of the mounts. The head's is everybody's: drivers look there.
        """
        if number == 0:
            return []
        own = self.temp.with_name(f"{self.temp.name}-{number}")
        for place in (self.temp, own):
            place.mkdir(exist_ok=True)
        return ["sh", "-c", 'mount --bind "$0" "$1" && shift && exec "$@"', str(own), str(self.temp)]

    def processes(self, number: int) -> list[str]:
        """Process ids of a node."""
        return sh("ip", "netns", "pids", self.names[number], check=False).split()

    def kill(self, number: int) -> None:
        """Every process of a node at once, as when its plug is pulled."""
        if pids := self.processes(number):
            sh("kill", "-9", *pids, check=False)

    def stop(self) -> None:
        for number, name in enumerate(self.names):
            self.kill(number)
            sh("ip", "netns", "del", name, check=False)
        sh("ip", "link", "del", self.bridge, check=False)


def impossible() -> str:
    """Why this machine cannot have such nodes; empty: it can."""
    if os.geteuid() != 0 or not shutil.which("ip"):
        return "needs root and iproute2's ip for network namespaces"
    if subprocess.run(["ip", "netns", "add", "sdprobe"], capture_output=True, check=False).returncode:
        return "this machine allows no network namespaces"
    sh("ip", "netns", "del", "sdprobe")
    return ""


@contextmanager
def ray_nodes(number: int = 3, *, cpus: Sequence[int] = (), dashboard: bool = False) -> Iterator[Nodes]:
    """So many nodes, the first of them the head; nothing of them is left behind.

    `cpus` of each node, one where it is empty; `dashboard` on the head, which has Ray's job API.
    """
    tag = secrets.token_hex(2)
    temp = Path("/tmp") / f"sd{tag}"  # Ray's socket paths must stay below 108 characters
    environment = {**os.environ, "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
    made = Nodes(
        [f"sd{tag}{place}" for place in range(number)], f"sd{tag}br", temp, environment, cpus or [1] * number, dashboard
    )
    try:
        made.start()
        yield made
    finally:
        made.stop()
        for place in temp.parent.glob(f"{temp.name}*"):
            shutil.rmtree(place, ignore_errors=True)
