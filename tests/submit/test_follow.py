"""Following a job: every line once, whatever the line does; Ctrl-C is a question."""

from __future__ import annotations

import signal
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shard_dist.submit import follow as module
from shard_dist.submit.fake import FakeJobs, Piece
from shard_dist.submit.follow import Ask, Left, follow
from shard_dist.submit.jobs import Facts, Job, Status


@pytest.fixture(autouse=True)
def _no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("PAUSE", "SHORT_PAUSE"):
        monkeypatch.setattr(module, name, 0.0)


def followed(tails: list[list[Piece]], ask: Ask | None = None, outcome: Job | None = None) -> tuple[Job | Left, str]:
    jobs = FakeJobs(Facts("", "", ""), tails, outcome or Job("", Status.succeeded, exit_code=0))
    jobs.known["job"] = Job("job", Status.running)
    written: list[str] = []
    return follow(jobs, "job", written.append, ask), "".join(written)


def pieces(text: str, size: int) -> list[str]:
    return [text[start : start + size] for start in range(0, len(text), size)]


@given(
    text=st.text(alphabet="ab\n", max_size=60),
    cuts=st.lists(st.integers(0, 60), max_size=4),
    size=st.integers(1, 7),
)
def test_dropped_connections_lose_and_double_nothing(text: str, cuts: list[int], size: int) -> None:
    """Each connection sends the log from its beginning in pieces and breaks somewhere; the last one does not."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "PAUSE", 0.0)
        patch.setattr(module, "SHORT_PAUSE", 0.0)
        tails: list[list[Piece]] = [[*pieces(text[:cut], size), ConnectionError()] for cut in cuts]
        tails.append([*pieces(text, size)])
        ended, written = followed(tails)
    assert isinstance(ended, Job)
    assert written == text + "\n" * (not text.endswith("\n") and bool(text))


def test_lines_are_written_whole() -> None:
    jobs = FakeJobs(Facts("", "", ""), [["one", " line\nand ha", "lf", " a line"]])
    jobs.known["job"] = Job("job", Status.running)
    written: list[str] = []
    follow(jobs, "job", written.append, None)
    assert written == ["one line\n", "and half a line\n"]


def test_a_line_that_says_nothing_is_asked_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    """A sleeping laptop's socket is never closed: the second connection brings the rest."""
    monkeypatch.setattr(module, "QUIET", 0.01)

    class Silent(FakeJobs):
        async def tail(self, job: str):  # type: ignore[no-untyped-def]
            async for piece in super().tail(job):
                yield piece
            if self.tails:
                await module.asyncio.sleep(3600)

    jobs = Silent(Facts("", "", ""), [["a\n"], ["a\n", "b\n"]])
    jobs.known["job"] = Job("job", Status.running)
    written: list[str] = []
    assert isinstance(follow(jobs, "job", written.append, None), Job)
    assert "".join(written) == "a\nb\n"


def test_patience_ends_with_words_of_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PATIENCE", 0.0)
    with pytest.raises(ValueError, match=r"no answer from http://fake:8265.*shard-dist attach job"):
        followed([["a\n", ConnectionError("gone")], ["b\n"]])


def test_a_job_that_nobody_knows_is_an_error() -> None:
    with pytest.raises(ValueError, match="no job other"):
        follow(FakeJobs(Facts("", "", "")), "other", print, None)


@pytest.mark.parametrize(
    ("job", "code"),
    [
        (Job("", Status.succeeded, exit_code=0), 0),
        (Job("", Status.failed, exit_code=3), 3),
        (Job("", Status.failed), 1),
        (Job("", Status.stopped), 1),
    ],
)
def test_the_exit_code_is_the_outcome(job: Job, code: int) -> None:
    ended, _ = followed([["x\n"]], outcome=job)
    assert isinstance(ended, Job)
    assert ended.code() == code


def interrupt(number: signal.Signals = signal.SIGINT) -> Callable[[], None]:
    return lambda: signal.raise_signal(number)


def endless(*pieces: Piece) -> list[list[Piece]]:
    """A job that is not over before somebody ends it: scripts do not run out."""
    return [list(pieces), *([["a\n"]] * 10_000)]


def test_ctrl_c_then_continue_misses_nothing() -> None:
    asked: list[int] = []
    ended, written = followed([["a\n", interrupt(), "b\n"], ["a\nb\nc\n"]], lambda: asked.append(1) or "c")  # type: ignore[func-returns-value]
    assert isinstance(ended, Job)
    assert asked == [1]
    assert written == "a\nb\nc\n"


def test_ctrl_c_then_stop_ends_the_job() -> None:
    ended, _ = followed(endless("a\n", interrupt()), lambda: "s")
    assert isinstance(ended, Job)
    assert ended.status == Status.stopped
    assert ended.code() == 1


def test_ctrl_c_then_detach_leaves_it() -> None:
    assert followed(endless(interrupt()), lambda: "d")[0] == Left(0)


def test_a_second_ctrl_c_detaches() -> None:
    def impatient() -> str:
        signal.raise_signal(signal.SIGINT)
        raise AssertionError("the signal was lost")

    assert followed(endless(interrupt()), impatient)[0] == Left(0)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_without_a_terminal_signals_detach(number: signal.Signals) -> None:
    assert followed(endless(interrupt(number)))[0] == Left(number)


def test_the_words_of_a_dead_driver_say_what_to_do() -> None:
    lost = Job("j", Status.failed, "Job supervisor actor died: node gone\nmore", directory="/shared/runs/x")
    assert "node gone" in lost.outcome()
    assert "/shared/runs/x" in lost.outcome()
    assert "the same submit command goes on" in lost.outcome()
    assert "more" not in lost.outcome()
