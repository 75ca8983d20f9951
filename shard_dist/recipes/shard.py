"""SHARD: self-reframing distillation (arXiv 2606.15517), one row at a time.

    draft ──────┐
                ├──> reframe ──> record
    rewrite ────┘

The draft is the model's plain answer; the rewrite shows the request's benign intent, guided by universal principles and
by guidelines that the model itself wrote for the category; the reframed answer is made from request, rewrite and draft.
Deviations from the authors' code: the rewrite is JSON under a schema with bounded retries (theirs falls back to raw
text), every request has a seed, rewriter and guideline writer are the same model.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from shard_dist.config.schema import RecipeConfig
from shard_dist.engines.protocol import Ask, CallRefused
from shard_dist.prompts.render import Templates, principles
from shard_dist.recipes.base import Recipe, Work
from shard_dist.recipes.steps import keep, reason, seeded
from shard_dist.records import Prompt, Record, Sampling

RESPONSE_MODES = ("direct_answer", "soft_reframe", "acknowledge_and_redirect")
REWRITE_FIELDS = ("rewritten_prompt", "response_mode", "reformulated_component", "preserved_benign_need")
REWRITE_SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {
        "rewritten_prompt": {"type": "string", "minLength": 1},
        "response_mode": {"type": "string", "enum": list(RESPONSE_MODES)},
        "reformulated_component": {"type": "string", "maxLength": 200},  # short phrases
        "preserved_benign_need": {"type": "string", "maxLength": 200},
    },
    "required": list(REWRITE_FIELDS),
    "additionalProperties": False,
}


def parse_rewrite(text: str) -> dict[str, str] | None:
    """The four fields of a rewrite, or None where `text` is not exactly the JSON that the schema asks for."""
    try:
        value = json.loads(text)
    except ValueError:
        return None
    if not isinstance(value, dict) or set(value) != set(REWRITE_FIELDS):
        return None
    if not all(isinstance(item, str) for item in value.values()):
        return None
    if value["response_mode"] not in RESPONSE_MODES or not value["rewritten_prompt"].strip():
        return None
    return {name: value[name].strip() for name in REWRITE_FIELDS}


@dataclass(frozen=True)
class Guidelines:
    """Program over one category: the generator writes its guidelines, once per run. Returns the text."""

    role: str
    templates: Templates
    sampling: Sampling
    seed: int

    async def __call__(self, category: str, ask: Ask) -> str:
        """Raises ValueError where the model writes none: every row of the category would go without."""
        messages = self.templates.messages("guidelines", category=category, principles=principles())
        sampling = seeded(self.sampling, self.seed, "guidelines", category)
        try:
            completion = await ask(self.role, "guidelines", messages, sampling)
        except CallRefused as error:
            raise ValueError(f"no guidelines for category {category!r}: {error}") from error
        if not completion.text.strip():
            raise ValueError(f"models.{self.role} wrote no guidelines for {category!r}; or set recipe.guidelines=false")
        return completion.text.strip()


@dataclass(frozen=True)
class Shard:
    """Program over one prompt. `guidelines` maps a category to its text ({}: none)."""

    role: str
    templates: Templates
    guidelines: dict[str, str]
    answer_sampling: Sampling
    rewrite_sampling: Sampling
    rewrite_attempts: int
    seed: int

    async def __call__(self, prompt: Prompt, ask: Ask) -> Record:
        fields: dict[str, str] = {}
        # The draft goes on even if the rewrite fails: what was asked is kept, and a failed row still shows its draft.
        outcomes = await asyncio.gather(
            self._draft(prompt, ask, fields), self._rewrite(prompt, ask, fields), return_exceptions=True
        )
        failure = next((reason(outcome) for outcome in outcomes if outcome is not None), "")
        if not failure:
            try:
                await self._reframe(prompt, ask, fields)
            except CallRefused as error:
                failure = reason(error, "reframe")
        return Record(prompt, "shard", fields, dict(ask.calls), failure)

    async def _draft(self, prompt: Prompt, ask: Ask, fields: dict[str, str]) -> None:
        # The step is named like an arm's answer in evaluation: the same question has the same seed and key.
        sampling = seeded(self.answer_sampling, self.seed, "answer", *prompt.key)
        try:
            completion = await ask(self.role, "draft", self.templates.chat(prompt.text), sampling)
        except CallRefused as error:
            raise CallRefused(f"draft_{error.reason}", str(error)) from error
        keep(fields, "draft", completion)

    async def _rewrite(self, prompt: Prompt, ask: Ask, fields: dict[str, str]) -> None:
        messages = self.templates.messages(
            "rewrite",
            prompt=prompt.text,
            category=prompt.category,
            principles=principles(),
            guidelines=self.guidelines.get(prompt.category, ""),
        )
        for attempt in range(self.rewrite_attempts):
            sampling = seeded(self.rewrite_sampling, self.seed, "rewrite", *prompt.key, str(attempt))
            try:
                completion = await ask(self.role, "rewrite", messages, sampling, REWRITE_SCHEMA)
            except CallRefused as error:
                raise CallRefused(f"rewrite_{error.reason}", str(error)) from error
            parsed = parse_rewrite(completion.text)
            if parsed is not None:
                fields.update(parsed, rewrite_attempts=str(attempt + 1))
                return
        raise CallRefused(
            "rewrite_no_valid_json", f"{self.rewrite_attempts} attempts; the last: {completion.text[:200]!r}"
        )

    async def _reframe(self, prompt: Prompt, ask: Ask, fields: dict[str, str]) -> None:
        rewrite = {name: fields[name] for name in REWRITE_FIELDS}
        messages = self.templates.messages("reframe", prompt=prompt.text, draft=fields["draft"], **rewrite)
        sampling = seeded(self.answer_sampling, self.seed, "reframe", *prompt.key)
        keep(fields, "reframed", await ask(self.role, "reframe", messages, sampling))


class ShardRecipe(Recipe):
    """recipe.generator says who writes: the student (self) or a teacher."""

    source = "arXiv 2606.15517"

    def steps(self, recipe: RecipeConfig) -> list[str]:
        return ["rewrite", "reframe", *(["guidelines"] if recipe.guidelines else [])]

    def generate(self, work: Work) -> Iterator[Record]:
        recipe, role = work.recipe, work.recipe.generator
        categories = work.categories() if recipe.guidelines else []
        guide = Guidelines(role, work.templates, recipe.guideline_sampling.sampling(), work.seed)
        guidelines = dict(zip(categories, work.map("guidelines", guide, categories, empty=""), strict=True))
        work.save("guidelines.json", guidelines)
        program = Shard(
            role=role,
            templates=work.templates,
            guidelines=guidelines,
            answer_sampling=recipe.answer_sampling.sampling(),
            rewrite_sampling=recipe.rewrite_sampling.sampling(),
            rewrite_attempts=recipe.rewrite_attempts,
            seed=work.seed,
        )
        return work.records("prompts", program, work.prompts(), empty=Prompt("", "", ""))


RECIPE = ShardRecipe()
