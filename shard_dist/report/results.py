"""Everything that the evaluation's sections show, computed once from a run."""

from __future__ import annotations

from dataclasses import dataclass

from shard_dist.report.findings import (
    arms_table,
    by_arm,
    checks_table,
    comparisons_table,
    detectable_table,
    differences_table,
    family_table,
    judges_table,
    measures_table,
    position_table,
    severity_table,
)
from shard_dist.report.flow import Flow, flow_table, flows
from shard_dist.report.inputs import Run
from shard_dist.report.measures import Contest, Measure, contests, measures
from shard_dist.report.rounds import rounds_table
from shard_dist.report.samples import answered
from shard_dist.report.slices import Heat, categories_table, heat_table, heats, level_name
from shard_dist.report.tables import Table
from shard_dist.report.verdicts import states


@dataclass(frozen=True)
class Results:
    """`tables` by name, those that have rows; `printed` are for Markdown and LaTeX, without the longest; `outcomes` is
    what every arm did with every prompt."""

    measures: list[Measure]
    contests: list[Contest]
    flows: list[Flow]
    heats: list[Heat]
    tables: dict[str, Table]
    printed: list[Table]
    outcomes: Table


def results(run: Run) -> Results:
    found, compared, moved = measures(run), contests(run), flows(run)
    mapped = heats(run, found, compared)
    tables = [
        measures_table(found, run.arms),
        comparisons_table(compared),
        family_table(run),
        detectable_table(run),
        flow_table(moved),
        severity_table(run),
        by_arm(run, "patterns", "Patterns of refusals"),
        by_arm(run, "capability", "Capability"),
        differences_table(run),
        judges_table(run),
        position_table(compared),
        checks_table(run),
        rounds_table(run),
    ]
    tables = [table for table in tables if table.rows]
    maps = [heat_table(mapped[0], grouping) for grouping, rows in mapped[0].groups.items() if rows] if mapped else []
    named = {table.name: table for table in [*tables, arms_table(found), categories_table(mapped)] if table.rows}
    return Results(found, compared, moved, mapped, named, [*tables, *maps], outcomes_table(run))


def outcomes_table(run: Run) -> Table:
    """A row per test prompt, without texts."""
    found = states(run)
    rows = []
    for row in sorted(answered(run), key=lambda row: (row["dataset"], row["id"])):
        key = (row["dataset"], row["id"])
        told = [arm.get(key, "no answer") for arm in found.values()]
        rows.append([*key, row.get("category") or "none", level_name(row.get("level")), *told])
    columns = (("dataset", ""), ("id", ""), ("category", ""), ("level", ""), *((arm, arm) for arm in found))
    return Table("outcomes", "What every arm did with every test prompt", columns, rows)
