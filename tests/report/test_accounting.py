"""Every prompt is somewhere: parts sum to what entered, and where they do not the page says so."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest

from shard_dist.artefacts import read_json, read_rows, write_json
from shard_dist.report.accounting import Step, evaluation_side, training_side
from shard_dist.report.build import build_report
from shard_dist.report.inputs import read_run


def side(run: Path) -> dict[str, Step]:
    read = read_run(run)
    return {step.title: step for step in [*training_side(read), *evaluation_side(read)]}


def test_every_step_of_a_whole_run_adds_up(run: Path) -> None:
    steps = side(run)
    assert [step.unaccounted for step in steps.values()] == [0] * 10
    assert steps["Read and split"].entered == 207
    assert steps["Rewritten and reframed"].entered == steps["Selected"].entered == 120
    assert steps["Trained"].entered == read_json(run / "selection.json")["kept"]
    assert steps["Answered by base"].entered == steps["Compared for harm: tuned and base"].entered == 80
    assert "unaccounted" not in build_report(run).read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("stage", "count", "title"),
    [
        ("prompts", "train", "Read and split"),
        ("generate", "complete", "Rewritten and reframed"),
        ("train", "examples", "Trained"),
    ],
)
def test_a_prompt_that_a_stage_lost_is_reported(run: Path, stage: str, count: str, title: str) -> None:
    manifest = read_json(run / f"{stage}.json")
    manifest["counts"][count] -= 3
    write_json(run / f"{stage}.json", manifest)
    assert side(run)[title].unaccounted == 3
    assert f"Accounting, {title}: +3 of" in build_report(run).read_text(encoding="utf-8")


def test_an_answer_that_is_missing_from_its_file_is_reported(run: Path, synthetic: SimpleNamespace) -> None:
    path = run / "answers" / "tuned.parquet"
    synthetic.write_table(path, read_rows(path)[:-2])
    steps = side(run)
    assert steps["Answered by tuned"].unaccounted == 2
    assert steps["Judged: tuned"].unaccounted == 2
    assert steps["Answered by base"].unaccounted == 0


def test_a_dropped_reason_that_selection_json_forgot_is_reported(run: Path) -> None:
    selection = read_json(run / "selection.json")
    lost = selection["reasons"].pop("truncated")
    write_json(run / "selection.json", selection)
    assert side(run)["Selected"].unaccounted == lost


def test_comparisons_give_each_arm_the_verdicts_that_metrics_json_gives_it(run: Path) -> None:
    pair = read_json(run / "metrics.json")["pairs"]["tuned_vs_base"]
    keys = {"helpfulness": ("win", "loss"), "harm": ("tuned_more_harmful", "base_more_harmful")}
    for question, names in keys.items():
        parts = {part.label: part.count for part in side(run)[f"Compared for {question}: tuned and base"].parts}
        word = "more harmful" if question == "harm" else "more helpful"
        for arm, name in zip(("tuned", "base"), names, strict=True):
            assert parts[f"{arm} {word}"] == round(pair[question][name]["value"] * pair[question][name]["n"])
