"""A cluster's jobs without a cluster: they write what a script says, and lines break where it says so."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field, replace
from typing import Any

from shard_dist.submit.jobs import Facts, Job, Status

Piece = str | Exception | Callable[[], None]
"""Of a log: text, a line that breaks, or something that happens meanwhile."""


@dataclass
class FakeJobs:
    """Each call of `tail` follows the next script of `tails`; when they are used up, jobs are over.

    What the scripts of a job wrote is its log. A probe is answered with `missing`.
    """

    versions: Facts
    tails: list[list[Piece]] = field(default_factory=list)
    outcome: Job = field(default_factory=lambda: Job("", Status.succeeded, exit_code=0))
    missing: list[str] = field(default_factory=list)
    address: str = "http://fake:8265"
    submitted: dict[str, tuple[str, dict[str, Any]]] = field(default_factory=dict)
    known: dict[str, Job] = field(default_factory=dict)
    stopped: list[str] = field(default_factory=list)
    written: str = ""

    def facts(self) -> Facts:
        return self.versions

    def submit(
        self, job: str, entrypoint: str, environment: dict[str, Any], run: str = "", directory: str = ""
    ) -> None:
        self.submitted[job] = (entrypoint, environment)
        self.known[job] = Job(job, Status.running, directory=directory)

    def job(self, job: str) -> Job:
        if job not in self.known:
            raise ValueError(f"no job {job}")
        found = self.known[job]
        if not found.over and not self.tails:
            found = self.known[job] = replace(self.outcome, id=job, directory=found.directory)
        return found

    def jobs(self) -> list[Job]:
        return list(self.known.values())

    def log(self, job: str) -> str:
        if job.startswith("probe-"):
            return json.dumps({"python": self.versions.python, "missing": self.missing}) + "\n"
        return self.written

    async def tail(self, job: str) -> AsyncIterator[str]:
        script, sent = self.tails.pop(0) if self.tails else [], 0
        for piece in script:
            if isinstance(piece, Exception):
                raise piece
            if callable(piece):
                piece()
                continue
            sent += len(piece)
            self.written += piece[len(piece) - max(0, sent - len(self.written)) :]
            yield piece

    def stop(self, job: str) -> bool:
        self.stopped.append(job)
        self.tails, self.outcome = [], replace(self.outcome, status=Status.stopped, exit_code=None)
        return True

    def forget(self, job: str) -> None:
        del self.known[job]
