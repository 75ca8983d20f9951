"""Judges on answers of any model, and on answers that people labelled."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from shard_dist.cli.arguments import AsJson, Overrides

if TYPE_CHECKING:
    from shard_dist.progress import Progress

Judge = Annotated[
    str,
    typer.Option(help="A kind (refusal, xstest, llama_guard, ...), or a name in evaluate.raters.", show_default=False),
]
Settings = Annotated[Path | None, typer.Option("--config", metavar="CONFIG.yaml", help="For judges that ask a model.")]
JudgeRole = Annotated[str, typer.Option("--role", help="Role of its `models` that the judge asks.", show_default=False)]
Columns = Annotated[
    str,
    typer.Option(
        metavar="FIELD=NAME,...",
        help="Where prompt, answer, id, label, category and language stand, if not under these names.",
        show_default=False,
    ),
]
Labels = Annotated[
    str,
    typer.Option(
        metavar="RAW=CLASS,...",
        help="People's labels as classes of the judge, left out where they are the same.",
        show_default=False,
    ),
]
Result = Annotated[
    Path | None, typer.Option(metavar="FILE.json", help="Keep the result, for evaluate.agreement.", show_default=False)
]
FileFormat = Annotated[
    str,
    typer.Option(
        "--format", help="jsonl, csv, parquet, lm_eval or inspect; told by the content if left out.", show_default=False
    ),
]


def _judging() -> Progress:
    """On standard error: what judging finds goes to standard output."""
    from shard_dist.progress import Progress

    return Progress(Console(stderr=True, soft_wrap=True), 10.0)


def score(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="Answers of any model.", show_default=False)],
    judge: Judge,
    overrides: Overrides = None,
    out: Annotated[Path | None, typer.Option(help="Default: <FILE>.<judge>.<ending>.", show_default=False)] = None,
    config: Settings = None,
    role: JudgeRole = "",
    columns: Columns = "",
    file_format: FileFormat = "",
    as_json: AsJson = False,
) -> None:
    """Judge saved answers and write the same file again with verdict, score and reason in every row.

    Reads JSONL, CSV, Parquet (a run's answers, too), sample logs of lm-evaluation-harness and JSON logs of Inspect.
    Killed, the same command goes on where it stopped.
    """
    from shard_dist.data.saved import source_of
    from shard_dist.data.saved_answer import pairs
    from shard_dist.score import choose, lines
    from shard_dist.score import score as judged

    source = source_of(file, file_format, pairs(columns, "--columns"))
    summary = judged(source, choose(judge, role, config, overrides or ()), out, _judging())
    typer.echo(json.dumps(summary) if as_json else lines(summary))


def judge_bench(
    file: Annotated[
        Path, typer.Argument(metavar="FILE", help="Answers that people have labelled.", show_default=False)
    ],
    judge: Judge,
    overrides: Overrides = None,
    columns: Columns = "",
    labels: Labels = "",
    skip_unmapped: Annotated[bool, typer.Option("--skip-unmapped", help="Drop other labels, and count them.")] = False,
    out: Result = None,
    name: Annotated[
        str, typer.Option("--set", help="What reports call the set; default: FILE.", show_default=False)
    ] = "",
    config: Settings = None,
    role: JudgeRole = "",
    file_format: FileFormat = "",
    as_json: AsJson = False,
) -> None:
    """A judge against people's labels: accuracy, kappa, confusion, precision and recall per class.

    shard-dist judge-bench answers.csv --judge refusal --columns prompt=question,answer=response,label=action
    --labels 0=full,4=full,1=none,2=none,3=none,5=none
    """
    from shard_dist.bench import bench, table
    from shard_dist.data.saved import source_of
    from shard_dist.data.saved_answer import pairs
    from shard_dist.score import choose

    source = source_of(file, file_format, pairs(columns, "--columns"))
    result = bench(
        source,
        choose(judge, role, config, overrides or ()),
        pairs(labels, "--labels", str.rpartition),
        skip_unmapped=skip_unmapped,
        out=out,
        name=name,
        progress=_judging(),
    )
    typer.echo(json.dumps(result) if as_json else table(result))
