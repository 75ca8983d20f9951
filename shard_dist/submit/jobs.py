"""Jobs on a cluster: what submitting asks of it. `client.py` is Ray's job API, `fake.py` a scripted one."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Protocol


class Status(StrEnum):
    pending = "PENDING"
    running = "RUNNING"
    stopped = "STOPPED"
    succeeded = "SUCCEEDED"
    failed = "FAILED"


@dataclass(frozen=True)
class Job:
    """A job as the cluster knows it. Times are seconds since 1970, 0 where there is none yet."""

    id: str
    status: Status
    message: str = ""
    directory: str = ""  # of the run
    started: float = 0.0
    ended: float = 0.0
    exit_code: int | None = None  # of the driver; None: it has not ended, or went with its node

    @property
    def over(self) -> bool:
        return self.status not in (Status.pending, Status.running)

    def code(self) -> int:
        """Exit code of whoever waited for it: 0 where it succeeded, else the driver's, else 1."""
        return 0 if self.status == Status.succeeded else self.exit_code or 1

    def line(self) -> str:
        """For a list: id, status, how long, where."""
        minutes = ((self.ended or time.time()) - self.started) / 60 if self.started else 0.0
        return f"{self.id:<40} {self.status.lower():<10} {minutes:>8.1f} min  {self.directory}"

    def outcome(self) -> str:
        """What became of it, and what to do, in a sentence or two."""
        again = "the same submit command goes on where it stopped"
        if self.status == Status.succeeded:
            return f"job {self.id} succeeded; report: {self.directory}/report/index.html"
        if self.status == Status.stopped:
            return f"job {self.id} was stopped; what was finished is kept in {self.directory}, and {again}"
        if self.status != Status.failed:
            return f"job {self.id} is {self.status.lower()}"
        if self.exit_code is not None:
            return f"job {self.id} failed with exit code {self.exit_code}, for the reason above; once mended, {again}"
        why = self.message.strip().splitlines()[0] if self.message.strip() else "no reason given"
        return (
            f"job {self.id} failed without its driver's own word, as when the driver's node dies or its environment "
            f"cannot be made ({why}); what was finished is kept in {self.directory}, and {again}"
        )


@dataclass(frozen=True)
class Facts:
    """What a cluster runs: versions, and the interpreter of Ray's own workers ("" where it does not say)."""

    ray: str
    python: str
    interpreter: str


class Jobs(Protocol):
    """A cluster's jobs.

    ConnectionError: it could not be asked, which may pass. ValueError: it refuses, and why.
    """

    address: str

    def facts(self) -> Facts: ...

    def submit(
        self, job: str, entrypoint: str, environment: dict[str, Any], run: str = "", directory: str = ""
    ) -> None: ...

    def job(self, job: str) -> Job: ...

    def jobs(self) -> list[Job]:
        """Those that `submit` made for a run, oldest first."""
        ...

    def log(self, job: str) -> str:
        """All that it has written."""
        ...

    def tail(self, job: str) -> AsyncIterator[str]:
        """Its log from the beginning, in pieces as it grows; ends with the job."""
        ...

    def stop(self, job: str) -> bool:
        """Whether there was something to stop."""
        ...

    def forget(self, job: str) -> None:
        """Remove one that is over from the cluster's list."""
        ...
