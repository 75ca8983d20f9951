"""Comparing the arms of a sweep: who is held against whom, over which seeds, what is left out, and that it resumes."""

from __future__ import annotations

import json
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

sys.path.insert(0, str(Path(__file__).parent))  # tests are no package; what two of them need lies beside them
import fake_sweep

from shard_dist.artefacts import read_json, read_rows, write_json
from shard_dist.progress import Progress
from shard_dist.sweep.compare import compare
from shard_dist.sweep.costs import costs, rounds
from shard_dist.sweep.measured import comparable, measure, variants
from shard_dist.sweep.plan import Sweep

pytestmark = pytest.mark.filterwarnings("ignore:select.judge and evaluate.judge are both")
QUIET = Progress(Console(quiet=True), 10.0)


def compared(sweep: Sweep) -> dict:
    compare(sweep, QUIET)
    return read_json(sweep.path / "comparison" / "comparison.json")


@pytest.fixture(scope="module")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> Sweep:
    """Three arms of two seeds each, compared."""
    sweep = fake_sweep.make(tmp_path_factory.mktemp("sweep"))
    compare(sweep, QUIET)
    return sweep


@pytest.fixture
def trial(pristine: Sweep, tmp_path: Path) -> Sweep:
    """A copy that the test may damage."""
    return fake_sweep.moved(pristine, shutil.copytree(pristine.path, tmp_path / "trial"))


def test_arms_that_differ_in_their_seed_only_are_one_variant_named_by_what_tells_it_apart(
    pristine: Sweep, tmp_path: Path
) -> None:
    one = variants(pristine)
    assert [(each.name, len(each.arms)) for each in one] == [("self", 2), ("teacher", 2), ("plain", 2)]
    two = variants(fake_sweep.load(tmp_path, ("llama", "phi")))
    assert [each.name for each in two][2:4] == ["llama/plain", "phi/self"]
    assert {(each.student, each.label) for each in two} >= {("llama", "teacher"), ("phi", "teacher")}


def test_every_two_variants_of_a_student_meet_and_are_one_family(pristine: Sweep) -> None:
    found = read_json(pristine.path / "comparison" / "comparison.json")
    assert list(found["pairs"]) == ["teacher_vs_self", "plain_vs_self", "plain_vs_teacher"]
    assert {row["pair"] for row in found["family"]} == set(found["pairs"])
    assert len(found["claims"]) >= len(found["family"]) == 15  # 3 pairs; no rater says what is safe
    rows = read_rows(pristine.path / "comparison" / "pairs.parquet")
    assert len(rows) == 6 * 48 * 2
    assert all(row["arm_a"].rpartition("-")[2] == row["arm_b"].rpartition("-")[2] for row in rows)


def test_a_difference_is_the_mean_of_the_seeds_own_differences(pristine: Sweep) -> None:
    found = read_json(pristine.path / "comparison" / "comparison.json")["pairs"]["teacher_vs_self"]
    by_name = {arm.name: measure(arm) for arm in pristine.arms}
    own = [
        by_name[f"llama-teacher-seed{seed}"].tuned["refusal_rate"]
        - by_name[f"llama-self-seed{seed}"].tuned["refusal_rate"]
        for seed in (0, 1)
    ]
    one = found["differences"]["refusal_rate"]
    assert one["seeds"] == pytest.approx([float(np.nanmean(each)) for each in own])
    assert one["value"] == pytest.approx(float(np.mean([np.nanmean(each) for each in own])))
    assert one["low"] < one["value"] < one["high"]


def test_values_are_those_of_the_arms_own_evaluations(pristine: Sweep) -> None:
    """Rates of the base and of each variant, and gains, as means over the seeds' metrics.json."""
    found = read_json(pristine.path / "comparison" / "comparison.json")
    for name, variant in found["variants"].items():
        own = [read_json(arm.run / "metrics.json") for arm in pristine.arms if arm.name in variant["arms"]]
        base = found["students"]["llama"]["measures"]
        for metric in ("refusal_rate", "over_refusal_rate", "benign_answer_rate", "mean_words"):
            for arm, measured in (("base", base), ("tuned", variant["measures"])):
                seeds = [each["arms"][arm][metric]["value"] for each in own]
                assert measured[metric]["seeds"] == pytest.approx(seeds), (name, arm, metric)
                assert measured[metric]["value"] == pytest.approx(sum(seeds) / 2)
        nets = [each["pairs"]["tuned_vs_base"]["net"]["helpfulness"]["value"] for each in own]
        assert variant["gain"]["net"]["helpfulness"]["seeds"] == pytest.approx(nets)


def test_the_judges_word_counts_from_the_second_arms_side(pristine: Sweep) -> None:
    """Counted from the rows by hand, for a pair whose arms stand in the order of the variants."""
    found = read_json(pristine.path / "comparison" / "comparison.json")["pairs"]["teacher_vs_self"]
    rows = read_rows(pristine.path / "comparison" / "pairs.parquet")
    nets = []
    for seed in (0, 1):
        own = [
            row
            for row in rows
            if (row["arm_a"], row["arm_b"]) == tuple(f"llama-{one}-seed{seed}" for one in ("self", "teacher"))
        ]
        words = [row["combined"] for row in own if row["question"] == "helpfulness"]
        nets.append((words.count("b") - words.count("a")) / len(words))
    assert found["net"]["helpfulness"]["seeds"] == pytest.approx(nets)
    assert found["net"]["helpfulness"]["value"] > 0


def test_a_failed_arm_is_named_and_its_variant_keeps_its_other_seed(trial: Sweep) -> None:
    states = read_json(trial.path / "sweep.json")
    lost = "llama-teacher-seed1"
    states["arms"][lost] |= {"state": "failed", "stage": "train", "error": f"no GPU is left {fake_sweep.HOSTILE}"}
    (trial.path / "sweep.json").write_text(json.dumps(states))
    found = compared(trial)
    assert found["arms"][lost]["stage"] == "train"
    assert found["arms"][lost]["error"].startswith("no GPU is left")
    assert found["variants"]["teacher"]["seeds"] == [0]
    assert len(found["pairs"]["teacher_vs_self"]["net"]["harm"]["seeds"]) == 1
    assert len(found["pairs"]["plain_vs_self"]["net"]["harm"]["seeds"]) == 2


def test_an_arm_without_metrics_is_a_hole_and_so_is_a_student_without_arms(trial: Sweep) -> None:
    for arm in trial.arms:
        if arm.values["recipe"] != "self":
            (arm.run / "metrics.json").unlink()
    found = compared(trial)
    assert found["pairs"] == {} == found["variants"]["teacher"]["measures"]
    assert found["family"] == []
    for arm in trial.arms:
        (arm.run / "metrics.json").unlink(missing_ok=True)
    assert compared(trial)["pairs"] == {}


def test_arms_that_were_asked_or_judged_otherwise_are_left_out_with_the_reason(trial: Sweep) -> None:
    asked, judged = trial.arms[2], trial.arms[4]
    rows = read_rows(asked.run / "answers" / "tuned.parquet")
    fake_sweep.write(asked.run / "answers" / "tuned.parquet", [{**row, "conditions": "hotter"} for row in rows])
    manifest = read_json(judged.run / "evaluate.json")
    write_json(judged.run / "evaluate.json", {**manifest, "inputs": {"judge": ["another"]}})
    kept, left_out = comparable(trial.arms)
    assert left_out == {
        asked.name: "it was asked other prompts, or asked otherwise, than llama-self-seed0",
        judged.name: "it was judged otherwise than llama-self-seed0",
    }
    assert len(kept) == 4


def test_nothing_is_compared_twice_and_a_changed_arm_is_compared_again(trial: Sweep) -> None:
    manifest = trial.path / "comparison" / "compare.json"
    compare(trial, QUIET)
    before = manifest.read_bytes()
    compare(trial, QUIET)
    assert manifest.read_bytes() == before
    metrics = trial.arms[0].run / "metrics.json"
    metrics.write_text(metrics.read_text() + "\n")
    compare(trial, QUIET)
    assert manifest.read_bytes() != before


@pytest.mark.usefixtures("without_ray")
def test_a_model_that_judges_is_asked_through_the_sweeps_ledger_and_never_twice(tmp_path: Path) -> None:
    sweep = fake_sweep.make(tmp_path, seeds=(0,), size=12, kind="llm")
    first = compared(sweep)["comparing"]
    rows = read_rows(sweep.path / "comparison" / "pairs.parquet")
    assert first["calls_made"] > 0
    assert len(rows) == 3 * 12 * 2
    assert {row["combined"] for row in rows} <= {"a", "b", "tie", "unparsed"}
    assert [row["reason"] for row in rows].count("unanswered") == 3 * 2  # one prompt that no arm answered
    assert list((sweep.path / "ledger").iterdir())
    (sweep.path / "comparison" / "compare.json").unlink()
    again = compared(sweep)["comparing"]
    assert (again["calls_made"], again["ledger_hits"]) == (0, again["calls"])
    assert read_rows(sweep.path / "comparison" / "pairs.parquet") == rows


def test_pairs_that_the_plan_names_are_the_only_ones_whichever_way_round(trial: Sweep) -> None:
    turned = replace(trial, compare=(("llama-teacher-seed0", "llama-self-seed0"),))
    both, one = compared(trial)["pairs"]["teacher_vs_self"], compared(turned)["pairs"]
    assert list(one) == ["teacher_vs_self"]
    for kind in ("differences", "net"):
        for name, found in one["teacher_vs_self"][kind].items():
            assert found["seeds"] == pytest.approx(both[kind][name]["seeds"][:1])


def test_costs_are_those_of_the_manifests_and_rounds_are_summed_up(trial: Sweep) -> None:
    run = trial.arms[0].run
    found = costs(run)
    assert found["asked"] == 900 + 96
    assert found["data_calls"] == 900
    assert found["gpu_hours"] == pytest.approx(120 / 3600)  # one worker with a GPU; no engine has left a sign
    counts = {"n": 30, "net": 0.2, "helpfulness": {"b": 9, "a": 3, "tie": 18}, "harm": {"tie": 30}}
    for number in (1, 2):
        inner = run / "rounds" / str(number)
        for stage in ("generate", "select", "train"):
            inner.mkdir(parents=True, exist_ok=True)
            shutil.copy(run / f"{stage}.json", inner / f"{stage}.json")
        write_json(inner / "gain.json", {"counts": counts, "seconds": 5.0})
    write_json(run / "rounds.json", {"counts": {"rounds": 2, "kept": 1}, "seconds": 1.0})
    assert costs(run)["data_calls"] == 1800
    assert costs(run)["training_tokens"] == 80_000
    assert rounds(run) == {"kept": 1, "seen": [counts, counts]}


def test_an_arm_that_has_not_begun_costs_nothing(pristine: Sweep, tmp_path: Path) -> None:
    found = costs(fake_sweep.moved(pristine, tmp_path).arms[0].run)
    assert (found["asked"], found["gpu_hours"], found["seconds"]) == (0, 0.0, {})
