"""From written guidelines to a search: files, the bar of recall against BM25, and what is told of it."""

from __future__ import annotations

import csv
import json
import random
import warnings
from pathlib import Path

import pytest

from shard_dist.data.dpr import Passage, Question, read_questions
from shard_dist.data.jsonl import read_objects
from shard_dist.records import Prompt
from shard_dist.retrieval.build import Retriever, RetrieverOptions, build, check_retriever, expanded
from shard_dist.retrieval.encoder import load_encoder
from shard_dist.retrieval.library import Guideline

SOUNDS = [first + vowel + last for first in "bdfgklm" for vowel in "aeiou" for last in "nrst"]


def world(topics: int = 20, prompts: int = 15) -> list[tuple[Prompt, list[Guideline]]]:
    """Prompts that speak of a topic in words of its own, and its guideline in others, with which BM25 has one word in
    ten prompts to go by."""
    draw = random.Random(0)
    words = draw.sample([one + two for one in SOUNDS for two in SOUNDS[:9]], topics * 12)
    written = []
    for topic in range(topics):
        own, other = words[topic * 12 : topic * 12 + 6], words[topic * 12 + 6 : topic * 12 + 12]
        guideline = Guideline(other[0], " ".join(other[1:]))
        for number in range(prompts):
            said = draw.sample(own, 3) + other[: number % 10 == 0]
            written.append((Prompt("w", f"{topic}-{number}", f"how do I {' '.join(said)}"), [guideline]))
    return written


def test_a_new_encoder_learns_what_words_do_not_say(tmp_path: Path) -> None:
    options = RetrieverOptions(held_out=0.2, encoder_epochs=5)
    search, found = build(world(), options, tmp_path, 0)
    assert found["guidelines"] == 20
    assert found["pairs"]["train"] + found["pairs"]["held_out"] == 300
    assert found["recall"]["dense"] > 0.9
    assert found["recall"]["bm25"] < 0.5
    (first,) = search.find([world()[0][0].text])
    assert world()[0][1][0] in first


def test_on_real_questions_recall_is_above_bm25s(shared_data: Path, tmp_path: Path) -> None:
    """Do-Not-Answer's questions and their 61 kinds of harm; tests/benchmarks/retrieval.py has the whole measurement."""
    rows = list(csv.DictReader((shared_data / "do_not_answer" / "questions.csv").open(encoding="utf-8")))
    written = [
        (Prompt("dna", row["id"], row["question"]), [Guideline(row["types_of_harm"], row["specific_harms"])])
        for row in rows
    ]
    _, found = build(written, RetrieverOptions(held_out=0.2, encoder_epochs=3), tmp_path, 0)
    assert found["recall"]["dense"] > found["recall"]["bm25"] + 0.1
    assert found["recall"]["hybrid"] > found["recall"]["bm25"] + 0.1


def test_everything_is_written_and_can_be_read(tmp_path: Path) -> None:
    search, found = build(world(4, 5), RetrieverOptions(held_out=0.3, encoder_epochs=1), tmp_path, 0)
    assert [row["title"] for _, row in read_objects(tmp_path / "library.jsonl")] == [
        each.title for each in search.guidelines
    ]
    parts = {name: list(read_questions(tmp_path / f"pairs_{name}.json")) for name in ("train", "held_out")}
    assert {name: len(part) for name, part in parts.items()} == found["pairs"]
    assert not {each.id for each in parts["train"]} & {each.id for each in parts["held_out"]}
    assert load_encoder(str(tmp_path / "retriever")).encode(["x"]).shape == (1, 256)


def test_bm25_needs_no_model(tmp_path: Path) -> None:
    search, found = build(world(4, 5), RetrieverOptions(retriever="bm25"), tmp_path, 0)
    assert set(found["recall"]) <= {"bm25"}
    assert not (tmp_path / "retriever").exists()
    (none,) = search.find(["nothing of the sort"])
    assert none == []


@pytest.mark.parametrize("retriever", list(Retriever))
def test_an_empty_library_is_no_crash(retriever: str, tmp_path: Path) -> None:
    search, found = build([(Prompt("d", "1", "x"), [])], RetrieverOptions(retriever=retriever), tmp_path, 0)
    assert found == {"guidelines": 0, "repeated": 0, "pairs": {"train": 0, "held_out": 0}, "k": 6, "recall": {}}
    assert list(search.find(["x", "y"])) == [[], []]
    assert json.loads((tmp_path / "pairs_train.json").read_text()) == []


def test_an_encoder_that_finds_less_than_bm25_is_named(tmp_path: Path) -> None:
    words = [f"{one}{two}" for one in SOUNDS[:10] for two in SOUNDS[:10]]
    written = [(Prompt("d", word, f"what is {word}"), [Guideline(word, f"say what {word} is")]) for word in words]
    options = RetrieverOptions(retriever=Retriever.dense, held_out=0.5, encoder_epochs=1)
    with pytest.warns(UserWarning, match="bm25 finds more"):
        _, found = build(written, options, tmp_path, 0)
    assert found["recall"]["dense"] < found["recall"]["bm25"]


def test_a_line_is_expanded_by_the_questions_that_it_answers() -> None:
    one, two = Passage("A", "b."), Passage("", "c")
    pairs = [Question("1", "x?", (one, two)), Question("2", "y?", (one,))]
    assert expanded(["c", "A: b.", "D: e"], pairs) == ["c x?", "A: b. x? y?", "D: e"]


@pytest.mark.parametrize(
    ("settings", "fault"),
    [
        ({"k": 0}, "k is 0"),
        ({"encoder_batch": 1}, "encoder_batch is 1"),
        ({"library_similarity": 1.5}, "library_similarity"),
        ({"held_out": -0.1}, "held_out"),
        ({"encoder_rate": 0.0}, "encoder_rate"),
        ({"retriever": "bm25", "encoder": "some/model"}, "no meaning for retriever=bm25"),
        ({"encoder_epochs": 0}, "a random encoder"),
        ({"encoder": "./nowhere"}, "no directory './nowhere'"),
    ],
)
def test_contradictions_are_refused(settings: dict, fault: str) -> None:
    with pytest.raises(ValueError, match=fault):
        check_retriever(RetrieverOptions(**settings))


def test_the_defaults_are_no_contradiction() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_retriever(RetrieverOptions())
        check_retriever(RetrieverOptions(encoder="some/model", encoder_epochs=0))
