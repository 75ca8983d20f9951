"""The page of a sweep: which arm is better for each student, what it cost, and what went missing; one file, no script.

Beside it lie its numbers: a CSV file per table, and all tables as Markdown and LaTeX.
"""

from __future__ import annotations

from pathlib import Path

from markupsafe import Markup

from shard_dist.report import sweep_figures, sweep_words
from shard_dist.report.build import content_policy, environment, source, write, write_tables
from shard_dist.report.measures import QUESTIONS
from shard_dist.report.sweep_inputs import Sweep, read_sweep
from shard_dist.report.sweep_tables import (
    arms_table,
    matrix,
    measures_table,
    priced,
    reach_table,
    rounds_table,
    sharing,
    tests_table,
    tint,
)
from shard_dist.report.tables import Table


def build_sweep_report(root: Path) -> Path:
    """Write `root`/report/index.html and its tables from `root`/comparison; the page's path.

    Raises ValueError where nothing was compared yet or the comparison is damaged.
    """
    sweep = read_sweep(root)
    folder = root / "report"
    write(folder / "index.html", render_sweep(sweep))
    tables = [table for table in _tables(sweep) if table.rows]
    write_tables(folder, tables, tables)
    return folder / "index.html"


def _tables(sweep: Sweep) -> list[Table]:
    measured = [measures_table(sweep, student) for student in sweep.students]
    return [*measured, tests_table(sweep), reach_table(sweep), arms_table(sweep), rounds_table(sweep)]


def render_sweep(sweep: Sweep) -> str:
    """The page as text."""
    style = source("page.css") + source("sweep.css")
    tools = environment([])
    tools.globals.update(figures=sweep_figures, tint=tint)
    students = {
        student: {
            "about": sweep.students[student],
            "matrices": [found for metric in QUESTIONS if (found := matrix(sweep, student, metric))],
            "plots": [(unit, points) for unit, points in priced(sweep, student) if points],
            "measures": measures_table(sweep, student),
        }
        for student in sweep.students
    }
    return tools.get_template("sweep.html.j2").render(
        sweep=sweep,
        policy=content_policy(style),
        style=Markup(style),
        question=sweep_words.question(sweep),
        answers=sweep_words.answers(sweep),
        caveats=sweep_words.caveats(sweep),
        missing=sweep_words.missing(sweep),
        students=students,
        several_seeds=any(len(variant.seeds) > 1 for variant in sweep.variants.values()),
        questions=QUESTIONS,
        tests=tests_table(sweep),
        reach=reach_table(sweep),
        arms=arms_table(sweep),
        links={arm: sweep.page_of(arm) for arm in sweep.arms},
        rounds=rounds_table(sweep),
        sharing=sharing(sweep),
    )
