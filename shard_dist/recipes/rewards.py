"""Rewards of several answers to one prompt, and the best and the worst of them.

    answer_1 .. answer_K ── fit? ──> harm, help ──> reward ──> best, worst

Two ways to a reward (the first is our design after Safe to Serve, arXiv 2412.00074, which has two reward models):

    lexicographic   (-harm, help): whatever is safe goes before whatever is not, then the more helpful answer
    weighted        help_weight * help - harm_weight * harm: much help may outweigh harm

`harm` is 0 or 1, by the classes of the judges of `select.raters` that call answers unsafe: their scores have no common
direction (a probability of harm, a grade of harmlessness). `help` is the score of the one judge that knows neither
harm nor refusals. Other judges are not asked. Answers that `unfit` puts out are not judged, and one with a rating that
did not parse is neither best nor worst: half a measurement clears nobody.
"""

from __future__ import annotations

import asyncio
import json
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from itertools import count, takewhile
from typing import TYPE_CHECKING

from shard_dist.config.schema import Config
from shard_dist.judges.protocol import PointwiseJudge, Rating
from shard_dist.judges.registry import rater
from shard_dist.prompts.render import Templates
from shard_dist.recipes.base import Work
from shard_dist.recipes.selection import unfit
from shard_dist.recipes.steps import Answers
from shard_dist.records import Prompt, Record

if TYPE_CHECKING:
    from shard_dist.engines.protocol import Ask


class Ranking(StrEnum):
    lexicographic = "lexicographic"
    weighted = "weighted"


@dataclass
class RewardOptions:
    """Settings of recipes that rank samples."""

    samples: int = 8
    """Answers to each prompt (K)."""
    temperature: float = 0.85
    """Their sampling temperature; all else is recipe.answer_sampling."""
    ranking: Ranking = Ranking.lexicographic
    """lexicographic: safe before unsafe, then by help; weighted: by the two weights, which may choose an unsafe one."""
    help_weight: float = 1.0
    """weighted: what a unit of the help rater's score is worth."""
    harm_weight: float = 1.0
    """weighted: what it costs that an answer is unsafe, in the same unit."""


@dataclass(frozen=True)
class Candidate:
    """A fit answer by its field. `harm` is above 0 where it is unsafe (0 or 1 by raters), `help` on its rater's scale;
    None: the rating did not parse."""

    field: str
    harm: float | None
    help: float | None


@dataclass(frozen=True)
class Ranked:
    """`best` and `worst` are fields of the record, "" where `reason` says why there is none; `gap` is by how much the
    best is ahead in reward: infinite where only it is safe and that comes first."""

    reason: str
    best: str = ""
    worst: str = ""
    gap: float = 0.0


@dataclass(frozen=True)
class Raters:
    """The judges behind a reward."""

    safety: tuple[PointwiseJudge, ...]
    help: PointwiseJudge


def check_rewards(options: RewardOptions) -> None:
    """Raise ValueError for samples of which none can be better, and for weights that rank nothing."""
    if options.samples < 2:
        raise ValueError(f"recipe.options.samples is {options.samples}; at least 2 can be ranked")
    if not (math.isfinite(options.temperature) and options.temperature > 0):
        raise ValueError(f"recipe.options.temperature is {options.temperature}; above 0, or all samples are the same")
    for name in ("help_weight", "harm_weight"):
        value = getattr(options, name)
        if not (math.isfinite(value) and value >= 0):
            raise ValueError(f"recipe.options.{name} is {value}; a number from 0")
        if options.ranking == Ranking.lexicographic and value != getattr(RewardOptions, name):
            raise ValueError(f"recipe.options.{name} has no meaning for ranking=lexicographic; set ranking=weighted")
    if options.ranking == Ranking.weighted and not options.help_weight + options.harm_weight:
        raise ValueError("recipe.options: help_weight and harm_weight are both 0, which makes all answers equal")


def sampled(work: Work) -> Iterator[Record]:
    """For every prompt a record with `options.samples` answers of recipe.generator."""
    recipe, options = work.recipe, work.options
    sampling = replace(recipe.answer_sampling.sampling(), temperature=options.temperature, n=options.samples)
    program = Answers(recipe.name, recipe.generator, work.templates, sampling, work.seed)
    return work.records("prompts", program, work.prompts(), empty=Prompt("", "", ""))


def configured(config: Config) -> tuple[PointwiseJudge, ...]:
    """The judges of `select.raters`, as the stage will have them."""
    select, templates = config.select, Templates(config.recipe.templates)
    sampling = select.judge_sampling.sampling()
    return tuple(rater(each, templates, sampling, select.judge_attempts, config.run.seed) for each in select.raters)


def safety_raters(judges: Iterable[PointwiseJudge]) -> tuple[PointwiseJudge, ...]:
    """Those that call answers unsafe. Raises ValueError where there is none."""
    found = tuple(judge for judge in judges if judge.unsafe)
    if not found:
        raise ValueError(
            "select.raters has no judge that tells unsafe answers (llama_guard, wildguard, harmlessness, ...)"
        )
    return found


def raters_of(judges: Sequence[PointwiseJudge]) -> Raters:
    """Raises ValueError where there is no safety rater, or not one help rater: scores of two share no scale."""
    helping = [judge for judge in judges if not judge.unsafe and not judge.refused]
    if len(helping) != 1:
        names = ", ".join(judge.name for judge in helping) or "none"
        raise ValueError(f"select.raters needs one judge of help (helpfulness or reward); it has {names}")
    return Raters(safety_raters(judges), helping[0])


def candidates(record: Record) -> list[str]:
    """Fields of the record's answers, in their order."""
    return list(takewhile(record.fields.__contains__, (f"answer_{number}" for number in count(1))))


def fit_candidates(record: Record) -> tuple[str, list[str]]:
    """("", the answers that no cheap rule puts out), or why there is none: their common reason, else all_unfit."""
    reasons = {name: unfit(record, name) for name in candidates(record)} or {"": unfit(record, "answer_1")}
    fit = [name for name, reason in reasons.items() if not reason]
    if fit:
        return "", fit
    found = set(reasons.values())
    return (found.pop() if len(found) == 1 else "all_unfit"), []


def harm_of(ratings: Sequence[tuple[PointwiseJudge, Rating]]) -> float | None:
    """1 where one judge calls the answer unsafe, else None where one did not parse, else 0."""
    if any(rating.verdict in judge.unsafe for judge, rating in ratings):
        return 1.0
    return 0.0 if all(rating.parsed for _, rating in ratings) else None


async def harm(prompt: Prompt, answer: str, judges: Sequence[PointwiseJudge], ask: Ask) -> float | None:
    """`harm_of` what these judges say of an answer."""
    ratings = await asyncio.gather(*(judge.rate(prompt, answer, ask) for judge in judges))
    return harm_of(list(zip(judges, ratings, strict=True)))


async def rate(record: Record, fields: Sequence[str], raters: Raters, ask: Ask) -> list[Candidate]:
    """The answers in `fields`, rated; those that are the same word for word once."""
    texts = list(dict.fromkeys(record.fields[name] for name in fields))
    rated = dict(zip(texts, await asyncio.gather(*(_rated(record.prompt, text, raters, ask) for text in texts)),
                     strict=True))  # fmt: skip
    return [Candidate(name, *rated[record.fields[name]]) for name in fields]


async def _rated(prompt: Prompt, text: str, raters: Raters, ask: Ask) -> tuple[float | None, float | None]:
    harmful, helped = await asyncio.gather(harm(prompt, text, raters.safety, ask), raters.help.rate(prompt, text, ask))
    return harmful, helped.score if helped.parsed else None


def reward(candidate: Candidate, options: RewardOptions) -> tuple[float, ...]:
    """What is compared, from left to right."""
    assert candidate.harm is not None, candidate
    assert candidate.help is not None, candidate
    if options.ranking == Ranking.weighted:
        return (options.help_weight * candidate.help - options.harm_weight * candidate.harm,)
    return (-candidate.harm, candidate.help)


def choose(rated: Sequence[Candidate], options: RewardOptions) -> Ranked:
    """Best and worst by reward, the first of equals. Without one that is safe there is no best: all_unsafe."""
    known = [each for each in rated if each.harm is not None and each.help is not None]
    if not known:
        return Ranked("unparsed_verdict")
    if all((each.harm or 0) > 0 for each in known):
        return Ranked("all_unsafe")
    best, worst = (pick(known, key=lambda each: reward(each, options)) for pick in (max, min))
    ahead = [one - other for one, other in zip(reward(best, options), reward(worst, options), strict=True)]
    return Ranked("", best.field, worst.field, math.inf if len(ahead) > 1 and ahead[0] else ahead[-1])


def scores(rated: Iterable[Candidate]) -> str:
    """JSON of what is known of each answer: field -> {"harm", "help"}; null where a rating did not parse."""
    return json.dumps({each.field: {"harm": each.harm, "help": each.help} for each in rated})
