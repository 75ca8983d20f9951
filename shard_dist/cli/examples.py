"""Training examples in other trainers' formats."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(help="Training examples for other trainers, and theirs for ours.", no_args_is_help=True)
EXAMPLE_FORMATS = "shard (our Parquet), trl, open_instruct, alpaca, sharegpt (both LLaMA-Factory's) or derta."


@app.command("export")
def export_examples(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="A run directory, its examples selected.")],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="A new directory.")],
    format: Annotated[str, typer.Option(help=EXAMPLE_FORMATS, show_default=False)],
    split: Annotated[str, typer.Option(metavar="train|val", help="Only this one.", show_default=False)] = "",
) -> None:
    """A run's examples, with a dataset card and where every example comes from."""
    from shard_dist.export import export_examples as export

    for name, count in export(run, out, format, split).items():
        typer.echo(f"{count:,} examples of {name} in {out}")


@app.command("convert")
def convert_examples(
    source: Annotated[Path, typer.Argument(metavar="IN")],
    target: Annotated[Path, typer.Argument(metavar="OUT")],
    source_format: Annotated[str, typer.Option("--from", help=EXAMPLE_FORMATS, show_default=False)],
    target_format: Annotated[str, typer.Option("--to", help=EXAMPLE_FORMATS, show_default=False)],
) -> None:
    """A file of examples in another format; all of them, or nothing where that cannot hold one."""
    from shard_dist.data.interchange import convert

    typer.echo(f"{convert(source, source_format, target, target_format):,} examples in {target}")
