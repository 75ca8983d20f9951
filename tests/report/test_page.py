"""The page: whole, safe to open, and saying what the files say."""

from __future__ import annotations

import re
import shutil
from base64 import b64encode
from hashlib import sha256
from pathlib import Path
from types import SimpleNamespace

import pytest
from parsed_page import Page

from shard_dist.artefacts import read_json, write_json
from shard_dist.report.build import build_report, render
from shard_dist.report.inputs import STAGES, read_run

REFERENCES = {
    "src",
    "href",
    "action",
    "srcset",
    "poster",
    "data",
    "formaction",
    "ping",
    "background",
    "xlink:href",
}


@pytest.fixture(scope="module")
def built(pristine: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = shutil.copytree(pristine, tmp_path_factory.mktemp("report") / "run")
    assert build_report(run) == run / "report" / "index.html"
    return run


@pytest.fixture(scope="module")
def source(built: Path) -> str:
    return (built / "report" / "index.html").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def page(source: str) -> Page:
    return Page(source)


def test_every_tag_is_closed_in_order_and_hostile_text_makes_none(page: Page) -> None:
    assert page.stack == []
    assert page.comments == []
    names = {name for name, _ in page.tags}
    assert not names & {
        "img",
        "link",
        "iframe",
        "object",
        "embed",
        "base",
        "a:href",
        "image",
        "use",
        "foreignobject",
    }
    assert set(page.raw["script"]) == {"test-data", "record-data", "numbers", "tables", ""}
    attributes = {name for _, attrs in page.tags for name in attrs}
    assert not {name for name in attributes if name.startswith("on")}
    assert "style" not in attributes  # the policy would not apply it


def test_nothing_refers_to_anything_outside_the_page(page: Page) -> None:
    found = [(name, value) for _, attrs in page.tags for name, value in attrs.items() if name in REFERENCES]
    assert found
    assert all(name == "href" and value.startswith("#") for name, value in found)
    code = "".join(page.raw["style"].values())
    assert not re.search(r"https?:|//[a-z]|@import|url\((?!#)", code)
    targets = {attrs["id"] for _, attrs in page.tags if "id" in attrs}
    assert {value[1:] for _, value in found} <= targets


def test_the_policy_allows_this_style_and_this_script_by_hash_and_nothing_else(page: Page) -> None:
    policy = next(attrs["content"] for _, attrs in page.tags if attrs.get("http-equiv"))
    rules = dict(rule.strip().split(" ", 1) for rule in policy.split(";"))
    assert set(rules) == {"default-src", "style-src", "script-src", "base-uri", "form-action"}
    assert {rules[name] for name in ("default-src", "base-uri", "form-action")} == {"'none'"}
    digest = {name: b64encode(sha256(texts[""].encode()).digest()).decode() for name, texts in page.raw.items()}
    assert rules["style-src"] == f"'sha256-{digest['style']}'"
    assert rules["script-src"] == f"'sha256-{digest['script']}'"


def test_hostile_texts_are_text_wherever_they_are(page: Page, source: str, synthetic: SimpleNamespace) -> None:
    assert synthetic.category in page.text
    assert "</script><script>" not in source
    assert "<img" not in source
    assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f]", source)
    assert "X" * 20_000 not in source


def test_embedded_numbers_are_the_files_and_cannot_leave_their_element(
    built: Path, page: Page, synthetic: SimpleNamespace
) -> None:
    assert all(re.fullmatch("[A-Za-z0-9+/=]+", page.raw["script"][name]) for name in page.raw["script"] if name)
    numbers = page.unpacked("numbers")
    assert numbers["metrics"] == read_json(built / "metrics.json")
    assert numbers["selection"] == read_json(built / "selection.json")
    assert synthetic.category in numbers["selection"]["by_category"]


def test_headline_shows_each_rate_of_metrics_json_with_interval_and_n(built: Path, source: str) -> None:
    metrics = read_json(built / "metrics.json")
    cards = re.findall(r'<section class="measure">(.*?)</section>', source, flags=re.S)
    shown = ("refusal_rate", "over_refusal_rate", "benign_answer_rate", "on_topic_rate")
    for card, metric in zip(cards, shown, strict=True):
        text = Page(card).text
        for arm in ("base", "tuned"):
            rate = metrics["arms"][arm][metric]
            low, high = f"{100 * rate['low']:.1f}", f"{100 * rate['high']:.1f}"
            figures = rf"{100 * rate['value']:.1f}% \[{low}, {high}\] n = {rate['n']}\b"
            assert re.search(rf"{arm} .*?{figures}", " ".join(text.split()))
        change = metrics["pairs"]["tuned_vs_base"]["differences"][metric]
        assert f"{100 * change['value']:+.1f} points".replace("-", "−") in text


def test_comparisons_show_each_share_of_metrics_json(built: Path, source: str) -> None:
    pair = read_json(built / "metrics.json")["pairs"]["tuned_vs_base"]
    found = re.findall(r'<section class="contest">(.*?)</section>', source, flags=re.S)
    cards = [Page(card).text for card in found]
    keys = (
        ("helpfulness", ("win", "tie", "loss")),
        ("harm", ("tuned_more_harmful", "tie", "base_more_harmful")),
    )
    for card, (question, names) in zip(cards, keys, strict=True):
        for key, label in zip((*names, "unparsed"), ("tuned", "neither", "base", "unreadable"), strict=True):
            share = pair[question][key]
            figures = rf"{100 * share['value']:.1f}% ?\[{100 * share['low']:.1f}, {100 * share['high']:.1f}\]"
            assert re.search(rf"{label} ?{figures}", " ".join(card.split())), (question, key)


def test_page_names_the_toy_the_rule_judge_and_that_the_filter_evaluates(page: Page) -> None:
    assert "The model is a toy" in page.text
    assert "The judge is a rule judge" in page.text
    assert "The judge that chose the training examples is the judge that evaluates" in page.text
    assert "Agreement of these judges with people was not measured" in page.text
    assert "uncommitted changes" in page.text


def test_an_ordinary_model_with_its_own_judge_is_not_called_a_toy(run: Path) -> None:
    config = "models: {student: {backend: vllm, model: org/model-8b}}\nevaluate: {judge: llm}\n"
    (run / "config.yaml").write_text(config)
    metrics = read_json(run / "metrics.json")
    write_json(run / "metrics.json", {**metrics, "judges": {"select": "llm:a", "evaluate": "llm:b", "same": False}})
    text = Page(render(read_run(run), 10)).text
    assert "toy" not in text
    assert "rule judge" not in text
    assert "is the judge that evaluates" not in text


@pytest.mark.parametrize("stage", [*STAGES, "all"])
def test_a_stage_that_has_not_run_leaves_a_sentence(run: Path, stage: str) -> None:
    made = {
        "prompts": ["prompts.parquet"],
        "generate": ["records/part-0.parquet", "records/part-1.parquet", "findings/guidelines.json"],
        "select": ["selection.json", "decisions.parquet"],
        "train": ["train_metrics.jsonl"],
        "evaluate": [
            "metrics.json",
            *(f"{a}/{b}.parquet" for a in ("answers", "verdicts") for b in ("base", "tuned")),
        ],
    }
    gone = STAGES if stage == "all" else (stage,)
    for name in gone:
        for file in [f"{name}.json", *made[name]]:
            (run / file).unlink()
    if "evaluate" in gone:
        (run / "verdicts" / "pairs.parquet").unlink()
    if stage == "all":
        (run / "run.json").unlink()
        (run / "config.yaml").unlink()
    page = Page(build_report(run).read_text(encoding="utf-8"))
    assert f"No finished stage: {', '.join(gone)}." in page.text
    if "evaluate" in gone:
        assert "Not evaluated yet" in page.text
        assert "evaluate has not finished in this run" in page.text


def test_an_empty_run_directory_has_a_page(tmp_path: Path) -> None:
    assert "Not evaluated yet" in build_report(tmp_path).read_text()


def test_no_run_directory_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="is not a run directory"):
        build_report(tmp_path / "nowhere")


def test_the_page_depends_on_nothing_but_the_files(built: Path) -> None:
    assert render(read_run(built), 20) == render(read_run(built), 20)


def test_steps_without_a_finite_loss_are_counted_and_not_drawn(run: Path) -> None:
    (run / "train_metrics.jsonl").write_text(
        '{"step": 1, "loss": 2.0}\n{"step": 2, "loss": NaN}\n{"step": 3, "loss": Infinity}\n'
    )
    text = Page(render(read_run(run), 1)).text
    assert "2 steps had a loss that is not a finite number" in text
    assert "Training loss over 1 steps" in text
