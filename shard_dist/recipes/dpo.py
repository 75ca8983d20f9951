"""DPO: direct preference optimisation (Rafailov et al. 2023, arXiv 2305.18290), the best of three in Safe to Serve
(arXiv 2412.00074).

    prompt ──> K samples ──> rewards ──> (chosen: the best, rejected: the worst) ──> train.dpo

Rewards are those of `rewards.py`. Without `select.raters` the pairwise judge stands in: the first fit answer is
compared with each of the others, in both orders, and an answer's help and harm are -1, 0 or 1 against the first. That
is K - 1 comparisons instead of K (K - 1) / 2; of several that beat the first the earliest is taken: they never meet.
Pairs of files come in by `recipe.mix`, beside those of samples or, with samples=0, alone: then nothing is sampled.
Deviations: Safe to Serve trains on human preferences (safe-RLHF), which is `recipe.mix`. Answers that refuse, are empty
or were cut are neither chosen nor rejected, so pairs teach no difference in form.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from shard_dist.config.schema import Config, MixConfig, Objective, RecipeConfig
from shard_dist.data.interchange import read_examples
from shard_dist.engines.protocol import Ask
from shard_dist.judges.panel import Panel
from shard_dist.judges.protocol import QUESTIONS
from shard_dist.recipes.base import Recipe, Work, options_of
from shard_dist.recipes.rewards import (
    Candidate,
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
from shard_dist.records import Prompt, Record

MORE = {"a": -1.0, "tie": 0.0, "b": 1.0, "unparsed": None}  # of the second answer, against the first


@dataclass
class Options(RewardOptions):
    """`samples` may be 0: pairs come from the files of recipe.mix alone."""

    margin: float = 0.0
    """The best must be ahead of the worst by more than this in reward; being the only safe one of the two is enough."""


@dataclass(frozen=True)
class NotSampled:
    """Program over one prompt: nothing is asked."""

    async def __call__(self, prompt: Prompt, ask: Ask) -> Record:
        return Record(prompt, "dpo", failure="not_sampled")


class Dpo(Recipe):
    source = "arXiv 2305.18290; pairs from samples after arXiv 2412.00074"
    Options = Options
    target = "answer_1"

    def roles(self, recipe: RecipeConfig) -> tuple[str, ...]:
        return (recipe.generator,) if options_of(recipe).samples else ()

    def check(self, config: Config) -> None:
        options: Options = options_of(config.recipe)
        if not (math.isfinite(options.margin) and options.margin >= 0):
            raise ValueError(f"recipe.options.margin is {options.margin}; a number from 0")
        for name in ("label_smoothing", "z_loss"):
            if getattr(config.train, name):
                raise ValueError(f"train.{name} changes the log-probabilities that dpo compares; set it to 0")
        if options.samples:
            check_rewards(options)
            if config.select.raters:
                raters_of(configured(config))
        elif not any(has_pairs(mix) for mix in config.recipe.mix):
            raise ValueError(
                "recipe.options.samples is 0 and no file of recipe.mix has pairs for dpo: there is nothing to prefer"
            )

    def generate(self, work: Work) -> Iterator[Record]:
        return sampled(work) if work.options.samples else work.records("prompts", NotSampled(), work.prompts())

    def empty(self) -> Record:
        fields = {"answer_1": "yes", "answer_2": "no"}
        return Record(Prompt("", "", ""), "", fields)

    async def decide(self, record: Record, jury: Jury, ask: Ask) -> Decision:
        """The best answer and the worst one, where the judges see a difference."""
        reason, fit = fit_candidates(record)
        if reason:
            return Decision(*record.prompt.key, False, reason)
        if jury.raters:
            rated = await rate(record, fit, raters_of(jury.raters), ask)
        else:
            rated = await against_first(record, fit, jury.panel, ask)
        ranked = choose(rated, jury.options)
        reason = ranked.reason or ("kept_pair" if ranked.gap > jury.options.margin else "no_preference")
        pair = (ranked.best, ranked.worst) if reason == "kept_pair" else ("", "")
        return Decision(
            *record.prompt.key, bool(pair[0]), reason, chosen=pair[0], rejected=pair[1], scores=scores(rated)
        )


async def against_first(record: Record, fields: Sequence[str], panel: Panel, ask: Ask) -> list[Candidate]:
    """The answers in `fields` by the pairwise judge; those that are the first one word for word are as it is."""
    first = record.fields[fields[0]]
    others = list(dict.fromkeys(record.fields[name] for name in fields if record.fields[name] != first))
    asked = [(text, question) for text in others for question in QUESTIONS]
    verdicts = await asyncio.gather(
        *(panel.compare(question, record.prompt, first, text, ask) for text, question in asked)
    )
    more = {pair: MORE[verdict.combined] for pair, verdict in zip(asked, verdicts, strict=True)}
    more |= {(first, question): 0.0 for question in QUESTIONS}
    return [Candidate(name, more[record.fields[name], "harm"], more[record.fields[name], "helpfulness"])
            for name in fields]  # fmt: skip


def has_pairs(mix: MixConfig) -> bool:
    """Whether a file gives an example for dpo; it is read up to the first one. Raises ValueError for a faulty file."""
    if mix.objective not in (Objective.own, Objective.dpo):
        return False
    own = mix.objective == Objective.own
    examples = read_examples(Path(mix.path), mix.format)
    return any(each.rejected and (each.objective == "dpo" or not own) for each in examples)


RECIPE = Dpo()
