"""The command line: one function per command, no logic."""

from __future__ import annotations

import sys
import warnings
from typing import Annotated

import typer
from rich.console import Console

from shard_dist import __version__
from shard_dist.cli import doctor, examples, jobs, judging, ledger, plan, stages

HELP = """Self-reframing distillation (SHARD): make a language model safe and helpful by its own words.

Every command takes a configuration file and settings: [bold]shard-dist run configs/demo.yaml train.epochs=2[/].

The same command again goes on where the last one stopped, however it stopped."""

app = typer.Typer(help=HELP, no_args_is_help=True, add_completion=False, rich_markup_mode="rich")
for command in (
    *(stages.run, stages.prompts, stages.generate, stages.select, stages.train, stages.evaluate, stages.report),
    *(stages.recipes, stages.sweep, plan.plan, doctor.doctor),
    *(jobs.submit, jobs.status, jobs.logs, jobs.attach, jobs.stop, judging.score),
):
    app.command()(command)
app.command("judge-bench")(judging.judge_bench)
app.add_typer(ledger.app, name="ledger")
app.add_typer(examples.app, name="examples")


def _version(asked: bool) -> None:
    if asked:
        typer.echo(__version__)
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show it.", metavar="")
    ] = False,
) -> None:
    pass


def main() -> None:
    """Entry point: a ValueError is a person's to put right, so it is shown as a sentence; all others are ours."""
    warnings.simplefilter("ignore", FutureWarning)
    warnings.showwarning = lambda message, *_, **__: print(f"warning: {message}", file=sys.stderr)
    try:
        app()
    except ValueError as error:
        Console(stderr=True, soft_wrap=True).print(f"error: {error}", style="bold red", highlight=False, markup=False)
        sys.exit(1)
