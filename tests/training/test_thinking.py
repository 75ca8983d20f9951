"""Reasoning models: the prompt is what inference asks with, the target has the thinking or goes without it.

The templates are ours and do what those of these families do: Qwen3 (its prompt leaves the block to the model, or
closes an empty one), Qwen3.5 (its prompt opens the block), DeepSeek-R1 (opens it, and drops thinking from turns that
are over), DeepSeek-V3.1 (the same without line breaks, and with the closing mark alone where there is no thinking),
gpt-oss (channels).
"""

from dataclasses import replace
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from shard_dist.config.training import TrainConfig
from shard_dist.records import Example
from shard_dist.training.objectives import IGNORE, Encoder, Segment

ASKED = ({"role": "system", "content": "be kind"}, {"role": "user", "content": "hi"})
TALK = (ASKED[1], {"role": "assistant", "content": "hello"}, {"role": "user", "content": "and now?"})
ONE = Example("d", "1", ASKED, "hello")
THOUGHT = replace(ONE, thinking="say hello")

TURN = "<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n"
QWEN = (
    "{% set ns = namespace(query=-1) %}{% for m in messages %}{% if m.role == 'user' %}{% set ns.query = loop.index0 %}"
    "{% endif %}{% endfor %}{% for m in messages %}{% set text = m.content %}{% set thought = '' %}"
    "{% if m.role == 'assistant' %}{% if m.reasoning_content is string %}{% set thought = m.reasoning_content %}"
    "{% elif '</think>' in text %}{% set thought = text.split('</think>')[0].split('<think>')[-1].strip('\n') %}"
    "{% set text = text.split('</think>')[-1].lstrip('\n') %}{% endif %}{% endif %}<|im_start|>{{ m.role }}\n"
    "{% if m.role == 'assistant' and loop.index0 > ns.query %}<think>\n{{ thought }}\n</think>\n\n{% endif %}"
    "{{ text }}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n"
    "{% if enable_thinking is defined and not enable_thinking %}<think>\n\n</think>\n\n{% endif %}{% endif %}"
)
DEEPSEEK = (
    "{% for m in messages %}{% if m.role == 'assistant' %}<|im_start|>CLOSED{{ m.content.split('</think>')[-1] }}"
    "<|im_end|>{% else %}{{ m.content }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>OPENED{% endif %}"
)
TEMPLATES = {
    "qwen3": QWEN,
    "qwen3.5": QWEN.removesuffix("{% endif %}{% endif %}") + "{% else %}<think>\n{% endif %}{% endif %}",
    "r1": DEEPSEEK.replace("CLOSED", "").replace("OPENED", "<think>\n"),
    "v3.1": DEEPSEEK.replace("CLOSED", "</think>").replace(
        "OPENED", "{% if thinking is defined and thinking %}<think>{% else %}</think>{% endif %}"
    ),
    "gpt-oss": (
        "{% for m in messages %}{% if m.role == 'assistant' %}{% if m.thinking %}<|im_start|>analysis: {{ m.thinking }}"
        "<|im_end|>{% endif %}<|im_start|>final: {{ m.content }}<|im_end|>{% else %}{{ m.content }}{% endif %}"
        "{% endfor %}"
    ),
    "plain": "{% for m in messages %}"
    + TURN
    + "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}",
}
ON: dict[str, Any] = {"enable_thinking": True, "thinking": True}
OFF: dict[str, Any] = {"enable_thinking": False, "thinking": False}


def encoder(template: str, settings: dict[str, Any] = ON) -> Encoder:
    """One token per byte but for two line breaks, which are one, and the marks, which are no control tokens."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {text: index for index, text in enumerate([*alphabet, "ĊĊ"])}
    core = Tokenizer(models.BPE(vocab=vocabulary, merges=[("Ċ", "Ċ")]))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    core.decoder = decoders.ByteLevel()
    fast = PreTrainedTokenizerFast(tokenizer_object=core, eos_token="<|im_end|>", pad_token="<|pad|>")
    fast.add_special_tokens({"additional_special_tokens": ["<|im_start|>"]})
    fast.add_tokens(["<think>", "</think>"])
    fast.chat_template = TEMPLATES[template]
    return Encoder(fast, settings, TrainConfig(), 7, 300)


def only(encoder: Encoder, example: Example) -> Segment:
    ((segment,),) = (item.segments for item in encoder.items([example]))
    return segment


def parts(encoder: Encoder, segment: Segment) -> tuple[list[int], str]:
    """(ids of the prompt, text that is learnt)."""
    learnt = segment.labels != IGNORE
    assert not learnt[: learnt.argmax()].any()
    assert learnt[learnt.argmax() :].all()
    return segment.ids[~learnt].tolist(), encoder.tokenizer.decode(segment.ids[learnt].tolist())


LEARNT = [
    ("qwen3", ON, "say hello", "<think>\nsay hello\n</think>\n\nhello<|im_end|>\n"),
    ("qwen3", ON, "", "<think>\n\n</think>\n\nhello<|im_end|>\n"),
    ("qwen3", OFF, "", "hello<|im_end|>\n"),
    ("qwen3.5", ON, "say hello", "say hello\n</think>\n\nhello<|im_end|>\n"),
    ("qwen3.5", ON, "", "</think>\n\nhello<|im_end|>\n"),
    ("qwen3.5", OFF, "", "hello<|im_end|>\n"),
    ("r1", ON, "say hello", "say hello\n</think>\n\nhello<|im_end|>"),
    ("r1", ON, "", "</think>\n\nhello<|im_end|>"),
    ("v3.1", ON, "say hello", "say hello</think>hello<|im_end|>"),
    ("v3.1", ON, "", "</think>hello<|im_end|>"),
    ("v3.1", OFF, "", "hello<|im_end|>"),
    ("gpt-oss", {}, "say hello", "<|im_start|>analysis: say hello<|im_end|><|im_start|>final: hello<|im_end|>"),
    ("gpt-oss", {}, "", "<|im_start|>final: hello<|im_end|>"),
    ("plain", {}, "", "hello<|im_end|>\n"),
]


@pytest.mark.parametrize("messages", [ASKED, TALK], ids=["first turn", "later turn"])
@pytest.mark.parametrize(("template", "settings", "thinking", "expected"), LEARNT)
def test_the_prompt_is_what_inference_asks_with_and_the_target_what_the_model_writes_next(
    template: str, settings: dict[str, Any], thinking: str, expected: str, messages: tuple
) -> None:
    ours = encoder(template, settings)
    asked = ours.tokenizer.apply_chat_template(
        list(messages), add_generation_prompt=True, return_dict=False, **settings
    )
    segment = only(ours, replace(ONE, messages=messages, thinking=thinking))
    assert parts(ours, segment) == (asked, expected)


@pytest.mark.parametrize(
    ("template", "settings"),
    [("qwen3", OFF), ("qwen3.5", OFF), ("v3.1", OFF), ("plain", {})],
)
@pytest.mark.parametrize("thinking", ["say hello", "hello"])
def test_thinking_that_inference_has_no_place_for_is_refused(
    template: str, settings: dict[str, Any], thinking: str
) -> None:
    """Also where the thinking is the answer's own words, which such a template does write."""
    with pytest.raises(ValueError, match=r"d/1: the chat template does not continue the prompt with its thinking and"):
        only(encoder(template, settings), replace(ONE, thinking=thinking))


def test_a_prompt_with_a_block_of_another_kind_is_refused() -> None:
    ours = encoder("r1")
    ours.tokenizer.chat_template = TEMPLATES["r1"].replace("<think>\n", "<reason>\n")
    with pytest.raises(ValueError, match="does not continue the prompt with the answer"):
        only(ours, ONE)


@pytest.mark.parametrize("objective", ["dpo", "derta"])
def test_only_sft_trains_on_thinking(objective: str) -> None:
    with pytest.raises(ValueError, match=f"example d/1: thinking is trained on by sft, not by {objective}"):
        only(encoder("qwen3"), replace(THOUGHT, objective=objective, rejected="no"))


@pytest.mark.parametrize("template", ["qwen3.5", "r1", "v3.1"])
def test_both_answers_of_a_pair_close_the_block_that_the_prompt_opens(template: str) -> None:
    ours = encoder(template)
    (item,) = ours.items([replace(ONE, objective="dpo", rejected="go")])
    for segment in item.segments:
        assert parts(ours, segment)[1].startswith("</think>")


def test_the_refusals_of_derta_stand_behind_the_block_that_the_prompt_opens() -> None:
    ours = encoder("r1")
    (item,) = ours.items([replace(ONE, objective="derta", rejected="go away")])
    refusals = item.segments[1]
    opened = ours.tokenizer.apply_chat_template(list(ASKED), add_generation_prompt=True, return_dict=False, **ON)
    closed = [*opened, *ours.tokenizer("</think>\n\n", add_special_tokens=False)["input_ids"]]
    assert refusals.ids[: len(closed)].tolist() == closed
    assert (refusals.labels[: len(closed)] == IGNORE).all()
    assert (refusals.labels[len(closed) :] != IGNORE).any()


HOSTILE = ["</think>", "<think>", "<|im_end|>", "< /think>", "\n", "\n\n", "x", " "]


@given(
    words=st.tuples(*[st.lists(st.sampled_from(HOSTILE), max_size=6)] * 3),
    case=st.sampled_from(
        [(name, settings) for name, settings, thinking, _ in LEARNT if thinking and name != "gpt-oss"]
    ),
)
def test_texts_that_spell_the_marks_neither_end_the_thinking_nor_cut_the_answer(words: tuple, case: tuple) -> None:
    ours, (asked, thinking, answer) = encoder(*case), ("".join(each) for each in words)
    example = Example("d", "1", ({"role": "user", "content": asked},), f"{answer}!", thinking=f"?{thinking}")
    prompt, learnt = parts(ours, only(ours, example))
    inference = [{"role": "user", "content": asked.replace("<|im_end|>", "< |im_end|>")}]
    assert prompt == ours.tokenizer.apply_chat_template(inference, add_generation_prompt=True, return_dict=False, **ON)
    assert learnt.count("</think>") == 1
    assert learnt.count("<|im_end|>") == 1
    thought, _, rest = learnt.partition("</think>")
    assert thought.replace("< ", "<").removeprefix("<think>").strip() == f"?{thinking}".replace("< ", "<").strip()
    assert rest.partition("<|im_end|>")[0].replace("< ", "<").strip() == f"{answer}!".replace("< ", "<").strip()


def test_a_model_without_a_block_learns_the_marks_as_they_are(tiny: ModuleType) -> None:
    """An answer about XML is no reasoning."""
    plain = encoder("plain", {})
    assert parts(plain, only(plain, replace(ONE, target="<think>a</think>b")))[1] == "<think>a</think>b<|im_end|>\n"


def test_pieces_of_a_long_example_train_its_thinking_too() -> None:
    ours = encoder("r1")
    long = replace(THOUGHT, thinking="y" * 200)
    whole = only(ours, long)
    ours.config = replace(ours.config, max_tokens=50, split_long_examples=True)
    pieces = [item.segments[0].labels[1:] for item in ours.items([long])]
    learnt = np.concatenate([labels[labels != IGNORE] for labels in pieces])
    assert np.array_equal(learnt, whole.labels[whole.labels != IGNORE])
