"""The commands' side of submitting: exit codes, and what people read."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from shard_dist.submit import follow, history, package, person
from shard_dist.submit.fake import FakeJobs
from shard_dist.submit.jobs import Job, Status

WORDS = ["run.dir=/shared/runs/mine"]


@pytest.fixture(autouse=True)
def _at(here: Path, jobs: FakeJobs, monkeypatch: pytest.MonkeyPatch) -> None:
    """No terminal, no pauses, a cluster at any address."""
    monkeypatch.setattr(person.client, "connect", lambda address: jobs)
    monkeypatch.setattr(package, "PACKAGES", ())
    for name in ("PAUSE", "SHORT_PAUSE"):
        monkeypatch.setattr(follow, name, 0.0)


def submit(*, followed: bool) -> int:
    return person.submit(Path("configs/mine.yaml"), WORDS, "http://a:1", None, follow=followed, yes=False)


def test_a_job_is_submitted_remembered_and_left(jobs: FakeJobs, capsys: pytest.CaptureFixture[str]) -> None:
    assert submit(followed=False) == 0
    assert history.address_of("", jobs.submitted.popitem()[0]) == "http://fake:8265"
    assert "shard-dist attach mine-" in capsys.readouterr().err


def test_following_gives_the_log_alone_and_the_runs_exit_code(
    jobs: FakeJobs, capsys: pytest.CaptureFixture[str]
) -> None:
    jobs.known["j"], jobs.tails = Job("j", Status.running), [["one\n", "two\n"]]
    jobs.outcome = Job("", Status.failed, exit_code=7)
    assert person.attach("j", "http://a:1") == 7
    said = capsys.readouterr()
    assert said.out == "one\ntwo\n"
    assert "failed with exit code 7" in said.err


def test_a_signal_without_a_terminal_leaves_the_job_and_says_how_to_come_back(
    jobs: FakeJobs, capsys: pytest.CaptureFixture[str]
) -> None:
    jobs.known["j"], jobs.tails = Job("j", Status.running), [[lambda: signal.raise_signal(signal.SIGTERM)], ["x"]]
    assert person.attach("j", "http://a:1") == 128 + signal.SIGTERM
    assert jobs.stopped == []
    assert "shard-dist attach j" in capsys.readouterr().err


def test_status_and_stop_speak_of_the_job(jobs: FakeJobs) -> None:
    assert person.status("", "http://a:1") == "no jobs of ours at http://fake:8265"
    jobs.known["j"], jobs.tails = Job("j", Status.running, directory="/shared/x"), [["endless"]]
    assert "running" in person.status("", "http://a:1")
    assert "/shared/x" in person.status("j", "http://a:1")
    assert person.stop("j", "http://a:1") == "stopping j"


def test_a_line_that_breaks_is_a_sentence(jobs: FakeJobs, monkeypatch: pytest.MonkeyPatch) -> None:
    def gone() -> list[Job]:
        raise ConnectionError("reset by peer")

    monkeypatch.setattr(jobs, "jobs", gone)
    with pytest.raises(ValueError, match=r"no answer from http://fake:8265: reset by peer; try the same command again"):
        submit(followed=False)


def test_another_target_is_written_and_nothing_is_sent(jobs: FakeJobs, tmp_path: Path) -> None:
    words = [*WORDS, "cluster.storage.path=/shared", "cluster.nodes={count: 2, gpus: 8, cpus: 64, memory_gib: 500}"]
    out = tmp_path / "job.sh"
    assert person.write(Path("configs/mine.yaml"), words, None, "slurm", out).endswith(f"start it with: sbatch {out}")
    assert "#SBATCH" in out.read_text()
    with pytest.raises(ValueError, match=r"no 'pbs'; there are ray, slurm"):
        person.write(Path("configs/mine.yaml"), words, None, "pbs", None)
    assert not jobs.submitted
