"""What a person sees while a stage runs: one live line on a terminal, plain heartbeat lines elsewhere."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    ProgressColumn,
    Task,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.progress import Progress as RichProgress
from rich.table import Column
from rich.text import Text

# Columns of a terminal below which the bar is short and the time that has passed makes way for the text.
WIDE = 140


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
        # Unwrapped: a log file is as wide as its lines.
        self.console.print(f"  {text}", highlight=False, markup=False, soft_wrap=not self.console.is_terminal)

    @contextmanager
    def bar(self, unit: str, total: int) -> Iterator[Bar]:
        bar = Bar(self, unit, total)
        try:
            yield bar
        finally:
            bar.close()


class FittingColumn(ProgressColumn):
    """The task's text, without its last parts where there is no room for them."""

    def render(self, task: Task) -> RenderableType:
        return Fitting(task.fields["text"])


@dataclass(frozen=True)
class Fitting:
    """As many of a text's parts as the width allows; what is left of the first one where that is too long itself."""

    text: str

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        text = self.text
        while ", " in text and cell_len(text) > options.max_width:
            text = text.rpartition(", ")[0]
        yield Text(text, no_wrap=True, overflow="ellipsis")


class Bar:
    """One task: `update(done, text)` as often as one likes; drawing is rate-limited.

    `text` is a list of parts with ", " between them, the most important first; the last ones go where it is too long.
    """

    def __init__(self, progress: Progress, unit: str, total: int) -> None:
        self.progress, self.unit, self.total = progress, unit, total
        self.start = self.last_line = time.monotonic()
        self.rich: RichProgress | None = None
        if progress.console.is_terminal:
            wide = progress.console.width >= WIDE
            columns: list[ProgressColumn] = [
                TextColumn(f"  {unit}", markup=False),
                BarColumn(bar_width=20 if wide else 10),
                MofNCompleteColumn(),
                FittingColumn(table_column=Column(ratio=1, no_wrap=True)),
                *([TimeElapsedColumn()] if wide else []),
                TimeRemainingColumn(),
            ]
            console = progress.console
            self.rich = RichProgress(*columns, console=console, transient=True, refresh_per_second=4, expand=True)
            self.rich.start()
            self.task = self.rich.add_task(unit, total=total, text="")

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
