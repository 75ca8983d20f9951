"""A sweep whose arms are made-up run directories, as finished arms leave them. Metrics are computed from their rows."""

from __future__ import annotations

import json
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from shard_dist.artefacts import write_json
from shard_dist.evaluation.metrics import metrics
from shard_dist.records import Prompt
from shard_dist.sweep.plan import Arm, Sweep, load_sweep

Row = dict[str, Any]
HOSTILE = "</script><img src=x onerror=alert(1)>\x00\ud800"
FILE = """
run: {{name: trial, dir: {root}/trial}}
data:
  sources: [{{kind: table, path: {root}/prompts.csv, name: made, columns: {{id: id, text: text}}}}]
models:
  student: {{backend: fake, model: org/llama}}
  teacher: {{backend: fake, model: org/big}}
  {judge}
select: {{judge: rule}}
evaluate: {{judge: {kind}}}
sweep:
  axes:
    student: {students}
    recipe:
      self: {{recipe.generator: student}}
      teacher: {{recipe.generator: teacher}}
      plain: {{recipe.generator: student, recipe.guidelines: false}}
    run.seed: {seeds}
"""
# Chance that an arm refuses a sensitive prompt: what the rule judge then sees is a less helpful answer.
CHANCES = {"self": 0.30, "teacher": 0.05, "plain": 0.30}
REFUSAL = "I'm sorry, but I can't help with that."


def load(
    root: Path, students: tuple[str, ...] = ("llama",), seeds: tuple[int, ...] = (0, 1), kind: str = "rule"
) -> Sweep:
    """The plan alone; no arm has run. `kind` is the judge of evaluation."""
    (root / "prompts.csv").write_text("id,text\n1,Why?\n")
    models = {name: {"models.student.model": f"org/{name}"} for name in students}
    path = root / "trial.yaml"
    judge = "judge: {backend: fake, model: org/judge}" if kind == "llm" else ""
    path.write_text(FILE.format(root=root, students=json.dumps(models), seeds=list(seeds), judge=judge, kind=kind))
    return load_sweep(path)


def make(
    root: Path,
    students: tuple[str, ...] = ("llama",),
    seeds: tuple[int, ...] = (0, 1),
    size: int = 48,
    kind: str = "rule",
) -> Sweep:
    """All arms finished."""
    sweep = load(root, students, seeds, kind)
    for arm in sweep.arms:
        finish(arm, size)
    states = {arm.name: {"state": "done", "stage": "report", "error": ""} for arm in sweep.arms}
    write_json(sweep.path / "sweep.json", {"arms": states})
    return sweep


def moved(sweep: Sweep, root: Path) -> Sweep:
    """The plan of a copy of its directory under `root`."""

    def placed(arm: Arm) -> Arm:
        run = replace(arm.config.run, dir=str(root / "arms" / arm.name), ledger=str(root / "ledger"))
        return replace(arm, config=replace(arm.config, run=run))

    return replace(sweep, path=root, arms=tuple(map(placed, sweep.arms)))


def finish(arm: Arm, size: int) -> None:
    """Everything that a comparison reads of an arm."""
    run, seed, rng = arm.run, arm.config.run.seed, random.Random(arm.name)
    rows = prompts(size)
    write(run / "prompts.parquet", rows)
    known = [Prompt(**row) for row in rows if row["split"] == "test"]
    base, tuned = random.Random(f"{arm.student} {seed}"), rng
    answers = answered(known, "base", 0.7, base, seed) + answered(
        known, "tuned", CHANCES[arm.values["recipe"]], tuned, seed
    )
    verdicts = [judged(row) for row in answers]
    pairs = compared(verdicts)
    for name in ("base", "tuned"):
        write(run / "answers" / f"{name}.parquet", [row for row in answers if row["arm"] == name])
        write(run / "verdicts" / f"{name}.parquet", [row for row in verdicts if row["arm"] == name])
    write(run / "verdicts" / "pairs.parquet", pairs)
    judges = {"select": "rule judge", "evaluate": "rule judge", "same": True, "raters": {}}
    write_json(run / "metrics.json", {**metrics(known, answers, verdicts, pairs), "judges": judges})
    manifests(arm, len(known))


def prompts(size: int) -> list[Row]:
    rows = []
    for number in range(size):
        text = HOSTILE.replace("\ud800", "") if number == 1 else f"How does thing {number} work, and why do people ask?"
        about = {"category": f"category {number % 6}", "subcategory": "", "level": number % 4, "language": "en"}
        key = {"dataset": "made", "id": str(number), "text": text}
        rows.append({**key, **about, "source": "", "group": "", "split": "test", "excluded": ""})
    return rows


def answered(known: list[Prompt], arm: str, chance: float, rng: random.Random, seed: int) -> list[Row]:
    rows = []
    for number, prompt in enumerate(known):
        refuses = rng.random() < (chance if prompt.level else chance / 6)
        text = REFUSAL if refuses else f"{prompt.text} Here is how thing {prompt.id} works in {rng.randrange(9)} steps."
        failure = "context_exceeded" if number == 5 else ""
        told = {"thinking": "", "finish_reason": "stop", "failure": failure, "call": "", "conditions": f"seed {seed}"}
        rows.append({"dataset": prompt.dataset, "id": prompt.id, "arm": arm, "text": "" if failure else text, **told})
    return rows


def judged(row: Row) -> Row:
    refusal = "unanswered" if row["failure"] else "full" if row["text"] == REFUSAL else "none"
    topic = "unanswered" if row["failure"] else "no" if refusal == "full" else "yes"
    return {**{name: row[name] for name in ("dataset", "id", "arm")}, "refusal": refusal, "on_topic": topic}


def compared(verdicts: list[Row]) -> list[Row]:
    """Base against tuned: who answers is more helpful than who refuses."""
    by_arm = {arm: [row for row in verdicts if row["arm"] == arm] for arm in ("base", "tuned")}
    rows = []
    for a, b in zip(by_arm["base"], by_arm["tuned"], strict=True):
        better = {("full", "none"): "b", ("none", "full"): "a"}.get((a["refusal"], b["refusal"]), "tie")
        for question in ("helpfulness", "harm"):
            word = better if question == "helpfulness" else "tie"
            orders = {"a": ("first", "second"), "b": ("second", "first"), "tie": ("tie", "tie")}[word]
            key = {"dataset": a["dataset"], "id": a["id"], "arm_a": "base", "arm_b": "tuned", "question": question}
            rows.append({**key, "forward": orders[0], "backward": orders[1], "combined": word, "reason": ""})
    return rows


def manifests(arm: Arm, tests: int) -> None:
    """Counts as stages write them. The first arm of a student and seed pays for what others find in the ledger."""
    first = arm.values["recipe"] == "self"
    drafts, others = 300, {"self": 600, "teacher": 700, "plain": 300}[arm.values["recipe"]]
    made = {"generate": others + drafts * first, "select": 0, "evaluate": (2 if first else 1) * tests}
    asked = {"generate": others + drafts, "select": 0, "evaluate": 2 * tests}
    for number, stage in enumerate(made):
        counts = {"calls": asked[stage], "calls_made": made[stage], "ledger_hits": asked[stage] - made[stage]}
        counts |= {"prompt_tokens": 60 * made[stage], "completion_tokens": 40 * made[stage]}
        write_json(arm.run / f"{stage}.json", {"inputs": {}, "counts": counts, "seconds": 30.0 * (number + 1)})
    counts = {"tokens": 40_000, "examples": 208, "steps": 39}
    write_json(arm.run / "train.json", {"inputs": {}, "counts": counts, "seconds": 120.0})
    write_json(arm.run / "run.json", {"name": arm.name, "created": "2026-01-02T03:04:05Z"})


def write(path: Path, rows: list[Row]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows), path)
