"""Is this machine, or every node of a cluster, fit for a run."""

from __future__ import annotations

import json
from typing import Annotated

import typer
from rich.console import Console

from shard_dist.cli.arguments import AsJson, ClusterFile

Words = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="[CONFIG.yaml] [key=value ...]",
        help="A configuration, whose models and storage are looked at too, and settings over the file's.",
        show_default=False,
    ),
]
Address = Annotated[
    str, typer.Option(help='Ray cluster whose nodes are looked at: "auto" or host:port.', show_default=False)
]


def doctor(words: Words = None, cluster: ClusterFile = None, address: Address = "", as_json: AsJson = False) -> None:
    """Check this machine, or with an address every node of a cluster, and say what to do.

    The address is --address, cluster.address or RAY_ADDRESS. The exit code is 1 where a check failed.
    """
    from shard_dist.doctor.asked import read
    from shard_dist.doctor.examine import examine
    from shard_dist.doctor.table import show

    report = examine(read(words or (), cluster, address))
    typer.echo(json.dumps(report.json())) if as_json else Console().print(show(report))
    raise typer.Exit(1 if report.failed else 0)
