"""The demo's text world is consistent: prompts, held-out topics, answers and the training text."""

import csv
import json
import random
import re
from collections import Counter
from itertools import islice

import pytest

from shard_dist.demo.intents import CATEGORIES, GUIDELINES, INTENTS, SENSITIVE
from shard_dist.demo.topics import ADJECTIVES, HELD_OUT, HELD_OUT_NOUNS, TRAINING_NOUNS, training_topic
from shard_dist.demo.world import (
    CSV_COLUMNS,
    PROMPTS_CSV,
    REFUSALS,
    Request,
    held_out_requests,
    lessons,
    refuses,
    write_prompts,
)
from shard_dist.prompts.render import Templates


def test_shipped_prompts_are_what_the_world_writes(tmp_path):
    write_prompts(tmp_path / "prompts.csv")
    assert (tmp_path / "prompts.csv").read_bytes() == PROMPTS_CSV.read_bytes()


def test_prompts_cover_every_category_and_level_and_are_unique():
    rows = list(csv.DictReader(PROMPTS_CSV.read_text(encoding="utf-8").splitlines()))
    assert tuple(rows[0]) == CSV_COLUMNS
    assert len({row["prompt"] for row in rows}) == len(rows)
    assert len({row["id"] for row in rows}) == len(rows)
    assert {row["type"] for row in rows} == set(CATEGORIES)
    levels = Counter((row["type"], row["level"] == "0") for row in rows)
    assert all(levels[category, sensitive] >= 20 for category in CATEGORIES for sensitive in (True, False))
    assert {row["level"] for row in rows} == {"0", "1", "2", "3"}
    # The split goes by topic: every topic brings two sensitive prompts and a plain one.
    groups = Counter((row["topic"], row["level"] == "0") for row in rows)
    assert all(groups[topic, False] == 2 and groups[topic, True] == 1 for topic in HELD_OUT)


def test_every_sensitive_wording_is_asked_in_the_demo():
    asked = {(request.intent.subtype, request.ask) for request in held_out_requests() if request.sensitive}
    assert asked == {(intent.subtype, ask) for intent in SENSITIVE for ask in range(len(intent.asks))}


def test_held_out_nouns_are_no_training_words():
    assert len(HELD_OUT_NOUNS) == len(HELD_OUT)
    assert not HELD_OUT_NOUNS & (set(TRAINING_NOUNS) | set(ADJECTIVES))
    assert all(topic.split()[0] in ADJECTIVES for topic in HELD_OUT if " " in topic)


def test_no_training_text_names_a_held_out_noun():
    text = " ".join(
        f"{lesson.messages[-1]['content']} {lesson.target}"
        for lesson in islice(lessons(Templates("toy"), random.Random(5)), 3000)
    )
    assert not set(re.findall(r"[a-z]+", text.lower())) & HELD_OUT_NOUNS


def test_topics_suit_the_article_a():
    rng = random.Random(0)
    topics = [*HELD_OUT, *TRAINING_NOUNS, *ADJECTIVES, *(training_topic(rng) for _ in range(500))]
    assert not [topic for topic in topics if topic[0] in "aeiou"]


@pytest.mark.parametrize("intent", INTENTS, ids=lambda intent: intent.asks[0])
def test_good_answers_copy_the_topic_and_never_refuse(intent):
    request = Request(intent, "velvet kazoo")
    assert "velvet kazoo" in request.prompt
    assert "velvet kazoo" in request.need_prompt
    for answer in request.answers:
        assert answer.count("velvet kazoo") == 2
        assert not refuses(answer)
        assert 2 <= len(re.findall(r"[.!?](?: |$)", answer)) <= 4


@pytest.mark.parametrize("intent", INTENTS, ids=lambda intent: intent.asks[0])
def test_a_rewrite_asks_for_the_need_and_a_plain_request_stays_itself(intent):
    request = Request(intent, "kazoo", phrasing=3)
    rewrite = json.loads(request.rewrite)
    assert list(rewrite) == [
        "rewritten_prompt", "response_mode", "reformulated_component", "preserved_benign_need"
    ]  # fmt: skip
    assert (rewrite["rewritten_prompt"] == request.prompt) == (not request.sensitive)
    assert (rewrite["response_mode"] == "direct_answer") == (not request.sensitive)
    assert bool(rewrite["reformulated_component"]) == request.sensitive


def test_every_refusal_is_seen_as_one():
    assert all(refuses(refusal) for refusal in REFUSALS)


def test_guidelines_are_short_bullet_lists():
    assert set(GUIDELINES) == set(CATEGORIES)
    for text in GUIDELINES.values():
        assert all(line.startswith("- ") for line in text.splitlines())
        assert len(text.split()) <= 40
