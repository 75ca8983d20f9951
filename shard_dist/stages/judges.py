"""The judges of a stage by its settings: who judges, what decides the verdicts, how far people agree."""

from __future__ import annotations

from typing import Any

from shard_dist.config.schema import (
    Config,
    EvaluateConfig,
    JudgeKind,
    JudgingConfig,
    RaterConfig,
    RaterKind,
    SelectConfig,
)
from shard_dist.evaluation.agreement import agreements, judge_identity
from shard_dist.judges.panel import Panel, panel
from shard_dist.judges.protocol import PointwiseJudge
from shard_dist.judges.registry import rater
from shard_dist.prompts.render import Templates
from shard_dist.stages.roles import identify

Row = dict[str, Any]


def stage_panel(config: Config, stage: JudgingConfig) -> Panel:
    """The judges of a stage. Rule judges read no templates, so a set without judge templates will do for them."""
    templates = Templates(config.recipe.templates)
    sampling = stage.judge_sampling.sampling()
    return panel(stage.judge, stage.judge_role, templates, sampling, stage.judge_attempts, config.run.seed)


def judge_inputs(config: Config, stage: JudgingConfig) -> list[str]:
    """What of a judge decides its verdicts."""
    if stage.judge == JudgeKind.rule:
        return ["rule"]
    return [
        identify(config.models[stage.judge_role]).fingerprint,
        Templates(config.recipe.templates).digest(),
    ]


def judge_of(config: Config, stage: JudgingConfig, settings: RaterConfig) -> tuple[PointwiseJudge, Row]:
    """A judge of single answers, and what decides its verdicts. Raises ValueError for what the judge cannot take."""
    templates = Templates(config.recipe.templates)
    sampling, attempts = stage.judge_sampling.sampling(), stage.judge_attempts
    judge = rater(settings, templates, sampling, attempts, config.run.seed)
    if not settings.role:
        return judge, judge_identity(settings)
    model = identify(config.models[settings.role])
    identity = judge_identity(
        settings,
        model=model.model,
        fingerprint=model.fingerprint,
        templates=templates,
        sampling=sampling,
        attempts=attempts,
    )
    return judge, identity


def raters(config: Config) -> list[tuple[PointwiseJudge, Row]]:
    """Every judge of single answers with its identity, the refusal rules first."""
    return [
        judge_of(config, config.evaluate, settings)
        for settings in (RaterConfig(RaterKind.refusal), *config.evaluate.raters)
    ]


def pairwise_roles(stage: JudgingConfig) -> list[str]:
    """The role that compares two answers; none where word rules do."""
    return [stage.judge_role] if stage.judge == JudgeKind.llm else []


def judge_roles(stage: SelectConfig | EvaluateConfig) -> list[str]:
    """Roles that judging asks, the busiest first: the pairwise judge is asked most."""
    return list(dict.fromkeys([*pairwise_roles(stage), *(each.role for each in stage.raters if each.role)]))


def judge_models(config: Config) -> dict[str, str]:
    return {role: config.models[role].model for role in judge_roles(config.evaluate)}


def described(config: Config, judges: list[tuple[PointwiseJudge, Row]]) -> Row:
    """metrics.json `judges`: who judged, whether selection had the same judge, how far each agrees with people.

    `judges` are those of single answers, as `raters` has them.
    """
    select, evaluate = config.select, config.evaluate
    same = select.judge == evaluate.judge and (
        select.judge == JudgeKind.rule or select.judge_role == evaluate.judge_role
    )
    identities = {judge.name: identity for judge, identity in judges}
    agreed = agreements(evaluate.agreement, identities)
    return {
        "select": stage_panel(config, select).name,
        "evaluate": stage_panel(config, evaluate).name,
        "same": same,
        "raters": {
            name: {"kind": identity["kind"], "model": identity.get("model", ""), "agreement": agreed[name]}
            for name, identity in identities.items()
        },
    }
