"""Thinking told from answers by vLLM's own parsers, without an engine."""

from __future__ import annotations

import pytest
from transformers import AutoTokenizer

from shard_dist.config.schema import ModelConfig
from shard_dist.demo.world import SEED_MODEL
from shard_dist.engines.vllm_actor import VllmEngine

pytestmark = pytest.mark.vllm


@pytest.mark.parametrize(
    ("thinks", "said", "expected"),
    [
        (True, "It is about pins.\n</think>\n\nA lock has pins.", ("It is about pins.", "A lock has pins.")),
        (True, "It is about", ("It is about", "")),  # cut while it thought
        (True, "</think>\n\nA lock has pins.", ("", "A lock has pins.")),  # closed at once
        (False, "A lock has pins.", ("", "A lock has pins.")),
    ],
)
def test_an_answer_is_no_thinking_where_the_template_lets_none(
    thinks: bool, said: str, expected: tuple[str, str]
) -> None:
    engine = object.__new__(VllmEngine)
    engine.tokenizer = AutoTokenizer.from_pretrained(SEED_MODEL)
    engine.tokenizer.add_tokens(["<think>", "</think>"])
    engine.spec = ModelConfig(model="m", reasoning_parser="qwen3", chat_template_kwargs={"enable_thinking": thinks})
    engine.parser = engine._reasoning_parser()
    assert engine._split_thinking(said) == expected
