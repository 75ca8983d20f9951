"""generate: prompts -> records. The recipe's program over every prompt that is not of the test set."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import asdict
from typing import Any

import pyarrow as pa

from shard_dist.artefacts import read_rows, value_hash, write_json, write_rows
from shard_dist.config.load import as_dict
from shard_dist.data.load import SCHEMA as PROMPT_SCHEMA
from shard_dist.data.load import read_prompts
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
    prompts = [
        prompt for prompt in read_prompts(run.require("prompts.parquet", "prompts")) if prompt.split in ("train", "val")
    ]
    templates, role = Templates(recipe.templates), role_of(run, recipe.generator)
    with Engines(run, [role], role.name, progress) as engines:
        guide = Guidelines(role.name, templates, sampling_of(recipe.guideline_sampling), config.run.seed)
        categories = sorted({prompt.category for prompt in prompts if prompt.category}) if recipe.guidelines else []
        guidelines = dict(zip(categories, engines.run("guidelines", guide, categories), strict=True))
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
        records = engines.run("prompts", program, prompts)
        counts = engines.counts()
    write_records(run, records)
    failed = Counter(record.failure for record in records if record.failure)
    return {"rows": len(records), "complete": len(records) - failed.total(), "failed": dict(failed), **counts}


def write_records(run: Run, records: list[Record]) -> None:
    rows = [
        {
            **asdict(record.prompt),
            "recipe": record.recipe,
            "fields": json.dumps(record.fields, ensure_ascii=False),
            "calls": json.dumps(record.calls),
            "failure": record.failure,
        }
        for record in records
    ]
    write_rows(run / "records" / "part-00000.parquet", rows, RECORD_SCHEMA)


def read_records(run: Run) -> list[Record]:
    names = PROMPT_SCHEMA.names
    return [
        Record(
            prompt=Prompt(**{name: row[name] for name in names}),
            recipe=row["recipe"],
            fields=json.loads(row["fields"]),
            calls=json.loads(row["calls"]),
            failure=row["failure"],
        )
        for row in read_rows(run.require("records/part-00000.parquet", "generate"))
    ]


STAGE = Stage("generate", inputs, ("guidelines.json", "records"), work)
