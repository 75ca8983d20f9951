"""A job's log, line by line, through dropped connections and Ctrl-C, until the job is over or left to itself."""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass

from shard_dist.submit.jobs import Job, Jobs

QUIET = 60.0  # seconds without a word after which the line may be dead: a sleeping laptop's sockets say nothing
PAUSE = 2.0  # seconds before another try
SHORT_PAUSE = 0.2  # and where the log ended well
PATIENCE = 900.0  # seconds of tries in vain after which the follower gives up; the job knows nothing of it

Write = Callable[[str], None]
Ask = Callable[[], str]
"""Stop, detach or continue ("s", "d" or "c")? KeyboardInterrupt where the person has no patience for questions."""


@dataclass(frozen=True)
class Left:
    """The job goes on without a follower. `signal`: the number of the one that ended it unasked, else 0."""

    signal: int


def follow(jobs: Jobs, job: str, write: Write, ask: Ask | None) -> Job | Left:
    """Write whole lines of the log until the job is over. `ask` is who answers Ctrl-C; without one it means leaving.

    Raises ValueError where the cluster does not know the job, or has not answered for PATIENCE seconds.
    """
    return asyncio.run(_Follower(jobs, job, write, ask).run())


class _Follower:
    def __init__(self, jobs: Jobs, job: str, write: Write, ask: Ask | None) -> None:
        self.jobs, self.job, self.write, self.ask = jobs, job, write, ask
        self.taken = 0  # characters of the log that were read: it only ever grows, and is sent from its beginning
        self.partial = ""  # a line whose end has not come
        self.signals: asyncio.Queue[int] = asyncio.Queue()

    async def run(self) -> Job | Left:
        loop = asyncio.get_running_loop()
        reading = asyncio.ensure_future(self._read())
        try:
            while True:
                self._listen(loop)
                caught = asyncio.ensure_future(self.signals.get())
                await asyncio.wait({reading, caught}, return_when=asyncio.FIRST_COMPLETED)
                if reading.done():
                    caught.cancel()
                    return reading.result()
                for number in (signal.SIGINT, signal.SIGTERM):  # a second Ctrl-C is KeyboardInterrupt again
                    loop.remove_signal_handler(number)
                if left := await self._interrupted(caught.result()):
                    return left
        finally:
            reading.cancel()

    def _listen(self, loop: asyncio.AbstractEventLoop) -> None:
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, self.signals.put_nowait, number)

    async def _interrupted(self, number: int) -> Left | None:
        if self.ask is None or number == signal.SIGTERM:
            return Left(number)
        try:
            choice = self.ask()
        except KeyboardInterrupt:
            choice = "d"
        if choice == "s":
            await asyncio.to_thread(self.jobs.stop, self.job)  # its last lines are still to come
        return Left(0) if choice == "d" else None

    async def _read(self) -> Job:
        """The job once it is over, its log written."""
        heard = time.monotonic()
        while True:
            try:
                found = await asyncio.to_thread(self.jobs.job, self.job)
                heard = time.monotonic()
                if found.over:
                    return await self._last_words(found)
                await self._tail()
                await asyncio.sleep(SHORT_PAUSE)
            except ConnectionError as error:
                if time.monotonic() - heard > PATIENCE:
                    raise ValueError(
                        f"no answer from {self.jobs.address} for {PATIENCE / 60:.0f} minutes ({error}). If the cluster "
                        f"lives, `shard-dist attach {self.job}` follows the job again; if it does not, the same submit "
                        "command goes on where it stopped, on any cluster with the same storage"
                    ) from error
                await asyncio.sleep(PAUSE)

    async def _tail(self) -> None:
        """What is new in the log, until it ends or falls silent. Raises ConnectionError."""
        place, pieces = 0, self.jobs.tail(self.job)
        with suppress(TimeoutError):
            while piece := await asyncio.wait_for(anext(pieces, ""), QUIET):
                self._take(place, piece)
                place += len(piece)

    async def _last_words(self, job: Job) -> Job:
        """Once more the whole log, since a line may have dropped in its last second."""
        with suppress(ValueError):  # it went with the driver's node
            self._take(0, await asyncio.to_thread(self.jobs.log, self.job))
        if self.partial:
            self.write(self.partial + "\n")
        return job

    def _take(self, place: int, text: str) -> None:
        """The log from character `place` on: write the whole lines of what is new in it."""
        new = text[max(0, self.taken - place) :]
        self.taken += len(new)
        lines, newline, self.partial = (self.partial + new).rpartition("\n")
        if newline:
            self.write(lines + newline)
