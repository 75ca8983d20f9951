"""Which of some prompts a text repeats: letter by letter, but for its typing, or nearly."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

from shard_dist.records import Prompt

# What a word weighs, and a pair of words that are alike. Whole numbers: a similarity is then the same in both
# directions, to the last bit.
CONTENT, FUNCTION, ALIKE = 20, 2, 19
REASON = "near_duplicate_of_test"
ROUNDING = 1e-6  # weights are whole numbers, their shares are not
LEAST_TYPO = 5  # letters; in shorter words one letter makes another word (gun, gum)
MOST_TYPO = 40  # a longer one is none, and has too many neighbours to write down

# English words that can be exchanged or left out while the question stays what it was. Negations and question words
# are not among them.
EXCHANGEABLE = (
    "a an the this that these those i me my mine you your he him his she her it its we us our they them their "
    "is am are was were be been being do does did have has had can could will would shall should may might must "
    "of to in on at by for from with about into and or if so then there please"
)
FUNCTION_WORDS = frozenset(EXCHANGEABLE.split())
# Scripts that put no spaces between words: Thai, Lao, Burmese, Khmer, kana, Han.
UNSPACED = re.compile(
    r"([\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff\U00020000-\U0003ffff]+)"
)
ENDINGS = re.compile(r"(?<=[a-z]{3})(?:ing|ed|es|s|e)$")


@dataclass(frozen=True)
class Match:
    """The place of a found text, how it was found (exact, normalised or near), and how similar it is, 0 to 1."""

    index: int
    kind: str
    similarity: float


class _Folding(dict[int, str]):
    """What becomes of a character in `folded`, found out once each."""

    def __missing__(self, code: int) -> str:
        char = chr(code)
        category = unicodedata.category(char)
        if char in "'\u2018\u2019" or category == "Cf":  # don't is dont; a zero-width space is nothing
            self[code] = ""
        else:
            # Letters, numbers, accents and symbols (an emoji, the + of C++) are words; all else is white space.
            self[code] = char if category[0] in "LNMS" else " "
        return self[code]


_FOLDING = _Folding()


def folded(text: str) -> str:
    """The text without case, compatibility forms, punctuation and white space but single spaces; a text of nothing
    else keeps its punctuation."""
    plain = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold())
    return " ".join(plain.translate(_FOLDING).split()) or " ".join(plain.split())


def stem(word: str) -> str:
    """An English word without the endings of its inflections, so that kill, kills, killed and killing are one.

    Far less than Porter's stemmer (1980): what makes another part of speech stays.
    """
    if not (word.isascii() and word.isalpha()):
        return word
    bare = ENDINGS.sub("", word)
    if not re.search("[aeiouy]", bare):  # string, spring, thing
        bare = word
    if len(bare) > 3 and bare[-1] == bare[-2]:  # stabbing, stab
        bare = bare[:-1]
    return bare[:-1] + "i" if len(bare) > 3 and bare[-1] == "y" else bare  # bodies, body


def bag(text: str) -> Counter[str]:
    """The folded words of a text and how often each occurs; pairs of characters where no spaces part words."""
    found: Counter[str] = Counter()
    for place, run in enumerate(UNSPACED.split(folded(text))):
        found.update((run[i : i + 2] for i in range(max(1, len(run) - 1))) if place % 2 else run.split())
    return found


def weight(words: Counter[str]) -> int:
    return sum(count * (FUNCTION if word in FUNCTION_WORDS else CONTENT) for word, count in words.items())


def alike(one: str, two: str) -> bool:
    """Whether two words differ by their inflection or by one slip of the keyboard."""
    return stem(one) == stem(two) or typo(one, two)


def typo(one: str, two: str) -> bool:
    """Whether two words of at least five letters are one slip apart: a letter too many, too few, wrong, or two swapped
    (Damerau 1964). Never the first: legal and illegal differ there, moral and amoral."""
    if not (_spelled(one) and _spelled(two)) or abs(len(one) - len(two)) > 1 or one[0] != two[0]:
        return False
    start = next((i for i, (x, y) in enumerate(zip(one, two, strict=False)) if x != y), min(len(one), len(two)))
    rest, other = one[start:], two[start:]
    wrong, extra, missing = rest[1:] == other[1:], rest[1:] == other, rest == other[1:]
    swapped = rest[:2] == other[1::-1] and rest[2:] == other[2:]
    return wrong or extra or missing or swapped


def _spelled(word: str) -> bool:
    """Whether a slip in it would leave it recognisable. 20000 and 30000 are different numbers."""
    return LEAST_TYPO <= len(word) <= MOST_TYPO and word.isalpha()


def keys(word: str) -> set[str]:
    """Words that are equal or alike share a key: the stem, the word, and the word without any one of its letters
    (the deletion neighbourhood of Mor and Fraenkel 1982)."""
    if word in FUNCTION_WORDS:
        return {word}
    slips = (word[:i] + word[i + 1 :] for i in range(1, len(word))) if _spelled(word) else ()
    return {word, "~" + stem(word), *slips}


def shared(one: Counter[str], two: Counter[str]) -> int:
    """What the words weigh that two bags have in common: the same ones first, then pairs of words that are alike."""
    left, right = one - two, two - one
    by_key: defaultdict[str, list[str]] = defaultdict(list)
    for word in left.keys() - FUNCTION_WORDS:
        for key in keys(word):
            by_key[key].append(word)
    pairs = {
        (min(word, other), max(word, other))
        for other in right.keys() - FUNCTION_WORDS
        for key in keys(other)
        for word in by_key.get(key, ())
        if alike(word, other)
    }
    total = weight(one & two)
    for first, second in sorted(pairs):  # an order that knows neither side: the measure is symmetric
        word, other = (first, second) if first in left else (second, first)
        times = min(left[word], right[other])
        left[word] -= times
        right[other] -= times
        total += times * ALIKE
    return total


def similarity(one: Counter[str], two: Counter[str]) -> float:
    """Weighted Jaccard similarity (Ruzicka) of two bags of words, 0 to 1, symmetric; 1.0 is the same words.

    Of prompts of ten words, measures over characters say little: in "How do I kill a Python process?" and "How do I
    kill a person?" most of them agree. Here words count, inflections and typos aside, and those that carry no meaning
    count a tenth. So at 0.9 one word in 18 may be exchanged or one in 9 left out; in a shorter prompt none may.
    """
    if not (both := weight(one) + weight(two)):
        return 1.0
    common = shared(one, two)
    return common / (both - common)


class Near:
    """Finds which of `texts` another text repeats. No approximation: what is found and what is not is exact.

    `threshold`: similarity from which a text counts as a near-duplicate; at 0 only texts that are the same but for
    case, punctuation and white space are found.
    """

    def __init__(self, texts: Iterable[str], threshold: float) -> None:
        if not 0 <= threshold <= 1:
            raise ValueError(f"a similarity lies between 0 and 1, found a threshold of {threshold}; 0.9 is usual")
        self.threshold, self.size = threshold, 0
        self.exact: dict[str, int] = {}
        self.normalised: dict[str, int] = {}
        self.bags: list[Counter[str]] = []
        self.weights: list[int] = []
        self.keys: list[set[str]] = []
        self.having: defaultdict[str, list[int]] = defaultdict(list)
        for text in texts:
            self.add(text)

    def add(self, text: str) -> None:
        """One text more, after all others."""
        index = self.size
        self.size += 1
        self.exact.setdefault(text, index)
        self.normalised.setdefault(folded(text), index)
        if self.threshold:
            words = bag(text)
            self.bags.append(words)
            self.weights.append(weight(words))
            self.keys.append({key for word in words for key in keys(word)})
            for key in self.keys[index]:
                self.having[key].append(index)

    def find(self, text: str) -> Match | None:
        """The most similar of the texts, the first of several, or None where none is similar enough."""
        if (index := self.exact.get(text)) is not None:
            return Match(index, "exact", 1.0)
        if (index := self.normalised.get(folded(text))) is not None:
            return Match(index, "normalised", 1.0)
        if not self.threshold:
            return None
        words = bag(text)
        found = [(similarity(words, self.bags[index]), -index) for index in self._candidates(words)]
        best, place = max(found, default=(0.0, 0))
        return Match(-place, "near", best) if best >= self.threshold else None

    def _candidates(self, words: Counter[str]) -> Iterator[int]:
        """Every text that may be similar enough, and few others.

        Similarity t needs t of either text's weight in common (prefix filtering: Chaudhuri et al. 2006, Bayardo et al.
        2007). So of words that weigh more than the rest of it one is in common: the rarest are looked up.
        """
        mine = weight(words)
        parts = [(weight(Counter({word: count})), keys(word)) for word, count in words.items()]
        parts.sort(key=lambda part: sum(len(self.having.get(key, ())) for key in part[1]))
        slack = (1 - self.threshold) * mine + ROUNDING
        found: set[int] = set()
        for size, names in parts:
            if slack < 0:
                break
            found.update(*(self.having[key] for key in names if key in self.having))
            slack -= size
        for index in found:
            missing = sum(size for size, names in parts if names.isdisjoint(self.keys[index]))
            if mine - missing + ROUNDING >= self.threshold * max(mine, self.weights[index]):
                yield index


def keep_test_apart(prompts: list[Prompt], threshold: float) -> list[Prompt]:
    """Prompts of train and val that repeat one of test lose their split and get `excluded` = near_duplicate_of_test.

    The test set stays as it is, and whether another prompt stays depends on itself and on the test set alone.
    """
    near = Near((prompt.text for prompt in prompts if prompt.split == "test"), threshold)
    return [
        replace(prompt, split="", excluded=REASON)
        if prompt.split in ("train", "val") and near.find(prompt.text)
        else prompt
        for prompt in prompts
    ]
