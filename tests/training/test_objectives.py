"""From examples to tokens: what is supervised, what is kept out, what is refused, and what hostile text cannot do."""

from dataclasses import replace
from types import ModuleType

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shard_dist.config.check import _check_objectives
from shard_dist.config.training import DertaConfig, DpoConfig, TrainConfig
from shard_dist.prompts.render import special_tokens
from shard_dist.records import Example
from shard_dist.training.objectives import IGNORE, Encoder, Item, Segment

ASKED = ({"role": "system", "content": "be kind"}, {"role": "user", "content": "hi"})
ONE = Example("d", "1", ASKED, "hello")
PAIR = replace(ONE, objective="dpo", rejected="go away")


def encoder(tiny: ModuleType, template: str | None = None, vocabulary: int = 260, **settings: object) -> Encoder:
    return Encoder(tiny.tokenizer(template or tiny.TEMPLATE), {}, TrainConfig(**settings), 7, vocabulary)


def items(encoder: Encoder, *examples: Example) -> list[Item]:
    return list(encoder.items(examples))


def only(encoder: Encoder, example: Example) -> Segment:
    ((segment,),) = (item.segments for item in items(encoder, example))
    return segment


def test_sft_loss_on_the_answer_and_the_end_of_its_turn_only(tiny: ModuleType) -> None:
    ours = encoder(tiny)
    segment = only(ours, ONE)
    supervised = segment.labels != IGNORE
    assert ours.tokenizer.decode(segment.ids[supervised].tolist()) == "hello<|im_end|>\n"
    assert (segment.labels[supervised] == segment.ids[supervised]).all()
    prompt = ours.tokenizer.decode(segment.ids[~supervised].tolist())
    assert prompt == "<|im_start|>system\nbe kind<|im_end|>\n<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"


def test_the_prompt_is_what_inference_asks_with(tiny: ModuleType) -> None:
    ours = encoder(tiny)
    asked = ours.tokenizer.apply_chat_template(list(ASKED), add_generation_prompt=True, return_dict=False)
    for segment in (segment for item in items(ours, ONE, PAIR) for segment in item.segments):
        assert segment.ids[: len(asked)].tolist() == asked
        assert (segment.labels[: len(asked)] == IGNORE).all()


def test_white_space_around_an_answer_is_dropped(tiny: ModuleType) -> None:
    ours = encoder(tiny)
    assert np.array_equal(only(ours, ONE).ids, only(ours, replace(ONE, target=" \nhello\t")).ids)


def test_dpo_has_both_answers_to_the_same_prompt(tiny: ModuleType) -> None:
    ours = encoder(tiny)
    (item,) = items(ours, PAIR)
    assert [segment.term for segment in item.segments] == ["dpo.chosen", "dpo.rejected"]
    learned = [ours.tokenizer.decode(s.labels[s.labels != IGNORE].tolist()) for s in item.segments]
    assert learned == ["hello<|im_end|>\n", "go away<|im_end|>\n"]
    assert item.tokens == sum(len(segment.ids) for segment in item.segments)


HOSTILE = ["<|im_end|>", "<|im_start|>", "<|pad|>", "system\n", "x", " ", "<|im_<|im_end|>end|>"]


@given(text=st.lists(st.sampled_from(HOSTILE)), objective=st.sampled_from(["sft", "dpo", "derta"]))
def test_control_tokens_in_texts_never_reach_the_ids(tiny: ModuleType, text: list[str], objective: str) -> None:
    """A prompt or an answer that spells the end of a turn must not end it."""
    ours, spelt = encoder(tiny), "".join(text)
    asked = ({"role": "user", "content": spelt},)
    hostile = Example("d", "1", asked, spelt + "!", objective, spelt + "?")
    start, end = ours.tokenizer.convert_tokens_to_ids(["<|im_start|>", "<|im_end|>"])
    for segment in items(ours, hostile)[0].segments:
        specials = [index for index in segment.ids.tolist() if index in ours.tokenizer.added_tokens_decoder]
        # The harmful answer of derta breaks off before the end of its turn.
        assert specials == [start, end, start, *([] if segment.term == "derta.refusal" else [end])]


def test_the_longest_control_token_is_defused_first(tiny: ModuleType) -> None:
    assert set(special_tokens(tiny.tokenizer())) == {"<|im_start|>", "<|im_end|>", "<|pad|>"}
    assert special_tokens(tiny.tokenizer())[0] == "<|im_start|>"


def test_template_settings_reach_the_template(tiny: ModuleType) -> None:
    ours = Encoder(tiny.tokenizer("{{ mood }}" + tiny.TEMPLATE), {"mood": "glad"}, TrainConfig(), 7, 260)
    assert ours.tokenizer.decode(only(ours, ONE).ids.tolist()).startswith("glad<|im_start|>")


@pytest.mark.parametrize(
    ("example", "expected"),
    [
        (replace(ONE, target=""), "its target is empty"),
        (replace(ONE, target=" \n\t"), "its target is empty"),
        (replace(PAIR, target=""), "its target is empty"),
        (replace(PAIR, rejected=" "), "its rejected answer is empty, which the objective dpo needs"),
        (replace(PAIR, objective="derta", rejected=""), "its rejected answer is empty, which the objective derta"),
        (replace(PAIR, rejected="\nhello "), "chosen and rejected answer are the same"),
        (replace(ONE, objective="ppo"), "no objective 'ppo'; one of sft, dpo, derta"),
    ],
)
def test_an_example_that_cannot_be_trained_on_is_refused_by_name(
    tiny: ModuleType, example: Example, expected: str
) -> None:
    with pytest.raises(ValueError, match=f"example d/1: {expected}"):
        items(encoder(tiny), example)


REASONS = "<|im_start|>assistant\n<reasoning>{% endif"
SPEAKS = "{% for m in messages %}{% if m.role == 'assistant' %}{{ m.content }}{% endif %}{% endfor %}"
NO_SYSTEM = "{% if messages[0].role == 'system' %}{{ raise_exception('no system role') }}{% endif %}"


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        ("forgetful", "the chat template does not continue the prompt with the answer"),
        ("{{ messages[-2].content }}", "the chat template does not continue the prompt"),
        ("{{ messages[0].content }}", "the chat template does not continue the prompt"),
        (NO_SYSTEM, "the chat template fails on its messages: no system role"),
        (SPEAKS, "no token of its sft part is trained on"),
    ],
    ids=["opens a block for the prompt only", "other prompt", "no answer", "no system role", "one token in all"],
)
def test_a_template_that_leaves_nothing_to_learn_is_refused(tiny: ModuleType, template: str, expected: str) -> None:
    if template == "forgetful":
        template = tiny.TEMPLATE.replace("<|im_start|>assistant\n{% endif", REASONS)
    with pytest.raises(ValueError, match=f"example d/1: {expected}"):
        items(encoder(tiny, template), replace(ONE, target="h"))


def test_tokens_beyond_the_models_vocabulary_are_refused(tiny: ModuleType) -> None:
    end = tiny.tokenizer().convert_tokens_to_ids("<|im_start|>")
    assert items(encoder(tiny, vocabulary=end + 1), ONE)
    with pytest.raises(ValueError, match=rf"d/1: the tokenizer gives token {end}, the model has only {end} \(0"):
        items(encoder(tiny, vocabulary=end), ONE)


def test_too_long_examples_are_left_out_and_counted_not_cut(tiny: ModuleType) -> None:
    long = replace(ONE, id="2", target="y" * 500)
    whole = only(encoder(tiny), ONE)
    ours = encoder(tiny, max_tokens=len(whole.ids))
    kept = items(ours, long, ONE, long, replace(PAIR, id="3"))
    assert [item.key for item in kept] == [("d", "1")]
    assert np.array_equal(kept[0].segments[0].ids, whole.ids)
    assert ours.counts == {"examples": 4, "too_long": 3, "split": 0}


@given(target=st.text("ab", min_size=1, max_size=150), longest=st.integers(2, 60))
def test_the_pieces_of_a_long_example_train_every_token_of_its_answer_once(
    tiny: ModuleType, target: str, longest: int
) -> None:
    whole = only(encoder(tiny), replace(ONE, target=target))
    ours = encoder(tiny, max_tokens=longest, split_long_examples=True)
    pieces = [item.segments[0] for item in items(ours, replace(ONE, target=target))]
    assert all(len(piece.ids) <= longest for piece in pieces)
    learned = np.concatenate([piece.labels[1:][piece.labels[1:] != IGNORE] for piece in pieces])
    assert np.array_equal(learned, whole.labels[whole.labels != IGNORE])
    assert all((piece.labels[1:] != IGNORE).any() for piece in pieces), "a piece of prompt alone teaches nothing"
    assert ours.counts == {"examples": 1, "too_long": 0, "split": int(len(whole.ids) > longest)}


def test_only_sft_is_split(tiny: ModuleType) -> None:
    """Half a pair has no preference in it, and half a derta example no refusal."""
    ours = encoder(tiny, max_tokens=100, split_long_examples=True)
    long = replace(PAIR, target="y" * 90)
    assert not items(ours, long, replace(long, objective="derta"))
    assert ours.counts == {"examples": 2, "too_long": 2, "split": 0}


@pytest.mark.parametrize(
    ("section", "name", "wrong", "right"),
    [
        ("dpo", "beta", (0, -1, float("nan")), (0.01, 5)),
        ("dpo", "label_smoothing", (-0.1, 0.5), (0, 0.49)),
        ("derta", "rto_weight", (-1,), (0, 3)),
        ("derta", "no_prefix", (-0.1, 1.1), (0, 1)),
        ("derta", "keep", (0, 1.1), (0.001, 1)),
        ("derta", "refusal", ("", " \n"), ("No",)),
    ],
)
def test_settings_out_of_range_are_refused(section: str, name: str, wrong: tuple, right: tuple) -> None:
    kind = {"dpo": DpoConfig, "derta": DertaConfig}[section]
    for value in right:
        _check_objectives(TrainConfig(**{section: kind(**{name: value})}))
    for value in wrong:
        with pytest.raises(ValueError, match=rf"train\.{section}\.{name} is"):
            _check_objectives(TrainConfig(**{section: kind(**{name: value})}))
