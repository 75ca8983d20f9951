"""The examples of a finished run for other trainers, with a dataset card and where every example comes from."""

from __future__ import annotations

import json
import os
import tempfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any

import yaml

from shard_dist.artefacts import read_json, stream_rows
from shard_dist.data.card import Facts, Usage, dataset_card
from shard_dist.data.interchange import OWN, Placed, known, read_placed, write_placed
from shard_dist.data.jsonl import write_objects
from shard_dist.data.mix import KEPT, OF_FILES
from shard_dist.ledger.catalogue import catalogue
from shard_dist.ledger.location import locate
from shard_dist.ledger.queries import entries, ledger_of
from shard_dist.stages.generate import RECORDS

Row = dict[str, Any]

SPLITS = ("train", "val")
NEEDED = ("run.json", "config.yaml", "generate.json", "select.json", "selection.json", "decisions.parquet", RECORDS)
FROM_FILE = {"category": "", "recipe": "", "language": "", "calls": "{}"}
VERDICTS = ("reason", "on_topic", "helpfulness", "harm", "helpfulness_reason", "harm_reason")


@dataclass
class Tally:
    """What the card counts while the examples go by."""

    sources: Counter[str] = field(default_factory=Counter)
    categories: Counter[str] = field(default_factory=Counter)
    objectives: Counter[str] = field(default_factory=Counter)
    languages: Counter[str] = field(default_factory=Counter)
    steps: dict[bytes, str] = field(default_factory=dict)  # key of a call -> its step

    def add(self, origin: Row, objective: str, language: str) -> None:
        self.sources[origin["dataset"]] += 1
        self.categories[origin["category"]] += 1
        self.objectives[objective] += 1
        self.languages[language] += 1
        self.steps |= {bytes.fromhex(key): step for step, keys in origin["calls"].items() for key in keys}


def export_examples(run: Path, out: Path, format: str, split: str = "") -> dict[str, int]:
    """Write a run's examples into the new directory `out`: how many by split.

    `out` gets a file per split that has examples ("" is both), README.md and provenance.jsonl, all of them or none.
    Raises ValueError where `run` has no selection yet, the format is none or cannot hold an example, `out` has files.
    """
    suffix = ".parquet" if format == OWN else known(format).suffix
    if split not in ("", *SPLITS):
        raise ValueError(f"no split {split!r} of examples; there are {', '.join(SPLITS)}")
    for name in NEEDED:
        if not (run / name).is_file():
            raise ValueError(f"{run / name} is missing: {run} is no run that has selected its examples")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ValueError(f"{out} is there and not empty; give the export a directory of its own")
    out.absolute().parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{out.name}.", dir=out.absolute().parent) as scratch:
        made = Path(scratch) / "made"
        made.mkdir()
        files, tally = {}, Tally()
        for name in [split] if split else SPLITS:
            path = made / f"{name}{suffix}"
            count = write_placed(path, format, (placed for placed, _ in traced(run, name)))
            files[name] = (path.name, count)
            if not count:
                path.unlink()  # readers of JSON take an empty file for a broken one
        files = {name: (file, count) for name, (file, count) in files.items() if count}
        if not files:
            raise ValueError(f"{run} has no examples{f' of the split {split}' if split else ''} to export")
        origins = chain.from_iterable(origins_of(run, name, tally) for name in files)
        write_objects(made / "provenance.jsonl", origins, as_list=False)
        (made / "README.md").write_text(dataset_card(facts_of(run, format, files, tally)), encoding="utf-8")
        os.replace(made, out)  # an empty directory gives way to it
    return {name: count for name, (_, count) in files.items()}


def traced(run: Path, split: str) -> Iterator[tuple[Placed, tuple[Row, Row]]]:
    """A split's examples in their order, each with its record and the decision about it, all streamed.

    Those of files come last and have neither. Raises ValueError for an example whose record does not follow in the
    order of the records.
    """
    pairs = zip(stream_rows(run / RECORDS), stream_rows(run / "decisions.parquet"), strict=True)
    pair: tuple[Row, Row] = ({}, {})
    for where, example in read_placed(run / "examples" / f"{split}.parquet", OWN):
        if example.dataset.startswith(OF_FILES):
            yield (where, example), ({**FROM_FILE, "dataset": example.dataset}, {"reason": KEPT})
            continue
        key = (example.dataset, example.id)
        while (pair[0].get("dataset"), pair[0].get("id")) != key:
            try:
                pair = next(pairs)
            except StopIteration:
                raise ValueError(f"{where}: no record of {key!r:.80} in {run / RECORDS}") from None
        yield (where, example), pair


def origins_of(run: Path, split: str, tally: Tally) -> Iterator[Row]:
    """Lines of provenance.jsonl, counted as they go by."""
    judge = read_json(run / "selection.json")["judge"]
    for (_, example), (record, decision) in traced(run, split):
        origin = {
            "dataset": example.dataset,
            "id": example.id,
            "split": split,
            "category": record["category"],
            "recipe": record["recipe"],
            "calls": json.loads(record["calls"]) | json.loads(decision.get("calls") or "{}"),
            "judge": judge,
            **{name: decision.get(name, "") for name in VERDICTS},
        }
        tally.add(origin, example.objective, record["language"])
        yield origin


def facts_of(run: Path, format: str, files: dict[str, tuple[str, int]], tally: Tally) -> Facts:
    config = yaml.safe_load((run / "config.yaml").read_text(encoding="utf-8"))
    stages = {name: read_json(run / f"{name}.json") for name in ("generate", "select")}
    selection = read_json(run / "selection.json")
    reasons: dict[bool, Counter[str]] = {True: Counter(), False: Counter()}
    judge_calls_known = stages["select"]["counts"].get("calls", 0) == 0
    for decision in stream_rows(run / "decisions.parquet"):
        reasons[decision["keep"]][decision["reason"]] += 1
        judge_calls_known = judge_calls_known or "calls" in decision
    models = models_of(config, stages)
    usage = usage_of(run, tally.steps, models)
    return Facts(
        name=read_json(run / "run.json")["name"],
        recipe=config["recipe"]["name"],
        format=format,
        files=files,
        objectives=tally.objectives,
        sources=tally.sources,
        languages=tuple(sorted(tally.languages)),
        models=models,
        usage=usage,
        lost_calls=len(tally.steps) - sum(use.calls for use in usage),
        judge=selection["judge"],
        judge_calls_known=judge_calls_known,
        kept=dict(reasons[True].most_common()),
        dropped=dict(reasons[False].most_common()),
        categories={
            name: (tally.categories[name], records["kept"], records["dropped"])
            for name, records in sorted(selection["by_category"].items())
        },
        config_hash=stages["select"]["config_hash"],
        commits={name: stage["git_commit"] + " (changed since)" * stage["git_dirty"] for name, stage in stages.items()},
    )


def models_of(config: Row, stages: dict[str, Row]) -> dict[str, str]:
    """Fingerprint -> name of the models that generated and judged, as the stages noted them."""
    judge = (stages["select"]["inputs"].get("judge") or [""])[0]
    roles = {stages["generate"]["inputs"].get("generator"): config["recipe"].get("generator")}
    roles |= {judge: config["select"].get("judge_role")} if judge != "rule" else {}
    named = {mark: config["models"][role]["model"] for mark, role in roles.items() if mark and role in config["models"]}
    # A directory is told by its last name only; a hub id has two.
    return {mark: name if len(Path(name).parts) < 3 else Path(name).name for mark, name in named.items()}


def usage_of(run: Path, steps: dict[bytes, str], models: dict[str, str]) -> tuple[Usage, ...]:
    """Which models made the calls, as far as the ledger has them; models that no stage noted are added to `models`."""
    place = locate(ledger_of(str(run)))
    place.pull()
    made: Counter[tuple[str, str]] = Counter()
    for entry in entries(catalogue(place)):
        if entry.key in steps:
            call = json.loads(entry.call)
            models.setdefault(call["fingerprint"], call["model"])
            made[steps[entry.key], call["fingerprint"]] += 1
    return tuple(Usage(*use, calls) for use, calls in sorted(made.items()))
