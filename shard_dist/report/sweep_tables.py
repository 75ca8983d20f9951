"""The tables of a sweep's page: matrices of pairs, variants with their measures, arms with their costs."""

from __future__ import annotations

from dataclasses import dataclass
from statistics import mean

from shard_dist.report.findings import detectable_table, family_table
from shard_dist.report.inputs import Estimate, Row, Run
from shard_dist.report.measures import METRICS, metric_of
from shard_dist.report.rounds import ROUND_COLUMNS, round_rows
from shard_dist.report.sweep_figures import Point
from shard_dist.report.sweep_inputs import SHOWN, TAUGHT, Sweep, Test, Variant
from shard_dist.report.tables import Cell, Figure, Table

GAINS = (("helpfulness", "More helpful than base, net"), ("harm", "More harmful than base, net"))
DATA = ("generate", "select", "gain")


@dataclass(frozen=True)
class Matrix:
    """A question about every two variants of a student. `rows`: (name, its cells against each of `names`).

    A cell is the comparison as the row sees it, None on the diagonal and where there was none.
    """

    metric: str
    names: list[str]
    rows: list[tuple[str, list[Test | None]]]


def matrix(sweep: Sweep, student: str, metric: str) -> Matrix | None:
    """None where no two variants were compared by it."""
    variants = sweep.of(student)
    found = {frozenset((test.a, test.b)): test for test in sweep.tests if test.metric == metric}
    rows = []
    for one in variants:
        tests = [found.get(frozenset((one.name, other.name))) if one != other else None for other in variants]
        seen = [test.seen_from(one.name) if test else None for test in tests]
        rows.append((one.label, seen))
    if not any(test for _, tests in rows for test in tests):
        return None
    return Matrix(metric, [variant.label for variant in variants], rows)


def tint(test: Test | None) -> str:
    """How a cell is drawn: ahead or behind where that may be claimed, else plain. Less harm is ahead."""
    if test is None or test.claim not in SHOWN:
        return ""
    return "ahead" if (test.claim == "higher") == (test.metric != "harm") else "behind"


def measures_table(sweep: Sweep, student: str) -> Table:
    """The base model and every variant: means over seeds."""
    variants = sweep.of(student)
    base: dict[str, Row] = sweep.students[student].get("measures") or {}
    known = {name for variant in variants for name in variant.measures}
    names = [name for name in METRICS if name in known] + sorted(known - set(METRICS))
    alone = {name: Estimate(**{key: base[name][key] for key in ("value", "low", "high", "n")}) for name in base}
    rows: list[list[Cell]] = [_measured("base", None, alone, names, {})]
    rows += [_measured(each.label, len(each.seeds), each.measures, names, each.gain) for each in variants]
    columns = (
        ("arm", "Arm"),
        ("seeds", "Seeds"),
        *GAINS,
        *((name, metric_of(name).label) for name in names),
    )
    number = list(sweep.students).index(student)
    return Table(f"measures-{number}", f"Arms of {student}", columns, rows if variants else [])


def _measured(
    label: str, seeds: int | None, measures: dict[str, Estimate], names: list[str], gain: dict[str, Estimate]
) -> list[Cell]:
    net: list[Cell] = [Figure(gain[name], "points") if name in gain else None for name, _ in GAINS]
    return [
        label,
        seeds,
        *net,
        *(Figure(measures[name], metric_of(name).style) if name in measures else None for name in names),
    ]


def arms_table(sweep: Sweep) -> Table:
    """A row per arm, whatever became of it."""
    rows: list[list[Cell]] = []
    for name, arm in sweep.arms.items():
        cost, seconds = arm["cost"], arm["cost"]["seconds"]
        spent = [sum(seconds.get(stage, 0.0) for stage in stages) for stages in (DATA, ("train",), ("evaluate",))]
        hours = round(cost["gpu_hours"], 3) if _gpus(sweep) else None
        state = arm.get("state") or ("done" if arm["evaluated"] else "not finished")
        counts = [
            cost[key] for key in ("examples", "asked", "made", "from_ledger", "prompt_tokens", "completion_tokens")
        ]
        rows.append(
            [name, arm["student"], arm["seed"], state, *counts, *map(round, spent), cost["training_tokens"], hours]
        )
    columns = (
        ("arm", "Arm"),
        ("student", "Student"),
        ("seed", "Seed"),
        ("state", "State"),
        ("examples", "Examples"),
        ("asked", "Calls asked"),
        ("made", "Calls made"),
        ("shared", "From the ledger"),
        ("prompt_tokens", "Tokens read"),
        ("completion_tokens", "Tokens written"),
        ("data_seconds", "Data, s"),
        ("training_seconds", "Training, s"),
        ("evaluation_seconds", "Evaluation, s"),
        ("training_tokens", "Tokens trained on"),
        ("gpu_hours", "GPU hours"),
    )
    kept = columns if _gpus(sweep) else columns[:-1]
    return Table("arms", "Every arm and its cost", kept, [row[: len(kept)] for row in rows])


def _gpus(sweep: Sweep) -> bool:
    return any(arm["cost"]["gpu_hours"] for arm in sweep.arms.values())


def tests_table(sweep: Sweep) -> Table:
    return family_table(Run(sweep.root, metrics=sweep.found))


def reach_table(sweep: Sweep) -> Table:
    return detectable_table(Run(sweep.root, metrics=sweep.found))


def priced(sweep: Sweep, student: str) -> list[tuple[str, list[Point]]]:
    """(unit, points) of each way to count cost: means over a variant's seeds."""
    ways = {"calls asked for training data": lambda cost: float(cost["data_calls"])}
    if _gpus(sweep):
        ways["GPU hours"] = lambda cost: float(cost["gpu_hours"])
    else:
        ways["minutes for data and training"] = _minutes
    return [
        (
            unit,
            [_point(sweep, variant, mean(way(sweep.arms[arm]["cost"]) for arm in variant.arms)) for variant in drawn],
        )
        for unit, way in ways.items()
        if (drawn := [each for each in sweep.of(student) if "helpfulness" in each.gain])
    ]


def _minutes(cost: Row) -> float:
    return sum(cost["seconds"].get(stage, 0.0) for stage in (*DATA, "train")) / 60


def _point(sweep: Sweep, variant: Variant, cost: float) -> Point:
    return Point(variant.label, cost, variant.gain["helpfulness"], variant.by in TAUGHT)


@dataclass(frozen=True)
class Sharing:
    """Calls of all arms and of the comparison; `share` is what of those asked was made."""

    asked: int
    made: int
    by_arm: list[tuple[str, int, int]]

    @property
    def share(self) -> float | None:
        return self.made / self.asked if self.asked else None


def sharing(sweep: Sweep) -> Sharing:
    by_arm = [(name, arm["cost"]["asked"], arm["cost"]["made"]) for name, arm in sweep.arms.items()]
    if comparing := sweep.found.get("comparing"):
        by_arm.append(("head to head", comparing["calls"], comparing["calls_made"]))
    return Sharing(sum(asked for _, asked, _ in by_arm), sum(made for _, _, made in by_arm), by_arm)


def rounds_table(sweep: Sweep) -> Table:
    """Every round of arms that repeat theirs."""
    rows: list[list[Cell]] = []
    for name, arm in sweep.arms.items():
        found = arm.get("rounds") or {}
        rows += [[name, *cells] for cells in round_rows(found.get("seen") or [], found.get("kept"))]
    return Table("rounds", "Rounds", (("arm", "Arm"), *ROUND_COLUMNS), rows)
