"""The arms of a sweep against each other: head to head, means over seeds, one family of tests, what each cost.

    arms' answers ── pairs, both orders, by the judge of `evaluate` ─> comparison/pairs.parquet
    arms' verdicts and ratings ─┴─> means over prompts and seeds ─> comparison.json ─> report/index.html

Arms that failed or cannot be compared are in comparison.json with the reason.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

from shard_dist.artefacts import file_hash, read_json, value_hash, write_json, write_rows
from shard_dist.engines.rows import ListRows
from shard_dist.engines.text import mended
from shard_dist.evaluation.arms import ANSWER_SCHEMA, PAIR_SCHEMA, Contest
from shard_dist.progress import Progress
from shard_dist.records import Prompt
from shard_dist.report.sweep_page import build_sweep_report
from shard_dist.rundir import Run, Stage, run_stage
from shard_dist.stages.judges import pairwise_roles, stage_panel
from shard_dist.stages.roles import Engines, role_of
from shard_dist.sweep.costs import costs, rounds
from shard_dist.sweep.measured import Measured, Variant, comparable, measure, variants
from shard_dist.sweep.plan import Sweep
from shard_dist.sweep.statistics import statistics

Row = dict[str, Any]
Pair = tuple[str, str]
FOLDER = "comparison"
RESULTS = ("comparison.json", "pairs.parquet")
STATED = ("state", "stage", "error")
DECIDING = ("metrics.json", "generate.json", "select.json", "train.json", "rounds.json", "evaluate.json")


def compare(sweep: Sweep, progress: Progress) -> Path:
    """Write <sweep>/comparison and <sweep>/report/index.html; the page's path.

    What was compared before is kept where no arm has changed. Raises ValueError where an arm's files do not fit.
    """
    run = Run(sweep.config, sweep.path / FOLDER)
    run.path.mkdir(parents=True, exist_ok=True)
    states = states_of(sweep)
    run_stage(run, Stage("compare", partial(inputs, sweep, states), RESULTS, partial(work, sweep, states)), progress)
    return build_sweep_report(sweep.path)


def states_of(sweep: Sweep) -> dict[str, Row]:
    """Arm -> {state, stage, error} of sweep.json, {} for an arm that it does not know."""
    path = sweep.path / "sweep.json"
    known = read_json(path).get("arms", {}) if path.is_file() else {}
    return {
        arm.name: {name: mended(str(known[arm.name].get(name, ""))) for name in STATED} if arm.name in known else {}
        for arm in sweep.arms
    }


def inputs(sweep: Sweep, states: dict[str, Row], run: Run) -> Row:
    files = {arm.name: [arm.run / name for name in DECIDING] for arm in sweep.arms}
    return {
        "arms": {arm: [file_hash(path) if path.is_file() else "" for path in paths] for arm, paths in files.items()},
        "states": value_hash(states),
        "plan": value_hash([sweep.name, sweep.axes, sweep.compare, sweep.costs.gpu_hour]),
    }


def work(sweep: Sweep, states: dict[str, Row], run: Run, progress: Progress) -> Row:
    kept, left_out = comparable(arm for arm in sweep.arms if states[arm.name].get("state") != "failed")
    found = {arm.name: measure(arm) for arm in kept}
    pairs = [(a, b) for a, b in sweep.compare if a in found and b in found and found[a].keys == found[b].keys]
    rows, counts = contests(run, found, pairs, progress)
    write_rows(run / "pairs.parquet", rows, PAIR_SCHEMA)
    groups = variants(sweep)
    result: Row = {
        "name": sweep.name,
        "axes": {axis: list(values) for axis, values in sweep.axes.items()},
        **statistics(found, groups, pairs, rows),
        "arms": {arm: {**each, **states[arm]} for arm, each in _arms(sweep, groups, left_out).items()},
        "comparing": counts,
        "gpu_hour": sweep.costs.gpu_hour,
    }
    write_json(run / "comparison.json", result)
    return {"arms": len(sweep.arms), "compared": len(found), "pairs": len(pairs), **counts}


def contests(run: Run, found: Mapping[str, Measured], pairs: list[Pair], progress: Progress) -> tuple[list[Row], Row]:
    """Pair rows of all pairs of arms, and what asking for them took. Calls go to the sweep's ledger."""
    if not pairs:
        return [], {}
    config = found[pairs[0][0]].arm.config  # all are judged as this one
    mine = Run(config, run.path)
    roles = [role_of(mine, name) for name in pairwise_roles(config.evaluate)]
    yes = {**dict.fromkeys(ANSWER_SCHEMA.names, ""), "text": "yes"}
    cells: dict[tuple[str, int], list[Pair]] = {}
    for a, b in pairs:
        cells.setdefault((found[a].arm.student, found[a].arm.config.run.seed), []).append((a, b))
    rows: list[Row] = []
    with Engines(mine, "compare", roles, roles[0].name if roles else "", progress) as engines:
        for number, own in enumerate(cells.values()):
            first = found[own[0][0]]
            program = Contest(stage_panel(first.arm.config, first.arm.config.evaluate))
            answers = zip(*(zip(found[a].answers, found[b].answers, strict=True) for a, b in own), strict=True)
            asked = ListRows(list(zip(first.prompts, answers, strict=True)))
            spool = engines.run(f"contests {number}", program, asked, empty=(Prompt("", "", ""), ((yes, yes),)))
            rows += chain.from_iterable(spool.ordered())
        return rows, engines.counts()


def _arms(sweep: Sweep, groups: list[Variant], left_out: dict[str, str]) -> dict[str, Row]:
    """What comparison.json says of every arm."""
    owner = {arm.name: group for group in groups for arm in group.arms}
    return {
        arm.name: {
            "variant": owner[arm.name].name,
            "student": owner[arm.name].student,
            "seed": arm.config.run.seed,
            "values": arm.values,
            "evaluated": (arm.run / "metrics.json").is_file(),
            "left_out": left_out.get(arm.name, ""),
            "cost": costs(arm.run),
            **({"rounds": found} if (found := rounds(arm.run)) else {}),
        }
        for arm in sweep.arms
    }
