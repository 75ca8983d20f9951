"""Submitting to the right cluster only, once, and with what it takes."""

from __future__ import annotations

import shlex
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from shard_dist.submit import package, probe
from shard_dist.submit.fake import FakeJobs
from shard_dist.submit.jobs import Job, Status
from shard_dist.submit.request import Request
from shard_dist.submit.send import send

Ask = Callable[..., Request]


@pytest.fixture(autouse=True)
def _small_packages(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without our code, which takes half a second to compress."""
    monkeypatch.setattr(package, "PACKAGES", ())


def yes(summary: str) -> bool:
    return True


def test_the_job_runs_in_rays_own_interpreter_after_a_look_at_it(ask: Ask, jobs: FakeJobs) -> None:
    made, told = ask(), []
    assert send(jobs, made, lambda summary: told.append(summary) is None)
    (probed, bare), (entrypoint, environment) = jobs.submitted.values()
    assert shlex.split(probed)[:2] == ["/opt/ray/bin/python", "-c"]
    assert bare == {}, "nothing is sent before the look"
    assert shlex.split(entrypoint)[:3] == ["/opt/ray/bin/python", "-m", "shard_dist"]
    assert environment["working_dir"].endswith(".zip")
    assert [(job.id, job.directory) for job in jobs.jobs()] == [(made.job, "/shared/runs/mine")]
    assert "/shared/runs/mine" in told[0]


def test_a_named_interpreter_is_used_everywhere(ask: Ask, jobs: FakeJobs) -> None:
    send(jobs, ask("cluster.launch.python=/opt/mine/python"), yes)
    entrypoint, environment = list(jobs.submitted.values())[-1]
    assert shlex.split(entrypoint)[0] == environment["py_executable"] == "/opt/mine/python"


def test_nothing_is_sent_to_who_says_no(ask: Ask, jobs: FakeJobs) -> None:
    assert not send(jobs, ask(), lambda summary: False)
    assert [name for name in jobs.submitted if not name.startswith("probe-")] == []


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"ray": "2.9.3"}, r"has Ray 2\.9\.3, and here it is 2\.\d+.*environment with Ray 2\.9, or start the cluster"),
        ({"python": "3.9.1"}, r"has Python 3\.9\.1, and here it is 3\..*environment with Python 3\.9"),
        ({"interpreter": ""}, r"cluster\.launch\.python: set it"),
    ],
)
def test_another_cluster_is_refused(ask: Ask, jobs: FakeJobs, change: dict[str, str], message: str) -> None:
    jobs.versions = replace(jobs.versions, **change)
    with pytest.raises(ValueError, match=message):
        send(jobs, ask(), yes)


def test_another_patch_release_is_not(ask: Ask, jobs: FakeJobs) -> None:
    jobs.versions = replace(jobs.versions, ray=jobs.versions.ray.rpartition(".")[0] + ".99")
    assert send(jobs, ask(), yes)


def test_what_the_cluster_lacks_is_named(ask: Ask, jobs: FakeJobs) -> None:
    jobs.missing = ["deepspeed>=0.19.8 (it has 0.14.0)"]
    with pytest.raises(ValueError, match=r"lacks deepspeed>=0\.19\.8 \(it has 0\.14\.0\): install"):
        send(jobs, ask(), yes)


def test_an_interpreter_that_is_not_there_is_named(ask: Ask, jobs: FakeJobs, monkeypatch: pytest.MonkeyPatch) -> None:
    jobs.outcome = Job("", Status.failed, exit_code=127)
    monkeypatch.setattr(FakeJobs, "log", lambda self, job: "sh: 1: /opt/none: not found\n")
    with pytest.raises(ValueError, match=r"/opt/none does not run on .*: sh: 1: /opt/none: not found; set"):
        send(jobs, ask("cluster.launch.python=/opt/none"), yes)


def test_a_run_that_is_at_work_is_not_submitted_twice(ask: Ask, jobs: FakeJobs) -> None:
    first = ask()
    assert send(jobs, first, yes)
    jobs.tails = [["still at it"]]
    with pytest.raises(ValueError, match=rf"job {first.job} is at work in /shared/runs/mine.*attach.*stop"):
        send(jobs, ask(), yes)
    jobs.tails = []
    assert jobs.job(first.job).over
    assert send(jobs, ask(), yes), "it goes on where the first one ended"


def test_the_probe_names_what_is_missing_and_what_is_too_old() -> None:
    """As it runs there: handed to an interpreter as text, without our code."""
    wanted = ["pytest>=1", "pytest>=999", "no-such-thing>=2", "ray[default,train]<3,>=2"]
    source = Path(probe.__file__).read_text()
    said = subprocess.run(
        [sys.executable, "-I", "-c", source, *wanted], capture_output=True, text=True, check=True, cwd="/"
    ).stdout
    found = probe.json.loads(said)["missing"]
    assert found[0].startswith("pytest>=999 (it has ")
    assert found[1:] == ["no-such-thing>=2"]
