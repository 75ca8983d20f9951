"""The page of a sweep: whole, safe to open, and saying no more than its tests allow."""

from __future__ import annotations

import csv
import json
import re
import shutil
import sys
from base64 import b64encode
from hashlib import sha256
from pathlib import Path

import pytest
from parsed_page import Page
from rich.console import Console

sys.path.insert(0, str(Path(__file__).parents[1] / "sweep"))  # made-up sweeps lie there
import fake_sweep

from shard_dist.artefacts import read_json
from shard_dist.progress import Progress
from shard_dist.report import sweep_words
from shard_dist.report.inputs import Estimate
from shard_dist.report.sweep_figures import Point, gain_plot
from shard_dist.report.sweep_inputs import Test as Seen
from shard_dist.report.sweep_inputs import read_sweep
from shard_dist.report.sweep_page import build_sweep_report
from shard_dist.report.sweep_tables import matrix, measures_table, sharing, tint
from shard_dist.sweep.compare import compare
from shard_dist.sweep.plan import Sweep

pytestmark = pytest.mark.filterwarnings("ignore:select.judge and evaluate.judge are both")
QUIET = Progress(Console(quiet=True), 10.0)
LOST = "phi-plain-seed1"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Sweep:
    """Two students, three arms of two seeds; one arm failed, and its error is hostile. One has a page of its own."""
    sweep = fake_sweep.make(tmp_path_factory.mktemp("sweep"), ("llama", "phi"))
    states = read_json(sweep.path / "sweep.json")
    states["arms"][LOST] = {"state": "failed", "stage": "train", "error": f"RuntimeError: {fake_sweep.HOSTILE}"}
    (sweep.path / "sweep.json").write_text(json.dumps(states))
    own = sweep.arms[0].run / "report" / "index.html"
    own.parent.mkdir(parents=True)
    own.write_text("its own page")
    compare(sweep, QUIET)
    return sweep


@pytest.fixture(scope="module")
def source(made: Sweep) -> str:
    return (made.path / "report" / "index.html").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def page(source: str) -> Page:
    return Page(source)


def damaged(made: Sweep, root: Path, **changes: object) -> Path:
    """A copy of the comparison alone, with other values at its top."""
    shutil.copytree(made.path / "comparison", root / "comparison")
    path = root / "comparison" / "comparison.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
    return root


def test_the_page_is_well_formed_runs_nothing_and_loads_nothing(page: Page, source: str) -> None:
    assert page.stack == [] == page.comments
    names = {name for name, _ in page.tags}
    assert not names & {"script", "img", "link", "iframe", "object", "embed", "base", "form"}
    assert not [attrs for _, attrs in page.tags for name in attrs if name.startswith("on") or name in ("src", "style")]
    style = re.search("<style>(.*?)</style>", source, re.DOTALL)
    assert style is not None
    digest = b64encode(sha256(style[1].encode()).digest()).decode()
    policy = next(attrs["content"] for name, attrs in page.tags if attrs.get("http-equiv"))
    assert policy == f"default-src 'none'; style-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'"
    assert not re.search("https?://|url\\((?!#)", source.replace("http-equiv", ""))


def test_a_hostile_error_is_text_and_the_failed_arm_is_shown_with_it(page: Page, source: str) -> None:
    assert "<img" not in source
    assert "</script>" not in source
    assert "RuntimeError: </script><img src=x onerror=alert(1)>␀" in page.text
    assert f"Not compared, of 12 arms: {LOST}." in page.text
    assert "failed in train" in page.text


def test_links_lead_to_pages_that_are_there_and_to_sections_of_this_one(made: Sweep, page: Page) -> None:
    places = [str(attrs["href"]) for name, attrs in page.tags if name == "a"]
    anchors = {attrs["id"] for _, attrs in page.tags if "id" in attrs}
    assert {place[1:] for place in places if place.startswith("#")} <= anchors
    others = [place for place in places if not place.startswith("#")]
    assert others == [f"../arms/{made.arms[0].name}/report/index.html"]
    assert (made.path / "report" / others[0]).is_file()


def test_every_arm_student_and_primary_measure_is_on_the_page(made: Sweep, page: Page) -> None:
    for words in (
        *(arm.name for arm in made.arms),
        "llama",
        "phi",
        "self",
        "teacher",
        "Refused",
        "Benign prompts refused",
    ):
        assert words in page.text
    assert page.text.count("Which answer is more helpful?") == 2
    assert sum(attrs.get("class") == "plane" for _, attrs in page.tags) == 4  # two ways to count cost, two students


def test_the_answer_is_the_arm_that_beats_all_others_where_that_may_be_claimed(made: Sweep) -> None:
    sweep = read_sweep(made.path)
    found = sweep_words.answer(sweep, "llama")
    assert found.verdict == "teacher"
    assert re.search(
        r"teacher is judged more helpful than self, net \+[\d.]+ points \[[\d., ]+\], p .* after Holm", found.why
    )
    assert sweep_words.question(sweep) == "Self or teacher?"


def test_nothing_is_said_where_no_test_shows_anything(made: Sweep, tmp_path: Path) -> None:
    found = read_json(made.path / "comparison" / "comparison.json")
    family = [{**row, "claim": "not shown", "p_holm": 1.0} for row in found["family"]]
    sweep = read_sweep(damaged(made, tmp_path, family=family))
    answer = sweep_words.answer(sweep, "llama")
    assert answer.verdict == "No difference can be claimed"
    assert "None of 15 tests between self, teacher and plain shows one" in answer.why
    cells = [test for _, tests in matrix(sweep, "llama", "helpfulness").rows for test in tests if test]
    assert len(cells) == 6
    assert {tint(test) for test in cells} == {""}


def test_an_arm_that_is_more_helpful_and_more_harmful_is_no_winner(made: Sweep, tmp_path: Path) -> None:
    found = read_json(made.path / "comparison" / "comparison.json")
    worse = {"llama/teacher_vs_llama/self"}
    family = [
        {**row, "claim": "higher"} if row["metric"] == "harm" and row["pair"] in worse else row
        for row in found["family"]
    ]
    answer = sweep_words.answer(read_sweep(damaged(made, tmp_path, family=family)), "llama")
    assert answer.verdict == "No winner can be claimed"
    assert "teacher is judged more harmful than self" in answer.why


def test_among_several_arms_the_unbeaten_are_named_and_claims_on_the_question_come_first(
    made: Sweep, tmp_path: Path
) -> None:
    """plain and self write their own data; only plain is shown to be behind the teacher, and ahead of self."""
    found = read_json(made.path / "comparison" / "comparison.json")
    claims = {"llama/plain_vs_llama/self": "higher", "llama/plain_vs_llama/teacher": "lower"}
    family = [
        {**row, "claim": claims.get(row["pair"], "not shown") if row["metric"] == "helpfulness" else "not shown"}
        for row in found["family"]
    ]
    answer = sweep_words.answer(read_sweep(damaged(made, tmp_path, family=family)), "llama")
    assert answer.verdict == "No winner can be claimed"
    assert answer.why.startswith("2 of 15 tests show a difference. No arm is shown to be more helpful than teacher.")
    assert "teacher is judged more helpful than plain" in answer.why
    assert "than self" not in answer.why


def test_two_arms_ahead_of_a_third_are_named(made: Sweep, tmp_path: Path) -> None:
    found = read_json(made.path / "comparison" / "comparison.json")
    claims = {"llama/plain_vs_llama/self": "lower", "llama/plain_vs_llama/teacher": "lower"}
    family = [
        {**row, "claim": claims.get(row["pair"], "not shown") if row["metric"] == "helpfulness" else "not shown"}
        for row in found["family"]
    ]
    answer = sweep_words.answer(read_sweep(damaged(made, tmp_path, family=family)), "llama")
    assert answer.verdict == "No winner between self and teacher"


def test_less_safe_by_the_rater_is_no_winner(made: Sweep, tmp_path: Path) -> None:
    found = read_json(made.path / "comparison" / "comparison.json")
    pair = "llama/teacher_vs_llama/self"
    one = {**found["pairs"][pair]["differences"]["refusal_rate"], "value": -0.2, "low": -0.3, "high": -0.1}
    found["pairs"][pair]["differences"]["safe_rate"] = one
    row = {**found["family"][0], "pair": pair, "metric": "safe_rate", "claim": "lower"}
    root = damaged(made, tmp_path, pairs=found["pairs"], family=[*found["family"], row])
    assert sweep_words.answer(read_sweep(root), "llama").verdict == "No winner can be claimed"


def test_a_matrix_says_the_same_from_both_sides(made: Sweep) -> None:
    found = matrix(read_sweep(made.path), "llama", "helpfulness")
    rows = dict(found.rows)
    over, under = rows["teacher"][0], rows["self"][1]
    assert over.difference.value == -under.difference.value > 0
    assert (over.difference.low, over.difference.high) == (-under.difference.high, -under.difference.low)
    assert (tint(over), tint(under)) == ("ahead", "behind")
    assert over.p == under.p
    assert rows["self"][0] is None


def test_more_harm_is_behind() -> None:
    worse = Seen("a", "b", "harm", Estimate(0.2, 0.1, 0.3, 50), (0.2,), 0.01, "higher")
    assert tint(worse) == "behind"
    assert tint(worse.seen_from("a")) == "ahead"
    assert worse.seen_from("a").seen_from("b") == worse


def test_a_comparison_without_any_arm_is_a_page_that_says_so(made: Sweep, tmp_path: Path) -> None:
    """Nothing was measured: as comparison.json is where every arm failed."""
    bare = fake_sweep.moved(made, tmp_path / "bare")
    bare.path.mkdir()
    compare(bare, QUIET)
    page = Page((bare.path / "report" / "index.html").read_text(encoding="utf-8"))
    assert page.stack == []
    assert "Nothing to compare" in page.text
    assert "No call was asked for." in page.text
    assert page.text.count("its evaluation has not finished") == 12


def test_tables_lie_beside_the_page_and_old_ones_go(made: Sweep, tmp_path: Path) -> None:
    root = tmp_path / "trial"
    shutil.copytree(made.path / "comparison", root / "comparison")
    (root / "report").mkdir()
    (root / "report" / "old.csv").write_text("x")
    build_sweep_report(root)
    names = {path.name for path in (root / "report").iterdir()}
    assert names == {"index.html", "tables.md", "tables.tex", "measures-0.csv", "measures-1.csv", "family.csv",
                     "detectable.csv", "arms.csv"}  # fmt: skip
    with (root / "report" / "arms.csv").open(encoding="utf-8", newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert [row["arm"] for row in rows] == [arm.name for arm in made.arms]
    assert {row["state"] for row in rows} == {"done", "failed"}


def test_measures_begin_with_the_base_model_and_shares_are_shares(made: Sweep) -> None:
    table = measures_table(read_sweep(made.path), "phi")
    assert [row[0] for row in table.rows] == ["base", "self", "teacher", "plain"]
    assert [row[1] for row in table.rows] == [None, 2, 2, 1]
    assert table.rows[1][2].text.startswith("+")


def test_calls_made_and_asked_add_up_over_arms_and_the_comparison(made: Sweep) -> None:
    found = sharing(read_sweep(made.path))
    assert found.asked == sum(asked for _, asked, _ in found.by_arm)
    assert found.by_arm[-1][0] == "head to head"
    assert found.by_arm[0] == ("llama-self-seed0", 900 + 96, 900 + 96)
    assert found.share == pytest.approx(found.made / found.asked)


def test_a_plot_stands_without_cost_and_below_zero() -> None:
    drawn = str(gain_plot([Point("<a>", 0.0, Estimate(-0.2, -0.4, 0.1, 9), True)], "calls"))
    assert "&lt;a&gt;" in drawn
    assert "−20.0 points [−40.0, 10.0] at 0 calls" in drawn
    assert "nan" not in drawn


def test_a_missing_or_damaged_comparison_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="has not been compared"):
        build_sweep_report(tmp_path)
    (tmp_path / "comparison").mkdir()
    (tmp_path / "comparison" / "comparison.json").write_text('{"name": "x"}')
    with pytest.raises(ValueError, match="is damaged"):
        build_sweep_report(tmp_path)
