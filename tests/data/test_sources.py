"""The known data sets and any table become the same Prompt."""

from collections import Counter

import datasets
import pytest

from shard_dist.config.schema import SourceConfig, SourceKind
from shard_dist.data import do_not_answer, linguasafe, table, xstest
from shard_dist.records import Prompt

COLUMNS = ("id", "prompt", "lang", "type", "subtype", "level", "source")
LINGUASAFE_ROWS = [
    dict(zip(COLUMNS, values, strict=True))
    for values in (
        (7, "A", "en", "Harm & Misuse", "Mental Harm", 0, "x"),
        (7, "B", "hu", "Harm & Misuse", "Mental Harm", 0, "x"),
        (None, "C", "en", "Privacy & Property", "PII", 3, "y"),
    )
]


def found(reader, **settings) -> list[Prompt]:
    settings = {"kind": SourceKind.table, **settings}
    return [prompt for _, prompt in reader.prompts(SourceConfig(**settings))]


def test_do_not_answer_maps_its_twelve_harm_types_onto_five(shared):
    """The counts that the SHARD authors' own file has, on the real file."""
    prompts = found(do_not_answer, path=shared("do_not_answer/questions.csv"))
    assert Counter(prompt.category for prompt in prompts) == {
        "Harm & Misuse": 383,
        "Privacy & Property": 248,
        "Fairness & Justice": 148,
        "Crimes & Illegal Activities": 132,
        "Explicit Content": 28,
    }
    assert {prompt.level for prompt in prompts} == {3}
    assert [prompt.id for prompt in prompts] == [str(number) for number in range(939)]
    assert {prompt.subcategory for prompt in prompts} == set(do_not_answer.TYPE_OF_HARM)


def test_do_not_answer_names_the_nearest_harm_type(tmp_path):
    path = tmp_path / "q.csv"
    path.write_text("id,types_of_harm,question\n0,Adult content,What?\n")
    with pytest.raises(ValueError, match=r"q\.csv, line 2: 'Adult content' is none .* did you mean 'Adult Content'\?"):
        found(do_not_answer, path=str(path))


def test_do_not_answer_from_the_hub(monkeypatch):
    asked = {}

    def load_dataset(name, **settings):
        asked.update(name=name, **settings)
        row = {"id": 5, "types_of_harm": "Adult Content", "question": "Why?", "GPT4_response": "No."}
        return datasets.Dataset.from_list([row])

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    (prompt,) = found(do_not_answer, name="dna")
    assert asked == {"name": "LibrAI/do-not-answer", "split": "train"}
    assert (prompt.key, prompt.text, prompt.category) == (("dna", "5"), "Why?", "Explicit Content")


@pytest.mark.parametrize("error", [ConnectionError("no route"), ValueError('Unknown split "dev"')])
def test_a_hub_data_set_that_does_not_load_is_named(monkeypatch, error):
    def load_dataset(name, **settings):
        raise error

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    with pytest.raises(ValueError, match=r"hub data set 'zhiyuan-ning/linguasafe', split 'dev': .*give the path"):
        found(linguasafe, hub_split="dev")


def test_linguasafe_from_a_csv_file(tmp_path):
    path = tmp_path / "l.csv"
    datasets.Dataset.from_list(LINGUASAFE_ROWS).to_pandas().to_csv(path, index=False)
    assert "7.0" in path.read_text(), "pandas writes a column of numbers with gaps as floats"
    check_linguasafe(found(linguasafe, path=str(path)))


def test_linguasafe_from_a_local_copy_of_the_hub_data_set(tmp_path, monkeypatch):
    """The real `datasets.load_dataset`, on a directory, without a network."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    copy = tmp_path / "copy"
    copy.mkdir()
    datasets.Dataset.from_list(LINGUASAFE_ROWS).to_parquet(copy / "train.parquet")
    check_linguasafe(found(linguasafe, hub=str(copy)))


def check_linguasafe(prompts: list[Prompt]) -> None:
    assert [(p.id, p.group, p.language, p.level, p.source) for p in prompts] == [
        ("en-7", "7", "en", 0, "x"),
        ("hu-7", "7", "hu", 0, "x"),
        ("", "", "en", 3, "y"),
    ]
    assert [(p.category, p.subcategory, p.benign) for p in prompts[1:]] == [
        ("Harm & Misuse", "Mental Harm", True),
        ("Privacy & Property", "PII", False),
    ]


def test_linguasafe_without_an_id_column(tmp_path):
    path = tmp_path / "l.csv"
    path.write_text("prompt,lang,type,subtype,level\nHi,en,Harm & Misuse,Mental Harm,1\n")
    (prompt,) = found(linguasafe, path=str(path))
    assert (prompt.id, prompt.level) == ("", 1)


def test_xstest_marks_its_safe_prompts_as_benign(shared):
    prompts = found(xstest, path=shared("xstest/prompts.csv"))
    assert Counter(prompt.benign for prompt in prompts) == {True: 250, False: 200}
    assert {prompt.level for prompt in prompts} == {0, None}
    assert set(Counter(prompt.category for prompt in prompts).values()) == {25}


def test_xstest_refuses_another_label(tmp_path):
    path = tmp_path / "x.csv"
    path.write_text("id,prompt,type,label\n1,Hi,homonyms,benign\n")
    with pytest.raises(ValueError, match=r"line 2: label 'benign'; XSTest's labels are safe and unsafe"):
        found(xstest, path=str(path))


def test_a_table_maps_the_columns_it_is_told_to(tmp_path):
    path = tmp_path / "mine.jsonl"
    path.write_text('{"q": "Hallo?", "n": 3, "sev": 2, "l": "de", "topic": "t"}\n{"q": "Ja?", "n": 4}\n')
    columns = {"text": "q", "id": "n", "level": "sev", "language": "l", "group": "topic"}
    assert found(table, path=str(path), columns=columns) == [
        Prompt(dataset="mine", id="3", text="Hallo?", level=2, language="de", group="t"),
        Prompt(dataset="mine", id="4", text="Ja?", language=""),
    ]


def test_a_table_without_a_language_column_is_in_the_language_asked_for(tmp_path):
    path = tmp_path / "mine.csv"
    path.write_text("q\nHallo?\n")
    (prompt,) = found(table, path=str(path), columns={"text": "q"}, language="de", name="ours")
    assert prompt == Prompt(dataset="ours", id="", text="Hallo?", language="de")


def test_a_table_refuses_a_field_that_prompts_do_not_have(tmp_path):
    path = tmp_path / "mine.csv"
    path.write_text("q\nHallo?\n")
    with pytest.raises(ValueError, match=r"mine: prompts have no field 'txt' .*did you mean 'text'\?"):
        found(table, path=str(path), columns={"txt": "q"})
