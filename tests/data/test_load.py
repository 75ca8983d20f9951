"""Every row is accounted for: in one split, or excluded for one reason."""

import json
import warnings
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shard_dist.config.schema import SourceConfig, SourceKind, SplitConfig
from shard_dist.data.load import load_prompts, normalised, read_prompts, write_prompts
from shard_dist.records import SPLITS, Prompt

COLUMNS = {
    "id": "id",
    "text": "text",
    "category": "category",
    "level": "level",
    "language": "lang",
    "group": "group",
}

ROWS = st.lists(
    st.fixed_dictionaries(
        {"id": st.integers(0, 10**9), "text": st.text(st.characters(exclude_categories=("Cs",)))},
        optional={"group": st.sampled_from(["g1", "g2", "g3"]), "category": st.sampled_from(["a", "b"])},
    ),
    min_size=1,
    unique_by=lambda row: row["id"],
)


def source(folder: Path, rows: list[dict], name: str = "mine", **settings) -> SourceConfig:
    """A JSONL table of these rows; every line has all columns, so that all of them are there."""
    path = folder / f"{name}.jsonl"
    declared = dict.fromkeys(("id", "text", "category", "level", "lang", "group"))
    lines = [{**declared, "lang": "en", **row} for row in rows]
    path.write_text("\n".join(json.dumps(line) for line in lines), encoding="utf-8")
    return SourceConfig(kind=SourceKind.table, path=str(path), columns=COLUMNS, **settings)


def load(*sources: SourceConfig, seed: int = 0, max_chars: int = 50_000, too_long=None):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return load_prompts(list(sources), SplitConfig(), seed=seed, max_chars=max_chars, too_long=too_long)


def reasons(prompts: list[Prompt]) -> list[tuple[str, str]]:
    return [(prompt.id, prompt.excluded) for prompt in prompts]


@given(ROWS, st.integers(0, 3))
def test_nothing_read_disappears(tmp_path_factory, rows, seed):
    folder = tmp_path_factory.mktemp("rows")
    anchor = {"id": "anchor", "text": "an anchor that keeps the source from being empty"}
    prompts, counts = load(source(folder, [anchor, *rows]), seed=seed)
    assert len(prompts) == counts["read"] == 1 + len(rows)
    assert counts["read"] == sum(counts[part] for part in SPLITS) + sum(counts["excluded"].values())
    assert all((prompt.split in SPLITS) != bool(prompt.excluded) for prompt in prompts)
    strata = counts["by_stratum"].values()
    assert {part: sum(n[part] for n in strata) for part in SPLITS} == {part: counts[part] for part in SPLITS}
    write_prompts(folder / "prompts.parquet", prompts)
    assert read_prompts(folder / "prompts.parquet") == prompts


@given(ROWS, st.randoms(use_true_random=False), st.integers(0, 3))
def test_adding_removing_and_reordering_rows_moves_no_prompt(tmp_path_factory, rows, random, seed):
    distinct = [{**row, "text": f"{row['text']} {row['id']}"} for row in rows]
    folder = tmp_path_factory.mktemp("rows")
    before = {p.key: p.split for p in load(source(folder, distinct), seed=seed)[0]}
    some = random.sample(distinct, random.randint(1, len(distinct)))
    more = [*some, *({"id": f"new {n}", "text": f"new text {n}", "group": "g1"} for n in range(5))]
    random.shuffle(more)
    after = {p.key: p.split for p in load(source(folder, more), seed=seed)[0]}
    assert {key: after[key] for key in after.keys() & before.keys()} == {
        ("mine", str(row["id"])): before["mine", str(row["id"])] for row in some
    }


def test_each_reason_to_exclude_a_prompt(tmp_path):
    rows = [
        {"id": 1, "text": "Hello there"},
        {"id": 2, "text": " \t\u3000\n"},
        {"id": 3, "text": None},
        {"id": 4, "text": "\u200b\x00\ufeff"},
        {"id": 5, "text": "ＨＥＬＬＯ \u00a0 there"},
        {"id": 1, "text": " Hello there "},
        {"id": 6, "text": "x" * 101},
        {"id": 7, "text": "many tokens"},
        {"id": 8, "text": "Bonjour", "lang": "fr"},
        {"id": 9, "text": "\u202eשלום"},
    ]
    prompts, counts = load(
        source(tmp_path, rows, language="EN"), max_chars=100, too_long=lambda text: text.startswith("many")
    )
    assert reasons(prompts) == [
        ("1", ""),
        ("2", "empty"),
        ("3", "empty"),
        ("4", "empty"),
        ("5", "duplicate_text"),
        ("1", "duplicate_row"),
        ("6", "longer_than_max_chars"),
        ("7", "longer_than_context"),
        ("8", "other_language"),
        ("9", ""),
    ]
    assert prompts[-1].text == "\u202eשלום"
    assert counts["excluded"] == {
        "duplicate_row": 1,
        "duplicate_text": 1,
        "empty": 3,
        "longer_than_context": 1,
        "longer_than_max_chars": 1,
        "other_language": 1,
    }


def test_a_duplicate_is_found_across_sources_and_the_first_stays(tmp_path):
    first = source(tmp_path, [{"id": 1, "text": "Same question?"}], "first")
    second = source(tmp_path, [{"id": 1, "text": "SAME  question?"}, {"id": 2, "text": "Other"}], "second")
    prompts, _ = load(first, second)
    assert [(p.dataset, p.excluded) for p in prompts] == [
        ("first", ""),
        ("second", "duplicate_text"),
        ("second", ""),
    ]


def test_the_context_is_asked_only_about_prompts_that_would_stay(tmp_path):
    """Tokenising is the costly check: a 100 KB prompt never reaches it."""
    asked = []
    rows = [{"id": 1, "text": "short"}, {"id": 2, "text": "y" * 100_000}, {"id": 3, "text": " SHORT "}]
    load(source(tmp_path, rows), too_long=lambda text: bool(asked.append(text)))
    assert asked == ["short"]


def test_a_key_with_two_texts_stops_and_names_both_rows(tmp_path):
    rows = [{"id": 1, "text": "one"}, {"id": 2, "text": "two"}, {"id": 1, "text": "three"}]
    with pytest.raises(ValueError, match=r"line 3: the key \('mine', '1'\) has another text already \(.*line 1\)"):
        load(source(tmp_path, rows))


def test_a_key_repeated_in_a_language_that_is_left_out_does_no_harm(tmp_path):
    rows = [{"id": 1, "text": "Hello"}, {"id": 1, "text": "Szia", "lang": "hu"}]
    prompts, _ = load(source(tmp_path, rows, language="en"))
    assert reasons(prompts) == [("1", ""), ("1", "other_language")]


def test_a_row_without_an_id_is_known_by_its_text(tmp_path):
    """sha256 of the text, 16 digits: `printf hello | sha256sum`."""
    rows = [{"text": "hello"}, {"text": "world"}, {"text": "hello"}]
    prompts, _ = load(source(tmp_path, rows))
    assert prompts[0].id == "2cf24dba5fb0a30e"
    assert [prompt.excluded for prompt in prompts] == ["", "", "duplicate_row"]


def test_limit_counts_prompts_of_the_language_asked_for(tmp_path):
    rows = [{"id": n, "text": f"text {n}", "lang": "de" if n % 2 else "en"} for n in range(10)]
    prompts, counts = load(source(tmp_path, rows, language="de", limit=2))
    assert [prompt.id for prompt in prompts if not prompt.excluded] == ["1", "3"]
    assert counts["read"] == 4


def test_a_source_without_prompts_in_the_language_says_which_there_are(tmp_path):
    rows = [{"id": 1, "text": "Hallo", "lang": "de"}]
    with pytest.raises(ValueError, match=r"mine\.jsonl: no row in 'english'; rows by language: \{'de': 1\}"):
        load(source(tmp_path, rows, language="english"))


def test_a_source_without_rows_is_an_error(tmp_path):
    path = tmp_path / "empty.csv"
    path.write_text("text\n")
    with pytest.raises(ValueError, match=r"empty\.csv: no row at all"):
        load(SourceConfig(kind=SourceKind.table, path=str(path), columns={"text": "text"}))


def test_no_prompt_left_is_an_error_with_the_reasons(tmp_path):
    rows = [{"id": 1, "text": " "}, {"id": 2, "text": "z" * 60_000}]
    with pytest.raises(ValueError, match=r"none of 2 prompts is left: \{'empty': 1, 'longer_than_max_chars': 1\}"):
        load(source(tmp_path, rows))


def test_a_stratum_without_test_prompts_is_warned_about(tmp_path):
    """Twelve prompts of one group fall into one split together, so two of the three miss them."""
    grouped = [{"id": n, "text": f"text {n}", "category": "torn", "group": "g"} for n in range(12)]
    spread = [{"id": 100 + n, "text": f"text {100 + n}", "category": "spread"} for n in range(30)]
    with pytest.warns(UserWarning, match=r"has no prompt of") as caught:
        load_prompts([source(tmp_path, grouped + spread)], SplitConfig(), seed=0, max_chars=100)
    messages = [str(warning.message) for warning in caught]
    assert messages
    assert all("has no prompt of ['mine / torn / level unknown']" in message for message in messages)


def test_an_empty_split_is_warned_about(tmp_path):
    with pytest.warns(UserWarning, match="no prompt at all falls into"):
        load_prompts([source(tmp_path, [{"id": 1, "text": "a"}])], SplitConfig(), seed=0, max_chars=100)


@given(st.text(st.characters(exclude_categories=("Cs",))))
def test_normalising_twice_changes_nothing_and_white_space_never_matters(text):
    assert normalised(f"\n{text} \u00a0") == normalised(text)


def test_all_of_do_not_answer_is_accounted_for(shared):
    """The real file: 939 rows, of which 433 and 434 ask the same."""
    source = SourceConfig(kind=SourceKind.do_not_answer, path=shared("do_not_answer/questions.csv"))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        prompts, counts = load_prompts([source], SplitConfig(), seed=0, max_chars=50_000)
    assert counts["read"] == 939
    assert counts["excluded"] == {"duplicate_text": 1}
    assert [prompt.id for prompt in prompts if prompt.excluded] == ["434"]
    assert (counts["train"] + counts["val"] + counts["test"], len(counts["by_stratum"])) == (938, 5)
    for stratum in counts["by_stratum"].values():
        assert abs(stratum["test"] / sum(stratum.values()) - 0.2) < 0.05
