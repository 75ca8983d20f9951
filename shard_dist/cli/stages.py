"""A run, its stages one by one, and sweeps of runs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from shard_dist.cli.arguments import AsJson, ConfigFile, Overrides

SweepFile = Annotated[
    Path, typer.Argument(metavar="SWEEP.yaml", help="A configuration with a key `sweep`.", show_default=False)
]


def _run(config_file: Path, overrides: list[str] | None, names: tuple[str, ...]) -> None:
    from shard_dist.config.load import load_config
    from shard_dist.pipeline import run_pipeline
    from shard_dist.progress import Progress

    config = load_config(config_file, overrides or ())
    console = Console(soft_wrap=True)
    console.print(f"run [bold]{config.run.name}[/] in {config.run.dir}", highlight=False)
    run = run_pipeline(config, names, Progress(console, config.tracking.heartbeat))
    if "report" in names:
        console.print(f"report: {(run / 'report' / 'index.html').resolve()}", highlight=False)


def run(config: ConfigFile, overrides: Overrides = None) -> None:
    """All stages: prompts, generate, select, train, evaluate, report."""
    _run(config, overrides, ("prompts", "generate", "select", "train", "evaluate", "report"))


def prompts(config: ConfigFile, overrides: Overrides = None) -> None:
    """Read the sources, drop duplicates, give every prompt its split."""
    _run(config, overrides, ("prompts",))


def generate(config: ConfigFile, overrides: Overrides = None) -> None:
    """Draft, rewrite and reframe every training prompt."""
    _run(config, overrides, ("generate",))


def select(config: ConfigFile, overrides: Overrides = None) -> None:
    """Judge drafts against reframed answers; keep the better and no more harmful ones."""
    _run(config, overrides, ("select",))


def train(config: ConfigFile, overrides: Overrides = None) -> None:
    """Fine-tune all parameters on prompt -> reframed answer (ZeRO-3)."""
    _run(config, overrides, ("train",))


def evaluate(config: ConfigFile, overrides: Overrides = None) -> None:
    """Base and tuned model on the same test prompts, judged, with intervals."""
    _run(config, overrides, ("evaluate",))


def report(config: ConfigFile, overrides: Overrides = None) -> None:
    """One page about the run, from whatever stages have finished."""
    _run(config, overrides, ("report",))


def recipes() -> None:
    """Every recipe: where it is from, and its own settings (recipe.options) with their defaults."""
    from rich.table import Table

    from shard_dist.recipes.base import overview

    table = Table("recipe", "source", "options", box=None, padding=(0, 2, 1, 0))
    for name, (source, options) in overview().items():
        table.add_row(name, source, options)
    Console().print(table, markup=False)


def sweep(
    file: SweepFile,
    overrides: Overrides = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would be asked, and what is new.")] = False,
    as_json: AsJson = False,
) -> None:
    """Every combination of some settings: calls that arms share are made once, and one page compares the arms.

    An arm that fails does not stop the others; the exit code is 1 where one did.
    """
    from shard_dist.progress import Progress
    from shard_dist.sweep.estimate import estimate, tables
    from shard_dist.sweep.plan import load_sweep
    from shard_dist.sweep.run import run_sweep

    plan = load_sweep(file, overrides or ())
    console = Console(stderr=as_json or dry_run, soft_wrap=True)
    progress = Progress(console, plan.config.tracking.heartbeat)
    if dry_run:
        found = estimate(plan, progress)
        typer.echo(json.dumps(found)) if as_json else Console().print(tables(found))
        return
    console.print(f"sweep [bold]{plan.name}[/] of {len(plan.arms)} arms in {plan.path}", highlight=False)
    state = run_sweep(plan, progress)
    typer.echo(json.dumps(state.arms) if as_json else state.summary())
    raise typer.Exit(1 if state.failed else 0)
