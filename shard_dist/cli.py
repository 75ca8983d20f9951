"""The command line: one function per command, no logic."""

from __future__ import annotations

import json
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
ledger = typer.Typer(help="Look into the finished calls of a run, check them, tidy them up.", no_args_is_help=True)
app.add_typer(ledger, name="ledger")

ConfigFile = Annotated[Path, typer.Argument(metavar="CONFIG.yaml", help="A configuration file.", show_default=False)]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(metavar="[key=value ...]", help="Settings over the file's: train.epochs=2", show_default=False),
]

RunOrLedger = Annotated[
    str, typer.Argument(metavar="RUN", help="A run directory, or a ledger's directory or URL.", show_default=False)
]
Model = Annotated[str, typer.Option(help="Calls of this model only.", show_default=False)]
Fingerprint = Annotated[str, typer.Option(help="Calls to weights whose fingerprint starts so.", show_default=False)]
OlderThan = Annotated[float, typer.Option(metavar="DAYS", help="Calls made before that many days.", show_default=False)]
Everything = Annotated[bool, typer.Option("--all", help="Nothing runs: take segments written to a moment ago, too.")]


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


@ledger.command()
def stats(run: RunOrLedger, as_json: Annotated[bool, typer.Option("--json", help="One JSON object.")] = False) -> None:
    """How many calls are kept, were made, and were answered from the ledger."""
    from shard_dist.ledger.queries import ledger_stats

    counts = ledger_stats(run)
    typer.echo(json.dumps(counts) if as_json else "\n".join(f"{name:14}{value:>16,}" for name, value in counts.items()))


@ledger.command()
def get(run: RunOrLedger, key: Annotated[str, typer.Argument(metavar="KEY", help="64 hexadecimal digits.")]) -> None:
    """One call and its answer as JSON, every character beyond ASCII escaped."""
    from shard_dist.ledger.queries import find_entry

    typer.echo(json.dumps(find_entry(run, key), indent=2))


@ledger.command()
def export(
    run: RunOrLedger,
    out: Annotated[Path, typer.Argument(metavar="OUT.jsonl|OUT.parquet")],
    model: Model = "",
    fingerprint: Fingerprint = "",
    older_than: OlderThan = 0.0,
) -> None:
    """Write the calls to one file."""
    from shard_dist.ledger.queries import Selection
    from shard_dist.ledger.queries import export as write

    number = write(run, out, Selection(model, fingerprint, older_than))
    typer.echo(f"{number:,} calls in {out}")


@ledger.command()
def verify(run: RunOrLedger) -> None:
    """Read every call and recompute its key; exit code 1 where something is wrong."""
    from shard_dist.ledger.queries import verify as check

    sound, cut, wrong = check(run)
    typer.echo("\n".join([*wrong, f"{sound:,} sound, {len(wrong):,} wrong, {cut:,} cut off by a kill"]))
    raise typer.Exit(1 if wrong else 0)


@ledger.command()
def prune(
    run: RunOrLedger,
    model: Model = "",
    fingerprint: Fingerprint = "",
    older_than: OlderThan = 0.0,
    everything: Everything = False,
    yes: Annotated[bool, typer.Option("--yes", help="Do it; without it, only count.")] = False,
) -> None:
    """Drop calls, for instance those of weights that are gone; a run that needs them makes them again."""
    from shard_dist.ledger.queries import Selection
    from shard_dist.ledger.queries import prune as drop

    number, kept = drop(run, Selection(model, fingerprint, older_than), everything, yes)
    typer.echo(f"{number:,} calls {'dropped' if yes else 'would be dropped; add --yes to do it'}")
    if kept:
        typer.echo(f"{kept} segments may have writers and were left alone; add --all where nothing runs")


@ledger.command()
def compact(run: RunOrLedger, everything: Everything = False) -> None:
    """Merge small files of the ledger and drop repeated calls; safe beside running engines."""
    from shard_dist.ledger.compact import compact as merge
    from shard_dist.ledger.queries import ledger_of

    done = merge(ledger_of(run), everything)
    typer.echo(f"{done.merged} files into {done.made}, {done.dropped:,} repeated calls dropped, {done.damaged} damaged")


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
