"""evaluate: the base model and the tuned one on the same test prompts; answers, verdicts, metrics.json."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from shard_dist.artefacts import value_hash, write_json, write_rows
from shard_dist.config.load import as_dict
from shard_dist.config.schema import JudgeKind
from shard_dist.data.load import read_prompts
from shard_dist.engines.rows import ListRows
from shard_dist.engines.worker import Role
from shard_dist.evaluation.arms import ANSWER_SCHEMA, PAIR_SCHEMA, VERDICT_SCHEMA, Answer, Judge
from shard_dist.evaluation.metrics import metrics
from shard_dist.progress import Progress
from shard_dist.prompts.render import Templates
from shard_dist.records import Prompt
from shard_dist.rundir import Run, Stage
from shard_dist.stages.roles import Engines, identify, role_of, sampling_of, tuned_role
from shard_dist.stages.select import judge_inputs, stage_panel

BASE, TUNED = "base", "tuned"


def inputs(run: Run) -> dict[str, Any]:
    config = run.config
    return {
        "prompts": run.file_hash("prompts.parquet"),
        "settings": value_hash([as_dict(config)["evaluate"], as_dict(config)["recipe"]["answer_sampling"]]),
        "judge": judge_inputs(config, config.evaluate),
        "chat": [dict(message) for message in Templates(config.recipe.templates).chat("")],
        "seed": config.run.seed,
        BASE: identify(config.models["student"]).fingerprint,
        TUNED: run.file_hash("model"),
    }


def work(run: Run, progress: Progress) -> dict[str, Any]:
    config = run.config
    prompts = [prompt for prompt in read_prompts(run.require("prompts.parquet", "prompts")) if prompt.split == "test"]
    run.require("model", "train")
    total = dict.fromkeys(
        ("calls", "calls_made", "ledger_hits", "prompt_tokens", "completion_tokens", "engine_restarts"), 0
    )
    # One arm after the other: each has the machine's engines to itself.
    answers = {
        arm: answer_arm(run, arm, role, prompts, progress, total)
        for arm, role in ((BASE, role_of(run, "student")), (TUNED, tuned_role(run)))
    }
    pairs = judge_arms(run, prompts, answers, progress, total)
    measured = metrics(
        prompts, answers[BASE] + answers[TUNED], pairs[0], pairs[1], confidence=config.evaluate.confidence
    )
    select, evaluate = config.select, config.evaluate
    same = select.judge == evaluate.judge and (
        select.judge == JudgeKind.rule or select.judge_role == evaluate.judge_role
    )
    names = {name: stage_panel(config, stage).name for name, stage in (("select", select), ("evaluate", evaluate))}
    write_json(run / "metrics.json", {**measured, "judges": {**names, "same": same}})
    return {"prompts": len(prompts), "answers": sum(map(len, answers.values())), **total}


def answer_arm(
    run: Run, arm: str, role: Role, prompts: list[Prompt], progress: Progress, total: dict[str, int]
) -> list[dict[str, Any]]:
    """Every test prompt's answer by one arm, written to answers/<arm>.parquet."""
    config = run.config
    sampling = sampling_of(config.recipe.answer_sampling)
    program = Answer(role.name, arm, Templates(config.recipe.templates), sampling, config.run.seed)
    with Engines(run, "evaluate", [role], role.name, progress) as engines:
        found = engines.run(f"answers of {arm}", program, ListRows(prompts), empty=Prompt("", "", ""))
        rows = list(found.ordered())
        _add(total, engines.counts())
    write_rows(run / "answers" / f"{arm}.parquet", rows, ANSWER_SCHEMA)
    return rows


def judge_arms(
    run: Run,
    prompts: list[Prompt],
    answers: dict[str, list[dict[str, Any]]],
    progress: Progress,
    total: dict[str, int],
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Verdict rows of both arms and pair rows, written to verdicts/."""
    config = run.config
    judge = config.evaluate.judge_role
    roles = [] if config.evaluate.judge == JudgeKind.rule else [role_of(run, judge)]
    rows = list(zip(prompts, answers[BASE], answers[TUNED], strict=True))
    with Engines(run, "evaluate", roles, judge, progress) as engines:
        judged = list(engines.run("verdicts", Judge(stage_panel(config, config.evaluate)), ListRows(rows)).ordered())
        _add(total, engines.counts())
    verdicts = [verdict for both, _ in judged for verdict in both]
    pairs = [pair for _, questions in judged for pair in questions]
    folder: Path = run / "verdicts"
    for arm in answers:
        write_rows(folder / f"{arm}.parquet", (row for row in verdicts if row["arm"] == arm), VERDICT_SCHEMA)
    write_rows(folder / "pairs.parquet", pairs, PAIR_SCHEMA)
    return verdicts, pairs


def _add(total: dict[str, int], counts: dict[str, int]) -> None:
    for name in total:
        total[name] += counts[name]


STAGE = Stage("evaluate", inputs, ("answers", "verdicts", "metrics.json"), work)
