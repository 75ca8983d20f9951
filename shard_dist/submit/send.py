"""A request on its way: is this the right cluster, is everything there, and then the job."""

from __future__ import annotations

import importlib.metadata
import json
import platform
import secrets
import shlex
import time
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

from shard_dist.submit import probe
from shard_dist.submit.jobs import Jobs, Status
from shard_dist.submit.request import Request

PROBE_SECONDS = 120.0  # in which the cluster starts a process of a few lines
LOOK = 0.3


def send(jobs: Jobs, request: Request, agree: Callable[[str], bool]) -> bool:
    """Submit, after `agree` has said yes to a summary; False: it said no.

    Raises ValueError for a cluster of other versions or without what a run needs, and for a run that is at work.
    """
    _refuse_two(jobs, request)
    interpreter = find_interpreter(jobs, request)
    size = request.package.bytes / 2**20
    if not agree(
        f"job {request.job} on {jobs.address}: {len(request.package.files)} files, {size:.1f} MiB\n"
        f"run directory {request.directory}, interpreter {interpreter}"
    ):
        return False
    with TemporaryDirectory() as place:
        archive = Path(place) / "shard_dist.zip"
        request.package.write(archive)
        entrypoint, environment = request.entrypoint(interpreter), request.environment(archive)
        jobs.submit(request.job, entrypoint, environment, request.config.run.name, request.directory)
    return True


def find_interpreter(jobs: Jobs, request: Request) -> str:
    """The one that the job will run in, after a look at what it has. Raises ValueError."""
    facts = jobs.facts()
    _refuse_other("Ray", facts.ray, importlib.metadata.version("ray"), jobs.address)
    interpreter = request.config.cluster.launch.python or facts.interpreter
    if not interpreter:
        raise ValueError("cluster.launch.python: set it; this cluster does not say which interpreter Ray runs in")
    python, missing = _probe(jobs, interpreter, _requirements(request.needs_vllm))
    _refuse_other("Python", python, platform.python_version(), f"{interpreter} on {jobs.address}")
    if missing:
        raise ValueError(
            f"{interpreter} on {jobs.address} lacks {', '.join(missing)}: install shard_dist's dependencies there, or "
            "name an interpreter that has them in cluster.launch.python"
        )
    return interpreter


def _refuse_two(jobs: Jobs, request: Request) -> None:
    for job in jobs.jobs():
        if not job.over and job.directory == request.directory:
            raise ValueError(
                f"job {job.id} is at work in {job.directory}: follow it with `shard-dist attach {job.id}`, or end it "
                f"with `shard-dist stop {job.id}`; the same submit command then goes on where it stopped"
            )


def _refuse_other(what: str, there: str, here: str, where: str) -> None:
    """Ray and pickled code work between processes of one minor version only."""
    if there.split(".")[:2] != here.split(".")[:2]:
        raise ValueError(
            f"{where} has {what} {there}, and here it is {here}: submit from an environment with {what} "
            f"{'.'.join(there.split('.')[:2])}, or start the cluster with {'.'.join(here.split('.')[:2])}"
        )


def _requirements(vllm: bool) -> list[str]:
    """What a run needs, as this installation says."""
    try:
        lines = importlib.metadata.requires("shard-dist") or []
    except importlib.metadata.PackageNotFoundError:  # a bare checkout
        return []
    wanted = [line.partition(";") for line in lines]
    return [name.strip() for name, _, when in wanted if not when or (vllm and "gpu" in when)]


def _probe(jobs: Jobs, interpreter: str, requirements: list[str]) -> tuple[str, list[str]]:
    """Version of the interpreter and what it lacks; a job of a few lines, which is removed again."""
    name = f"probe-{secrets.token_hex(4)}"
    source = Path(probe.__file__).read_text(encoding="utf-8")
    jobs.submit(name, shlex.join([interpreter, "-c", source, *requirements]), {})
    limit = time.monotonic() + PROBE_SECONDS
    while not (job := jobs.job(name)).over and time.monotonic() < limit:
        time.sleep(LOOK)
    if not job.over:
        jobs.stop(name)
        raise ValueError(f"{jobs.address} starts no process within {PROBE_SECONDS:.0f} seconds: {job.message}")
    lines = jobs.log(name).strip().splitlines()
    jobs.forget(name)
    if job.status != Status.succeeded:
        why = lines[-1] if lines else job.message
        raise ValueError(f"{interpreter} does not run on {jobs.address}: {why}; set cluster.launch.python")
    found = json.loads(lines[-1])
    return found["python"], found["missing"]
