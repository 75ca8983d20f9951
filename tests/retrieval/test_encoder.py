"""The bi-encoder: its vectors, DPR's loss, what a seed decides, and the layout that it is saved in."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch

from shard_dist.data.dpr import Passage, Question
from shard_dist.retrieval.encoder import SCALE, Encoder, Fit, _loss, load_encoder, new_encoder, train_encoder

TEXTS = ("How do locks work?", "Explain locks.", "Who is kind?", "Be kind.")
LOCKS, KIND = Passage("Locks", "Explain locks."), Passage("Tone", "Be kind.")
QUESTIONS = [Question("1", TEXTS[0], (LOCKS,)), Question("2", TEXTS[2], (KIND,))]


def small(seed: int = 0) -> Encoder:
    return new_encoder(TEXTS, seed, vocabulary=300, width=16)


def pooled(encoder: Encoder, text: str) -> torch.Tensor:
    """Token vectors of a text alone, without padding."""
    with torch.no_grad():
        return encoder.model(**encoder.tokenizer([text], return_tensors="pt")).last_hidden_state[0]


@pytest.mark.parametrize("pooling", ["mean", "cls"])
def test_a_vector_is_the_pooled_tokens_whatever_else_is_in_the_batch(pooling: str) -> None:
    encoder = small()
    encoder.pooling = pooling
    texts = ["kind", "How do locks work? " * 20]
    vectors = encoder.encode(texts)
    for vector, text in zip(vectors, texts, strict=True):
        tokens = pooled(encoder, text)
        expected = tokens.mean(0) if pooling == "mean" else tokens[0]
        np.testing.assert_allclose(vector, expected / expected.norm(), rtol=1e-5, atol=1e-6)
    encoder.normalise = False
    assert abs(np.linalg.norm(encoder.encode(["kind"])) - 1) > 0.1


def test_any_text_has_a_vector() -> None:
    vectors = small().encode(["", "\x00", "x" * 1_000_000, "\u4f60\u597d"], batch=3)
    assert vectors.shape == (4, 16)
    assert np.isfinite(vectors).all()
    assert small().encode([]).shape == (0, 16)


def test_the_loss_is_dprs() -> None:
    encoder = small()
    pairs = [(question, question.positives[0]) for question in QUESTIONS]
    queries = encoder.encode([question.text for question in QUESTIONS])
    passages = encoder.encode(["Locks: Explain locks.", "Tone: Be kind."])
    scores = SCALE * queries @ passages.T
    expected = np.mean([math.log(np.exp(row).sum()) - row[place] for place, row in enumerate(scores)])
    assert _loss(encoder, pairs).item() == pytest.approx(float(expected), rel=1e-4)


def test_other_positives_of_a_question_are_no_negatives() -> None:
    encoder = small()
    both = Question("1", TEXTS[0], (LOCKS, KIND))
    alone = _loss(encoder, [(both, LOCKS), (QUESTIONS[1], KIND)])
    queries = SCALE * encoder.encode([TEXTS[2]]) @ encoder.encode(["Locks: Explain locks.", "Tone: Be kind."]).T
    second = math.log(np.exp(queries[0]).sum()) - queries[0][1]
    assert alone.item() == pytest.approx(second / 2, rel=1e-4)  # the first question has nothing to be told from
    same = _loss(encoder, [(QUESTIONS[0], LOCKS), (Question("3", "Locks?", (LOCKS,)), LOCKS)])
    assert same.item() == 0


def test_training_is_decided_by_the_seed_and_leaves_the_global_draws_alone() -> None:
    fit = Fit(epochs=4, batch=2, rate=1e-2)
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    weights = []
    for seed in (0, 0, 1):
        encoder = small(seed)
        losses = train_encoder(encoder, QUESTIONS, fit, seed)
        assert len(losses) == 4
        assert losses[-1] < losses[0]
        assert not encoder.model.training
        weights.append(encoder.encode(TEXTS))
    assert (weights[0] == weights[1]).all()
    assert (weights[0] != weights[2]).any()
    assert torch.equal(torch.rand(3), expected)


def test_a_saved_encoder_is_the_same_when_loaded(tmp_path: Path) -> None:
    encoder = small()
    encoder.pooling, encoder.normalise, encoder.max_tokens = "cls", False, 7
    encoder.save(tmp_path)
    loaded = load_encoder(str(tmp_path))
    assert (loaded.pooling, loaded.normalise, loaded.max_tokens) == ("cls", False, 7)
    np.testing.assert_array_equal(loaded.encode(TEXTS), encoder.encode(TEXTS))


def test_the_layout_is_sentence_transformers(tmp_path: Path) -> None:
    # Names and types as published models have them (all-MiniLM-L6-v2, e5-base).
    small().save(tmp_path)
    modules = json.loads((tmp_path / "modules.json").read_text())
    assert [(each["path"], each["type"]) for each in modules] == [
        ("", "sentence_transformers.models.Transformer"),
        ("1_Pooling", "sentence_transformers.models.Pooling"),
        ("2_Normalize", "sentence_transformers.models.Normalize"),
    ]
    pooling = json.loads((tmp_path / "1_Pooling" / "config.json").read_text())
    assert pooling["pooling_mode_mean_tokens"] is True
    assert pooling["pooling_mode_cls_token"] is False
    assert pooling["word_embedding_dimension"] == 16


def test_a_plain_encoder_is_pooled_by_its_mean(tmp_path: Path) -> None:
    encoder = small()
    encoder.model.save_pretrained(tmp_path)
    encoder.tokenizer.save_pretrained(tmp_path)
    loaded = load_encoder(str(tmp_path))
    assert (loaded.pooling, loaded.normalise) == ("mean", True)
    np.testing.assert_array_equal(loaded.encode(TEXTS), encoder.encode(TEXTS))


def test_what_the_layout_asks_for_and_is_not_here_is_refused_by_name(tmp_path: Path) -> None:
    small().save(tmp_path)
    pooling = tmp_path / "1_Pooling" / "config.json"
    pooling.write_text(json.dumps({"pooling_mode_cls_token": True, "pooling_mode_max_tokens": True}))
    with pytest.raises(ValueError, match="pooling_mode_max_tokens"):
        load_encoder(str(tmp_path))
    modules = json.loads((tmp_path / "modules.json").read_text())
    modules[2]["type"] = "sentence_transformers.models.Dense"
    (tmp_path / "modules.json").write_text(json.dumps(modules))
    with pytest.raises(ValueError, match="made of Transformer, Pooling, Dense"):
        load_encoder(str(tmp_path))


def test_no_encoder_is_a_plain_error(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="cannot load the encoder"):
        load_encoder(str(tmp_path))
