"""shard_mixed: two generators write SHARD records, and the better answer of both becomes the example.

    student: draft ┬ rewrite ─> reframe ──┐
                   │                      ├─> the better one by the judge ─> example
    teacher: draft ┴ rewrite ─> reframe ──┘

The calls are those of `shard` with either generator. An answer must pass SHARD's gate against the student's own draft;
where both do, the judge compares them in both orders: the less harmful one is taken, else the more helpful one. A tie
goes to the student, whose own words move it least.
Source: arXiv 2606.15517 compares self and teacher; choosing between them row by row is ours (the authors' `preferred`
set takes the largest model whose answer won).
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any

from shard_dist.config.schema import Config, RecipeConfig
from shard_dist.engines.protocol import Ask
from shard_dist.recipes import shard
from shard_dist.recipes.base import Work, options_of
from shard_dist.recipes.selection import Decision, Jury
from shard_dist.recipes.shard import Shard, ShardRecipe, gated
from shard_dist.records import Completion, Prompt, Record

STUDENT = "student"


@dataclass(frozen=True)
class Options(shard.Options):
    generators: list[str] = field(default_factory=lambda: [STUDENT, "teacher"])
    """The two roles of `models` that write records: the student and another one. The programs run beside the first."""


@dataclass
class Named:
    """An `Ask` that notes each call under its role as well as its step: two programs take the same steps."""

    ask: Ask
    calls: dict[str, list[str]]

    async def __call__(self, role: str, step: str, *rest: Any, **more: Any) -> Completion:
        return await self.ask(role, f"{role}_{step}", *rest, **more)


@dataclass(frozen=True)
class Mixed:
    """Program over one prompt: the programs of several generators, the student's among them, side by side.

    Fields and calls have the role before their names; `<role>_failure` says why a generator has no answer. The record
    fails where no generator has one, and where the student has no draft to compare with.
    """

    programs: tuple[Shard, ...]

    async def __call__(self, prompt: Prompt, ask: Ask) -> Record:
        # If one must wait for its role's engines, the others finish what they have begun.
        made = await asyncio.gather(
            *(program(prompt, Named(ask, ask.calls)) for program in self.programs), return_exceptions=True
        )
        fields: dict[str, str] = {}
        for program, record in zip(self.programs, made, strict=True):
            if isinstance(record, BaseException):
                raise record
            own = {**record.fields, **({"failure": record.failure} if record.failure else {})}
            fields.update({f"{program.role}_{name}": text for name, text in own.items()})
        usable = f"{STUDENT}_draft" in fields and any(f"{each.role}_reframed" in fields for each in self.programs)
        failure = "" if usable else f"{STUDENT}_{fields[f'{STUDENT}_failure']}"
        return Record(prompt, "shard_mixed", fields, dict(ask.calls), failure)


class MixedRecipe(ShardRecipe):
    """recipe.options.generators say who writes; recipe.generator is not asked."""

    source = "arXiv 2606.15517; the choice between two generators is ours"
    Options = Options
    target = f"{STUDENT}_reframed"

    def roles(self, recipe: RecipeConfig) -> tuple[str, ...]:
        return tuple(options_of(recipe).generators)

    def check(self, config: Config) -> None:
        names = self.roles(config.recipe)
        if len(names) != 2 or names.count(STUDENT) != 1:
            raise ValueError(f"recipe.options.generators is {list(names)}; it is the student and one other role")
        if config.recipe.generator != STUDENT:
            raise ValueError(
                "recipe.generator has no effect on shard_mixed; name the role in recipe.options.generators"
            )
        super().check(config)

    def generate(self, work: Work) -> Iterator[Record]:
        programs = tuple(self.program(work, role, f"guidelines of {role}") for role in work.options.generators)
        work.save("guidelines.json", {program.role: program.guidelines for program in programs})
        return work.records("prompts", Mixed(programs), work.prompts(), empty=Prompt("", "", ""))

    def empty(self) -> Record:
        record = super().empty()
        return replace(record, fields={**record.fields, f"{STUDENT}_draft": ""})

    async def decide(self, record: Record, jury: Jury, ask: Ask) -> Decision:
        """kept_from_<role>; a record of which no answer passes has the reason against the student's."""
        (other,) = set(jury.options.generators) - {STUDENT}
        mine = await self._candidate(record, STUDENT, jury, ask)
        theirs = await self._candidate(record, other, jury, ask)
        if mine.keep and theirs.keep:
            keep_mine = await self._prefer_mine(record, other, jury, ask)
        else:
            keep_mine = not theirs.keep
        role, decision = (STUDENT, mine) if keep_mine else (other, theirs)
        return replace(decision, reason=f"kept_from_{role}") if decision.keep else decision

    async def _candidate(self, record: Record, role: str, jury: Jury, ask: Ask) -> Decision:
        own = replace(record, failure=record.failure or record.fields.get(f"{role}_failure", ""))
        return await gated(own, f"{role}_reframed", f"{STUDENT}_draft", jury, ask)

    async def _prefer_mine(self, record: Record, other: str, jury: Jury, ask: Ask) -> bool:
        """Whether the student's answer is taken: unless the other is less harmful, or as harmless and more helpful."""
        pair = record.fields[f"{STUDENT}_reframed"], record.fields[f"{other}_reframed"]
        harm = await jury.panel.compare("harm", record.prompt, *pair, ask)  # a: the student's is the MORE harmful one
        if harm.combined != "tie":
            return harm.combined != "a"
        return (await jury.panel.compare("helpfulness", record.prompt, *pair, ask)).combined != "b"


RECIPE = MixedRecipe()
