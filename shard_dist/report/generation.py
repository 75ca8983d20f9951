"""What the engines did, from engines.jsonl: throughput over time, a table per engine, and what happened to them.

Samples hold totals per life of an engine (`engines/telemetry.py`), so a rate is a difference over time, and where no
life is sampled no engine ran: a stage that was killed and resumed has a pause there.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from itertools import pairwise

import numpy as np
from markupsafe import Markup

from shard_dist.engines.telemetry import FAULTS
from shard_dist.report import plots
from shard_dist.report.inputs import EngineLog, Row
from shard_dist.report.text import count, duration

POINTS = 200  # of a curve
SHORTEST_PAUSE = 5.0  # seconds without a sample that are drawn as a pause
PAUSE_SHARE, PAUSES_SHARE = 0.02, 0.1  # of the time axis, for one pause and for all of them: their length says nothing
EVENTS_SHOWN = 200
WORDS = {
    "died": "process died",
    "silent": "fell silent",
    "node_gone": "node gone",
    "gave_up": "given up",
    "quarantined": "row set aside",
    "boot_failed": "did not boot",
    "grown": "engine added",
    "shrunk": "engine released",
    "hedged": "call asked twice",
}


@dataclass(frozen=True)
class Life:
    """One process of an engine: its samples in the order of time."""

    engine: str
    rows: list[Row]

    @cached_property
    def times(self) -> np.ndarray:
        return np.array([row["time"] for row in self.rows])

    def gauge(self, name: str) -> np.ndarray:
        return np.array([row[name] for row in self.rows], dtype=float)

    def total(self, name: str) -> np.ndarray:
        """Never falls: a clock that was set back has put samples out of order."""
        return np.maximum.accumulate(self.gauge(name))

    def at_work(self) -> tuple[float, float]:
        """Completion tokens and seconds of the intervals in which calls ran, waited, or were answered."""
        busy = self.gauge("running") + self.gauge("waiting")
        made, seconds = np.diff(self.total("completion_tokens")), np.diff(self.times)
        worked = (busy[:-1] + busy[1:] + made) > 0
        return float(made[worked].sum()), float(seconds[worked].sum())


@dataclass(frozen=True)
class EngineSummary:
    """One engine over all its lives; None where it has no such thing, or never worked for long enough to tell."""

    name: str
    lives: int
    made: int
    hits: int
    prompt_tokens: int
    completion_tokens: int
    tokens_per_second: float | None
    kv_cache_use: float | None
    prefix_hit_rate: float | None
    faults: int


@dataclass(frozen=True)
class Panel:
    title: str
    note: str
    plot: Markup
    keys: tuple[str, ...]


@dataclass(frozen=True)
class StageEngines:
    """`seconds` in which an engine ran, and the seconds of each pause between."""

    name: str
    plan: str
    seconds: float
    pauses: list[float]
    panels: list[Panel]
    engines: list[EngineSummary]


@dataclass(frozen=True)
class Happening:
    time: str
    stage: str
    engine: str
    what: str
    detail: str


@dataclass(frozen=True)
class Generation:
    """`kinds` counts all that happened, of which `events` are the first."""

    stages: list[StageEngines]
    kinds: list[tuple[str, int]]
    events: list[Happening]
    damaged: int


def generation(log: EngineLog) -> Generation:
    """The section's content; empty where no engine ran."""
    told = [event for event in log.events if event["event"] in WORDS]
    kinds = Counter(WORDS[event["event"]] for event in told)
    events = [
        Happening(
            datetime.fromtimestamp(event["time"], UTC).strftime("%Y-%m-%d %H:%M:%S"),
            event["stage"],
            event["engine"],
            WORDS[event["event"]],
            event["detail"],
        )
        for event in told[:EVENTS_SHOWN]
    ]
    stages = [_stage(name, log) for name in dict.fromkeys(row["stage"] for row in log.samples)]
    return Generation(stages, kinds.most_common(), events, log.damaged)


def _stage(name: str, log: EngineLog) -> StageEngines:
    grouped: dict[tuple[str, str], list[Row]] = {}
    for row in log.samples:
        if row["stage"] == name:
            grouped.setdefault((row["engine"], row["life"]), []).append(row)
    lives = [Life(engine, sorted(rows, key=lambda row: row["time"])) for (engine, _), rows in grouped.items()]
    events = [event for event in log.events if event["stage"] == name]
    faults = Counter(event["engine"] for event in events if event["event"] in FAULTS)
    plans = [event["detail"] for event in events if event["event"] == "plan"]
    names = sorted({life.engine for life in lives}, key=lambda engine: (len(engine), engine))
    timeline = Timeline(stretches(lives))
    return StageEngines(
        name=name,
        plan=plans[-1] if plans else "",
        seconds=timeline.seconds,
        pauses=timeline.pauses,
        panels=_panels(lives, timeline) if timeline.seconds else [],
        engines=[
            _summary(engine, [life for life in lives if life.engine == engine], faults[engine]) for engine in names
        ],
    )


def _summary(name: str, lives: list[Life], faults: int) -> EngineSummary:
    columns = ("made", "hits", "prompt_tokens", "completion_tokens", "prefix_queries", "prefix_hits")
    totals = {column: sum(int(life.total(column)[-1]) for life in lives) for column in columns}
    queries, found = totals.pop("prefix_queries"), totals.pop("prefix_hits")
    tokens, seconds = (sum(parts) for parts in zip(*(life.at_work() for life in lives), strict=True))
    uses = [row["kv_cache_use"] for life in lives for row in life.rows if row["kv_cache_use"] is not None]
    return EngineSummary(
        name=name,
        lives=len(lives),
        **totals,
        tokens_per_second=tokens / seconds if seconds else None,
        kv_cache_use=max(uses, default=None),
        prefix_hit_rate=found / queries if queries else None,
        faults=faults,
    )


def stretches(lives: list[Life]) -> list[tuple[float, float]]:
    """The longest stretches of time (first and last second) in which some engine ran, in order."""
    found: list[tuple[float, float]] = []
    for start, end in sorted((float(life.times[0]), float(life.times[-1])) for life in lives):
        if found and start - found[-1][1] < SHORTEST_PAUSE:
            found[-1] = (found[-1][0], max(found[-1][1], end))
        else:
            found.append((start, end))
    return [stretch for stretch in found if stretch[1] > stretch[0]]


class Timeline:
    """The time axis: the stretches in which an engine ran, to scale, with narrow bands for the pauses between them."""

    def __init__(self, stretches: list[tuple[float, float]]) -> None:
        self.stretches = stretches
        self.seconds = sum(end - start for start, end in stretches)
        self.pauses = [later[0] - earlier[1] for earlier, later in pairwise(stretches)]
        self.band = self.seconds * min(PAUSE_SHARE, PAUSES_SHARE / max(len(self.pauses), 1))
        self.length = self.seconds + self.band * len(self.pauses)
        self.lefts: list[float] = []  # where a stretch starts on the axis
        left = 0.0
        for start, end in stretches:
            self.lefts.append(left)
            left += end - start + self.band

    def bins(self) -> list[np.ndarray]:
        """For each stretch the edges, in seconds since 1970, of the bins that a curve has a point for."""
        width = max(self.seconds / POINTS, 1.0)
        return [np.linspace(start, end, max(round((end - start) / width), 1) + 1) for start, end in self.stretches]

    def lines(self, heights: list[np.ndarray]) -> list[plots.Line]:
        """For each stretch a line through the middles of its bins, level to the stretch's ends."""
        drawn = []
        for edges, left, ys in zip(self.bins(), self.lefts, heights, strict=True):
            xs = np.concatenate([edges[:1], (edges[:-1] + edges[1:]) / 2, edges[-1:]]) - edges[0] + left
            drawn.append(list(zip(xs.tolist(), [ys[0], *ys, ys[-1]], strict=True)))
        return drawn

    def frame(self) -> plots.TimeFrame:
        """Ticks at round running times, pauses left out; bands with what they stand for."""
        unit, seconds = next(
            ((unit, size) for unit, size in (("d", 86400), ("h", 3600), ("min", 60)) if self.seconds >= 2 * size),
            ("s", 1),
        )
        ran = np.cumsum([0, *(end - start for start, end in self.stretches)])[:-1]
        marks = [mark for mark in plots.ticks(0, self.seconds / seconds) if mark * seconds <= self.seconds]
        places = [int(np.searchsorted(ran, mark * seconds, side="right")) - 1 for mark in marks]
        ticks = [
            (mark * seconds + self.band * place, f"{mark:g} {unit}" if mark else "0")
            for mark, place in zip(marks, places, strict=True)
        ]
        bands = [
            (left - self.band, left, f"no engine ran for {duration(pause)}")
            for left, pause in zip(self.lefts[1:], self.pauses, strict=True)
        ]
        return plots.TimeFrame(self.length, ticks, bands)


def _panels(lives: list[Life], timeline: Timeline) -> list[Panel]:
    """Small plots over one time axis: tokens, calls, and calls in flight."""
    bins, frame = timeline.bins(), timeline.frame()
    edges, cuts = np.concatenate(bins), np.cumsum([len(own) for own in bins])[:-1]

    def rate(name: str) -> list[plots.Line]:
        """Per second: a life's total is a line through its samples; the lives' sum rises from edge to edge."""
        total = np.sum([np.interp(edges, life.times, life.total(name)) for life in lives], axis=0)
        return timeline.lines(
            [np.diff(part) / np.diff(own) for part, own in zip(np.split(total, cuts), bins, strict=True)]
        )

    def gauge(name: str) -> list[plots.Line]:
        level = np.sum([np.interp(edges, life.times, life.gauge(name), left=0, right=0) for life in lives], axis=0)
        return timeline.lines([(part[:-1] + part[1:]) / 2 for part in np.split(level, cuts)])

    made, hits = rate("made"), rate("hits")
    answered = {"by an engine": made} | ({"from the ledger": hits} if any(y for line in hits for _, y in line) else {})
    panels = {
        "Tokens written per second": {"tokens": rate("completion_tokens")},
        "Calls per second": answered,
        "Calls in flight": {"in the batch": gauge("running"), "waiting": gauge("waiting")},
    }
    return [_panel(title, curves, frame) for title, curves in panels.items()]


def _panel(title: str, curves: dict[str, list[plots.Line]], frame: plots.TimeFrame) -> Panel:
    """The note has mean and highest of the first curve, over the time that is drawn."""
    first = next(iter(curves.values()))
    area = sum((b[0] - a[0]) * (a[1] + b[1]) / 2 for line in first for a, b in pairwise(line))
    length = sum(line[-1][0] - line[0][0] for line in first)
    highest = max(y for line in first for _, y in line)
    note = f"{count(float(f'{area / length:.3g}'))} on average, at most {count(float(f'{highest:.3g}'))}"
    keys = tuple(curves) if len(curves) > 1 else ()
    return Panel(title, note, plots.time_plot(f"{title}: {note}", list(curves.values()), frame), keys)
