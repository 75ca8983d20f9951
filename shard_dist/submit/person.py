"""The commands' side of submitting: what a person is told and asked."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from shard_dist.submit import client, history
from shard_dist.submit.follow import Left, follow
from shard_dist.submit.jobs import Jobs
from shard_dist.submit.request import load, on_storage, request
from shard_dist.submit.send import send
from shard_dist.submit.targets import TARGETS
from shard_dist.submit.targets import write as fill_in


def submit(
    config_file: Path, overrides: Sequence[str], address: str, cluster: Path | None, *, follow: bool, yes: bool
) -> int:
    """Submit and, if told so, follow. Exit code of the command."""
    asked = request(config_file, overrides, load(config_file, overrides, cluster), Path.cwd())
    with cluster_at(address) as jobs:
        if not send(jobs, asked, told if yes or not _at_terminal() else agreed):
            return 1
        history.remember(asked.job, jobs.address, asked.config.run.name, asked.directory)
        say(f"submitted {asked.job}; `shard-dist attach {asked.job}` follows it, `shard-dist stop {asked.job}` ends it")
        return _followed(jobs, asked.job) if follow else 0


def write(config_file: Path, overrides: Sequence[str], cluster: Path | None, target: str, out: Path | None) -> str:
    """The filled-in file of another target, or where it lies and how it is started."""
    if target not in TARGETS:
        raise ValueError(f"--target: there is no {target!r}; there are ray, {', '.join(TARGETS)}")
    config = load(config_file, overrides, cluster)
    text = fill_in(config_file, [*overrides, *on_storage(config)], config, target)
    if not out:
        return text
    out.write_text(text, encoding="utf-8")
    return f"{out}; start it with: {TARGETS[target].start} {out}"


@contextmanager
def cluster_at(address: str, job: str = "") -> Iterator[Jobs]:
    """The cluster's jobs, to be asked once: a line that breaks is an error, since the same command may come again."""
    jobs = client.connect(history.address_of(address, job))
    try:
        yield jobs
    except ConnectionError as error:
        raise ValueError(f"no answer from {jobs.address}: {error}; try the same command again") from error


def status(job: str, address: str) -> str:
    with cluster_at(address, job) as jobs:
        if not job:
            return "\n".join(found.line() for found in jobs.jobs()) or f"no jobs of ours at {jobs.address}"
        found = jobs.job(job)
        return f"{found.line()}\n{found.outcome()}"


def logs(job: str, address: str) -> None:
    with cluster_at(address, job) as jobs:
        _write(jobs.log(job))


def stop(job: str, address: str) -> str:
    with cluster_at(address, job) as jobs:
        return f"stopping {job}" if jobs.stop(job) else jobs.job(job).outcome()


def attach(job: str, address: str) -> int:
    with cluster_at(address, job) as jobs:
        return _followed(jobs, job)


def _followed(jobs: Jobs, job: str) -> int:
    ended = follow(jobs, job, _write, _ask if _at_terminal() else None)
    if isinstance(ended, Left):
        say(f"left {job} to itself; `shard-dist attach {job}` follows it again, `shard-dist stop {job}` ends it")
        return 128 + ended.signal if ended.signal else 0
    say(ended.outcome())
    return ended.code()


def say(text: str) -> None:
    """On standard error: standard output is the job's log."""
    print(text, file=sys.stderr, flush=True)


def told(summary: str) -> bool:
    say(summary)
    return True


def agreed(summary: str) -> bool:
    say(summary)
    return input("submit? [y/N] ").strip().lower() in ("y", "yes")


def _write(lines: str) -> None:
    sys.stdout.write(lines)
    sys.stdout.flush()


def _ask() -> str:
    return input("\n[s]top the job, [d]etach from it, [c]ontinue? ").strip().lower()[:1]


def _at_terminal() -> bool:
    return sys.stdin.isatty() and sys.stdout.isatty()
