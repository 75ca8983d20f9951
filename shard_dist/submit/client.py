"""Ray's job API over HTTP: the only place where a submitter meets Ray, which passes on the token by itself."""

from __future__ import annotations

import logging
import os
import re
import ssl
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from typing import Any

import aiohttp
import requests
from ray.dashboard.modules.job.pydantic_models import JobDetails
from ray.exceptions import AuthenticationError
from ray.job_submission import JobSubmissionClient

from shard_dist.submit.history import VARIABLES
from shard_dist.submit.jobs import Facts, Job, Status

TIMEOUT = (10, 120)  # seconds to connect and to wait for an answer; Ray's own requests wait for ever
RUN, DIRECTORY = "shard_dist_run", "shard_dist_directory"  # keys of a job's metadata
TOKEN_HELP = (
    "set RAY_AUTH_MODE=token, and give the cluster's token as RAY_AUTH_TOKEN, in the file that RAY_AUTH_TOKEN_PATH "
    "names, or in ~/.ray/auth_token"
)


def connect(address: str) -> RayJobs:
    """The jobs of the cluster whose dashboard is at `address` (http://host:8265).

    Raises ValueError that says what is there instead: nobody, a server that is not Ray's, or one that wants another
    token or certificate.
    """
    for name in ("ray.dashboard.modules.dashboard_sdk", "ray.dashboard.modules.job.sdk"):
        logging.getLogger(name).setLevel(logging.WARNING)
    try:
        with _without(VARIABLES):  # Ray lets them win over the address that it is given
            return RayJobs(address, _Client(address))
    except AuthenticationError as error:
        wrong = "wants another token than the one here" if "403" in str(error) or "invalid" in str(error) else ""
        raise ValueError(f"--address: the cluster at {address} {wrong or 'wants a token'}: {TOKEN_HELP}") from error
    except ssl.SSLError as error:
        raise ValueError(
            f"--address: no trusted TLS connection to {address} ({error.args[0]}); name the file with its certificate "
            "authority in REQUESTS_CA_BUNDLE and SSL_CERT_FILE, or write http:// where the dashboard has no TLS"
        ) from error
    except ConnectionError as error:
        raise ValueError(
            f"--address: no answer from {address} ({error}). It is the dashboard's address, on port 8265 of the head "
            "node; from outside make a tunnel (ssh -L 8265:localhost:8265 HEAD, or kubectl port-forward) and use "
            "http://localhost:8265"
        ) from error
    except (requests.RequestException, RuntimeError, KeyError) as error:
        raise ValueError(f"--address: what answers at {address} is no Ray dashboard ({_reason(error)})") from error


class RayJobs:
    """`Jobs` of a Ray cluster."""

    def __init__(self, address: str, client: _Client) -> None:
        self.address, self.client = address, client

    def facts(self) -> Facts:
        about = self.client.read("/api/v0/cluster_metadata")["data"]
        nodes = self.client.read("/nodes?view=summary")["data"]["summary"]
        head = [node for node in nodes if node["raylet"].get("isHeadNode")] or nodes
        # The raylet is told how to start a Python worker: the interpreter that `ray start` ran in.
        words = "\n".join(head[0].get("cmdline") or ())
        found = re.search(r"^--python_worker_command=(\S+)", words, re.MULTILINE)
        return Facts(about["rayVersion"], about["pythonVersion"], found.group(1) if found else "")

    def submit(
        self, job: str, entrypoint: str, environment: dict[str, Any], run: str = "", directory: str = ""
    ) -> None:
        # No resources are asked for: the driver then runs on the head node, takes no GPU and sees all of them.
        metadata = {RUN: run, DIRECTORY: directory} if run else {}
        self.client.submit_job(submission_id=job, entrypoint=entrypoint, runtime_env=environment, metadata=metadata)

    def job(self, job: str) -> Job:
        return _job(self.client.get_job_info(job))

    def jobs(self) -> list[Job]:
        found = [_job(details) for details in self.client.list_jobs() if RUN in (details.metadata or {})]
        return sorted(found, key=lambda job: job.started)

    def log(self, job: str) -> str:
        text: str = self.client.get_job_logs(job)
        return text

    async def tail(self, job: str) -> AsyncIterator[str]:
        try:
            async for piece in self.client.tail_job_logs(job):
                yield piece
        except (aiohttp.ClientError, RuntimeError, OSError) as error:
            raise ConnectionError(_reason(error)) from error

    def stop(self, job: str) -> bool:
        stopped: bool = self.client.stop_job(job)
        return stopped

    def forget(self, job: str) -> None:
        self.client.delete_job(job)


class _Client(JobSubmissionClient):
    """Ray's, with an end to its patience and with errors that tell a dead line from a refusal."""

    def _do_request(self, method: str, endpoint: str, **options: Any) -> requests.Response:
        try:
            return super()._do_request(method, endpoint, timeout=TIMEOUT, **options)
        except requests.exceptions.SSLError as error:
            raise ssl.SSLError(_reason(error)) from error
        except (requests.ConnectionError, requests.Timeout) as error:
            raise ConnectionError(_reason(error)) from error

    def _raise_error(self, r: requests.Response) -> None:
        said = r.text.strip().splitlines()[-1] if r.text.strip() else "no reason given"
        if r.status_code > 500:  # a gateway's: the cluster itself was not reached
            raise ConnectionError(f"HTTP {r.status_code}: {said}")
        raise ValueError(f"the cluster at {self.get_address()} says: {said} (HTTP {r.status_code})")

    def read(self, endpoint: str) -> Any:
        answer = self._do_request("GET", endpoint)
        if answer.status_code != 200:
            self._raise_error(answer)
        return answer.json()


def _job(details: JobDetails) -> Job:
    metadata = details.metadata or {}
    return Job(
        id=details.submission_id or details.job_id or "",
        status=Status(details.status.value),
        message=details.message or "",
        directory=metadata.get(DIRECTORY, ""),
        started=(details.start_time or 0) / 1000,
        ended=(details.end_time or 0) / 1000,
        exit_code=details.driver_exit_code,
    )


def _reason(error: BaseException) -> str:
    """The innermost cause in a line: libraries wrap a refused connection four times."""
    cause: BaseException = error
    while inner := cause.__cause__ or cause.__context__:
        cause = inner
    return str(cause).strip().splitlines()[0] if str(cause).strip() else type(cause).__name__


@contextmanager
def _without(names: tuple[str, ...]) -> Iterator[None]:
    """These environment variables are gone while the block runs."""
    kept = {name: os.environ.pop(name) for name in names if name in os.environ}
    try:
        yield
    finally:
        os.environ.update(kept)
