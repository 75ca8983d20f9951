"""select: records -> examples. Keep an answer that is more helpful AND not more harmful; count every reason."""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from shard_dist.artefacts import value_hash, write_json, write_rows
from shard_dist.config.load import as_dict
from shard_dist.config.schema import Config, JudgeKind, JudgingConfig
from shard_dist.judges.gate import gate, pre_gate
from shard_dist.judges.panel import Panel, panel
from shard_dist.judges.refusal import classify
from shard_dist.progress import Progress
from shard_dist.prompts.render import Templates
from shard_dist.records import Example, Record
from shard_dist.rundir import Run, Stage
from shard_dist.stages.generate import read_records
from shard_dist.stages.roles import Engines, identify, role_of, sampling_of
from shard_dist.training.examples import write_examples

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
    ]
)


@dataclass(frozen=True)
class Decision:
    """What became of a record. Verdicts are "" where none was needed."""

    dataset: str
    id: str
    keep: bool
    reason: str
    on_topic: str = ""
    helpfulness: str = ""
    harm: str = ""
    helpfulness_reason: str = ""
    harm_reason: str = ""


@dataclass(frozen=True)
class Select:
    """Program over one record: cheap reasons first, judges only for what is left."""

    panel: Panel
    keep_benign_ties: bool

    async def __call__(self, record: Record, ask: Ask) -> Decision:
        prompt, answer = record.prompt, record.fields.get("reframed", "")
        finish = record.fields.get("reframed_finish_reason", "")
        dropped = pre_gate(record.failure, answer, finish, classify(answer, prompt.language).kind)
        if dropped:
            return Decision(*prompt.key, False, dropped)
        topic = await self.panel.on_topic(prompt, answer, ask)
        if topic != "yes":  # the gate needs no verdicts
            return Decision(*prompt.key, *gate(topic, "", "", prompt.benign, self.keep_benign_ties), topic)
        draft = record.fields["draft"]
        helpful = await self.panel.compare("helpfulness", prompt, draft, answer, ask)
        harm = await self.panel.compare("harm", prompt, draft, answer, ask)
        keep, reason = gate(topic, helpful.combined, harm.combined, prompt.benign, self.keep_benign_ties)
        return Decision(*prompt.key, keep, reason, topic, helpful.combined, harm.combined, helpful.reason, harm.reason)


def stage_panel(config: Config, stage: JudgingConfig) -> Panel:
    """The judges of a stage. Rule judges read no templates, so a set without judge templates will do for them."""
    templates = Templates(config.recipe.templates)
    sampling = sampling_of(stage.judge_sampling)
    return panel(stage.judge, stage.judge_role, templates, sampling, stage.judge_attempts, config.run.seed)


def judge_inputs(config: Config, stage: JudgingConfig) -> list[str]:
    """What of a judge decides its verdicts."""
    if stage.judge == JudgeKind.rule:
        return ["rule"]
    return [
        identify(config.models[stage.judge_role]).fingerprint,
        Templates(config.recipe.templates).digest(),
    ]


def inputs(run: Run) -> dict[str, Any]:
    config = run.config
    return {
        "records": run.file_hash("records"),
        "settings": value_hash(as_dict(config)["select"]),
        "judge": judge_inputs(config, config.select),
        "chat": [dict(message) for message in Templates(config.recipe.templates).chat("")],
        "seed": config.run.seed,
    }


def work(run: Run, progress: Progress) -> dict[str, Any]:
    config = run.config
    records = read_records(run)
    roles = [] if config.select.judge == JudgeKind.rule else [role_of(run, config.select.judge_role)]
    judges = stage_panel(config, config.select)
    with Engines(run, roles, config.select.judge_role, progress) as engines:
        program = Select(judges, config.select.keep_benign_ties)
        decisions = engines.run("records", program, records)
        counts = engines.counts()
    summary = summarise(records, decisions, judges.name)
    write_rows(run / "decisions.parquet", (asdict(decision) for decision in decisions), DECISION_SCHEMA)
    examples = chosen(records, decisions, Templates(config.recipe.templates))
    for split in ("train", "val"):
        write_examples(run / "examples" / f"{split}.parquet", examples[split])
    write_json(run / "selection.json", summary)
    if not examples["train"]:
        raise ValueError(
            f"no example is left to train on: of {summary['considered']} records all were dropped or validate: "
            f"{summary['reasons']}. {run / 'decisions.parquet'} has every verdict"
        )
    sizes = {split: len(rows) for split, rows in examples.items()}
    return {
        "considered": len(records),
        "kept": summary["kept"],
        "dropped": summary["dropped"],
        **sizes,
        **counts,
    }


def chosen(records: list[Record], decisions: list[Decision], templates: Templates) -> dict[str, list[Example]]:
    """Examples by split: the prompt as the assistant gets it, and the reframed answer. No scaffolding is kept."""
    examples: dict[str, list[Example]] = {"train": [], "val": []}
    for record, decision in zip(records, decisions, strict=True):
        if decision.keep:
            messages = templates.chat(record.prompt.text)
            example = Example(*record.prompt.key, messages, record.fields["reframed"])
            examples[record.prompt.split].append(example)
    return examples


def summarise(records: list[Record], decisions: list[Decision], judge: str) -> dict[str, Any]:
    """selection.json: kept + dropped = considered, reasons add up to considered, by category likewise."""
    by_category: dict[str, dict[str, int]] = defaultdict(lambda: {"kept": 0, "dropped": 0})
    for record, decision in zip(records, decisions, strict=True):
        by_category[record.prompt.category]["kept" if decision.keep else "dropped"] += 1
    kept = sum(decision.keep for decision in decisions)
    return {
        "considered": len(records),
        "kept": kept,
        "dropped": len(records) - kept,
        "reasons": dict(Counter(decision.reason for decision in decisions).most_common()),
        "judge": judge,
        "by_category": dict(by_category),
    }


STAGE = Stage("select", inputs, ("examples", "decisions.parquet", "selection.json"), work)
