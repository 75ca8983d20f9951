"""A run's finished calls."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from shard_dist.cli.arguments import AsJson

app = typer.Typer(help="Look into the finished calls of a run, check them, tidy them up.", no_args_is_help=True)
RunOrLedger = Annotated[
    str, typer.Argument(metavar="RUN", help="A run directory, or a ledger's directory or URL.", show_default=False)
]
Model = Annotated[str, typer.Option(help="Calls of this model only.", show_default=False)]
Fingerprint = Annotated[str, typer.Option(help="Calls to weights whose fingerprint starts so.", show_default=False)]
OlderThan = Annotated[float, typer.Option(metavar="DAYS", help="Calls made before that many days.", show_default=False)]
Everything = Annotated[bool, typer.Option("--all", help="Nothing runs: take segments written to a moment ago, too.")]


@app.command()
def stats(run: RunOrLedger, as_json: AsJson = False) -> None:
    """How many calls are kept, were made, and were answered from the ledger."""
    from shard_dist.ledger.queries import ledger_stats

    counts = ledger_stats(run)
    typer.echo(json.dumps(counts) if as_json else "\n".join(f"{name:14}{value:>16,}" for name, value in counts.items()))


@app.command()
def get(run: RunOrLedger, key: Annotated[str, typer.Argument(metavar="KEY", help="64 hexadecimal digits.")]) -> None:
    """One call and its answer as JSON, every character beyond ASCII escaped."""
    from shard_dist.ledger.queries import find_entry

    typer.echo(json.dumps(find_entry(run, key), indent=2))


@app.command()
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


@app.command()
def verify(run: RunOrLedger) -> None:
    """Read every call and recompute its key; exit code 1 where something is wrong."""
    from shard_dist.ledger.queries import verify as check

    sound, cut, wrong = check(run)
    typer.echo("\n".join([*wrong, f"{sound:,} sound, {len(wrong):,} wrong, {cut:,} cut off by a kill"]))
    raise typer.Exit(1 if wrong else 0)


@app.command()
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


@app.command()
def compact(run: RunOrLedger, everything: Everything = False) -> None:
    """Merge small files of the ledger and drop repeated calls; safe beside running engines."""
    from shard_dist.ledger.compact import compact as merge
    from shard_dist.ledger.queries import ledger_of

    done = merge(ledger_of(run), everything)
    typer.echo(f"{done.merged} files into {done.made}, {done.dropped:,} repeated calls dropped, {done.damaged} damaged")
