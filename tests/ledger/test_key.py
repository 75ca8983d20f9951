"""The key of a call: stable over versions, different for everything that can change an answer."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from shard_dist.ledger.key import call_key, request_seed
from shard_dist.records import Call, Sampling

CALL = Call("m", "f", ({"role": "user", "content": "hi"},), Sampling())
GOLDEN_KEY = "a7c68c3467bc243bd4a06be68803fdcfd219abe594bb9c84938a0af5502efdd6"
TEXT = st.text(max_size=40)


def test_everything_that_changes_an_answer_changes_the_key() -> None:
    other_message = ({"role": "user", "content": "hi "},)
    variants = [
        CALL,
        replace(CALL, model="n"),
        replace(CALL, fingerprint="g"),
        replace(CALL, messages=other_message),
        replace(CALL, messages=({"role": "system", "content": "hi"},)),
        replace(CALL, schema={"type": "object"}),
        *(replace(CALL, sampling=replace(Sampling(), **change)) for change in (
            {"temperature": 0.5}, {"top_p": 0.5}, {"max_tokens": 5}, {"n": 2}, {"seed": 1})),
    ]  # fmt: skip
    assert len({call_key(call) for call in variants}) == len(variants)


def test_the_key_of_a_call_is_stable() -> None:
    """Golden: written when version 1 of the key was defined. A change would orphan every ledger on disk."""
    assert call_key(CALL) == GOLDEN_KEY
    assert call_key(replace(CALL, sampling=replace(Sampling(), top_p=1))) == GOLDEN_KEY  # 1 and 1.0 are one setting


@given(seed=st.integers(0, 10), parts=st.lists(TEXT, max_size=3))
def test_request_seeds_fit_every_engine_and_repeat(seed: int, parts: list[str]) -> None:
    assert 0 <= request_seed(seed, *parts) < 2**31
    assert request_seed(seed, *parts) == request_seed(seed, *parts)


def test_request_seeds_tell_parts_apart() -> None:
    assert request_seed(0, "ab", "c") != request_seed(0, "a", "bc")
