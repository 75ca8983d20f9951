"""generate: prompts -> records. The recipe's program over every prompt that is not of the test set."""

from __future__ import annotations

import json
import shutil
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from shard_dist.artefacts import file_hash, value_hash, write_json, write_rows
from shard_dist.config.check import roles_needed
from shard_dist.config.load import as_dict
from shard_dist.config.schema import Config, RecipeConfig
from shard_dist.data.load import SCHEMA as PROMPT_SCHEMA
from shard_dist.data.load import prompt_rows
from shard_dist.engines.rows import ListRows, Rows, TableRows
from shard_dist.engines.text import mended
from shard_dist.progress import Progress
from shard_dist.prompts.render import Templates
from shard_dist.recipes.base import find, options_of, templates_of
from shard_dist.records import Prompt, Record
from shard_dist.rundir import Run, Stage
from shard_dist.stages.roles import Engines, Runs, identify, role_of

# A recipe's fields differ from recipe to recipe: they and the calls' keys are JSON objects in a column each.
RECORD_SCHEMA = pa.schema(
    [
        *PROMPT_SCHEMA,
        ("recipe", pa.string()),
        ("fields", pa.string()),
        ("calls", pa.string()),
        ("failure", pa.string()),
    ]
)
RECORDS = "records/part-00000.parquet"
FINDINGS = "findings"


def inputs(run: Run) -> dict[str, Any]:
    config = run.config
    asked = find(config.recipe.name).roles(config.recipe)
    return {
        "prompts": run.file_hash("prompts.parquet"),
        "recipe": value_hash(as_dict(config)["recipe"]),
        "files": file_hashes(config.recipe),
        "templates": templates_of(config.recipe).digest(),
        "seed": config.run.seed,
        "generator": identify(config.models[config.recipe.generator]).fingerprint,
        "roles": {name: identify(config.models[name]).fingerprint for name in asked},
    }


def file_hashes(recipe: RecipeConfig) -> list[str]:
    """Of the files that a recipe reads on its own."""
    return [file_hash(Path(path)) for path in find(recipe.name).files(options_of(recipe))]


@dataclass
class StageWork:
    """`Work` of recipes/base.py: rows of this run through its engines, results in its directory."""

    run: Run
    engines: Runs
    templates: Templates

    def __post_init__(self) -> None:
        self.recipe, self.seed = self.run.config.recipe, self.run.config.run.seed
        self.options = options_of(self.recipe)
        self.folder = self.run / FINDINGS
        self.rows = self.prompts("train", "val")

    def prompts(self, *splits: str) -> TableRows:
        return prompt_rows(self.run.require("prompts.parquet", "prompts"), splits or ("train", "val"))

    def categories(self) -> list[str]:
        return [name for name in self.rows.distinct("category") if name]

    def map(self, unit: str, program: Any, rows: Rows | Sequence[Any], empty: Any = None) -> Iterator[Any]:
        return self.engines.run(unit, program, _rows(rows), empty=empty).ordered()

    def records(self, unit: str, program: Any, rows: Rows | Sequence[Any], empty: Any = None) -> Iterator[Record]:
        return map(record_of, self.engines.run(unit, program, _rows(rows), record_row, empty).ordered())

    def save(self, name: str, value: Any) -> None:
        write_json(self.folder / name, value)


def _rows(rows: Rows | Sequence[Any]) -> Rows:
    return ListRows(list(rows)) if isinstance(rows, Sequence) else rows


def check(config: Config) -> None:
    """An unknown recipe or setting of it, a role or template that it lacks: found before anything is read."""
    recipe, settings = find(config.recipe.name), config.recipe
    options_of(settings)
    templates_of(settings).check(recipe.steps(settings), recipe.variables)
    asked = recipe.roles(settings)
    for role in asked:
        if role not in config.models:
            raise ValueError(f"models.{role} is missing (recipe {settings.name}); models has {sorted(config.models)}")
    for role in sorted(set(config.models) - set(roles_needed(config)) - set(asked)):
        warnings.warn(f"models.{role} is used by nothing", stacklevel=3)
    recipe.check(config)


def work(run: Run, progress: Progress) -> dict[str, Any]:
    config = run.config
    shutil.rmtree(run / FINDINGS, ignore_errors=True)  # of another configuration, or of a process that was killed
    recipe = find(config.recipe.name)
    roles = [role_of(run, name) for name in recipe.roles(config.recipe)]
    home = roles[0].name if roles else ""
    with Engines(run, "generate", roles, home, progress) as engines:
        mine = StageWork(run, engines, templates_of(config.recipe))
        records = recipe.generate(mine)
        failed: Counter[str] = Counter()
        write_rows(run / RECORDS, counted(map(record_row, records), failed), RECORD_SCHEMA)
        counts = engines.counts()
    rows = len(mine.rows)
    return {"rows": rows, "complete": rows - failed.total(), "failed": dict(failed), **counts}


def record_row(record: Record) -> dict[str, Any]:
    return {
        **asdict(record.prompt),
        "recipe": record.recipe,
        # A model's JSON may hold a lone surrogate, which no file takes.
        "fields": mended(json.dumps(record.fields, ensure_ascii=False)),
        "calls": json.dumps(record.calls),
        "failure": record.failure,
    }


def record_of(row: dict[str, Any]) -> Record:
    return Record(
        prompt=Prompt(**{name: row[name] for name in PROMPT_SCHEMA.names}),
        recipe=row["recipe"],
        fields=json.loads(row["fields"]),
        calls=json.loads(row["calls"]),
        failure=row["failure"],
    )


def counted(rows: Iterator[dict[str, Any]], failed: Counter[str]) -> Iterator[dict[str, Any]]:
    for row in rows:
        if row["failure"]:
            failed[row["failure"]] += 1
        yield row


STAGE = Stage("generate", inputs, (FINDINGS, "records"), work, check)
