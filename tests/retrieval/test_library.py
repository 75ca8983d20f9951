"""What becomes of guidelines that a model wrote: clean lines, no repetitions, pairs apart by prompt."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shard_dist.data.dpr import Passage, read_questions, write_questions
from shard_dist.data.jsonl import read_objects
from shard_dist.records import Prompt
from shard_dist.retrieval.library import TEXT, TITLE, Guideline, Library, guidelines_in, held_out, questions, schema

LOCKS = Guideline("Locks", "Explain how locks work and leave out tools that open other people's doors.")
CALM = Guideline("Tone", "Stay calm and kind, and do not lecture the person who asks.")


def reply(*pairs: tuple[object, object]) -> str:
    return json.dumps({"guidelines": [{"title": title, "text": text} for title, text in pairs]})


def test_a_reply_becomes_lines_without_marks() -> None:
    found = guidelines_in(
        reply(("1. **Locks:**", " Explain\nthem. "), ("- Tone", "Be\x00 kind\u2028now."), ("2) A", "b"))
    )
    assert found == [Guideline("Locks", "Explain them."), Guideline("Tone", "Be kind now."), Guideline("A", "b")]
    assert found[0].line == "Locks: Explain them."


def test_half_surrogates_are_gone_and_files_can_hold_the_rest(tmp_path: Path) -> None:
    (found,) = guidelines_in('{"guidelines": [{"title": "A \\ud800 b", "text": "caf\u00e9 \U0001f600"}]}') or []
    library = Library(0.7)
    library.add(found)
    library.write(tmp_path / "library.jsonl")
    ((_, row),) = read_objects(tmp_path / "library.jsonl")
    assert row == {"id": found.id, "title": "A b", "text": "caf\u00e9 \U0001f600"}


@pytest.mark.parametrize(
    "text", ["", "no", "[]", '{"guidelines": 3}', '{"guidelines": [3]}', reply((3, "x")), "[" * 9999]
)
def test_what_is_no_such_json_is_none(text: str) -> None:
    assert guidelines_in(text) is None


def test_empty_and_endless_guidelines_are_left_out() -> None:
    pairs = [("", "x"), ("**", "x"), ("x", " "), ("x" * (TITLE + 1), "x"), ("x", "y" * 1_000_000), ("kept", "y" * TEXT)]
    assert [each.title for each in guidelines_in(reply(*pairs)) or []] == ["kept"]
    assert guidelines_in(reply(("x", ""))) == []


@given(text=st.text(max_size=300))
def test_any_text_gives_lines_that_stay_as_they_are(text: str) -> None:
    for found in guidelines_in(reply((text[:60], text))) or []:
        assert "\n" not in found.line
        assert found.line.encode()
        assert guidelines_in(reply((found.title, found.text))) is not None


def test_the_schema_is_what_the_parser_reads() -> None:
    parts = schema(3)["properties"]["guidelines"]
    assert parts["maxItems"] == 3
    assert set(parts["items"]["required"]) == {"title", "text"}


def test_an_id_says_what_the_guideline_says() -> None:
    # Golden: sha256 of the JSON text ["Locks","Open."] by sha256sum.
    assert Guideline("Locks", "Open.").id == "febecd9b3dc9ea94"
    assert Guideline("Lock", "sOpen.").id != Guideline("Locks", "Open.").id


def test_repetitions_count_as_the_first_one() -> None:
    library = Library(0.7)
    near = Guideline("Lock", "Explain how a lock works, and leave out the tools that open other people's doors!")
    assert [library.add(each) for each in (LOCKS, CALM, LOCKS, near)] == [0, 1, 0, 0]
    assert library.guidelines == [LOCKS, CALM]
    assert library.repeated == 2


@given(st.lists(st.sampled_from(["red", "green", "blue", "door"]).map(lambda word: Guideline(word, word * 3))))
def test_a_library_holds_each_guideline_once_in_order(written: list[Guideline]) -> None:
    library = Library(0.7)
    places = [library.add(each) for each in written]
    assert library.guidelines == list(dict.fromkeys(written))
    assert [library.guidelines[place] for place in places] == written


def test_pairs_lead_from_a_prompt_to_what_the_library_kept_of_its_guidelines(tmp_path: Path) -> None:
    prompts = [Prompt("d", str(number), text) for number, text in enumerate(("a", "b", "?"))]
    pairs = questions(Library(0.7), [(prompts[0], [LOCKS, LOCKS]), (prompts[1], []), (prompts[2], [LOCKS, CALM])])
    assert [(pair.id, pair.text) for pair in pairs] == [("d\n0", "a"), ("d\n2", "?")]
    assert pairs[0].positives == (Passage(LOCKS.title, LOCKS.text),)
    write_questions(tmp_path / "pairs.json", pairs)
    assert list(read_questions(tmp_path / "pairs.json")) == pairs


def test_held_out_pairs_are_a_share_that_other_pairs_have_no_say_in() -> None:
    prompts = [(Prompt("d", str(number), "x"), [CALM]) for number in range(2000)]
    pairs = questions(Library(0.7), prompts)
    held = {pair.id for pair in pairs if held_out(pair, 0.1, 0)}
    assert 150 < len(held) < 250
    assert held == {pair.id for pair in reversed(pairs) if held_out(pair, 0.1, 0)}
    assert held < {pair.id for pair in pairs if held_out(pair, 0.2, 0)}
    assert held != {pair.id for pair in pairs if held_out(pair, 0.1, 1)}
    assert not any(held_out(pair, 0.0, 0) for pair in pairs)
    assert all(held_out(pair, 1.0, 0) for pair in pairs)
