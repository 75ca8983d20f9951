"""An engine without a model: seeded answers, injectable latency and faults. For tests of everything around engines."""

from __future__ import annotations

import asyncio
import json
import random
from typing import Any

from shard_dist.config.schema import ModelConfig
from shard_dist.engines.protocol import CallFailed
from shard_dist.ledger.key import call_key
from shard_dist.records import Call, Completion

REFUSAL = "I'm sorry, but I can't help with that."


class FakeEngine:
    """The same call gives the same completion, in any process: everything is drawn from the call's key.

    Faults are drawn per attempt, so that a retry can succeed.
    """

    def __init__(self, spec: ModelConfig) -> None:
        self.settings = spec.fake
        self.attempts: dict[str, int] = {}

    async def generate(self, call: Call) -> Completion:
        key = call_key(call)
        attempt = self.attempts[key] = self.attempts.get(key, 0) + 1
        if self.settings.latency:
            await asyncio.sleep(self.settings.latency)
        if random.Random(f"{key} fault {attempt}").random() < self.settings.error_rate:
            raise CallFailed("injected fault")
        texts = tuple(self._text(call, random.Random(f"{key} {sample}")) for sample in range(call.sampling.n))
        prompt_tokens = sum(len(message["content"].split()) for message in call.messages)
        return Completion(
            texts=texts,
            finish_reasons=("stop",) * len(texts),
            prompt_tokens=prompt_tokens,
            completion_tokens=sum(len(text.split()) for text in texts),
            thinking=("",) * len(texts),
        )

    def _text(self, call: Call, random_: random.Random) -> str:
        asked = call.messages[-1]["content"]
        if call.schema:
            return json.dumps(instance(call.schema, asked, random_))
        if len(call.messages) <= 2 and "<" not in asked and random_.random() < self.settings.refusal_rate:
            return REFUSAL
        words = [word for word in asked.split() if word.isalpha()] or ["nothing"]
        return "About this: " + " ".join(random_.choice(words) for _ in range(12)) + "."

    async def health(self) -> None:
        return None

    async def close(self) -> None:
        return None


def instance(schema: dict[str, Any], asked: str, random_: random.Random) -> Any:
    """A value that the schema allows: objects with all their properties, enums, bounded strings, numbers."""
    if "enum" in schema:
        return random_.choice(schema["enum"])
    kind = schema.get("type")
    if kind == "object":
        return {name: instance(inner, asked, random_) for name, inner in schema["properties"].items()}
    if kind == "string":
        words = [word for word in asked.split() if word.isalpha()] or ["nothing"]
        return " ".join(random_.choice(words) for _ in range(6))[: schema.get("maxLength", 200)]
    if kind in ("integer", "number"):
        return random_.randint(int(schema.get("minimum", 0)), int(schema.get("maximum", 10)))
    raise ValueError(f"the fake engine knows no schema of type {kind!r}")
