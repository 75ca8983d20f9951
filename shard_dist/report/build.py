"""The page of a run: one HTML file that opens from disk, needs no network and runs no model's text.

Beside it lie its numbers: a CSV file per table, and all tables as Markdown and LaTeX.
"""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Iterable, Sequence
from hashlib import sha256
from importlib.resources import files
from pathlib import Path
from typing import Any

import jinja2
import yaml
from markupsafe import Markup

from shard_dist.artefacts import replacing
from shard_dist.report import figures, plots, text, words
from shard_dist.report.accounting import evaluation_side, training_side
from shard_dist.report.generation import generation
from shard_dist.report.inputs import STAGES, Run, read_run
from shard_dist.report.listing import Listing, listing
from shard_dist.report.measures import METRICS, agreed
from shard_dist.report.results import Results, results
from shard_dist.report.samples import answer_samples, answered, record_samples
from shard_dist.report.slices import shade
from shard_dist.report.tables import Table, flat, to_csv, to_latex, to_markdown
from shard_dist.report.training import training

# The reference first, then the other arms in the page's order.
ARM_STYLES = ("hatched", "solid", "dotted", "barred", "empty", "crossed")
PART_STYLES = {"on": "solid", "side": "hatched", "off": "empty"}
RECORDS_PACKED = 2_000_000  # bytes of the training records in the page
SCRIPTS = ("page.js", "browser.js", "download.js")


def build_report(run: Path, *, samples: int = 200) -> Path:
    """Write `run`/report/index.html and the tables beside it from what the run directory holds; the page's path.

    `samples` is how many test prompts and how many training records are shown (0: all that fit). A stage that has not
    run gets a sentence instead of its section. Raises ValueError where a file of the run is damaged.
    """
    if samples < 0:
        raise ValueError(f"report.samples must be 0 (all) or more, not {samples}")
    found = read_run(run)
    computed = results(found)
    page = render(found, samples, computed)
    folder = run / "report"
    write(folder / "index.html", page)
    write_tables(folder, computed.printed, [*computed.tables.values(), computed.outcomes])
    return folder / "index.html"


def write_tables(folder: Path, printed: Sequence[Table], tables: Iterable[Table]) -> None:
    """tables.md, tables.tex of what is printed, and a CSV file for each of `tables`; those of others go."""
    write(folder / "tables.md", to_markdown(printed))
    write(folder / "tables.tex", to_latex(printed))
    written = {folder / f"{table.name}.csv": to_csv(table) for table in tables}
    for path in set(folder.glob("*.csv")) - set(written):
        path.unlink()
    for path, content in written.items():
        write(path, content)


def write(path: Path, content: str) -> None:
    with replacing(path) as partial:
        partial.write_bytes(content.encode("utf-8"))


def render(run: Run, samples: int, computed: Results | None = None) -> str:
    """The page as text."""
    computed = computed or results(run)
    steps = {"Training": training_side(run), "Test": evaluation_side(run)}
    style, script = source("page.css"), "\n".join(map(source, SCRIPTS))
    return (
        environment(run.arms)
        .get_template("page.html.j2")
        .render(
            run=run,
            stages=STAGES,
            policy=content_policy(style, script),
            style=Markup(style),
            script=Markup(script),
            title=words.title(computed.measures),
            verdict=words.claimed(run) or words.verdict(computed.measures, computed.contests),
            caveats=words.caveats(run, computed.measures, computed.contests, steps["Training"] + steps["Test"]),
            results=computed,
            steps=steps,
            generation=generation(run.engines),
            training=training(run),
            lists=[_tests(run, samples), _records(run, samples)],
            config=yaml.safe_dump(run.config, sort_keys=False, allow_unicode=True, width=100) if run.config else "",
            numbers={"metrics": run.metrics, "selection": run.selection, "stages": run.stages},
            tables={name: flat(table) for name, table in computed.tables.items()},
        )
    )


def content_policy(style: str, script: str = "") -> str:
    """A Content-Security-Policy that allows this style and this script ("": none) by hash, and nothing else."""
    digests = [b64encode(sha256(part.encode()).digest()).decode() for part in (style, script)]
    scripts = f"script-src 'sha256-{digests[1]}'; " if script else ""
    return f"default-src 'none'; style-src 'sha256-{digests[0]}'; {scripts}base-uri 'none'; form-action 'none'"


def _tests(run: Run, samples: int) -> Listing:
    labels = [arm for arm in run.arms if arm in run.answers]
    return listing("test", answer_samples(run, samples), len(answered(run)), labels)


def _records(run: Run, samples: int) -> Listing:
    found = record_samples(run, samples)
    labels = dict.fromkeys(part.label for sample in found for part in sample.texts)
    return listing("record", found, len(run.records), list(labels), RECORDS_PACKED)


def source(name: str) -> str:
    return files("shard_dist.report").joinpath(name).read_text(encoding="utf-8")


def environment(arms: list[str]) -> jinja2.Environment:
    """Autoescape is on, and every printed string passes `printable`, so a template cannot forget either."""
    environment = jinja2.Environment(
        loader=jinja2.FunctionLoader(source),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        finalize=text.printable,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(
        count=text.count,
        percent=text.percent,
        points=text.points,
        interval=text.interval,
        duration=text.duration,
        p=text.p_value,
        packed=text.packed_json,
        prose=text.prose,
        shade=shade,
        flat=_flat,
    )

    def arm_style(arm: str) -> str:
        return ARM_STYLES[arms.index(arm) % len(ARM_STYLES)] if arm in arms else ARM_STYLES[0]

    environment.globals.update(
        plots=plots, figures=figures, arm_style=arm_style, part_style=PART_STYLES.get, agreed=agreed, METRICS=METRICS
    )
    return environment


def _flat(value: Any, prefix: str = "") -> list[tuple[str, Any]]:
    """A nested mapping as (dotted name, value) pairs; lists become text."""
    if not isinstance(value, dict):
        return [(prefix, ", ".join(map(str, value)) if isinstance(value, list) else value)]
    return [pair for key, item in value.items() for pair in _flat(item, f"{prefix}.{key}" if prefix else str(key))]
