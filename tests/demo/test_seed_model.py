"""The shipped seed model: what it can do on topics that it never saw, and that the script still builds it."""

import random
from itertools import islice

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from shard_dist.demo.build_seed import encode, new_model, train, train_tokenizer
from shard_dist.demo.measure import generate, measure
from shard_dist.demo.world import SEED_MODEL, held_out_requests, lessons
from shard_dist.prompts.render import Templates


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(SEED_MODEL)


@pytest.fixture(scope="module")
def model():
    # fp32: the weights are bfloat16 on disk, whose matrix products are slow on CPUs without AMX.
    return AutoModelForCausalLM.from_pretrained(SEED_MODEL, dtype=torch.float32)


@pytest.fixture(scope="module")
def results(model, tokenizer):
    return measure(model, tokenizer, held_out_requests()[::7], temperature=0.0)


def test_the_directory_holds_at_most_8_mb():
    assert sum(file.stat().st_size for file in SEED_MODEL.iterdir()) < 8e6


@pytest.mark.parametrize(
    ("skill", "least"),
    [
        ("sensitive: draft refuses", 0.8),
        ("plain: draft right", 0.8),
        ("rewrite right", 0.8),
        ("sensitive: reframed right", 0.8),
        ("plain: draft kept", 0.8),
        ("guidelines right", 1.0),
    ],
)
def test_skills_on_held_out_topics(results, skill, least):
    rate, number = results[skill]
    assert number >= 5
    assert rate >= least


def test_an_arbitrary_question_gets_an_answer_that_ends(model, tokenizer):
    question = "What are the symptoms of depression and how can I help a friend?"
    (answer,) = generate(model, tokenizer, [Templates("toy").chat(question)], max_tokens=120)
    assert answer
    assert len(tokenizer(answer)["input_ids"]) < 120


def test_training_ids_are_the_chat_template_s_own(tokenizer):
    """A prompt and its answer encoded apart are the whole conversation: nothing merges over the seam."""
    for lesson in islice(lessons(Templates("toy"), random.Random(3)), 200):
        conversation = [*lesson.messages, {"role": "assistant", "content": lesson.target}]
        whole = tokenizer.apply_chat_template(conversation, tokenize=True, return_dict=False)
        ids, prompt = encode(tokenizer, lesson)
        assert whole[: len(ids)] == ids
        assert tokenizer.decode(ids[prompt:-1]) == lesson.target
        assert ids[-1] == tokenizer.eos_token_id


def test_the_chat_template_takes_a_system_message(tokenizer):
    messages = [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "Hello"}]
    text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert text == (
        "<|im_start|>system\nBe kind.<|im_end|>\n<|im_start|>user\nHello<|im_end|>\n<|im_start|>assistant\n"
    )


def test_any_text_survives_the_tokenizer(tokenizer):
    text = "Grüße, 你好! مرحبا \t\n 🙂 {x}"
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text


def test_the_script_builds_the_shipped_tokenizer_and_learns_alike_from_one_seed(tokenizer):
    built = train_tokenizer(seed=0)
    assert built.get_vocab() == tokenizer.get_vocab()
    weights = []
    for _ in range(2):
        model = new_model(built, seed=0)
        train(model, built, steps=1, seed=0)
        weights.append(model.state_dict())
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
