"""How a model is asked for a verdict: under a schema, parsed strictly, with bounded retries."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from shard_dist.ledger.key import request_seed
from shard_dist.prompts.render import Templates
from shard_dist.records import Prompt, Sampling

if TYPE_CHECKING:
    from shard_dist.engines.protocol import Ask

REASON_CHARS = 400  # some 100 tokens: the reason ends before max_tokens and the verdict after it is not cut
RETRY_TEMPERATURE = 0.7  # greedy decoding would repeat the reply that could not be parsed


def verdict_schema(*verdicts: str) -> dict[str, Any]:
    """JSON schema of {"reason", "verdict"}. The reason comes first: the verdict can follow from it."""
    return {
        "type": "object",
        "properties": {
            "reason": {"type": "string", "maxLength": REASON_CHARS},
            "verdict": {"type": "string", "enum": list(verdicts)},
        },
        "required": ["reason", "verdict"],
        "additionalProperties": False,
    }


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len({name for name, _ in pairs}) < len(pairs):
        raise ValueError("a name occurs twice")
    return dict(pairs)


def parse_verdict(text: str, schema: dict[str, Any]) -> tuple[str, str] | None:
    """(verdict, reason), or None where `text` is anything but one JSON object as `schema` asks for it."""
    try:
        value = json.loads(text, object_pairs_hook=_unique)
    except (ValueError, RecursionError):
        return None
    if not isinstance(value, dict) or set(value) != {"reason", "verdict"}:
        return None
    verdict, reason = value["verdict"], value["reason"]
    if not isinstance(reason, str) or verdict not in schema["properties"]["verdict"]["enum"]:
        return None
    # "\ud800" is valid JSON but no Unicode text; Parquet would refuse it.
    return verdict, reason[:REASON_CHARS].encode("utf-8", "replace").decode("utf-8")


@dataclass(frozen=True)
class LLM:
    """A model in the judge's seat: which role, which templates, how to decode, how often to ask."""

    role: str
    templates: Templates
    sampling: Sampling
    attempts: int
    seed: int

    async def verdict(
        self, step: str, prompt: Prompt, schema: dict[str, Any], ask: Ask, **values: str
    ) -> tuple[str, str]:
        """(verdict, reason) of a step; ("unparsed", start of the last reply) after `attempts` replies."""
        messages = self.templates.messages(step, prompt=prompt.text, **values)
        sampling = self.sampling
        reply = ""
        for attempt in range(self.attempts):
            if attempt:
                sampling = replace(sampling, temperature=max(self.sampling.temperature, RETRY_TEMPERATURE))
            seed = request_seed(self.seed, step, *prompt.key, str(attempt))
            reply = (await ask(self.role, step, messages, replace(sampling, seed=seed), schema)).text
            if (parsed := parse_verdict(reply, schema)) is not None:
                return parsed
        return "unparsed", reply[:REASON_CHARS]
