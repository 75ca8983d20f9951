"""The command line: one function per command, no logic."""

from __future__ import annotations

import sys
import warnings
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from shard_dist import __version__

HELP = """Self-reframing distillation (SHARD): make a language model safe and helpful by its own words.

Every command takes a configuration file and settings: [bold]shard-dist run configs/demo.yaml train.epochs=2[/].

The same command again goes on where the last one stopped, however it stopped."""

app = typer.Typer(help=HELP, no_args_is_help=True, add_completion=False, rich_markup_mode="rich")

ConfigFile = Annotated[Path, typer.Argument(metavar="CONFIG.yaml", help="A configuration file.", show_default=False)]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(metavar="[key=value ...]", help="Settings over the file's: train.epochs=2", show_default=False),
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


@app.command()
def run(config: ConfigFile, overrides: Overrides = None) -> None:
    """All stages: prompts, generate, select, train, evaluate, report."""
    _run(config, overrides, ("prompts", "generate", "select", "train", "evaluate", "report"))


@app.command()
def prompts(config: ConfigFile, overrides: Overrides = None) -> None:
    """Read the sources, drop duplicates, give every prompt its split."""
    _run(config, overrides, ("prompts",))


@app.command()
def generate(config: ConfigFile, overrides: Overrides = None) -> None:
    """Draft, rewrite and reframe every training prompt."""
    _run(config, overrides, ("generate",))


@app.command()
def select(config: ConfigFile, overrides: Overrides = None) -> None:
    """Judge drafts against reframed answers; keep the better and no more harmful ones."""
    _run(config, overrides, ("select",))


@app.command()
def train(config: ConfigFile, overrides: Overrides = None) -> None:
    """Fine-tune all parameters on prompt -> reframed answer (ZeRO-3)."""
    _run(config, overrides, ("train",))


@app.command()
def evaluate(config: ConfigFile, overrides: Overrides = None) -> None:
    """Base and tuned model on the same test prompts, judged, with intervals."""
    _run(config, overrides, ("evaluate",))


@app.command()
def report(config: ConfigFile, overrides: Overrides = None) -> None:
    """One page about the run, from whatever stages have finished."""
    _run(config, overrides, ("report",))


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
