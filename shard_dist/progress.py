"""What a person sees while a stage runs: one live line on a terminal, plain heartbeat lines elsewhere."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as RichProgress

from shard_dist.engines.worker import Counters


class Progress:
    """Prints stages to `console`; a heartbeat every `heartbeat` seconds where that is no terminal."""

    def __init__(self, console: Console, heartbeat: float) -> None:
        self.console, self.heartbeat = console, heartbeat

    def started(self, stage: str) -> None:
        self.console.print(f"[bold]{stage}[/]", highlight=False)

    def skipped(self, stage: str, counts: dict[str, Any]) -> None:
        self.console.print(f"[bold]{stage}[/]  done before: {_short(counts)}", highlight=False)

    def finished(self, stage: str, counts: dict[str, Any], seconds: float) -> None:
        self.console.print(f"  {_short(counts)}  [{seconds:.1f} s]", highlight=False, markup=False)

    def note(self, text: str) -> None:
        self.console.print(f"  {text}", highlight=False, markup=False)

    @contextmanager
    def bar(self, unit: str, total: int) -> Iterator[Bar]:
        bar = Bar(self, unit, total)
        try:
            yield bar
        finally:
            bar.close()


class Bar:
    """One task: `update(done, text)` as often as one likes; drawing is rate-limited."""

    def __init__(self, progress: Progress, unit: str, total: int) -> None:
        self.progress, self.unit, self.total = progress, unit, total
        self.start = self.last_line = time.monotonic()
        self.rich: RichProgress | None = None
        if progress.console.is_terminal:
            self.rich = RichProgress(
                TextColumn(f"  {unit}"),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("{task.fields[text]}"),
                TimeElapsedColumn(),
                TimeRemainingColumn(),
                console=progress.console,
                transient=True,
                refresh_per_second=4,
            )
            self.rich.start()
            self.task = self.rich.add_task(unit, total=total, text="")

    def calls(self, done: int, counters: Counters) -> None:
        """Rows done, with the engines' counters since the bar began."""
        seconds = max(time.monotonic() - self.start, 1e-6)
        tokens = counters.prompt_tokens + counters.completion_tokens
        text = f"{counters.made} calls ({counters.hits} from the ledger)"
        self.update(done, f"{text}, {counters.made / seconds:.1f} calls/s, {tokens / seconds:.0f} tokens/s")

    def update(self, done: int, text: str) -> None:
        now = time.monotonic()
        if self.rich is not None:
            self.rich.update(self.task, total=self.total, completed=done, text=text)
        elif now - self.last_line >= self.progress.heartbeat:
            self.last_line = now
            left = (now - self.start) / done * (self.total - done) if done else None
            tail = f", {left:.0f} s left" if left is not None else ""
            self.progress.note(f"{done}/{self.total} {self.unit}: {text}{tail}")

    def close(self) -> None:
        if self.rich is not None:
            self.rich.stop()


# Counts whose zero is news; a zero of any other (torn lines, restarts) is what one expects.
NEWS_AT_ZERO = ("kept", "train", "val", "test", "complete", "examples")


def _short(counts: dict[str, Any]) -> str:
    """The plain numbers of a stage's counts; nested ones belong to the report."""
    return ", ".join(
        f"{name} {value:.4g}" if isinstance(value, float) else f"{name} {value}"
        for name, value in counts.items()
        if isinstance(value, int | float | str) and not isinstance(value, bool) and (value or name in NEWS_AT_ZERO)
    )
