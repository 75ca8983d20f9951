"""What several commands take."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

ConfigFile = Annotated[Path, typer.Argument(metavar="CONFIG.yaml", help="A configuration file.", show_default=False)]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(metavar="[key=value ...]", help="Settings over the file's: train.epochs=2", show_default=False),
]
AsJson = Annotated[bool, typer.Option("--json", help="One JSON object.")]
ClusterFile = Annotated[
    Path | None,
    typer.Option(
        "--cluster",
        metavar="FILE",
        help="A cluster's description (configs/clusters), over CONFIG's own.",
        show_default=False,
    ),
]
