"""generate: prompts -> records. The recipe's program over every prompt that is not of the test set."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

import pyarrow as pa

from shard_dist.artefacts import value_hash, write_json, write_rows
from shard_dist.config.load import as_dict
from shard_dist.data.load import SCHEMA as PROMPT_SCHEMA
from shard_dist.data.load import prompt_rows
from shard_dist.engines.rows import ListRows
from shard_dist.progress import Progress
from shard_dist.prompts.render import Templates
from shard_dist.recipes.shard import Guidelines, Shard
from shard_dist.records import Prompt, Record
from shard_dist.rundir import Run, Stage
from shard_dist.stages.roles import Engines, identify, role_of, sampling_of

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


def inputs(run: Run) -> dict[str, Any]:
    config = run.config
    return {
        "prompts": run.file_hash("prompts.parquet"),
        "recipe": value_hash(as_dict(config)["recipe"]),
        "templates": Templates(config.recipe.templates).digest(),
        "seed": config.run.seed,
        "generator": identify(config.models[config.recipe.generator]).fingerprint,
    }


def work(run: Run, progress: Progress) -> dict[str, Any]:
    config, recipe = run.config, run.config.recipe
    prompts = prompt_rows(run.require("prompts.parquet", "prompts"), ("train", "val"))
    templates, role = Templates(recipe.templates), role_of(run, recipe.generator)
    with Engines(run, "generate", [role], role.name, progress) as engines:
        guide = Guidelines(role.name, templates, sampling_of(recipe.guideline_sampling), config.run.seed)
        categories = [name for name in prompts.distinct("category") if name] if recipe.guidelines else []
        written = engines.run("guidelines", guide, ListRows(categories), empty="")
        guidelines = dict(zip(categories, written.ordered(), strict=True))
        write_json(run / "guidelines.json", guidelines)
        program = Shard(
            role=role.name,
            templates=templates,
            guidelines=guidelines,
            answer_sampling=sampling_of(recipe.answer_sampling),
            rewrite_sampling=sampling_of(recipe.rewrite_sampling),
            rewrite_attempts=recipe.rewrite_attempts,
            seed=config.run.seed,
        )
        records = engines.run("prompts", program, prompts, record_row, empty=Prompt("", "", ""))
        counts = engines.counts()
    failed: Counter[str] = Counter()
    write_rows(run / RECORDS, counted(records.ordered(), failed), RECORD_SCHEMA)
    return {"rows": len(prompts), "complete": len(prompts) - failed.total(), "failed": dict(failed), **counts}


def record_row(record: Record) -> dict[str, Any]:
    return {
        **asdict(record.prompt),
        "recipe": record.recipe,
        "fields": json.dumps(record.fields, ensure_ascii=False),
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


STAGE = Stage("generate", inputs, ("guidelines.json", "records"), work)
