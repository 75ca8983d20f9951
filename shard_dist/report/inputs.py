"""What the report reads: the files of a run directory, any of which may not exist yet.

A file that is there but cannot be read, or lacks what the page needs, is a ValueError that names it.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from math import isfinite
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import yaml

from shard_dist.artefacts import read_json, read_rows
from shard_dist.records import Key

STAGES = ("prompts", "generate", "select", "train", "evaluate")
Row = dict[str, Any]
GAIN_COUNTS = {"n", "net", "helpfulness", "harm"}

PROMPT_COLUMNS = ("dataset", "id", "text", "category", "level", "split", "excluded")
RECORD_COLUMNS = ("dataset", "id", "text", "category", "level", "fields", "failure")
ANSWER_COLUMNS = ("dataset", "id", "text", "finish_reason", "failure")
VERDICT_COLUMNS = ("dataset", "id", "refusal", "on_topic")
DECISION_COLUMNS = ("dataset", "id", "keep", "reason", "helpfulness", "harm")
SAMPLE_TEXTS, EVENT_TEXTS = ("stage", "engine", "life"), ("stage", "engine", "event", "detail")
SAMPLE_COUNTS = (
    *("made", "hits", "prompt_tokens", "completion_tokens"),
    *("running", "waiting", "prefix_queries", "prefix_hits"),
)
PAIR_COLUMNS = ("dataset", "id", "arm_a", "arm_b", "question", "combined")
RATING_COLUMNS = ("dataset", "id", "arm", "judge", "verdict", "score", "reason", "span_start", "span_end")


@dataclass(frozen=True)
class Estimate:
    """A share (or a mean, or a difference of shares) with its interval; None where n is 0."""

    value: float | None = None
    low: float | None = None
    high: float | None = None
    n: int = 0


@dataclass
class EngineLog:
    """engines.jsonl by kind of line, in its order; `damaged` counts the lines that could not be read."""

    samples: list[Row] = field(default_factory=list)
    events: list[Row] = field(default_factory=list)
    damaged: int = 0


@dataclass(frozen=True)
class Run:
    """The artefacts of a run. Empty where a stage has not written its file."""

    root: Path
    config: Row = field(default_factory=dict)
    info: Row = field(default_factory=dict)
    stages: dict[str, Row] = field(default_factory=dict)
    selection: Row = field(default_factory=dict)
    metrics: Row = field(default_factory=dict)
    guidelines: Row = field(default_factory=dict)
    steps: list[Row] = field(default_factory=list)
    prompts: dict[Key, Row] = field(default_factory=dict)
    records: list[Row] = field(default_factory=list)
    decisions: dict[Key, Row] = field(default_factory=dict)
    answers: dict[str, dict[Key, Row]] = field(default_factory=dict)
    verdicts: dict[str, dict[Key, Row]] = field(default_factory=dict)
    pairs: dict[Key, list[Row]] = field(default_factory=dict)
    ratings: dict[str, dict[Key, list[Row]]] = field(default_factory=dict)
    engines: EngineLog = field(default_factory=EngineLog)
    rounds: Row = field(default_factory=dict)

    @property
    def name(self) -> str:
        return str(self.info.get("name") or self.root.name)

    @property
    def arms(self) -> list[str]:
        """The reference first, tuned second, others after them by name."""
        names = set(self.answers) | set(self.metrics.get("arms", {}))
        first = self.metrics.get("reference", "base")
        return sorted(names, key=lambda arm: (arm != first, arm != "tuned", arm))

    @property
    def reference(self) -> str:
        """The arm that others are compared with; "" where there is no arm."""
        return self.arms[0] if self.arms else ""

    @property
    def confidence(self) -> float:
        return self.metrics.get("confidence", 0.95)

    def counts(self, stage: str) -> Row:
        return self.stages.get(stage, {}).get("counts", {})


def key_of(row: Row) -> Key:
    return (str(row["dataset"]), str(row["id"]))


def read_estimate(value: Any, where: str, *, share: bool = False) -> Estimate:
    """A {value, low, high, n} of metrics.json; a `share` lies in 0..1. Further keys are ignored."""
    if not isinstance(value, dict) or "value" not in value:
        raise ValueError(f"{where}: expected {{value, low, high, n}}, found {value!r}; run evaluate again")
    numbers = {name: value.get(name) for name in ("value", "low", "high")}
    for name, number in numbers.items():
        if number is None:
            continue
        if not isinstance(number, (int, float)) or not isfinite(number) or (share and not 0 <= number <= 1):
            raise ValueError(f"{where}.{name} is {number!r}, no {'share' if share else 'number'}; run evaluate again")
    return Estimate(**numbers, n=int(value.get("n") or 0))


def read_run(root: Path) -> Run:
    """Raises ValueError where `root` is no directory or a file in it is damaged."""
    if not root.is_dir():
        raise ValueError(f"{root} is not a run directory; run a stage first, or give run.dir")
    stages = {stage: _manifest(root / f"{stage}.json") for stage in STAGES}
    arms = sorted(path.stem for path in (root / "answers").glob("*.parquet"))
    return Run(
        root=root,
        config=_config(root / "config.yaml"),
        info=_mapping(root / "run.json"),
        stages={stage: manifest for stage, manifest in stages.items() if manifest},
        selection=_mapping(root / "selection.json"),
        metrics=_mapping(root / "metrics.json"),
        guidelines=_mapping(root / "findings" / "guidelines.json"),
        steps=_steps(root / "train_metrics.jsonl"),
        prompts=_by_key(root / "prompts.parquet", PROMPT_COLUMNS),
        records=_records(root),
        decisions=_by_key(root / "decisions.parquet", DECISION_COLUMNS),
        answers={arm: _by_key(root / "answers" / f"{arm}.parquet", ANSWER_COLUMNS) for arm in arms},
        verdicts={arm: _by_key(root / "verdicts" / f"{arm}.parquet", VERDICT_COLUMNS) for arm in arms},
        pairs=_pairs(root / "verdicts" / "pairs.parquet"),
        ratings=_ratings(root / "verdicts" / "ratings.parquet"),
        engines=engine_log(root / "engines.jsonl"),
        rounds=_rounds(root),
    )


def _mapping(path: Path) -> Row:
    if not path.is_file():
        return {}
    try:
        value = read_json(path)
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ValueError(f"{path} is damaged ({error}); delete it and run its stage again") from error
    if not isinstance(value, dict):
        raise ValueError(f"{path}: expected a JSON object, found {type(value).__name__}; run its stage again")
    return value


def _manifest(path: Path) -> Row:
    manifest = _mapping(path)
    if not manifest:
        return {}
    counts, seconds = manifest.get("counts"), manifest.get("seconds")
    if not isinstance(counts, dict) or not isinstance(seconds, (int, float)):
        raise ValueError(f"{path} has no `counts` or no `seconds`; run its stage again")
    return manifest


def _rounds(root: Path) -> Row:
    """{"kept": number, "seen": counts of each round's stage `gain`, first to last}; {} for a run without rounds."""
    manifest = _manifest(root / "rounds.json")
    if not manifest:
        return {}
    folders = [path for path in (root / "rounds").glob("*") if path.name.isdecimal()]
    gains = [_manifest(path / "gain.json") for path in sorted(folders, key=lambda path: int(path.name))]
    seen = [gain["counts"] for gain in gains if gain]
    if any(not counts.keys() >= GAIN_COUNTS for counts in seen):
        raise ValueError(f"{root / 'rounds'}: a gain.json has no {sorted(GAIN_COUNTS)}; run the rounds again")
    return {"kept": manifest["counts"].get("kept"), "seen": seen}


def _config(path: Path) -> Row:
    if not path.is_file():
        return {}
    try:
        value = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (UnicodeDecodeError, yaml.YAMLError) as error:
        raise ValueError(f"{path} is damaged ({error}); run any stage again to write it") from error
    if not isinstance(value, dict):
        raise ValueError(f"{path}: expected a mapping, found {type(value).__name__}")
    return value


def _steps(path: Path) -> list[Row]:
    """Lines by step, training and validation merged. A step that a restart repeated counts once."""
    merged: dict[int, Row] = {}
    if not path.is_file():
        return []
    for number, line in enumerate(path.read_bytes().splitlines(), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            merged.setdefault(int(row["step"]), {}).update(row)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"{path}, line {number} is damaged ({error!r}); delete the line") from error
    return [merged[step] for step in sorted(merged)]


def engine_log(path: Path) -> EngineLog:
    """A kill tears a line of this file by its nature, and a lost sample costs no count: such lines are left out."""
    log = EngineLog()
    if not path.is_file():
        return log
    with path.open("rb") as stream:
        for line in stream:
            try:
                row = json.loads(line)
                sample = row["kind"] == "sample"
                texts, counts = (SAMPLE_TEXTS, SAMPLE_COUNTS) if sample else (EVENT_TEXTS, ())
                share = row["kv_cache_use"] if sample else None
                whole = all(isinstance(row[name], str) for name in texts) and 0 < row["time"] < 1e11
                whole &= all(0 <= row[name] < 1e15 for name in counts) and (share is None or 0 <= share <= 1)
            except (ValueError, KeyError, TypeError):
                whole = False
            if whole:
                (log.samples if sample else log.events).append(row)
            else:
                log.damaged += 1
    return log


def _table(path: Path, columns: tuple[str, ...]) -> list[Row]:
    if not path.is_file():
        return []
    try:
        present = set(pq.read_schema(path).names)
        if missing := [column for column in columns if column not in present]:
            raise ValueError(f"{path} has no column {missing}; run its stage again")
        return read_rows(path)
    except (pa.ArrowException, OSError) as error:
        raise ValueError(f"{path} is damaged ({error}); delete it and run its stage again") from error


def _by_key(path: Path, columns: tuple[str, ...]) -> dict[Key, Row]:
    return {key_of(row): row for row in _table(path, columns)}


def _pairs(path: Path) -> dict[Key, list[Row]]:
    grouped: dict[Key, list[Row]] = {}
    for row in _table(path, PAIR_COLUMNS):
        grouped.setdefault(key_of(row), []).append(row)
    return grouped


def _ratings(path: Path) -> dict[str, dict[Key, list[Row]]]:
    """arm -> key -> one row per judge, in the order of the file."""
    grouped: dict[str, dict[Key, list[Row]]] = {}
    for row in _table(path, RATING_COLUMNS):
        grouped.setdefault(row["arm"], {}).setdefault(key_of(row), []).append(row)
    return grouped


def _records(root: Path) -> list[Row]:
    """Records with `fields` decoded. A resumed run may hold a record twice: the last one counts."""
    rows: dict[Key, Row] = {}
    for path in sorted((root / "records").glob("*.parquet")):
        for row in _table(path, RECORD_COLUMNS):
            try:
                row["fields"] = json.loads(row["fields"] or "{}")
            except json.JSONDecodeError as error:
                raise ValueError(f"{path}: `fields` of {key_of(row)} is no JSON ({error})") from error
            rows[key_of(row)] = row
    return list(rows.values())
