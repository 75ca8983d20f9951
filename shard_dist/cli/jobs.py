"""Runs on a cluster that exists: submit them, follow them, end them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from shard_dist.cli.arguments import ClusterFile, ConfigFile, Overrides

Address = Annotated[
    str,
    typer.Option(
        metavar="http://HOST:8265",
        help="The cluster's dashboard; default: $RAY_API_SERVER_ADDRESS, $RAY_ADDRESS, the last one used.",
        show_default=False,
    ),
]
JobId = Annotated[str, typer.Argument(metavar="ID", help="As submit and status print it.", show_default=False)]
Target = Annotated[
    str,
    typer.Option(
        metavar="ray|slurm|kuberay|kuberay-cluster|ray-launcher",
        help="ray submits; the others write the file that starts nodes, and, slurm and kuberay, the run.",
    ),
]
Out = Annotated[Path | None, typer.Option(metavar="FILE", help="Write the target's file here.", show_default=False)]
Follow = Annotated[bool, typer.Option("--follow/--no-follow", help="Show the job's log until it is over.")]
Yes = Annotated[bool, typer.Option("--yes", help="Do not ask.")]


def submit(
    config: ConfigFile,
    overrides: Overrides = None,
    address: Address = "",
    cluster: ClusterFile = None,
    target: Target = "ray",
    out: Out = None,
    follow: Follow = True,
    yes: Yes = False,
) -> None:
    """Run CONFIG on a Ray cluster, with the code and the files that lie here, and follow it.

    Ctrl-C asks whether to stop the job; it also lives on without us. Exit code: the run's. The same command again goes
    on where the last one stopped.
    """
    from shard_dist.submit import person

    if target == "ray":
        raise typer.Exit(person.submit(config, overrides or (), address, cluster, follow=follow, yes=yes))
    typer.echo(person.write(config, overrides or (), cluster, target, out))


def status(job: Annotated[str, typer.Argument(metavar="[ID]", show_default=False)] = "", address: Address = "") -> None:
    """Our jobs on the cluster, or one of them."""
    from shard_dist.submit import person

    typer.echo(person.status(job, address))


def logs(
    job: JobId,
    follow: Annotated[bool, typer.Option("--follow", help="And what it goes on to write.")] = False,
    address: Address = "",
) -> None:
    """What a job has written."""
    from shard_dist.submit import person

    if follow:
        raise typer.Exit(person.attach(job, address))
    person.logs(job, address)


def stop(job: JobId, address: Address = "") -> None:
    """End a job; what it finished is kept."""
    from shard_dist.submit import person

    typer.echo(person.stop(job, address))


def attach(job: JobId, address: Address = "") -> None:
    """Follow a job again: its log from the beginning, its outcome as exit code."""
    from shard_dist.submit import person

    raise typer.Exit(person.attach(job, address))
