"""From examples to tokens: what is supervised, what is kept out, and what hostile text cannot do."""

from dataclasses import replace
from pathlib import Path
from types import ModuleType

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shard_dist.prompts.render import special_tokens
from shard_dist.records import Example
from shard_dist.training.examples import EXAMPLE_SCHEMA, read_examples, write_examples
from shard_dist.training.objectives import IGNORE, collate, encode, sft

ONE = Example("d", "1", ({"role": "system", "content": "be kind"}, {"role": "user", "content": "hi"}), "hello")


def test_loss_on_the_answer_and_the_end_of_its_turn_only(tiny: ModuleType) -> None:
    tokenizer = tiny.tokenizer()
    tokens = sft(ONE, tokenizer, {})
    learned = tokens.ids[tokens.labels != IGNORE].tolist()
    assert tokenizer.decode(learned) == "hello<|im_end|>\n"
    assert tokens.supervised == len("hello") + 2
    prompt = tokenizer.decode(tokens.ids[tokens.labels == IGNORE].tolist())
    assert prompt == "<|im_start|>system\nbe kind<|im_end|>\n<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"


def test_the_prompt_is_what_inference_asks_with(tiny: ModuleType) -> None:
    tokenizer = tiny.tokenizer()
    tokens = sft(ONE, tokenizer, {})
    asked = tokenizer.apply_chat_template(list(ONE.messages), add_generation_prompt=True, return_dict=False)
    assert tokens.ids[: len(asked)].tolist() == asked
    assert (tokens.labels[: len(asked)] == IGNORE).all()


@given(
    text=st.lists(
        st.sampled_from(["<|im_end|>", "<|im_start|>", "<|pad|>", "system\n", "x", " ", "<|im_<|im_end|>end|>"])
    )
)
def test_control_tokens_in_texts_never_reach_the_ids(tiny: ModuleType, text: list[str]) -> None:
    """A prompt or an answer that spells the end of a turn must not end it."""
    tokenizer = tiny.tokenizer()
    hostile = replace(ONE, messages=({"role": "user", "content": "".join(text)},), target="".join(text) + "!")
    ids = sft(hostile, tokenizer, {}).ids.tolist()
    specials = [index for index in ids if index in tokenizer.added_tokens_decoder]
    start, end = tokenizer.convert_tokens_to_ids(["<|im_start|>", "<|im_end|>"])
    assert specials == [start, end, start, end]


def test_a_template_that_hides_the_answer_is_refused(tiny: ModuleType) -> None:
    forgetful = tiny.TEMPLATE.replace("<|im_start|>assistant\n{% endif", "<|im_start|>assistant\n<think>{% endif")
    with pytest.raises(ValueError, match=r"example d/1: the chat template does not continue"):
        sft(ONE, tiny.tokenizer(forgetful), {})


@pytest.mark.parametrize("target", ["", " \n\t"])
def test_an_empty_target_is_refused(tiny: ModuleType, target: str) -> None:
    with pytest.raises(ValueError, match="example d/1: its target is empty"):
        sft(replace(ONE, target=target), tiny.tokenizer(), {})


def test_an_unknown_objective_is_refused(tiny: ModuleType) -> None:
    with pytest.raises(ValueError, match="no objective 'dpo'"):
        encode([replace(ONE, objective="dpo")], tiny.tokenizer(), {}, 100)


def test_too_long_examples_are_left_out_and_counted_not_cut(tiny: ModuleType) -> None:
    long = replace(ONE, id="2", target="y" * 500)
    whole = sft(ONE, tiny.tokenizer(), {})
    kept, too_long = encode([long, ONE, long], tiny.tokenizer(), {}, len(whole.ids))
    assert too_long == 2
    assert [tokens.ids.tolist() for tokens in kept] == [whole.ids.tolist()]


def test_template_settings_reach_the_template(tiny: ModuleType) -> None:
    tokenizer = tiny.tokenizer("{{ mood }}" + tiny.TEMPLATE)
    assert tokenizer.decode(sft(ONE, tokenizer, {"mood": "glad"}).ids.tolist()).startswith("glad<|im_start|>")


def test_collate_pads_right_and_points_at_the_tokens_before_the_targets(tiny: ModuleType) -> None:
    rows = [
        sft(ONE, tiny.tokenizer(), {}),
        sft(replace(ONE, target="a much longer answer"), tiny.tokenizer(), {}),
    ]
    batch = collate(rows)
    assert batch.ids_BL.shape == (2, len(rows[1].ids))
    flat = batch.ids_BL.flatten()
    assert flat[batch.rows_N + 1].tolist() == batch.targets_N.tolist()
    assert len(batch.rows_N) == sum(row.supervised for row in rows)
    assert batch.ids_BL[0, len(rows[0].ids) :].eq(0).all()


def test_collate_of_nothing_is_one_token_without_a_loss() -> None:
    batch = collate([])
    assert batch.ids_BL.tolist() == [[0]]
    assert batch.rows_N.numel() == batch.targets_N.numel() == 0


def test_the_longest_control_token_is_defused_first(tiny: ModuleType) -> None:
    assert set(special_tokens(tiny.tokenizer())) == {"<|im_start|>", "<|im_end|>", "<|pad|>"}
    assert special_tokens(tiny.tokenizer())[0] == "<|im_start|>"


def test_examples_survive_the_round_trip(tmp_path: Path) -> None:
    write_examples(tmp_path / "e.parquet", [ONE, replace(ONE, id="2", target="שלום\n")])
    assert read_examples(tmp_path / "e.parquet") == [ONE, replace(ONE, id="2", target="שלום\n")]
    write_examples(tmp_path / "none.parquet", [])
    assert read_examples(tmp_path / "none.parquet") == []
    assert EXAMPLE_SCHEMA.names == ["dataset", "id", "messages", "target", "objective"]
    with pytest.raises(ValueError, match="run the select stage first"):
        read_examples(tmp_path / "absent.parquet")
