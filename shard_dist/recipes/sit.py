"""SIT: safety instruction tuning (Safe to Serve, arXiv 2412.00074; data after Safety-Tuned LLaMAs, arXiv 2309.07875).

    helpful rows: recipe.mix ───────────────────────────────┐
    n safety rows: prompts ──> answers of the generator ──> safe? ──> SFT on both

The n rows are drawn among the sensitive prompts of train by a hash of run.seed and key, so that those of a smaller n
are among those of a larger one. Prompts of val are drawn by the same threshold: about n / train of them. All others
are failed rows, `not_drawn`, without a call. n counts prompts asked: answers that are not kept are missing then.
The papers' answers are GPT-3.5's, refusals among them, and none was judged. Here a refusal counts as safe
(refusals=false drops them), and each judge of `select.raters` that tells unsafe answers must call an answer safe.
"""

from __future__ import annotations

import heapq
import warnings
from collections.abc import Iterator
from dataclasses import dataclass

from shard_dist.config.schema import Config
from shard_dist.data.split import digest
from shard_dist.engines.protocol import Ask
from shard_dist.engines.rows import Rows
from shard_dist.recipes.base import Recipe, Work, options_of
from shard_dist.recipes.rewards import configured, harm, safety_raters
from shard_dist.recipes.selection import Decision, Jury, unfit
from shard_dist.recipes.steps import Answers
from shard_dist.records import Key, Prompt, Record

TARGET = "answer_1"
BLOCK = 4096  # prompts read at once


@dataclass
class Options:
    safety: int = 500
    """n: prompts of train that get a safe answer; 0, 100, 300, 500, 1000, 1500 and 2000 in the papers."""
    refusals: bool = True
    """Keep answers that refuse in full: they are safe, and the papers' data have them."""


@dataclass(frozen=True)
class SafetyRow:
    """Program over one prompt: the generator's answer where the prompt's place is among the drawn ones."""

    answers: Answers
    last: bytes

    async def __call__(self, prompt: Prompt, ask: Ask) -> Record:
        if prompt.benign or place(prompt, self.answers.seed) > self.last:
            return Record(prompt, self.answers.recipe, failure="not_drawn")
        return await self.answers(prompt, ask)


class Sit(Recipe):
    source = "arXiv 2412.00074, data after arXiv 2309.07875; answers are judged"
    Options = Options
    target = TARGET

    def check(self, config: Config) -> None:
        count: int = options_of(config.recipe).safety
        if count < 0:
            raise ValueError(f"recipe.options.safety is {count}; at least 0")
        if not count and not config.recipe.mix:
            raise ValueError("recipe.options.safety is 0 and recipe.mix is empty: there is nothing to train on")
        if count:
            safety_raters(configured(config))
        if not config.recipe.mix:
            warnings.warn(f"recipe.mix is empty: {count} safety rows and no helpful ones", stacklevel=2)

    def generate(self, work: Work) -> Iterator[Record]:
        """Raises ValueError where train has fewer sensitive prompts than are to be drawn, before a call is made."""
        recipe = work.recipe
        answers = Answers(recipe.name, recipe.generator, work.templates, recipe.answer_sampling.sampling(), work.seed)
        last, key = last_drawn(work.prompts("train"), work.options.safety, work.seed)
        return work.records("prompts", SafetyRow(answers, last), work.prompts(), empty=Prompt(*key, ""))

    async def decide(self, record: Record, jury: Jury, ask: Ask) -> Decision:
        """Kept where it is safe; whether it is of help, or on topic, is no matter."""
        key, answer = record.prompt.key, record.fields.get(TARGET, "")
        dropped = unfit(record, TARGET)
        refusing = dropped == "refusing"
        if dropped and not (refusing and jury.options.refusals):
            return Decision(*key, False, dropped)
        harmful = await harm(record.prompt, answer, safety_raters(jury.raters), ask)
        if harmful is None:
            return Decision(*key, False, "unparsed_verdict")
        if harmful:
            return Decision(*key, False, "unsafe")
        return Decision(*key, True, "kept_refusal" if refusing else "kept_safe", chosen=TARGET)


def place(prompt: Prompt, seed: int) -> bytes:
    """Where a prompt stands in the order of drawing; other prompts have no say."""
    return digest(seed, "sit", *prompt.key)


def last_drawn(rows: Rows, count: int, seed: int) -> tuple[bytes, Key]:
    """Place and key of the last of `count` prompts that are drawn, benign ones left out; b"" before all for none."""
    blocks = (rows.read(range(start, min(start + BLOCK, len(rows)))) for start in range(0, len(rows), BLOCK))
    places = ((place(prompt, seed), prompt.key) for block in blocks for prompt in block if not prompt.benign)
    drawn = heapq.nsmallest(count, places)
    if len(drawn) < count:
        raise ValueError(
            f"recipe.options.safety is {count} and only {len(drawn)} prompts of train are sensitive; lower it, or give "
            "more data.sources"
        )
    return drawn[-1] if drawn else (b"", ("", ""))


RECIPE = Sit()
