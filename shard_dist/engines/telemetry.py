"""What engines did while they ran: for the live line, and in `<run>/engines.jsonl` for the report. No Ray here.

A life of an engine is one process of it: its totals start at zero, a replaced engine starts a new life. Samples hold
totals, so a line that was thinned out or torn costs resolution and no count.
"""

from __future__ import annotations

import errno
import json
import os
import time
import warnings
from collections import deque
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO

from shard_dist.engines.protocol import EngineStats
from shard_dist.engines.worker import Counters

FAULTS = ("died", "silent", "node_gone", "gave_up", "quarantined", "boot_failed")
KINDS = (*FAULTS, "booted", "grown", "shrunk", "hedged", "plan")

WINDOW = 10.0  # seconds that the live line's rates look back
DETAIL = 500  # characters of an event's detail
MOST_EVENTS = 5_000  # written by one process; further ones are counted only
# Each time the file has grown by so many bytes, samples become half as frequent. So it holds about log2(1 + what an
# unthinned file would have) MiB of samples: 8 MiB for 8 engines in 3 days, 15 MiB for 64 engines in 30 days.
THINNING = 1 << 20


@dataclass
class _Sample:
    """The newest totals and gauges of one life; when the file last got some, and whether these are to be written."""

    time: float
    counters: Counters
    stats: EngineStats
    written: float | None = None
    pending: bool = True

    @property
    def tokens(self) -> tuple[int, int]:
        """Of prompts and of completions: as the engine says, unfinished calls included, else of finished calls."""
        return (
            self.stats.prompt_tokens or self.counters.prompt_tokens,
            self.stats.completion_tokens or self.counters.completion_tokens,
        )


@dataclass
class _Totals:
    """Sums over all lives at one moment."""

    time: float
    made: int
    hits: int
    tokens: int
    prefix_queries: int
    prefix_hits: int


class Telemetry:
    """What engines did while they ran: a line per engine every few seconds and one per event, in `path`.

    `path` None keeps it in memory only. `every` is the least number of seconds between two lines of an engine, but for
    the first and the last of a life. The file is appended to, over kills and resumes.
    A file that cannot be written is a warning and not an error: no result depends on it.
    """

    def __init__(
        self, path: Path | None, stage: str, every: float = 2.0, *, clock: Callable[[], float] = time.time
    ) -> None:
        self.path, self.stage, self.every, self.clock = path, stage, every, clock
        self.faults: dict[str, int] = {}
        self._unit, self._rows, self._done = "", 0, 0
        self._lives: dict[tuple[str, str], _Sample] = {}
        self._current: dict[str, str] = {}  # engine that runs -> its life
        self._recent: deque[_Totals] = deque()
        self._file: BinaryIO | None = None
        self._size = self._events = 0

    def begin(self, unit: str, rows: int, done: int) -> None:
        """A run over `rows` rows starts, `done` of them were found finished; rates count from here."""
        self._unit, self._rows, self._done = unit, rows, done
        self._recent = deque([self._totals()])

    def rows(self, done: int) -> None:
        """Rows finished so far."""
        self._done = done

    def sample(self, engine: str, life: str, counters: Counters, stats: EngineStats) -> None:
        """Totals and gauges of this life of an engine, about once a second."""
        known = self._lives.get((engine, life))
        sample = _Sample(self.clock(), replace(counters), replace(stats), known.written if known else None)
        self._lives[engine, life], self._current[engine] = sample, life
        self._recent.append(self._totals())
        self._forget()
        if sample.written is None or sample.time - sample.written >= self.every * 2 ** (self._size // THINNING):
            self._write_sample(engine, life)

    def gone(self, engine: str) -> None:
        """This engine no longer runs: its gauges no longer count, its totals do."""
        life = self._current.pop(engine, None)
        if life is not None:
            self._write_sample(engine, life)

    def event(self, kind: str, engine: str, detail: str) -> None:
        """Something of `KINDS` happened to an engine, or to a row on it. `detail` may be anybody's text; it is cut."""
        assert kind in KINDS, kind
        if kind in FAULTS:
            self.faults[kind] = self.faults.get(kind, 0) + 1
        self._events += 1
        if self._events > MOST_EVENTS:
            return
        text = " ".join(detail.split())
        text = text if len(text) <= DETAIL else text[: DETAIL - 1] + "…"
        if self._events == MOST_EVENTS:
            text = f"(further events of this process are counted only) {text}"
        self._write("event", {"engine": engine, "event": kind, "detail": text}, self.clock())

    def counters(self) -> Counters:
        """Sum over all lives."""
        total = Counters()
        for sample in self._lives.values():
            total.add(sample.counters)
        return total

    def line(self) -> str:
        """One line for a person, most important part first; rates are over the last `WINDOW` seconds.

        Calls are those answered, by an engine or by the ledger; tokens are those that engines wrote.
        """
        self._forget()
        now = self._totals()
        before = self._recent[0] if self._recent else now
        seconds = max(now.time - before.time, 1.0)
        hits, queries = now.hits - before.hits, now.prefix_queries - before.prefix_queries
        calls = now.made - before.made + hits
        stats = [self._lives[place].stats for place in self._current.items()]
        kv_cache = [each.kv_cache_use for each in stats if each.kv_cache_use is not None]
        rates = (calls / seconds, (now.tokens - before.tokens) / seconds)
        calls_rate, tokens_rate = (f"{rate:,.0f}" if rate >= 10 else f"{rate:.1f}" for rate in rates)
        faults = sum(self.faults.values())
        parts = [
            f"{len(stats)} engine{'s' * (len(stats) != 1)}",
            f"{faults} fault{'s' * (faults != 1)}" if faults else "",
            f"{calls_rate} calls/s",
            f"{tokens_rate} tokens/s",
            f"{100 * hits / calls:.0f} % from the ledger" if calls and hits else "",
            f"{sum(each.running for each in stats):,} running",
            f"{sum(each.waiting for each in stats):,} waiting",
            f"KV {100 * sum(kv_cache) / len(kv_cache):.0f} %" if kv_cache else "",
            f"prefix hits {100 * (now.prefix_hits - before.prefix_hits) / queries:.0f} %" if queries else "",
        ]
        return ", ".join(part for part in parts if part)

    def close(self) -> None:
        """Write what thinning held back. The live line and the counters stay readable."""
        for engine, life in self._lives:
            self._write_sample(engine, life)
        if self._file is not None:
            self._file.close()
            self._file = None

    def _totals(self) -> _Totals:
        lives = self._lives.values()
        return _Totals(
            time=self.clock(),
            made=sum(life.counters.made for life in lives),
            hits=sum(life.counters.hits for life in lives),
            tokens=sum(life.tokens[1] for life in lives),
            prefix_queries=sum(life.stats.prefix_queries for life in lives),
            prefix_hits=sum(life.stats.prefix_hits for life in lives),
        )

    def _forget(self) -> None:
        """Drop totals from before the window, but for the newest of them: it is where the window starts."""
        edge = self.clock() - WINDOW
        while len(self._recent) > 1 and self._recent[1].time <= edge:
            self._recent.popleft()

    def _write_sample(self, engine: str, life: str) -> None:
        sample = self._lives[engine, life]
        if not sample.pending:
            return
        sample.written, sample.pending = sample.time, False
        prompt_tokens, completion_tokens = sample.tokens
        totals = {"made": sample.counters.made, "hits": sample.counters.hits, "calls": sample.counters.calls}
        tokens = {"prompt_tokens": prompt_tokens, "completion_tokens": completion_tokens}
        place = {"rows": self._rows, "done": self._done, "engine": engine, "life": life}
        self._write("sample", {**place, **totals, **asdict(sample.stats), **tokens}, sample.time)

    def _write(self, kind: str, values: dict[str, Any], now: float) -> None:
        if self.path is None:
            return
        head = {"kind": kind, "time": round(now, 3), "stage": self.stage, "unit": self._unit}
        line = (json.dumps({**head, **values}, separators=(",", ":")) + "\n").encode()
        try:
            if self._file is None:
                self._file = self.path.open("a+b", buffering=0)
                self._size = self._file.seek(0, os.SEEK_END)
                if self._size:
                    self._file.seek(-1, os.SEEK_END)
                    # A kill may have torn the last line: close it, so that a reader loses it alone.
                    line = line if self._file.read(1) == b"\n" else b"\n" + line
            written = self._file.write(line)
            self._size += written
            if written != len(line):
                raise OSError(errno.ENOSPC, "short write")
        except OSError as error:
            warnings.warn(f"{self.path}: {error}; the report will lack what engines do from now on", stacklevel=2)
            self.path = None
