"""The command line: one function per command, no logic."""

from __future__ import annotations

import json
import sys
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from shard_dist import __version__

if TYPE_CHECKING:
    from shard_dist.progress import Progress

HELP = """Self-reframing distillation (SHARD): make a language model safe and helpful by its own words.

Every command takes a configuration file and settings: [bold]shard-dist run configs/demo.yaml train.epochs=2[/].

The same command again goes on where the last one stopped, however it stopped."""

app = typer.Typer(help=HELP, no_args_is_help=True, add_completion=False, rich_markup_mode="rich")
ledger = typer.Typer(help="Look into the finished calls of a run, check them, tidy them up.", no_args_is_help=True)
app.add_typer(ledger, name="ledger")
examples = typer.Typer(help="Training examples for other trainers, and theirs for ours.", no_args_is_help=True)
app.add_typer(examples, name="examples")

ConfigFile = Annotated[Path, typer.Argument(metavar="CONFIG.yaml", help="A configuration file.", show_default=False)]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(metavar="[key=value ...]", help="Settings over the file's: train.epochs=2", show_default=False),
]

SweepFile = Annotated[
    Path, typer.Argument(metavar="SWEEP.yaml", help="A configuration with a key `sweep`.", show_default=False)
]
RunOrLedger = Annotated[
    str, typer.Argument(metavar="RUN", help="A run directory, or a ledger's directory or URL.", show_default=False)
]
EXAMPLE_FORMATS = "shard (our Parquet), trl, open_instruct, alpaca, sharegpt (both LLaMA-Factory's) or derta."
Model = Annotated[str, typer.Option(help="Calls of this model only.", show_default=False)]
Fingerprint = Annotated[str, typer.Option(help="Calls to weights whose fingerprint starts so.", show_default=False)]
OlderThan = Annotated[float, typer.Option(metavar="DAYS", help="Calls made before that many days.", show_default=False)]
Everything = Annotated[bool, typer.Option("--all", help="Nothing runs: take segments written to a moment ago, too.")]

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
AsJson = Annotated[bool, typer.Option("--json", help="One JSON object.")]


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


def _judging() -> Progress:
    """On standard error: what judging finds goes to standard output."""
    from shard_dist.progress import Progress

    return Progress(Console(stderr=True, soft_wrap=True), 10.0)


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


@app.command()
def recipes() -> None:
    """Every recipe: where it is from, and its own settings (recipe.options) with their defaults."""
    from rich.table import Table

    from shard_dist.recipes.base import overview

    table = Table("recipe", "source", "options", box=None, padding=(0, 2, 1, 0))
    for name, (source, options) in overview().items():
        table.add_row(name, source, options)
    Console().print(table, markup=False)


@app.command()
def sweep(
    file: SweepFile,
    overrides: Overrides = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would be asked, and what is new.")] = False,
    as_json: AsJson = False,
) -> None:
    """Every combination of some settings: calls that arms share are made once, and one page compares the arms.

    An arm that fails does not stop the others; the exit code is 1 where one did.
    """
    from shard_dist.progress import Progress
    from shard_dist.sweep.estimate import estimate, tables
    from shard_dist.sweep.plan import load_sweep
    from shard_dist.sweep.run import run_sweep

    plan = load_sweep(file, overrides or ())
    console = Console(stderr=as_json or dry_run, soft_wrap=True)
    progress = Progress(console, plan.config.tracking.heartbeat)
    if dry_run:
        found = estimate(plan, progress)
        typer.echo(json.dumps(found)) if as_json else Console().print(tables(found))
        return
    console.print(f"sweep [bold]{plan.name}[/] of {len(plan.arms)} arms in {plan.path}", highlight=False)
    state = run_sweep(plan, progress)
    typer.echo(json.dumps(state.arms) if as_json else state.summary())
    raise typer.Exit(1 if state.failed else 0)


@app.command()
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


@app.command("judge-bench")
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


@ledger.command()
def stats(run: RunOrLedger, as_json: AsJson = False) -> None:
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


@examples.command("export")
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


@examples.command("convert")
def convert_examples(
    source: Annotated[Path, typer.Argument(metavar="IN")],
    target: Annotated[Path, typer.Argument(metavar="OUT")],
    source_format: Annotated[str, typer.Option("--from", help=EXAMPLE_FORMATS, show_default=False)],
    target_format: Annotated[str, typer.Option("--to", help=EXAMPLE_FORMATS, show_default=False)],
) -> None:
    """A file of examples in another format; all of them, or nothing where that cannot hold one."""
    from shard_dist.data.interchange import convert

    typer.echo(f"{convert(source, source_format, target, target_format):,} examples in {target}")


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
