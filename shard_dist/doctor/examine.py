"""The whole examination: every check over every machine, within bounds of time."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, nullcontext

from shard_dist.doctor.asked import Asked
from shard_dist.doctor.collectives import collectives
from shard_dist.doctor.finding import Finding, Level, Report
from shard_dist.doctor.gpus import gpus
from shard_dist.doctor.loading import libraries
from shard_dist.doctor.machines import Here, Machines, reason
from shard_dist.doctor.models import models
from shard_dist.doctor.network import access, clocks, ports
from shard_dist.doctor.resources import resources
from shard_dist.doctor.storage import storage
from shard_dist.doctor.versions import INSTALL, versions

Check = Callable[[Machines, Asked], list[Finding]]


def nodes(machines: Machines, asked: Asked) -> list[Finding]:
    """Which machines answer at all."""
    todo = f"{INSTALL}; else see Ray's logs on that node (session_latest/logs in its temporary directory)"
    bad = [
        Finding("nodes", node.name, Level.fail, f"nothing can be run there: {node.problem}", todo)
        for node in machines.silent
    ]
    return bad or [Finding("nodes", "", Level.ok, f"answer: {len(machines.nodes)} of {len(machines.nodes)}")]


# A new check is one function here. Those that measure time have the machines for themselves, after the others.
TOGETHER: tuple[Check, ...] = (nodes, versions, libraries, gpus, resources, models, access)
ALONE: tuple[Check, ...] = (clocks, ports, storage, collectives)


def examine(asked: Asked) -> Report:
    """Of the cluster that `asked` names an address of, else of this machine. Raises ValueError for no such cluster."""
    start = time.monotonic()
    if asked.cluster.address:
        from shard_dist.doctor.cluster import Cluster

        place: closing[Cluster] | nullcontext[Here] = closing(Cluster(asked.cluster))
    else:
        place = nullcontext(Here())
    with place as machines:
        findings = findings_of(machines, asked)
        names, silent = [node.name for node in machines.nodes], [node.name for node in machines.silent]
    return Report(names, findings, time.monotonic() - start, silent)


def findings_of(machines: Machines, asked: Asked) -> list[Finding]:
    """In the order of the checks."""
    with ThreadPoolExecutor(len(TOGETHER)) as pool:
        found = list(pool.map(lambda check: run(check, machines, asked), TOGETHER))
    found += [run(check, machines, asked) for check in ALONE]
    return [finding for findings in found for finding in findings]


def run(check: Check, machines: Machines, asked: Asked) -> list[Finding]:
    """A check that itself breaks is a finding too: the others still have something to say."""
    try:
        return check(machines, asked)
    except Exception as error:
        text = f"the check itself broke: {type(error).__name__}: {reason(error)}"
        return [Finding(check.__name__, "", Level.fail, text, "report this with the output of --json")]
