"""Every judge of single answers by its settings."""

from __future__ import annotations

from shard_dist.config.schema import RaterConfig, RaterKind
from shard_dist.judges.guards import (
    Guard,
    HarmBench,
    LlamaGuard,
    ShieldGemma,
    WildGuard,
    shieldgemma_policies,
    wire_text,
)
from shard_dist.judges.llm import LLM
from shard_dist.judges.pairwise import RuleRater
from shard_dist.judges.protocol import PointwiseJudge
from shard_dist.judges.refusal import RefusalJudge
from shard_dist.judges.reward import RewardJudge
from shard_dist.judges.rubric import RUBRICS, RubricJudge
from shard_dist.prompts.render import Templates
from shard_dist.records import Sampling

RULES = {RaterKind.rule_helpfulness: "helpfulness", RaterKind.rule_harm: "harm"}


def rater(config: RaterConfig, templates: Templates, sampling: Sampling, attempts: int, seed: int) -> PointwiseJudge:
    """The judge of `config`; `templates`, `sampling`, `attempts` and `seed` are for rubrics, which our templates ask.

    Raises ValueError for an unknown version or policy, a faulty template, and a guard whose wire text is not at hand.
    """
    name = config.name or str(config.kind)
    if config.kind == RaterKind.refusal:
        return RefusalJudge(name)
    if config.kind in RULES:
        return RuleRater(RULES[config.kind], name)
    if config.kind == RaterKind.reward:
        return RewardJudge(role=config.role, name=name)
    if config.kind in RUBRICS:
        templates.check([f"rate_{config.kind}"])
        return RubricJudge(config.kind, LLM(config.role, templates, sampling, attempts, seed), name)
    return _guard(config, name)


def _guard(config: RaterConfig, name: str) -> Guard:
    match config.kind:
        case RaterKind.llama_guard:
            return LlamaGuard(config.role, name, config.version or "3", config.threshold)
        case RaterKind.shieldgemma:
            return ShieldGemma(config.role, name, shieldgemma_policies(config.policies), config.threshold)
        case RaterKind.wildguard:
            return WildGuard(config.role, name, wire_text("wildguard"))
        case RaterKind.harmbench:
            return HarmBench(config.role, name, wire_text("harmbench"))
    raise AssertionError(config.kind)
