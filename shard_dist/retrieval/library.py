"""Guidelines as a model wrote them, made into a library without repetitions, and the pairs that train its retriever.

    replies ─ guidelines_in ─> guidelines ─ Library.add ─> library.jsonl
                                                └── which prompt led to which ──> Questions, as DPR has them

Guide-Align (arXiv 2403.11838), whose library is the union of all lines without repetitions.
"""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from shard_dist.artefacts import value_hash
from shard_dist.data.dpr import Passage, Question
from shard_dist.data.jsonl import write_objects
from shard_dist.data.near import Near
from shard_dist.data.split import digest
from shard_dist.records import Prompt

TITLE, TEXT = 60, 300  # characters of a guideline's two parts: a few words, two sentences; longer ones are none
MARKS = re.compile(r"^[\s\-*#\u2022\u00b7]*(?:\d{1,3}[.)])?[\s*_]*|[\s*_:]*$")  # bullets, numbers, emphasis


@dataclass(frozen=True)
class Guideline:
    title: str
    text: str

    @property
    def line(self) -> str:
        return f"{self.title}: {self.text}"

    @property
    def id(self) -> str:
        """The same in every library and on every machine: 16 hexadecimal digits of what it says."""
        return value_hash([self.title, self.text])[:16]


def schema(most: int) -> dict[str, Any]:
    """JSON schema of a reply with one to `most` guidelines."""
    parts = {
        "title": {"type": "string", "minLength": 1, "maxLength": TITLE},
        "text": {"type": "string", "minLength": 1, "maxLength": TEXT},
    }
    one = {"type": "object", "properties": parts, "required": list(parts), "additionalProperties": False}
    listed = {"type": "array", "items": one, "minItems": 1, "maxItems": most}
    return {
        "type": "object",
        "properties": {"guidelines": listed},
        "required": ["guidelines"],
        "additionalProperties": False,
    }


def guidelines_in(reply: str) -> list[Guideline] | None:
    """The guidelines of a reply under `schema`, or None where it is no such JSON; [] where none of them says anything.

    What a model wrote stands on one line each, without bullets, emphasis, control characters and half surrogates.
    """
    try:
        found = json.loads(reply)["guidelines"]
        parts = [(plain(each["title"]), plain(each["text"])) for each in found]
    except (ValueError, LookupError, TypeError, RecursionError):
        return None
    fitting = (Guideline(*both) for both in parts if 0 < len(both[0]) <= TITLE and 0 < len(both[1]) <= TEXT)
    return list(dict.fromkeys(fitting))


def plain(text: str) -> str:
    """One line of text that any file and any prompt can hold. Raises TypeError for what is no text."""
    if not isinstance(text, str):
        raise TypeError(f"expected text, found {type(text).__name__}")
    shown = "".join(
        " " if unicodedata.category(char) in ("Cc", "Cs", "Zl", "Zp") else char for char in text[: 4 * TEXT]
    )
    return MARKS.sub("", " ".join(shown.split()))


class Library:
    """Guidelines without repetitions, in the order in which they came.

    One that is as similar as `threshold` (data/near.py's measure, 0 to 1) to another counts as that one.
    """

    def __init__(self, threshold: float) -> None:
        self.guidelines: list[Guideline] = []
        self.near = Near((), threshold)
        self.repeated = 0

    def add(self, guideline: Guideline) -> int:
        """Its place, or the place of the one that it repeats."""
        if match := self.near.find(guideline.line):
            self.repeated += 1
            return match.index
        self.near.add(guideline.line)
        self.guidelines.append(guideline)
        return len(self.guidelines) - 1

    def write(self, path: Path) -> None:
        """JSONL: id, title, text."""
        rows = ({"id": each.id, "title": each.title, "text": each.text} for each in self.guidelines)
        write_objects(path, rows, as_list=False)


def questions(library: Library, written: Iterable[tuple[Prompt, Sequence[Guideline]]]) -> list[Question]:
    """Each prompt with the guidelines of the library that were written for it; adds those that the library lacks.

    Prompts for which none was written are left out.
    """
    found = []
    for prompt, guidelines in written:
        places = dict.fromkeys(library.add(guideline) for guideline in guidelines)
        passages = (library.guidelines[place] for place in places)
        if positives := tuple(Passage(each.title, each.text) for each in passages):
            found.append(Question("\n".join(prompt.key), prompt.text, positives))
    return found


def held_out(question: Question, share: float, seed: int) -> bool:
    """Whether the pairs of this prompt are kept from the retriever's training: by a hash of its key."""
    return int.from_bytes(digest(seed, "held-out pairs", question.id)[:6]) / 2**48 < share


def passage_line(passage: Passage) -> str:
    """A passage as a guideline's `line`: what retrievers read."""
    return f"{passage.title}: {passage.text}" if passage.title else passage.text
