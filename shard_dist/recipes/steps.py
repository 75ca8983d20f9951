"""What row programs of several recipes share: seeds of their requests, how an answer is kept, why a row failed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, TypeVar

from shard_dist.engines.protocol import CallRefused
from shard_dist.ledger.key import request_seed
from shard_dist.prompts.render import Templates
from shard_dist.records import Completion, Key, Message, Prompt, Record, Sampling

if TYPE_CHECKING:
    from shard_dist.engines.protocol import Ask

T = TypeVar("T")


def seeded(sampling: Sampling, seed: int, *parts: str) -> Sampling:
    """The sampling of one request: its seed is a function of the run's and of `parts`."""
    return replace(sampling, seed=request_seed(seed, *parts))


def keep(fields: dict[str, str], name: str, completion: Completion, sample: int = 0) -> None:
    """Field `name` is the sample's text; its finish reason and its thinking stand beside it."""
    fields[name] = completion.texts[sample].strip()
    fields[f"{name}_finish_reason"] = completion.finish_reasons[sample]
    if completion.thinking and completion.thinking[sample]:
        fields[f"{name}_thinking"] = completion.thinking[sample]


def reason(outcome: BaseException, step: str = "") -> str:
    """The failure's word for the counts. Anything but CallRefused is no row's own failure and goes up."""
    if not isinstance(outcome, CallRefused):
        raise outcome
    return f"{step}_{outcome.reason}" if step else outcome.reason


async def until_parsed(
    ask: Ask,
    role: str,
    step: str,
    messages: tuple[Message, ...],
    schema: dict[str, Any],
    parse: Callable[[str], T | None],
    *,
    sampling: Sampling,
    seed: int,
    key: Key,
    attempts: int,
) -> tuple[Completion, T, int]:
    """The first reply under `schema` of which `parse` makes something, what it makes, and how many were asked for.

    Each attempt has a seed of its own. Raises CallRefused, whose reason begins with the step's name, where a call is
    refused and where no reply says anything.
    """
    text = ""
    for attempt in range(attempts):
        try:
            completion = await ask(role, step, messages, seeded(sampling, seed, step, *key, str(attempt)), schema)
        except CallRefused as error:
            raise CallRefused(f"{step}_{error.reason}", str(error)) from error
        text = completion.text
        if parsed := parse(text):
            return completion, parsed, attempt + 1
    raise CallRefused(f"{step}_no_valid_json", f"{attempts} attempts; the last: {text[:200]!r}")


@dataclass(frozen=True)
class Answers:
    """Program over one prompt: a role's plain answers to it, as many as `sampling` draws.

    The record's fields are `answer_1` to `answer_<n>`. Seed and messages are those of an arm's answer in evaluation
    and of a draft: with one sample it is the same call.
    """

    recipe: str
    role: str
    templates: Templates
    sampling: Sampling
    seed: int

    async def __call__(self, prompt: Prompt, ask: Ask) -> Record:
        fields: dict[str, str] = {}
        sampling = seeded(self.sampling, self.seed, "answer", *prompt.key)
        try:
            completion = await ask(self.role, "answer", self.templates.chat(prompt.text), sampling)
        except CallRefused as error:
            return Record(prompt, self.recipe, fields, dict(ask.calls), reason(error, "answer"))
        for sample in range(len(completion.texts)):
            keep(fields, f"answer_{sample + 1}", completion, sample)
        return Record(prompt, self.recipe, fields, dict(ask.calls))
