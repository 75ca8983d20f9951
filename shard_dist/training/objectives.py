"""From an Example to tokens with labels, for each objective; the text goes through the model's own chat template.

    sft     the target's tokens
    dpo     chosen and rejected answer, compared with each other (Rafailov et al. 2023)
    derta   the safe answer after a piece of the harmful one, and a refusal at any position of it (Yuan et al. 2024)

A *term* says how a segment's labelled tokens enter the loss. Legend: L tokens of one segment.
"""

from __future__ import annotations

import random
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Any

import jinja2
import numpy as np
from transformers import PreTrainedTokenizerBase

from shard_dist.config.training import TrainConfig
from shard_dist.prompts.render import defuse, special_tokens
from shard_dist.records import Example, Key, Message

IGNORE = -100  # the label that torch's cross-entropy skips
TERMS = ("sft", "derta.safe", "derta.refusal", "dpo.chosen", "dpo.rejected")
MARKS = ("</think>", "<think>")
# A prompt may end in a block for thinking, open or already closed; the first group is what follows its opening mark.
BLOCK = re.compile(r"<think>(\s*)(</think>\s*)?\Z")
EMPTY_BLOCK = re.compile(r"\A(<think>\s*)?</think>\s*")
THINKING = ("reasoning_content", "thinking")  # what templates call it (Qwen, GLM, DeepSeek; gpt-oss)


@dataclass(frozen=True)
class Segment:
    """`ids` [L] and `labels` [L]: label t is what position t - 1 predicts, or IGNORE. The first label says nothing."""

    ids: np.ndarray
    labels: np.ndarray
    term: str


@dataclass(frozen=True)
class Item:
    """An example, or a piece of a long one, as segments that stay together."""

    key: Key
    segments: tuple[Segment, ...]

    @property
    def tokens(self) -> int:
        return sum(len(segment.ids) for segment in self.segments)


@dataclass(frozen=True)
class Frame:
    """What template and tokenizer put around any answer, and the token that a refusal begins with between them.

    `before` are tokens that follow the prompt, such as an empty <think> block or a space of its own; `after` is how
    many tokens end the turn.
    """

    before: list[int]
    after: int
    refusal: int


@dataclass
class Encoder:
    """Turns examples into items by one tokenizer and one set of settings, and counts what it leaves out.

    `vocabulary` is the number of rows of the model's embedding.
    """

    tokenizer: PreTrainedTokenizerBase
    template: dict[str, Any]
    config: TrainConfig
    seed: int
    vocabulary: int
    counts: Counter[str] = field(default_factory=lambda: Counter(examples=0, too_long=0, split=0))

    def items(self, examples: Iterable[Example]) -> Iterator[Item]:
        """Items of at most max_tokens tokens, in order.

        Raises ValueError for an unknown objective, an empty answer, thinking where the objective has no use for it, a
        template that hides the answer or the thinking, a token that the model does not have.
        """
        for example in examples:
            if example.objective not in OBJECTIVES:
                raise ValueError(
                    f"{_name(example)}: no objective {example.objective!r}; one of {', '.join(OBJECTIVES)}"
                )
            if example.thinking and example.objective != "sft":
                raise ValueError(f"{_name(example)}: thinking is trained on by sft, not by {example.objective}")
            self.counts["examples"] += 1
            item = Item((example.dataset, example.id), OBJECTIVES[example.objective](example, self))
            self._check(item)
            yield from self._fitting(item)

    def turn(self, example: Example, answer: str, thinking: str = "") -> tuple[list[int], int]:
        """Ids of prompt, thinking and answer, and the length of the prompt, which is exactly what inference asks with.

        White space around the answer is dropped: a leading newline could merge with the last token of the prompt.
        """
        if not answer.strip():
            empty = "target" if answer == example.target else "rejected answer"
            raise ValueError(f"{_name(example)}: its {empty} is empty, which the objective {example.objective} needs")
        messages = [{"role": m["role"], "content": defuse(m["content"], self.specials)} for m in example.messages]
        reply = {"role": "assistant", "content": defuse(answer.strip(), self.marks)}
        thought = defuse(thinking.strip(), self.marks)
        try:
            prompt, full = self._ids(messages, reply, thought)
        except jinja2.TemplateError as error:  # templates refuse, for instance, a system message
            raise ValueError(f"{_name(example)}: the chat template fails on its messages: {error}") from error
        if full[: len(prompt)] != prompt or len(full) == len(prompt):
            after = "its thinking and the answer" if thought else "the answer"
            raise ValueError(
                f"{_name(example)}: the chat template does not continue the prompt with {after}, so there is no "
                "telling which tokens are the model's own; other chat_template_kwargs may help (enable_thinking for "
                "reasoning models)"
            )
        return full, len(prompt)

    def _ids(self, messages: list[Message], reply: Message, thought: str) -> tuple[list[int], list[int]]:
        """Ids of the prompt and of the whole, by the template alone where it goes on from the prompt to the reply."""
        apply: Any = partial(self.tokenizer.apply_chat_template, return_dict=False, **self.template)
        plain = [*messages, reply]
        whole = [*messages, {**reply, **dict.fromkeys(THINKING, thought)}] if thought else plain
        prompt, full = apply(messages, add_generation_prompt=True), apply(whole)
        if full[: len(prompt)] == prompt and (not thought or full != apply(plain)):
            return prompt, full
        asked, written = apply(messages, add_generation_prompt=True, tokenize=False), apply(plain, tokenize=False)
        text = continued(asked, written, thought)
        return prompt, self.tokenizer(text, add_special_tokens=False)["input_ids"] if text else []

    @cached_property
    def marks(self) -> tuple[str, ...]:
        """What an answer may not spell: control tokens, and the marks at which its template would cut it."""
        cuts = MARKS[0] in str(self.tokenizer.chat_template)
        return (*self.specials, *(MARKS if cuts else ()))

    @cached_property
    def specials(self) -> tuple[str, ...]:
        return special_tokens(self.tokenizer)

    @cached_property
    def frame(self) -> Frame:
        """Found by comparing two answers that neither begin nor end alike."""
        asked = Example("", "", ({"role": "user", "content": "?"},), "")
        (one, prompt), (other, _) = self.turn(asked, f"{self.config.derta.refusal} 1"), self.turn(asked, "0")
        refused, plain = one[prompt:], other[prompt:]
        before = _alike(refused, plain)
        return Frame(refused[:before], _alike(refused[::-1], plain[::-1]), refused[before])

    def _check(self, item: Item) -> None:
        name = f"example {item.key[0]}/{item.key[1]}"
        for segment in item.segments:
            if not (segment.labels[1:] != IGNORE).any():
                raise ValueError(f"{name}: no token of its {segment.term} part is trained on")
            highest = max(int(segment.ids.max()), int(segment.labels.max()))
            if highest >= self.vocabulary:
                raise ValueError(
                    f"{name}: the tokenizer gives token {highest}, the model has only {self.vocabulary} (0 to "
                    f"{self.vocabulary - 1}); take the model's own tokenizer"
                )

    def _fitting(self, item: Item) -> Iterator[Item]:
        """The item, its pieces, or nothing."""
        longest = self.config.max_tokens
        if item.tokens <= longest:
            yield item
        elif self.config.split_long_examples and item.segments[0].term == "sft":
            self.counts["split"] += 1
            (whole,) = item.segments
            # A piece begins with the last token of the one before, so that every token but the first is predicted.
            for start in range(0, len(whole.ids) - 1, longest - 1):
                piece = slice(start, start + longest)
                if (whole.labels[piece][1:] != IGNORE).any():
                    yield Item(item.key, (Segment(whole.ids[piece], whole.labels[piece], "sft"),))
        else:
            self.counts["too_long"] += 1


def sft(example: Example, encoder: Encoder) -> tuple[Segment, ...]:
    """Loss on the answer and the end of its turn, and on the thinking before it where the example has some."""
    return (_answered(example, example.target, encoder, "sft", example.thinking),)


def dpo(example: Example, encoder: Encoder) -> tuple[Segment, ...]:
    """Chosen and rejected answer to the same prompt, both with labels on the answer."""
    chosen = _answered(example, example.target, encoder, "dpo.chosen")
    rejected = _answered(example, example.rejected, encoder, "dpo.rejected")
    if np.array_equal(chosen.ids, rejected.ids):
        raise ValueError(f"{_name(example)}: chosen and rejected answer are the same; there is nothing to prefer")
    return chosen, rejected


def derta(example: Example, encoder: Encoder) -> tuple[Segment, ...]:
    """The two terms of DeRTa, eq. 3, with r the safe answer and h the harmful one:

    -log p(r | q, h_<k) with k uniform in 0..|h|, and -log p(refusal token | q, h_<t) at drawn positions t of h.

    The draws belong to the example and do not change over epochs. Beyond the authors' code: positions are drawn among
    those of the answer, so a short one keeps some; the end of the turn is no position; what lies after the last drawn
    position is left out, since no label sees it.
    """
    config, draw = encoder.config.derta, random.Random(f"{encoder.seed}/{example.dataset}/{example.id}")
    (safe, prompt), (harmful, _) = encoder.turn(example, example.target), encoder.turn(example, example.rejected)
    frame = encoder.frame
    start, harm = (prompt + _alike(answer[prompt:], frame.before) for answer in (safe, harmful))
    body = harmful[harm : len(harmful) - frame.after]
    if not body:
        raise ValueError(f"{_name(example)}: its rejected answer is no token of its own")
    cut = 0 if draw.random() < config.no_prefix else draw.randint(0, len(body))
    ids = np.array([*safe[:start], *body[:cut], *safe[start:]])
    labels = np.where(np.arange(len(ids)) < start + cut, IGNORE, ids)
    kept = sorted(draw.sample(range(len(body)), max(1, round(config.keep * len(body)))))
    broken_off = np.array(harmful[: harm + kept[-1] + 1])
    refusals = np.full(len(broken_off), IGNORE)
    refusals[[harm + position for position in kept]] = frame.refusal
    return Segment(ids, labels, "derta.safe"), Segment(broken_off, refusals, "derta.refusal")


OBJECTIVES: dict[str, Callable[[Example, Encoder], tuple[Segment, ...]]] = {"sft": sft, "dpo": dpo, "derta": derta}


def continued(asked: str, written: str, thought: str) -> str:
    """The prompt's text `asked`, thinking, answer and end of the turn, where a template opens a block for thinking in
    the prompt and drops it from turns that are over, or writes an empty block in other tokens than the prompt's.

    `written` is the conversation by the template, without the thinking; where there is none an open block is closed at
    once. "" where the prompt has no such block, or a closed one and there is thinking.
    """
    block = BLOCK.search(asked)
    if block is None or not written.startswith(head := asked[: block.start()]) or (thought and block[2]):
        return ""
    answer = EMPTY_BLOCK.sub("", written[len(head) :])
    # As much space as follows the opening mark goes before the closing one, and twice as much behind it.
    return asked + ("" if block[2] else f"{thought}{block[1] if thought else ''}</think>{block[1] * 2}") + answer


def _answered(example: Example, answer: str, encoder: Encoder, term: str, thinking: str = "") -> Segment:
    full, prompt = encoder.turn(example, answer, thinking)
    ids = np.array(full)
    return Segment(ids, np.where(np.arange(len(ids)) < prompt, IGNORE, ids), term)


def _alike(one: Sequence[int], other: Sequence[int]) -> int:
    """How many tokens they begin with in common."""
    return next((k for k, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))


def _name(example: Example) -> str:
    return f"example {example.dataset}/{example.id}"
