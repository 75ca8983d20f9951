"""The universal principles are short, sourced and complete."""

import re

from shard_dist.prompts.render import principles


def test_every_principle_has_a_name_a_dated_source_and_a_short_text():
    for principle in principles():
        assert set(principle) == {"name", "source", "text"}
        assert re.search(r"\((1[789]|20)\d\d\)", principle["source"]), principle
        assert 35 <= len(principle["text"].split()) <= 55, principle["name"]


def test_the_sources_that_shard_builds_on_are_there_once():
    sources = " ".join(principle["source"] for principle in principles())
    for author in ("Mill", "Feinberg", "Kant", "Waldron", "Fricker", "Gilligan", "Noddings", "Russell"):
        assert author in sources
    assert len({principle["name"] for principle in principles()}) == len(principles()) == 13
