"""What a person asks of a ledger: how much, which call, everything as a file, is it sound, drop what is stale."""

from __future__ import annotations

import json
import re
import time
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import yaml

from shard_dist.artefacts import read_json, replacing
from shard_dist.ledger.catalogue import Catalogue, catalogue, size_of
from shard_dist.ledger.compact import Compaction, Source, Unreadable, clean, dead_segments, rewrite
from shard_dist.ledger.entry import Entry, call_of, completion_of, parse
from shard_dist.ledger.key import call_key
from shard_dist.ledger.lines import scan
from shard_dist.ledger.location import PACKS, SEGMENTS, locate
from shard_dist.ledger.packs import entries_of
from shard_dist.ledger.store import Ledger

EXPORT_SCHEMA = pa.schema(
    [
        (name, pa.int64() if name == "time" else pa.string())
        for name in ("key", "time", "model", "fingerprint", "completion", "call")
    ]
)

KEY_PATTERN = re.compile("[0-9a-f]{64}")
CUT = "cut off by a kill"


def ledger_of(run: str) -> str:
    """The ledger of a run directory (its run.ledger, else <run>/ledger), or `run` itself where that is a ledger.

    Raises ValueError where it is neither.
    """
    path = Path(run)
    if "://" in run:
        return run
    if (path / "config.yaml").is_file():
        config = yaml.safe_load((path / "config.yaml").read_text(encoding="utf-8")) or {}
        return config.get("run", {}).get("ledger") or str(path / "ledger")
    if any(True for pattern in (PACKS, SEGMENTS) for _ in path.glob(pattern)):
        return run
    raise ValueError(f"{run} is no run directory (no config.yaml) and no ledger (no {PACKS} and no {SEGMENTS})")


def ledger_stats(run: str) -> dict[str, int]:
    """Counts of a run's ledger.

    `calls_made` is every whole line ever written, repeated calls included; `hits` what finished stages of the run were
    answered without an engine; `bytes` is on disk.
    """
    ledger = Ledger(ledger_of(run))
    directory, stats = ledger.location.directory, ledger.stats
    ledger.close()
    files = {name: list(directory.glob(pattern)) for name, pattern in (("segments", SEGMENTS), ("packs", PACKS))}
    return {
        "entries": stats.entries,
        "calls_made": stats.lines,
        "hits": _hits(Path(run)),
        "torn_lines": stats.torn_lines,
        "damaged_packs": stats.damaged_packs,
        **{name: len(paths) for name, paths in files.items()},
        "bytes": sum(size_of(path) for paths in files.values() for path in paths),
    }


def _hits(run: Path) -> int:
    """Over the manifests of the run's finished stages."""
    manifests = [read_json(path) for path in run.glob("*.json")]
    counts = [
        value["counts"] for value in manifests if isinstance(value, dict) and isinstance(value.get("counts"), dict)
    ]
    return sum(int(count.get("ledger_hits", 0)) for count in counts)


def _open(run: str) -> Catalogue:
    place = locate(ledger_of(run))
    place.pull()
    return catalogue(place)


def _sources(found: Catalogue) -> list[Source]:
    segments = [Source(path, start=start) for path, start in found.segments]
    return [Source(pack.path, pack) for pack in found.packs] + segments


def entries(found: Catalogue) -> Iterator[Entry]:
    """Every call once. What is damaged or torn is left out; `verify` says what that is."""
    seen: set[bytes] = set()
    for source in _sources(found):
        try:
            for table in source.tables():
                for entry in entries_of(table):
                    if entry.key not in seen:
                        seen.add(entry.key)
                        yield entry
        except Unreadable as error:
            warnings.warn(f"{error}; the rest of it is left out", stacklevel=2)


def find_entry(run: str, key: str) -> dict[str, Any]:
    """One stored call. Raises ValueError where there is none, or the key is none."""
    if not KEY_PATTERN.fullmatch(key):
        raise ValueError(f"{key!r} is no key: a key has 64 hexadecimal digits")
    wanted = bytes.fromhex(key)
    for entry in entries(_open(run)):
        if entry.key == wanted:
            return as_dict(entry)
    raise ValueError(f"{ledger_of(run)} has no call {key}")


def as_dict(entry: Entry) -> dict[str, Any]:
    """JSON value of an entry. Raises ValueError where one of its texts is no JSON."""
    return {
        "key": entry.key.hex(),
        "time": entry.time,
        "completion": json.loads(entry.completion),
        "call": json.loads(entry.call),
    }


@dataclass(frozen=True)
class Selection:
    """Calls of a model, of weights whose fingerprint starts so, made more than so many days ago; all that are given."""

    model: str = ""
    fingerprint: str = ""
    older_than: float = 0.0

    def __call__(self, entry: Entry) -> bool:
        if self.older_than and entry.time > time.time() - self.older_than * 86_400:
            return False
        call = json.loads(entry.call) if self.model or self.fingerprint else {}
        return (not self.model or call["model"] == self.model) and (
            not self.fingerprint or call["fingerprint"].startswith(self.fingerprint)
        )


def export(run: str, out: Path, chosen: Selection) -> int:
    """Write the chosen calls to `out`, .jsonl or .parquet; how many.

    JSON is ASCII only. Parquet has the columns key, time (seconds since 1970), model, fingerprint, and completion and
    call as JSON texts.
    """
    writers = {".jsonl": _export_lines, ".parquet": _export_table}
    if out.suffix not in writers:
        raise ValueError(f"{out}: the name must end in {' or '.join(writers)}")
    with replacing(out) as partial:
        return writers[out.suffix](partial, (entry for entry in entries(_open(run)) if chosen(entry)))


def _export_lines(path: Path, chosen: Iterator[Entry]) -> int:
    number = 0
    with path.open("w", encoding="ascii") as stream:
        for entry in chosen:
            stream.write(json.dumps(as_dict(entry)) + "\n")
            number += 1
    return number


def _export_table(path: Path, chosen: Iterator[Entry]) -> int:
    number = 0
    with pq.ParquetWriter(path, EXPORT_SCHEMA, compression="zstd") as writer:
        while batch := list(islice(chosen, 4096)):
            number += len(batch)
            rows = [{**vars(entry), "key": entry.key.hex(), **_weights(entry)} for entry in batch]
            writer.write_table(pa.Table.from_pylist(rows, EXPORT_SCHEMA))
    return number


def _weights(entry: Entry) -> dict[str, str]:
    call = json.loads(entry.call)
    return {"model": call["model"], "fingerprint": call["fingerprint"]}


def verify(run: str) -> tuple[int, int, list[str]]:
    """Read everything: how many entries are sound, how many last lines a kill cut off, and what is wrong.

    Sound is an entry that decodes and whose key is the key of its call.
    """
    found = _open(run)
    wrong = [f"{path.name}: no pack can be read in it" for path in found.damaged]
    sound = cut = 0
    for source in _sources(found):
        try:
            for where, entry in _places(source):
                fault = _fault(entry)
                sound += not fault
                cut += fault == CUT
                wrong += [f"{source.path.name}: {where}: {fault}"] if fault not in ("", CUT) else []
        except (Unreadable, FileNotFoundError) as error:
            if not source.path.exists():  # sealed or compacted since it was listed
                warnings.warn(f"{source.path} vanished while it was read; verify again", stacklevel=2)
            else:
                wrong.append(f"{source.path.name}: {error}")
    return sound, cut, wrong


def _places(source: Source) -> Iterator[tuple[str, Entry | bytes]]:
    """Where in a file, and the entry or the line that is none."""
    if source.pack:
        rows = (entry for table in source.tables() for entry in entries_of(table))
        yield from ((f"row {row}", entry) for row, entry in enumerate(rows))
        return
    for offset, line in scan(source.path, source.start):
        yield f"byte {offset}", parse(line) or line


def _fault(entry: Entry | bytes) -> str:
    """ "" for a sound entry."""
    if isinstance(entry, bytes):
        return "a damaged line" if entry.endswith(b"\n") else CUT
    try:
        completion_of(entry.completion)
        key = call_key(call_of(entry.call))
    except (ValueError, KeyError, TypeError) as error:
        return f"does not decode: {error!r}"
    return "" if key == entry.key.hex() else f"key {entry.key.hex()} is not that of its call, {key}"


def prune(run: str, chosen: Selection, everything: bool, really: bool) -> tuple[int, int]:
    """Drop the chosen calls; how many those are, and in how many segments calls may not be touched as writers may live.

    Nothing changes unless `really`. Raises ValueError where nothing is chosen.
    """
    if chosen == Selection():
        raise ValueError("say which calls to drop: --model, --fingerprint or --older-than")
    place = locate(ledger_of(run))
    place.pull()
    if really:
        clean(place)
    found = catalogue(place)
    dead = dead_segments(place, found, everything)
    sources = [Source(pack.path, pack) for pack in found.packs] + dead
    done = Compaction()
    for source in sources:
        try:
            number = sum(chosen(entry) for table in source.tables() for entry in entries_of(table))
        except Unreadable as error:
            warnings.warn(f"{error}; left as it is", stacklevel=2)
            continue
        if number and really:
            rewrite(place, [source], done, set(), chosen)
        done.dropped += number if not really else 0
    return done.dropped, len(found.segments) - len(dead)
