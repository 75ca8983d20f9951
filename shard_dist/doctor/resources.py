"""What a node has of CPUs, memory, disk and limits, beside what was stated and what the libraries need."""

from __future__ import annotations

import os
import resource
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from shard_dist.config.cluster import NodesConfig
from shard_dist.doctor.asked import Asked
from shard_dist.doctor.finding import Finding, Level
from shard_dist.doctor.gpus import nvidia
from shard_dist.doctor.machines import Machines, Node, answered, everywhere

GIB = 2**30
# Ray stores no more objects on a disk that is 95 % full, and kills workers where 95 % of the memory is in use.
FULL, NEARLY_FULL = 0.95, 0.90
LEAST_TMP = 5.0  # GiB: logs, spilled objects and packages of a session
LEAST_FILES = 4096  # open files: Ray's processes hold a socket for each worker and node
LEAST_SHM = 1.0  # GiB: NCCL and vLLM's workers speak through it; containers have 64 MiB unless told otherwise
SHORT = 0.95  # share of the stated memory: the kernel keeps some for itself


@dataclass(frozen=True)
class Disk:
    path: str
    total: int
    free: int
    """Bytes, for a user without root's reserve."""


@dataclass(frozen=True)
class Machine:
    """Bytes, but for `cpus` (that this process may use) and `open_files`."""

    cpus: int
    memory: int
    available: int
    shm: int
    open_files: int
    tmp: Disk
    cache: Disk
    gpus: int


def look(temp: str) -> Machine:
    """This machine; `temp` is Ray's directory for its sessions, "" where none runs."""
    memory, available = _memory()
    cache = os.environ.get("HF_HOME") or "~/.cache/huggingface"
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return Machine(
        cpus=len(os.sched_getaffinity(0)),
        memory=memory,
        available=available,
        shm=shutil.disk_usage("/dev/shm").total,
        open_files=soft,
        tmp=disk(temp or os.environ.get("RAY_TMPDIR") or "/tmp"),
        cache=disk(cache),
        gpus=len(nvidia()[0]),
    )


def disk(place: str) -> Disk:
    """The file system of a directory, or of the nearest one above it that is there."""
    path = Path(place).expanduser().absolute()
    there = next(parent for parent in (path, *path.parents) if parent.is_dir())
    usage = shutil.disk_usage(there)
    return Disk(str(path), usage.total, usage.free)


def _memory() -> tuple[int, int]:
    """Total and available bytes: of the machine, or of the control group where that has less."""
    lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
    kib = {name: int(rest.split()[0]) for name, _, rest in (line.partition(":") for line in lines)}
    total, available = kib["MemTotal"] * 1024, kib["MemAvailable"] * 1024
    for limit, used in (
        ("memory.max", "memory.current"),
        ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes"),
    ):
        bound = _number(Path("/sys/fs/cgroup") / limit)
        if bound is not None and bound < total:
            return bound, min(available, bound - (_number(Path("/sys/fs/cgroup") / used) or 0))
    return total, available


def _number(path: Path) -> int | None:
    text = path.read_text(encoding="ascii").strip() if path.is_file() else ""
    return int(text) if text.isdigit() else None


def resources(machines: Machines, asked: Asked) -> list[Finding]:
    """Memory, limits and a node's own disks, on every node; and all of it against cluster.nodes."""
    found, findings = answered("machine", machines.ask(look, everywhere(machines, machines.temp), 30))
    for name, there in found.items():
        findings += [judge(name, there) for judge in JUDGES]
    return findings + (stated(machines, asked, found) if asked.cluster.nodes != NodesConfig() else [])


def memory(node: str, there: Machine) -> Finding:
    text = f"{there.available / GIB:.0f} of {there.memory / GIB:.0f} GiB of memory available"
    if there.available < there.memory * (1 - NEARLY_FULL):
        todo = "end what holds it: Ray kills workers where 95 % is in use"
        return Finding("memory", node, Level.warn, text, todo)
    return Finding("memory", node, Level.ok, text)


def open_files(node: str, there: Machine) -> Finding:
    unlimited = there.open_files < 0
    if there.open_files < LEAST_FILES and not unlimited:
        todo = "ulimit -n 65536 before ray start (LimitNOFILE in systemd, --ulimit nofile=65536 for a container)"
        return Finding("open files", node, Level.warn, f"{there.open_files} files at once", todo)
    return Finding("open files", node, Level.ok, f"{'any number of' if unlimited else there.open_files} files at once")


def shared_memory(node: str, there: Machine) -> Finding:
    text = f"/dev/shm has {there.shm / GIB:.2f} GiB"
    if there.shm < LEAST_SHM * GIB:
        level = Level.fail if there.gpus > 1 else Level.warn
        todo = "start the container with --shm-size=16g or --ipc=host (Kubernetes: an emptyDir of medium Memory there)"
        return Finding("shared memory", node, level, text, todo)
    return Finding("shared memory", node, Level.ok, text)


def tmp_disk(node: str, there: Machine) -> Finding:
    free, full = there.tmp.free / GIB, 1 - there.tmp.free / max(there.tmp.total, 1)
    text = f"{there.tmp.path}: {free:.1f} GiB free, {full:.0%} full"
    todo = "make room there, or start Ray with --temp-dir on a larger disk"
    if full >= FULL or free < LEAST_TMP / 5:
        return Finding("Ray's disk", node, Level.fail, text + "; Ray stores no objects on a disk 95 % full", todo)
    if full >= NEARLY_FULL or free < LEAST_TMP:
        return Finding("Ray's disk", node, Level.warn, text, todo)
    return Finding("Ray's disk", node, Level.ok, text)


def cache_disk(node: str, there: Machine) -> Finding:
    """What a model needs is not known before it is there: an 8B model in bf16 has 15 GiB."""
    text = f"{there.cache.path}: {there.cache.free / GIB:.1f} GiB free"
    if there.cache.free < 15 * GIB:
        todo = "set HF_HOME to the shared storage, where one copy of a model serves all nodes, or make room"
        return Finding("model cache", node, Level.warn, text + ", less than an 8B model needs", todo)
    return Finding("model cache", node, Level.ok, text)


JUDGES: tuple[Callable[[str, Machine], Finding], ...] = (memory, open_files, shared_memory, tmp_disk, cache_disk)


def stated(machines: Machines, asked: Asked, found: Mapping[str, Machine]) -> list[Finding]:
    """As many nodes as stated must have what was stated. A head without GPUs may be beside them."""
    wanted = asked.cluster.nodes
    nvme = asked.config.train.long.nvme_path if asked.config else ""
    disks, findings = answered("cluster.nodes", machines.ask(disk, everywhere(machines, nvme or "/tmp"), 30))
    lacking = {
        node.name: shortfall(node, found[node.name], disks[node.name], wanted)
        for node in machines.nodes
        if node.name in found and node.name in disks
    }
    suited = [name for name, lacks in lacking.items() if not lacks]
    needed = wanted.count or len(lacking)
    text = f"{len(suited)} of {len(lacking)} nodes have what cluster.nodes states; {needed} are needed"
    if len(suited) >= needed:
        return [*findings, Finding("cluster.nodes", "", Level.ok, text)]
    todo = "start the nodes that are missing, or state what there is and let shard-dist plan say what fits"
    short = [Finding("cluster.nodes", name, Level.fail, lacks, todo) for name, lacks in lacking.items() if lacks]
    return [*findings, Finding("cluster.nodes", "", Level.fail, text, todo), *short]


def shortfall(node: Node, there: Machine, local: Disk, wanted: NodesConfig) -> str:
    """What a node lacks of what was stated, in words; "": nothing. Ray's word counts where Ray runs."""
    ray = node.resources
    have = (
        ("GPUs", ray.get("GPU", 0.0) if ray else there.gpus, wanted.gpus, 1.0),
        ("CPUs", ray.get("CPU", 0.0) if ray else there.cpus, wanted.cpus, 1.0),
        ("GiB of memory", there.memory / GIB, wanted.memory_gib, SHORT),
        (f"GiB free in {local.path}", local.free / GIB, wanted.disk_gib, 1.0),
    )
    return ", ".join(f"{has:.4g} {what} of {needs:.4g}" for what, has, needs, share in have if has < needs * share)
