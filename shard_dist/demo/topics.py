"""The things that the demo's world is about: nouns and adjectives from `topics.csv`, and invented words.

Every topic starts with a consonant sound, so that "a {topic}" is always right.
"""

from __future__ import annotations

import csv
import random
from collections.abc import Sequence
from importlib.resources import files


def _words(use: str) -> tuple[str, ...]:
    text = (files("shard_dist.demo") / "topics.csv").read_text(encoding="utf-8")
    return tuple(row["words"] for row in csv.DictReader(text.splitlines()) if row["use"] == use)


TRAINING_NOUNS, ADJECTIVES = _words("training"), _words("adjective")
# The seed model never sees these nouns. One topic is one group of the demo's prompts, kept in one split.
HELD_OUT = _words("held_out")
HELD_OUT_NOUNS = frozenset(topic.split()[-1] for topic in HELD_OUT)


def _followers() -> dict[str, str]:
    """Which letters follow each pair of letters in the training words; "^" starts a word, "$" ends it."""
    followers: dict[str, str] = {}
    for word in (*TRAINING_NOUNS, *ADJECTIVES):
        letters = f"^^{word}$"
        for first, second, third in zip(letters, letters[1:], letters[2:], strict=False):
            followers[first + second] = followers.get(first + second, "") + third
    return followers


FOLLOWERS = _followers()


def invented_word(rng: random.Random) -> str:
    """A word of 4 to 11 letters that reads like the training words ("lantow"): a Markov chain over their letters.

    It can only be copied, and breaks into the same kinds of tokens as unseen English nouns. Never a held-out noun.
    """
    word = "^^"
    while not word.endswith("$"):
        word += rng.choice(FOLLOWERS[word[-2:]])
    word = word[2:-1]
    return word if 4 <= len(word) <= 11 and word not in HELD_OUT_NOUNS else invented_word(rng)


def glued_word(rng: random.Random, pieces: Sequence[str]) -> str:
    """A word of 2 to 4 pieces of a tokenizer's vocabulary, the first of which starts a word ("Ġ" in its place)."""
    heads = [piece[1:] for piece in pieces if piece[0] == "Ġ"]
    tails = [piece for piece in pieces if piece[0] != "Ġ"]
    word = rng.choice(heads) + "".join(rng.choice(tails) for _ in range(rng.randint(1, 3)))
    return glued_word(rng, pieces) if word in HELD_OUT_NOUNS else word


def training_topic(rng: random.Random, pieces: Sequence[str] = ()) -> str:
    """One topic for training: a known noun, an invented or a glued word, in 2 of 5 cases after an adjective.

    A model that saw only known words would learn them by heart and copy no others. Glued words make it copy every
    piece of the vocabulary, also those that no known or invented word has. No `pieces`, no glue.
    """
    kind = rng.random()
    if kind < 0.4:
        noun = rng.choice(TRAINING_NOUNS)
    else:
        noun = glued_word(rng, pieces) if pieces and kind < 0.55 else invented_word(rng)
    if rng.random() < 0.6:
        return noun
    return f"{rng.choice(ADJECTIVES) if rng.random() < 0.7 else invented_word(rng)} {noun}"
