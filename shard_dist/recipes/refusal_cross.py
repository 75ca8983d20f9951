"""Refusal-pattern SFT, cross: the student learns the refusals of the model that refuses most, and most alike.

    teacher, further ones ──> answers ──> study of each ──> findings/patterns.json
                                 │ of the one that refuses most
                                 ├── sensitive prompt, verified refusal ──> example
                                 └── benign prompt, plain answer ─────────> example

Source: arXiv 2406.11285, WITHDRAWN by its authors, who say that the method is no distillation and lacks baselines. The
method is kept as a baseline. Only an abstract is known to us, so this is a reconstruction: targets are refusals as the
teacher wrote them, verified by the refusal rules and by the judges of select.raters that tell; benign prompts get its
plain answers (recipe.options.benign). refusal_self.py says why a uniform pattern is a diagnostic and no sign of safety.
The refusal rate of 94.51 % that the paper names is that of its teacher itself, no result of training.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from shard_dist.config.schema import Config, RecipeConfig
from shard_dist.recipes.base import Recipe, Work, options_of
from shard_dist.recipes.refusals import ANSWER, keep_benign, keep_refusal, seen, study
from shard_dist.recipes.selection import Decision, Jury
from shard_dist.recipes.steps import Answers
from shard_dist.records import Prompt, Record

if TYPE_CHECKING:
    from shard_dist.engines.protocol import Ask


@dataclass
class Options:
    benign: bool = True
    """Train on the teacher's plain answers to benign prompts (level 0) too, against over-refusal."""
    teachers: list[str] = field(default_factory=list)
    """Roles of `models` that are candidates beside recipe.generator. The one teaches that has the highest refusal rate
    on the sensitive prompts of train, of equal ones the most uniform."""


class RefusalCross(Recipe):
    source = "arXiv 2406.11285, withdrawn by its authors; reconstructed from its abstract, as a baseline"
    Options = Options
    target = ANSWER

    def roles(self, recipe: RecipeConfig) -> tuple[str, ...]:
        return (recipe.generator, *options_of(recipe).teachers)

    def check(self, config: Config) -> None:
        roles = self.roles(config.recipe)
        if "student" in roles:
            raise ValueError(
                "refusal_cross: the student is no teacher; name another role of models as recipe.generator (and in "
                "recipe.options.teachers), or use refusal_self for its own refusals"
            )
        if len(set(roles)) < len(roles):
            raise ValueError(f"recipe.options.teachers: {', '.join(roles)} names a role twice (recipe.generator first)")

    def generate(self, work: Work) -> Iterator[Record]:
        """Raises ValueError where no teacher refuses anything."""
        sampling = work.recipe.answer_sampling.sampling()

        def answers(role: str) -> Iterator[Record]:
            program = Answers("refusal_cross", role, work.templates, sampling, work.seed)
            return work.records(f"answers of {role}", program, work.prompts(), empty=Prompt("", "", ""))

        found = {role: study(seen(answers(role))) for role in self.roles(work.recipe)}
        taken = max(found, key=lambda role: rank(found[role]))
        work.save("patterns.json", {"taken": taken, "models": found})
        if not found[taken]["kinds"]["full"]:
            raise ValueError(
                f"refusal_cross: {', '.join(f'models.{role}' for role in found)} refused no sensitive prompt of train "
                "in full, so there is nothing to learn from; name a teacher that refuses, or give data.sources with "
                "prompts above level 0"
            )
        return answers(taken)  # they lie in the run: nothing is asked again

    def empty(self) -> Record:
        fields = {ANSWER: "I'm sorry, but I can't help with that.", f"{ANSWER}_finish_reason": "stop"}
        return Record(Prompt("", "", ""), "refusal_cross", fields)

    async def decide(self, record: Record, jury: Jury, ask: Ask) -> Decision:
        if record.prompt.benign:
            return await keep_benign(record, jury, ask)
        return await keep_refusal(record, ANSWER, jury, ask)


def rank(found: dict[str, Any]) -> tuple[float, float]:
    """(refusal rate, uniformity), 0 where there is none to speak of."""
    return found["refusal_rate"]["value"] or 0.0, found["uniformity"] or 0.0


RECIPE = RefusalCross()
