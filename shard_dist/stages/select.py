"""select: records -> examples. Keep an answer that is more helpful AND not more harmful; count every reason."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, replace
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from shard_dist.artefacts import file_hash, stream_rows, value_hash, write_json, write_rows
from shard_dist.config.load import as_dict
from shard_dist.config.schema import Config
from shard_dist.data.examples import write_examples
from shard_dist.data.interchange import NAMES
from shard_dist.data.load import prompt_rows
from shard_dist.data.mix import REPEATS, of_file, placed
from shard_dist.data.near import Near
from shard_dist.engines.rows import TableRows
from shard_dist.engines.spool import Spool
from shard_dist.judges.protocol import PointwiseJudge
from shard_dist.progress import Progress
from shard_dist.prompts.render import Templates
from shard_dist.recipes.base import Recipe, find, options_of
from shard_dist.recipes.selection import Decision, Jury
from shard_dist.records import Example, Record
from shard_dist.rundir import Run, Stage
from shard_dist.stages.generate import RECORDS, file_hashes, record_of
from shard_dist.stages.judges import judge_inputs, judge_of, judge_roles, stage_panel
from shard_dist.stages.roles import Engines, role_of

if TYPE_CHECKING:
    from shard_dist.engines.protocol import Ask

DECISION_SCHEMA = pa.schema(
    [
        ("dataset", pa.string()),
        ("id", pa.string()),
        ("keep", pa.bool_()),
        ("reason", pa.string()),
        ("on_topic", pa.string()),
        ("helpfulness", pa.string()),
        ("harm", pa.string()),
        ("helpfulness_reason", pa.string()),
        ("harm_reason", pa.string()),
        ("chosen", pa.string()),
        ("rejected", pa.string()),
        ("thinking", pa.string()),
        ("scores", pa.string()),
        ("calls", pa.string()),
    ]
)


@dataclass(frozen=True)
class Select:
    """Program over one record: the recipe's decision, and the judges' calls behind it."""

    recipe: str
    jury: Jury

    async def __call__(self, record: Record, ask: Ask) -> Decision:
        decision = await find(self.recipe).decide(record, self.jury, ask)
        return replace(decision, calls=json.dumps(ask.calls))


def check(config: Config) -> None:
    """A judge that cannot be had, a file of examples that is not there: found before anything is generated."""
    jury_of(config)
    for index, mix in enumerate(config.recipe.mix):
        where = f"recipe.mix[{index}]"
        if not Path(mix.path).is_file():
            raise ValueError(f"{where}.path: no file {mix.path!r} (from {Path.cwd()})")
        if mix.format not in NAMES:
            raise ValueError(f"{where}.format: {mix.format!r} is none of {', '.join(NAMES)}")
        if mix.limit < 0:
            raise ValueError(f"{where}.limit is {mix.limit}; at least 0")


def jury_of(config: Config) -> Jury:
    raters = tuple(judge for judge, _ in raters_of(config))
    return Jury(stage_panel(config, config.select), raters, config.select.keep_benign_ties, options_of(config.recipe))


def raters_of(config: Config) -> list[tuple[PointwiseJudge, dict[str, Any]]]:
    return [judge_of(config, config.select, settings) for settings in config.select.raters]


def inputs(run: Run) -> dict[str, Any]:
    config = run.config
    return {
        "records": run.file_hash("records"),
        "prompts": run.file_hash("prompts.parquet"),
        "settings": value_hash(
            [as_dict(config)["select"], as_dict(config)["recipe"], as_dict(config)["data"]["split"]]
        ),
        "judge": judge_inputs(config, config.select),
        "raters": [value_hash(identity) for _, identity in raters_of(config)],
        "mix": [file_hash(Path(mix.path)) for mix in config.recipe.mix],
        "files": file_hashes(config.recipe),
        "chat": [dict(message) for message in Templates(config.recipe.templates).chat("")],
        "seed": config.run.seed,
    }


def work(run: Run, progress: Progress) -> dict[str, Any]:
    config = run.config
    source = run.require(RECORDS, "generate")
    recipe, jury = find(config.recipe.name), jury_of(config)
    roles = [role_of(run, name) for name in judge_roles(config.select)]
    with Engines(run, "select", roles, roles[0].name if roles else "", progress) as engines:
        records = TableRows((source,), record_of, group="category", length="fields")
        program = Select(config.recipe.name, jury)
        decisions = engines.run("records", program, records, asdict, empty=recipe.empty())
        counts = engines.counts()
    write_rows(run / "decisions.parquet", decisions.ordered(), DECISION_SCHEMA)
    near, left_out = near_test(run), Counter[str]()
    mixed, reasons = from_files(run, recipe, jury.options, near)
    sizes = {
        split: write_examples(
            run / "examples" / f"{split}.parquet",
            chain(chosen(judged(source, decisions), split, recipe, run, near, left_out), mixed[split]),
        )
        for split in ("train", "val")
    }
    found = summarise(judged(source, decisions), jury.panel.name)
    summary = {**found, "from_files": dict(reasons), "left_out": dict(left_out)}
    write_json(run / "selection.json", summary)
    if not sizes["train"]:
        raise ValueError(
            f"no example is left to train on: of {summary['considered']} records all were dropped or validate: "
            f"{summary['reasons']}; from files: {summary['from_files']}. {run / 'decisions.parquet'} has every verdict"
        )
    considered = {name: summary[name] for name in ("considered", "kept", "dropped")}
    return {**considered, **({"from_files": dict(reasons)} if reasons else {}), **sizes, **counts}


def near_test(run: Run) -> Near:
    """Finds what repeats a prompt of the test set."""
    test = prompt_rows(run.require("prompts.parquet", "prompts"), ("test",))
    return Near((prompt.text for prompt in test.read(range(len(test)))), run.config.data.near_duplicates)


def from_files(run: Run, recipe: Recipe, options: Any, near: Near) -> tuple[dict[str, list[Example]], Counter[str]]:
    """Examples of recipe.mix and of the recipe's own files by split, and what became of all of them."""
    config, seed = run.config, run.config.run.seed
    reasons: Counter[str] = Counter()
    files = [of_file(mix, seed) for mix in config.recipe.mix]
    own = recipe.added(options, seed, Templates(config.recipe.templates))
    found: dict[str, list[Example]] = {"train": [], "val": []}
    for split, example in placed(chain(*files, own), near, config.data.split, seed, reasons):
        found[split].append(example)
    return found, reasons


def judged(source: Path, decisions: Spool) -> Iterator[tuple[Record, Decision]]:
    """Records with what became of them, streamed."""
    rows = zip(stream_rows(source), decisions.ordered(), strict=True)
    return ((record_of(row), Decision(**decision)) for row, decision in rows)


def chosen(
    pairs: Iterable[tuple[Record, Decision]], split: str, recipe: Recipe, run: Run, near: Near, left_out: Counter[str]
) -> Iterator[Example]:
    """A split's examples, as the recipe makes them of the records that were kept.

    A recipe may write prompts of its own: those that repeat a test prompt are left out and counted.
    """
    templates = Templates(run.config.recipe.templates)
    for record, decision in pairs:
        if not decision.keep or record.prompt.split != split:
            continue
        for example in recipe.examples(record, decision, templates):
            text = example.messages[-1]["content"]
            if text != record.prompt.text and near.find(text):
                left_out[REPEATS] += 1
            else:
                yield example


def summarise(pairs: Iterable[tuple[Record, Decision]], judge: str) -> dict[str, Any]:
    """selection.json: kept + dropped = considered, reasons add up to considered, by category likewise."""
    by_category: dict[str, dict[str, int]] = defaultdict(lambda: {"kept": 0, "dropped": 0})
    reasons: Counter[str] = Counter()
    kept = 0
    for record, decision in pairs:
        by_category[record.prompt.category]["kept" if decision.keep else "dropped"] += 1
        reasons[decision.reason] += 1
        kept += decision.keep
    return {
        "considered": reasons.total(),
        "kept": kept,
        "dropped": reasons.total() - kept,
        "reasons": dict(reasons.most_common()),
        "judge": judge,
        "by_category": dict(by_category),
    }


STAGE = Stage("select", inputs, ("examples", "decisions.parquet", "selection.json"), work, check)
