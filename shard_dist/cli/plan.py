"""What a run takes, before it starts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from shard_dist.cli.arguments import AsJson, ClusterFile, ConfigFile, Overrides


def plan(
    config: ConfigFile,
    overrides: Overrides = None,
    cluster: ClusterFile = None,
    prompts: Annotated[
        int | None, typer.Option(metavar="N", help="How many prompts there are, where they are on the hub.")
    ] = None,
    measured: Annotated[
        Path | None, typer.Option(metavar="RUN", help="Take the speeds that this run's directory tells.")
    ] = None,
    explain: Annotated[bool, typer.Option("--explain", help="Every sum, line by line.")] = False,
    as_json: AsJson = False,
) -> None:
    """Whether a run fits a cluster, what it takes, and what would make it fit. The exit code is 1 where it does not.

    Reads settings and models' config.json: no weights, no GPU, no cluster.
    """
    from shard_dist.config.load import load_config
    from shard_dist.plan.plan import make_plan
    from shard_dist.plan.table import tables

    found = make_plan(load_config(config, overrides or (), cluster), prompts, measured)
    typer.echo(json.dumps(found.json())) if as_json else Console().print(tables(found, explain))
    raise typer.Exit(0 if found.fits else 1)
