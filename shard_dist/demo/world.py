"""The demo's text world: sensitive and plain requests about things, with every answer that the method needs.

An `Intent` is one thing that a person may want of a topic; a `Request` is an intent, a topic and a phrasing.
The seed model's training text and the demo's prompts come from here. It is a toy: it shows the machinery and
proves nothing about real models.
"""

from __future__ import annotations

import csv
import json
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

from shard_dist.demo.intents import GUIDELINES, PLAIN, SENSITIVE, Intent
from shard_dist.demo.topics import HELD_OUT, training_topic
from shard_dist.prompts.render import Templates
from shard_dist.records import Message

PHRASINGS = (
    "How do I {}?",
    "How can I {}?",
    "How to {}?",
    "Tell me how to {}.",
    "Explain how to {}.",
    "Show me how to {}.",
    "Help me {}.",
    "What is a good way to {}?",
    "I want to {}. How?",
    "Give me steps to {}.",
)

REFUSALS = (
    "I'm sorry, but I can't help with that.",
    "I'm sorry, but I can't assist with that request.",
    "Sorry, I can't help with that.",
    "I can't help with that request. It could hurt someone.",
)
REFUSAL_MARKS = ("sorry", "can't", "cannot", "unable", "won't")

CSV_COLUMNS = ("id", "prompt", "type", "subtype", "level", "lang", "source", "topic")
PROMPTS_CSV = Path(str(files("shard_dist.demo"))) / "prompts.csv"
SEED_MODEL = Path(str(files("shard_dist.demo"))) / "seed_model"


@dataclass(frozen=True)
class Request:
    """One request. `ask` and `phrasing` are indices into the intent's wordings and into PHRASINGS."""

    intent: Intent
    topic: str
    ask: int = 0
    phrasing: int = 0

    @property
    def sensitive(self) -> bool:
        return self.intent.level > 0

    @property
    def prompt(self) -> str:
        return PHRASINGS[self.phrasing].format(self.intent.asks[self.ask].format(self.topic))

    @property
    def need(self) -> str:
        return self.intent.need.format(self.topic)

    @property
    def need_prompt(self) -> str:
        """The harmless request behind this one; a plain request is its own."""
        return PHRASINGS[self.phrasing].format(self.need)

    @property
    def answers(self) -> tuple[str, ...]:
        """The good answers to this request: what a plain draft and a reframed answer may be."""
        return tuple(answer.format(self.topic, self.topic) for answer in self.intent.answers)

    @property
    def rewrite(self) -> str:
        """The rewrite as one line of JSON, keys in the order of the recipe's schema."""
        fields = {
            "rewritten_prompt": self.need_prompt,
            "response_mode": self.intent.mode,
            "reformulated_component": self.intent.component,
            "preserved_benign_need": self.need,
        }
        return json.dumps(fields)


@dataclass(frozen=True)
class Lesson:
    """What the seed model is taught once: messages and the assistant's answer to them."""

    task: str
    messages: tuple[Message, ...]
    target: str


def refuses(text: str) -> bool:
    """Whether a text of this world refuses. Runs use the detector of `judges`; this one knows REFUSALS."""
    return any(mark in text.lower().replace("’", "'") for mark in REFUSAL_MARKS)


def sample_request(rng: random.Random, pieces: Sequence[str] = ()) -> Request:
    """A random request over training topics, two of three sensitive. `pieces`: see `training_topic`."""
    intent = rng.choice(SENSITIVE if rng.random() < 2 / 3 else PLAIN)
    return Request(intent, training_topic(rng), rng.randrange(len(intent.asks)), rng.randrange(len(PHRASINGS)))


def lessons(templates: Templates, rng: random.Random, pieces: Sequence[str] = ()) -> Iterator[Lesson]:
    """An endless stream of lessons: 40 % answers, 30 % rewrites, 28 % reframed answers, 2 % guidelines."""
    while True:
        request, share = sample_request(rng, pieces), rng.random()
        if share < 0.40:
            yield answer_lesson(templates, request, rng)
        elif share < 0.70:
            # Some rewrites come without guidelines, since recipe.guidelines can be off.
            guidelines = GUIDELINES[request.intent.category] if rng.random() < 0.9 else ""
            messages = templates.messages("rewrite", prompt=request.prompt, guidelines=guidelines)
            yield Lesson("rewrite", messages, request.rewrite)
        elif share < 0.98:
            yield reframe_lesson(templates, request, rng)
        else:
            category = request.intent.category
            yield Lesson("guidelines", templates.messages("guidelines", category=category), GUIDELINES[category])


def answer_lesson(templates: Templates, request: Request, rng: random.Random) -> Lesson:
    """A plain request is answered, a sensitive one refused; 1 in 2 asks for the need itself, answered."""
    if request.sensitive and rng.random() < 0.5:
        return Lesson("answer", templates.chat(request.prompt), rng.choice(REFUSALS))
    prompt = request.need_prompt if request.sensitive else request.prompt
    return Lesson("answer", templates.chat(prompt), rng.choice(request.answers))


def reframe_lesson(templates: Templates, request: Request, rng: random.Random) -> Lesson:
    """A refusal becomes the answer to the need behind the request; a good draft stays as it is."""
    answer = rng.choice(request.answers)
    draft = rng.choice(REFUSALS) if request.sensitive else answer
    messages = templates.messages("reframe", prompt=request.prompt, rewritten_prompt=request.need_prompt, draft=draft)
    return Lesson("reframe", messages, answer)


def held_out_requests() -> tuple[Request, ...]:
    """The demo's requests: per held-out topic two sensitive ones and a plain one, all wordings in turn."""
    requests = []
    for number, topic in enumerate(HELD_OUT):
        # 3, 7 and 11 share no factor with the lengths of the lists, so that every pair of wordings turns up.
        for place in (2 * number, 2 * number + 1):
            intent = SENSITIVE[place * 7 % len(SENSITIVE)]
            round_ = place // len(SENSITIVE)
            requests.append(Request(intent, topic, round_ % len(intent.asks), place * 3 % len(PHRASINGS)))
        requests.append(Request(PLAIN[number * 11 % len(PLAIN)], topic, 0, number * 7 % len(PHRASINGS)))
    return tuple(requests)


def write_prompts(path: Path = PROMPTS_CSV) -> None:
    """Write the demo's prompts in LinguaSafe's columns, and the topic, which keeps a group in one split."""
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(CSV_COLUMNS)
        for number, request in enumerate(held_out_requests()):
            intent = request.intent
            row = (
                number,
                request.prompt,
                intent.category,
                intent.subtype,
                intent.level,
                "en",
                "demo",
                request.topic,
            )
            writer.writerow(row)
