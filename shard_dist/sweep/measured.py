"""What the finished arms of a sweep measured, side by side: which of them may be compared, and their columns."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

from shard_dist.artefacts import read_json, read_rows, value_hash
from shard_dist.config.schema import Config, RunConfig
from shard_dist.data.load import read_prompts
from shard_dist.evaluation.metrics import Classes, arm_columns
from shard_dist.evaluation.slices import Columns, net
from shard_dist.evaluation.table import table
from shard_dist.judges.protocol import QUESTIONS
from shard_dist.records import Key, Prompt
from shard_dist.stages.evaluate import BASE, TUNED
from shard_dist.stages.judges import raters
from shard_dist.sweep.plan import Arm, Sweep

Row = dict[str, Any]
NEEDED = ("metrics.json", "prompts.parquet", f"answers/{BASE}.parquet", f"answers/{TUNED}.parquet")


@dataclass(frozen=True)
class Measured:
    """A finished arm. `prompts` are sorted by key, as every column is; `gain` is the word on tuned against base."""

    arm: Arm
    prompts: list[Prompt]
    answers: list[Row]
    base: Columns
    tuned: Columns
    gain: Columns

    @property
    def keys(self) -> list[Key]:
        return [prompt.key for prompt in self.prompts]


def finished(arm: Arm) -> bool:
    return all((arm.run / name).is_file() for name in NEEDED)


def comparable(arms: Iterable[Arm]) -> tuple[list[Arm], dict[str, str]]:
    """Finished arms that can be compared, and why the other finished ones cannot.

    All must be judged as the first of them; of one student and seed all must be asked the same prompts in the same way.
    """
    kept: list[Arm] = []
    left_out: dict[str, str] = {}
    asked: dict[tuple[str, int], tuple[str, str]] = {}
    judged: tuple[str, str] | None = None
    for arm in filter(finished, arms):
        judges, words = _judged(arm), _asked(arm)
        judged = judged or (arm.name, judges)
        first = asked.setdefault((arm.student, arm.config.run.seed), (arm.name, words))
        if judges != judged[1]:
            left_out[arm.name] = f"it was judged otherwise than {judged[0]}"
        elif words != first[1]:
            left_out[arm.name] = f"it was asked other prompts, or asked otherwise, than {first[0]}"
        else:
            kept.append(arm)
    return kept, left_out


def _judged(arm: Arm) -> str:
    """What decides the verdicts on its answers."""
    inputs = (arm.run.manifest("evaluate") or {}).get("inputs") or {}
    settings = arm.config.evaluate
    own = [settings.judge, vars(settings.judge_sampling), settings.judge_attempts, settings.confidence]
    return value_hash([*own, inputs.get("judge"), inputs.get("raters")])


def _asked(arm: Arm) -> str:
    rows = read_rows(arm.run / "answers" / f"{TUNED}.parquet")
    return value_hash(sorted([row["dataset"], row["id"], row.get("conditions", "")] for row in rows))


def measure(arm: Arm) -> Measured:
    """Raises ValueError for rows that do not fit together, see evaluation/table.py."""
    run = arm.run
    prompts = [prompt for prompt in read_prompts(run / "prompts.parquet") if prompt.split == "test"]
    answers, verdicts = (
        [row for name in (BASE, TUNED) for row in _rows(arm, kind, name)] for kind in ("answers", "verdicts")
    )
    ratings = [row for row in _rows(arm, "verdicts", "ratings") if row["arm"] in (BASE, TUNED)]
    pairs = [row for row in _rows(arm, "verdicts", "pairs") if (row["arm_a"], row["arm_b"]) == (BASE, TUNED)]
    judges = classes(arm)
    found = table(prompts, answers, verdicts, pairs, ratings, judges)
    safety = read_json(run / "metrics.json").get("safety_rater")
    base, tuned = (arm_columns(found.arms[name], found.benign, judges, safety) for name in (BASE, TUNED))
    asked = found.contests.get((BASE, TUNED), {})
    by_key = {(row["dataset"], row["id"]): {**row, "arm": arm.name} for row in answers if row["arm"] == TUNED}
    gain = {question: net(asked[question]) for question in QUESTIONS if question in asked}
    return Measured(arm, found.prompts, [by_key[prompt.key] for prompt in found.prompts], base, tuned, gain)


def _rows(arm: Arm, folder: str, name: str) -> list[Row]:
    path = arm.run / folder / f"{name}.parquet"
    return read_rows(path) if path.is_file() else []


def classes(arm: Arm) -> Classes:
    return {judge.name: (judge.refused, judge.unsafe) for judge, _ in raters(arm.config)}


@dataclass(frozen=True)
class Variant:
    """Arms that differ in their seed only. `name` is unique in the sweep, `label` among those of its student."""

    name: str
    label: str
    student: str
    arms: tuple[Arm, ...]


def variants(sweep: Sweep) -> list[Variant]:
    """In the order of the arms. Labels are the values of those axes that tell arms of one student apart."""
    groups = _but_for_seeds(sweep)
    by_student = _student_axis(sweep)
    students = _student_names(sweep, by_student)
    silent = {by_student, *(axis for axis in sweep.axes if _seeds_only(axis, sweep, groups))}
    result: dict[str, Variant] = {}
    for arms in groups:
        first, student = arms[0], students[arms[0].student]
        told = [value for axis, value in first.values.items() if axis not in silent]
        label = ("-".join(told) or (first.config.recipe.name if first.values else first.name)).replace("_vs_", "-vs-")
        name = f"{student}/{label}" if len(students) > 1 else label
        if name in result:  # an arm beside the axes may be called like a value of one
            name = label = first.name
        result[name] = Variant(name, label, student, tuple(arms))
    return list(result.values())


def _but_for_seeds(sweep: Sweep) -> list[list[Arm]]:
    """Arms whose settings are equal but for their seed, together."""
    groups: list[tuple[Config, list[Arm]]] = []
    for arm in sweep.arms:
        settings = replace(arm.config, run=RunConfig())
        group = next((arms for known, arms in groups if known == settings), None)
        if group is None:
            groups.append((settings, [arm]))
        else:
            group.append(arm)
    return [arms for _, arms in groups]


def _seeds_only(axis: str, sweep: Sweep, groups: list[list[Arm]]) -> bool:
    """Whether an axis says nothing but the seed, or nothing at all."""
    seeds = any(len({arm.values.get(axis) for arm in arms}) > 1 for arms in groups)
    return seeds or axis == "run.seed" or len(sweep.axes[axis]) == 1


def _student_axis(sweep: Sweep) -> str:
    """The axis that has a value of its own for every student, "" where there is none."""
    for axis in sweep.axes:
        found = {(arm.student, arm.values[axis]) for arm in sweep.arms if axis in arm.values}
        students, values = ({each[place] for each in found} for place in (0, 1))
        if len(found) == len(students) == len(values) > 1:
            return axis
    return ""


def _student_names(sweep: Sweep, axis: str) -> dict[str, str]:
    """Fingerprint -> its value on the axis, else the last part of the model's name; numbered where two share it."""
    names: dict[str, str] = {}
    for arm in sweep.arms:
        model = arm.config.models["student"].model.rstrip("/").rpartition("/")[2]
        name = arm.values.get(axis) or model or "student"
        if arm.student not in names:
            same = sum(known.partition(" (")[0] == name for known in names.values())
            names[arm.student] = f"{name} ({same + 1})" if same else name
    return names
