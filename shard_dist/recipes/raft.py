"""RAFT: reward-ranked fine-tuning (Dong et al. 2023, arXiv 2304.06767), as Safe to Serve (arXiv 2412.00074) uses it.

    prompt ──> K samples ──> rewards ──> the best one ──> SFT ──> the next round samples from the new model

The T iterations are `recipe.rounds`, with `recipe.min_gain: null` where all of them shall be run. A generator other
than the student makes it best-of-K distillation in one round.
Deviations: every round has all prompts (theirs draws a batch of them); the reward is that of `rewards.py`; samples that
refuse, are empty or were cut are out beforehand. The optional term r - beta * log(pi_t / pi_0) is left out: pi_0 would
have to serve in every round and while judges select, and a call of kind likelihood is of raw text, not of an answer
under a chat template.
"""

from __future__ import annotations

from collections.abc import Iterator

from shard_dist.config.schema import Config
from shard_dist.engines.protocol import Ask
from shard_dist.recipes.base import Recipe, Work, options_of
from shard_dist.recipes.rewards import (
    RewardOptions,
    check_rewards,
    choose,
    configured,
    fit_candidates,
    rate,
    raters_of,
    sampled,
    scores,
)
from shard_dist.recipes.selection import Decision, Jury
from shard_dist.records import Record


class Raft(Recipe):
    source = "arXiv 2304.06767; rewards after arXiv 2412.00074, without the KL term"
    Options = RewardOptions
    target = "answer_1"

    def check(self, config: Config) -> None:
        check_rewards(options_of(config.recipe))
        raters_of(configured(config))
        if config.recipe.rounds > 1 and config.recipe.generator != "student":
            raise ValueError(
                f"recipe.rounds is {config.recipe.rounds} and recipe.generator {config.recipe.generator}, which no "
                "round changes: take the student, or one round"
            )

    def generate(self, work: Work) -> Iterator[Record]:
        return sampled(work)

    async def decide(self, record: Record, jury: Jury, ask: Ask) -> Decision:
        """The best answer by reward."""
        reason, fit = fit_candidates(record)
        if reason:
            return Decision(*record.prompt.key, False, reason)
        rated = await rate(record, fit, raters_of(jury.raters), ask)
        ranked = choose(rated, jury.options)
        keep, reason = not ranked.reason, ranked.reason or "kept_best"
        return Decision(*record.prompt.key, keep, reason, chosen=ranked.best, scores=scores(rated))


RECIPE = Raft()
