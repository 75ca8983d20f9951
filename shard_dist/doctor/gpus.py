"""GPUs as nvidia-smi shows them: are they the ones that were stated, are they well, and is their memory free."""

from __future__ import annotations

import csv
import re
import subprocess
from dataclasses import dataclass

from shard_dist.doctor.asked import Asked
from shard_dist.doctor.finding import Finding, Level
from shard_dist.doctor.machines import Machines, Node, answered, everywhere

# The name comes last: it alone might contain a comma.
FIELDS = "index,uuid,memory.total,memory.used,driver_version,ecc.errors.uncorrected.volatile.total,name"
BUSY_MIB = 1024  # an idle GPU's driver and a persistent context hold some hundred MiB
SHORT = 0.97  # share of the stated memory: nvidia-smi's total leaves out what ECC and the driver reserve


@dataclass(frozen=True)
class Gpu:
    index: int
    name: str
    memory_mib: float
    used_mib: float
    driver: str
    ecc_errors: int
    """Uncorrected since the last reset; 0 where the GPU has no ECC."""
    processes: tuple[str, ...] = ()


def nvidia() -> tuple[list[Gpu], str, str]:
    """GPUs, the newest CUDA that the driver runs ("12.8"), and nvidia-smi's complaint; all empty without nvidia-smi."""
    try:
        asked = _smi(f"--query-gpu={FIELDS}", "--format=csv,noheader,nounits")
        if asked.returncode:
            return [], "", (asked.stdout + asked.stderr).strip() or f"nvidia-smi ended with code {asked.returncode}"
        holders = _smi("--query-compute-apps=gpu_uuid,pid,process_name,used_memory", "--format=csv,noheader,nounits")
        version = re.search(r"CUDA[A-Za-z ]* Version\s*:\s*(\d+\.\d+)", _smi().stdout)
    except FileNotFoundError:
        return [], "", ""
    except subprocess.TimeoutExpired as error:
        return [], "", f"nvidia-smi has not answered after {error.timeout:g} s"
    return parse(asked.stdout, holders.stdout), version[1] if version else "", ""


def _smi(*options: str) -> subprocess.CompletedProcess[str]:
    command = ["nvidia-smi", *options]
    return subprocess.run(command, capture_output=True, text=True, errors="replace", check=False, timeout=20)


def parse(gpus: str, processes: str) -> list[Gpu]:
    """nvidia-smi's two tables as CSV without header and units; lines that are none of theirs are left out."""
    holders: dict[str, list[str]] = {}
    for row in _rows(processes):
        if len(row) >= 4:
            holders.setdefault(row[0], []).append(f"{','.join(row[2:-1])} (pid {row[1]}, {row[-1]} MiB)")
    found = []
    for row in _rows(gpus):
        if len(row) >= 7 and row[0].isdigit():
            index, uuid, total, used, driver, errors = row[:6]
            memory, held = (float(text) if re.fullmatch(r"\d+(\.\d+)?", text) else 0.0 for text in (total, used))
            broken = int(errors) if re.fullmatch(r"\d{1,18}", errors) else 0
            found.append(Gpu(int(index), ",".join(row[6:]), memory, held, driver, broken, tuple(holders.get(uuid, ()))))
    return found


def _rows(text: str) -> list[list[str]]:
    return [[cell.strip() for cell in row] for row in csv.reader(text.splitlines(), quoting=csv.QUOTE_NONE)]


def gpus(machines: Machines, asked: Asked) -> list[Finding]:
    """Count, kind, health and free memory of every node's GPUs. A node without any is well on its own."""
    found, findings = answered("GPUs", machines.ask(nvidia, everywhere(machines), 70))
    for node in machines.nodes:
        if node.name in found:
            there, _, complaint = found[node.name]
            findings += judge(node, there, complaint, asked.cluster.nodes.gpu_memory_gib)
    return findings


def judge(node: Node, there: list[Gpu], complaint: str, stated_gib: float) -> list[Finding]:
    bad = []
    if complaint:
        todo = "reboot the node or reinstall its driver; nvidia-smi must work before anything else can"
        bad.append(Finding("GPUs", node.name, Level.fail, f"nvidia-smi: {complaint}", todo))
    given = node.resources.get("GPU", 0)
    if node.resources and given != len(there) and not complaint:
        found = f"Ray hands out {given:g} GPUs, nvidia-smi shows {len(there)}"
        bad.append(Finding("GPUs", node.name, Level.warn, found, "start the node with ray start --num-gpus as it has"))
    for gpu in there:
        bad += _one(node.name, gpu, stated_gib)
    if bad:
        return bad
    kinds = {(gpu.name, round(gpu.memory_mib / 1024, 1), gpu.driver) for gpu in there}
    text = "; ".join(f"{name}, {gib} GiB, driver {driver}" for name, gib, driver in sorted(kinds))
    return [Finding("GPUs", node.name, Level.ok, f"{len(there)} x {text}" if there else "none")]


def _one(node: str, gpu: Gpu, stated_gib: float) -> list[Finding]:
    found, name, gib = [], f"GPU {gpu.index}", gpu.memory_mib / 1024
    if gib < stated_gib * SHORT:
        text = f"{name} ({gpu.name}) has {gib:.1f} GiB; cluster.nodes.gpu_memory_gib is {stated_gib:g}"
        todo = "state what the GPUs have, and let shard-dist plan say whether it fits"
        found.append(Finding("GPUs", node, Level.fail, text, todo))
    if gpu.ecc_errors:
        text = f"{name}: {gpu.ecc_errors} memory errors that ECC could not correct"
        todo = "drain the node and reset the GPU (nvidia-smi --gpu-reset); where they come back, have it replaced"
        found.append(Finding("GPUs", node, Level.fail, text, todo))
    if gpu.used_mib > BUSY_MIB:
        who = ", ".join(gpu.processes) or "processes that this user or container cannot see"
        text = f"{name}: {gpu.used_mib / 1024:.1f} GiB of {gib:.1f} in use by {who}"
        todo = "if no run of yours holds it: end what is left over there"
        found.append(Finding("GPUs", node, Level.warn, text, todo))
    return found
