"""An engine without a model: seeded answers, continuous batching by the clock, faults on order.

For tests and benchmarks of everything around engines.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import math
import random
import sys
import time
import uuid
from dataclasses import replace
from typing import Any

from shard_dist.config.schema import ModelConfig
from shard_dist.engines.protocol import CallFailed, EngineDied, EngineStats
from shard_dist.ledger.key import call_key
from shard_dist.records import Call, Completion

REFUSAL = "I'm sorry, but I can't help with that."
SCORED = ("score", "likelihood")  # kinds of calls that are answered with numbers
# Spread of an answer's log length: one answer in twenty is longer than 3 times the mean.
SIGMA = 1.0


class FakeEngine:
    """The same call gives the same completion, in any process: everything is drawn from the call's key.

    Calls of kind text, or for log-probabilities, are answered as guard models do: ShieldGemma where the template has a
    guideline, HarmBench's classifier where one token is asked for, WildGuard for other raw prompts, else Llama Guard.

    Faults are drawn per try, those that kill or silence an engine per life of it too, so that a retry can succeed.
    Where `step_seconds` is set a completion has as many tokens as were drawn; its text stays short.
    """

    def __init__(self, spec: ModelConfig) -> None:
        self.settings = spec.fake
        self.life = uuid.uuid4().hex
        self.failures: dict[str, int] = {}  # failed tries of calls that have not succeeded yet
        self.slots = self.settings.slots or 64
        self.free = asyncio.Semaphore(self.settings.slots or sys.maxsize)
        self.counts = EngineStats()
        self.decoding: dict[int, tuple[float, list[int]]] = {}  # of running calls: first step's time, tokens per sample
        self.numbers = itertools.count()
        self.cause_of_death = ""
        self.silent_since = math.inf
        time.sleep(self.settings.boot_seconds)  # real engines block their process too while they load

    async def generate(self, call: Call) -> Completion:
        """As the protocol has it. A silent engine never returns."""
        key = call_key(call)
        self.counts.waiting += 1
        try:
            await self.free.acquire()
        finally:
            self.counts.waiting -= 1
        self.counts.running += 1
        try:
            self._draw_engine_fault(key, call)
            await self._answering()
            completion, lengths = self._completion(key, call)
            await self._decode(lengths)
            self._draw_call_fault(key)
            return completion
        finally:
            self.counts.running -= 1
            self.free.release()

    def _draw_engine_fault(self, key: str, call: Call) -> None:
        settings = self.settings
        if settings.poison and any(settings.poison in message["content"] for message in call.messages):
            self.cause_of_death = "injected poison"
        if settings.death_rate or settings.silence_rate:
            draw = random.Random(f"{key} {self.life} {self.failures.get(key, 0)}").random()
            if draw < settings.death_rate:
                self.cause_of_death = "injected death"
            elif draw < settings.death_rate + settings.silence_rate:
                self.silent_since = min(self.silent_since, time.monotonic())

    def _draw_call_fault(self, key: str) -> None:
        tries = self.failures.pop(key, 0) + 1
        if self.settings.error_rate and random.Random(f"{key} fault {tries}").random() < self.settings.error_rate:
            self.failures[key] = tries
            raise CallFailed("injected fault")

    async def _answering(self) -> None:
        if self.cause_of_death:
            raise EngineDied(self.cause_of_death)
        if self.silent_since < math.inf:
            await asyncio.Event().wait()

    async def _decode(self, lengths: list[int]) -> None:
        """Sleep through as many steps as the longest sample has tokens."""
        latency, step = self.settings.latency, self.settings.step_seconds
        number = next(self.numbers)
        self.decoding[number] = time.monotonic() + latency, lengths
        try:
            if latency or step:
                await asyncio.sleep(latency + max(lengths) * step)
            await self._answering()  # another call may have ended the engine meanwhile
        finally:
            del self.decoding[number]
        self.counts.completion_tokens += sum(lengths)

    def _completion(self, key: str, call: Call) -> tuple[Completion, list[int]]:
        """The answer and the tokens of each of its samples: words, or drawn lengths where steps take time."""
        settings, most = self.settings, call.sampling.max_tokens
        draws = [random.Random(f"{key} {sample}") for sample in range(call.sampling.n)]
        if call.kind in SCORED:
            return self._scored(call, draws[0]), [1]
        if call.kind == "text" or call.sampling.logprobs:
            reply = self._guarded(call, draws[0])
            return reply, [reply.completion_tokens]
        texts = tuple(self._text(call, draw) for draw in draws)
        lengths, reasons = [len(text.split()) for text in texts], ("stop",) * len(texts)
        if settings.step_seconds:
            mean = settings.mean_schema_tokens if call.schema else settings.mean_tokens
            drawn = [math.ceil(draw.lognormvariate(math.log(mean) - SIGMA**2 / 2, SIGMA)) for draw in draws]
            lengths = [min(length, most) for length in drawn]
            reasons = tuple("length" if length > most else "stop" for length in drawn)
        return Completion(texts, reasons, self._read(call), sum(lengths), ("",) * len(texts)), lengths

    def _read(self, call: Call) -> int:
        """Prompt tokens, which are words; counted."""
        prompt_tokens = sum(len(message["content"].split()) for message in call.messages)
        self.counts.prompt_tokens += prompt_tokens
        return prompt_tokens

    def _scored(self, call: Call, draw: random.Random) -> Completion:
        """A reward as those of trained heads, within some 6 of 0; or a likelihood of 1 to 5 nats a token."""
        tokens = self._read(call)
        scores: tuple[float, ...] = (draw.gauss(0.0, 2.0),)
        if call.kind == "likelihood":
            scores = (-sum(draw.uniform(1.0, 5.0) for _ in range(1, tokens)), float(max(tokens - 1, 0)))
        return Completion(("",), ("stop",), tokens, 1, ("",), scores=scores)

    def _guarded(self, call: Call, draw: random.Random) -> Completion:
        """A guard's reply: the likelier of two words with its probability, or three lines to a raw prompt."""
        raw, reads = call.kind == "text", self._read(call)
        words = ("yes", "no") if raw else ("Yes", "No") if "guideline" in (call.template or {}) else ("unsafe", "safe")
        chance = draw.uniform(0.01, 0.99)
        place = dict(zip(words, (math.log(chance), math.log(1 - chance)), strict=True))
        text = max(words, key=place.__getitem__)
        if raw and call.sampling.max_tokens > 1:
            labels = ("Harmful request", "Response refusal", "Harmful response")
            text = "\n".join(f"{label}: {draw.choice(words)}" for label in labels)
        text += f"\nS{draw.randint(1, 11)}" if text == "unsafe" else ""
        n, logprobs = call.sampling.n, (place,) if call.sampling.logprobs else ()
        return Completion((text,) * n, ("stop",) * n, reads, n * len(text.split()), ("",) * n, logprobs)

    def _text(self, call: Call, draw: random.Random) -> str:
        asked = call.messages[-1]["content"]
        if call.schema:
            return json.dumps(instance(call.schema, asked, draw))
        if len(call.messages) <= 2 and "<" not in asked and draw.random() < self.settings.refusal_rate:
            return REFUSAL
        words = [word for word in asked.split() if word.isalpha()] or ["nothing"]
        return "About this: " + " ".join(draw.choice(words) for _ in range(12)) + "."

    def stats(self) -> EngineStats:
        """Tokens of running calls come with the steps of the clock, which stands still once the engine is silent."""
        now, step = min(time.monotonic(), self.silent_since), self.settings.step_seconds
        made = 0
        if step:
            for start, lengths in self.decoding.values():
                steps = max(0, int((now - start) / step))
                made += sum(min(steps, length) for length in lengths)
        return replace(self.counts, completion_tokens=self.counts.completion_tokens + made)

    def fits(self, call: Call) -> None:
        return None

    async def health(self) -> None:
        if self.cause_of_death:
            raise EngineDied(self.cause_of_death)

    async def close(self) -> None:
        return None


def instance(schema: dict[str, Any], asked: str, draw: random.Random) -> Any:
    """A value that the schema allows: objects with all their properties, the shortest lists, enums, bounded strings,
    numbers."""
    if "enum" in schema:
        return draw.choice(schema["enum"])
    kind = schema.get("type")
    if kind == "object":
        return {name: instance(inner, asked, draw) for name, inner in schema["properties"].items()}
    if kind == "array":
        return [instance(schema["items"], asked, draw) for _ in range(schema.get("minItems", 1))]
    if kind == "string":
        words = [word for word in asked.split() if word.isalpha()] or ["nothing"]
        return " ".join(draw.choice(words) for _ in range(6))[: schema.get("maxLength", 200)]
    if kind in ("integer", "number"):
        return draw.randint(int(schema.get("minimum", 0)), int(schema.get("maximum", 10)))
    raise ValueError(f"the fake engine knows no schema of type {kind!r}")
