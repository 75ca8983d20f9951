"""SHARD: self-reframing distillation (arXiv 2606.15517), one row at a time.

    draft ──────┐
                ├──> reframe ──> record
    rewrite ────┘

The draft is the model's plain answer; the rewrite shows the request's benign intent, guided by universal principles and
by guidelines that the model itself wrote for the category; the reframed answer is made from request, rewrite and draft.

    recipe.generator=teacher                another model writes all of it (the paper's comparison)
    recipe.guidelines=false                 principles alone guide the rewrite (the authors' universal_only)
    ... and recipe.options.principles=false neither does (their instructions_only)
    recipe.options.rewrite=false            reframed from request and draft (their benign-intent refiner)
    recipe.options.draft=false              reframed from request and rewrite; ours
    recipe.options.thinking=true            a reasoning model learns to think before it answers, too
    recipe.rounds=3                         the new model is the next round's student; ours

Deviations from the authors' code: the rewrite is JSON under a schema with bounded retries (theirs falls back to raw
text), every request has a seed, rewriter and guideline writer are the same model.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from shard_dist.artefacts import whole_path
from shard_dist.config.schema import Backend, Config, ModelConfig, RecipeConfig
from shard_dist.engines.protocol import Ask, CallRefused
from shard_dist.prompts.render import Templates, principles
from shard_dist.recipes.base import Recipe, Work, options_of
from shard_dist.recipes.selection import Decision, Jury, compare_and_gate
from shard_dist.recipes.steps import keep, reason, seeded, until_parsed
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

# What makes a model another one, beside its weights and tokenizer; a quantized student is the student.
SAME = ("backend", "base_url", "revision", "chat_template_kwargs", "reasoning_parser")


@dataclass(frozen=True)
class Options:
    """What SHARD can do without, each for an ablation, and what of a reasoning model's words is trained on."""

    rewrite: bool = True
    """Reframe with the rewrite in view; false: from request and draft alone, and no guidelines are written."""
    draft: bool = True
    """Reframe with the draft in view; false: it is made all the same, since selection compares with it."""
    principles: bool = True
    """Give the universal principles to the rewrite; false, with recipe.guidelines=false: it has no guidance at all."""
    thinking: bool = False
    """Train on what the generator thought before its answer, too, and drop rows where it did not think. False: on the
    answer alone, also after a prompt at which the student's chat template lets it think."""


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
    options: Options = Options()

    async def __call__(self, prompt: Prompt, ask: Ask) -> Record:
        fields: dict[str, str] = {}
        first = [self._draft, self._rewrite] if self.options.rewrite else [self._draft]
        # The draft goes on even if the rewrite fails: what was asked is kept, and a failed row still shows its draft.
        outcomes = await asyncio.gather(*(step(prompt, ask, fields) for step in first), return_exceptions=True)
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
            principles=principles() if self.options.principles else (),
            guidelines=self.guidelines.get(prompt.category, ""),
        )
        _, parsed, asked = await until_parsed(
            ask,
            self.role,
            "rewrite",
            messages,
            REWRITE_SCHEMA,
            parse_rewrite,
            sampling=self.rewrite_sampling,
            seed=self.seed,
            key=prompt.key,
            attempts=self.rewrite_attempts,
        )
        fields.update(parsed, rewrite_attempts=str(asked))

    async def _reframe(self, prompt: Prompt, ask: Ask, fields: dict[str, str]) -> None:
        rewrite = {name: fields.get(name) for name in REWRITE_FIELDS}  # None: an ablation goes without it
        draft = fields["draft"] if self.options.draft else None
        messages = self.templates.messages("reframe", prompt=prompt.text, draft=draft, **rewrite)
        sampling = seeded(self.answer_sampling, self.seed, "reframe", *prompt.key)
        keep(fields, "reframed", await ask(self.role, "reframe", messages, sampling))


class ShardRecipe(Recipe):
    """recipe.generator says who writes: the student (self) or a teacher."""

    source = "arXiv 2606.15517"
    Options = Options

    def steps(self, recipe: RecipeConfig) -> list[str]:
        rewrite = ["rewrite", *(["guidelines"] if recipe.guidelines else [])]
        return [*(rewrite if options_of(recipe).rewrite else []), "reframe"]

    def check(self, config: Config) -> None:
        options: Options = options_of(config.recipe)
        if not (options.rewrite or options.draft):
            raise ValueError("recipe.options: rewrite and draft are both false, which leaves nothing to reframe")
        if not options.principles and (config.recipe.guidelines or not options.rewrite):
            raise ValueError(
                "recipe.options.principles=false is for a rewrite without guidance: it needs recipe.guidelines=false "
                "(guidelines are written from the principles) and recipe.options.rewrite=true"
            )
        for role in self.roles(config.recipe):
            check_generator(role, config, options.thinking)

    def generate(self, work: Work) -> Iterator[Record]:
        program = self.program(work, work.recipe.generator, "guidelines")
        work.save("guidelines.json", program.guidelines)
        return work.records("prompts", program, work.prompts(), empty=Prompt("", "", ""))

    def program(self, work: Work, role: str, unit: str) -> Shard:
        """The row program of a generator, whose guidelines are written first, in `unit`."""
        recipe, options = work.recipe, work.options
        categories = work.categories() if recipe.guidelines and options.rewrite else []
        guide = Guidelines(role, work.templates, recipe.guideline_sampling.sampling(), work.seed)
        return Shard(
            role=role,
            templates=work.templates,
            guidelines=dict(zip(categories, work.map(unit, guide, categories, empty=""), strict=True)),
            answer_sampling=recipe.answer_sampling.sampling(),
            rewrite_sampling=recipe.rewrite_sampling.sampling(),
            rewrite_attempts=recipe.rewrite_attempts,
            seed=work.seed,
            options=options,
        )

    def empty(self) -> Record:
        record = super().empty()
        return replace(record, fields={**record.fields, f"{self.target}_thinking": "so"})

    async def decide(self, record: Record, jury: Jury, ask: Ask) -> Decision:
        return await gated(record, self.target, "draft", jury, ask)


async def gated(record: Record, target: str, against: str, jury: Jury, ask: Ask) -> Decision:
    """SHARD's gate. Where thinking is trained on, an answer without any is no example (as in the authors' code)."""
    options: Options = jury.options or Options()
    thinking = f"{target}_thinking" if options.thinking else ""
    if thinking and not record.failure and not record.fields.get(thinking):
        return Decision(*record.prompt.key, False, "no_thinking")
    decision = await compare_and_gate(record, target, jury, ask, against)
    return replace(decision, thinking=thinking) if thinking else decision


def check_generator(role: str, config: Config, thinking: bool) -> None:
    """Raise ValueError for a teacher that is the student, and for one whose thinking cannot be learnt."""
    student, generator = config.models["student"], config.models[role]
    if role != "student" and _weights(generator) == _weights(student):
        raise ValueError(
            f"models.{role} is the student itself ({student.model}): a teacher is another model; leave "
            "recipe.generator at student for self-distillation"
        )
    if not thinking:
        return
    for name, model in (("student", student), (role, generator)):
        if model.backend == Backend.vllm and not model.reasoning_parser:
            raise ValueError(
                f"recipe.options.thinking needs models.{name}.reasoning_parser, which tells thinking from answer"
            )
        if model.chat_template_kwargs.get("enable_thinking") is False:
            raise ValueError(
                f"recipe.options.thinking contradicts models.{name}.chat_template_kwargs: enable_thinking is false"
            )


def _weights(spec: ModelConfig) -> list[Any]:
    return [whole_path(spec.model), whole_path(spec.tokenizer), *(getattr(spec, name) for name in SAME)]


RECIPE = ShardRecipe()
