"""The command line from prompts to report: real Ray, real ZeRO-3 on two processes, fake engines.

The demo (`make demo`) is the same run on the real engine.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

pytestmark = [pytest.mark.ray, pytest.mark.zero, pytest.mark.e2e]

MAIN = "from shard_dist.cli import main; main()"


def shard_dist(root: Path, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-W", "ignore", "-c", MAIN, *words], cwd=root, capture_output=True, text=True, check=False
    )


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory, root: Path) -> tuple[Path, list[str]]:
    """A configuration with fake engines, every part of evaluation and a short training, and its run directory."""
    home = tmp_path_factory.mktemp("e2e")
    config, plain = home / "fake.yaml", home / "plain.txt"
    plain.write_text("\n\n".join(f"The mill by the river grinds {sacks} sacks a day." for sacks in range(12)))
    config.write_text(
        f"include: [{root / 'configs' / 'demo.yaml'}]\n"
        "models:\n  student: {backend: fake, fake: {latency: 0.05, error_rate: 0.02}}\n"
        "  guard: {backend: fake, model: some/guard}\n"
        "evaluate:\n  arms: {other: guard}\n"
        "  raters: [{kind: llama_guard, role: guard}, {kind: reward, role: guard}]\n"
        f"  capability: {{text: {plain}, documents: 10}}\n"
        "train: {epochs: 2, checkpoint_every: 2}\n"
        "tracking: {heartbeat: 0.5}\n"
    )
    return home / "run", [str(config), f"run.dir={home / 'run'}"]


def numbers(run: Path, name: str) -> Any:
    return json.loads((run / name).read_text())


def test_three_kills_and_nothing_is_lost_or_done_twice(settings: tuple[Path, list[str]], root: Path) -> None:
    """tests/soak/kill_demo.py on this configuration: SIGKILL in generation, training and evaluation."""
    run, words = settings
    command = [sys.executable, "-W", "ignore", "tests/soak/kill_demo.py", "--seed", "5", "--config", words[0]]
    done = subprocess.run([*command, f"--run={run}"], cwd=root, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    outcome = json.loads(done.stdout)
    assert [kill["phase"] for kill in outcome["kills"]] == ["generation", "training", "evaluation"]
    assert all(kill["killed_in_time"] for kill in outcome["kills"])
    assert outcome["calls_made_twice"] == 0


def test_the_same_command_again_does_nothing(settings: tuple[Path, list[str]], root: Path) -> None:
    run, words = settings
    before = {path: path.stat().st_mtime_ns for path in run.glob("*.parquet")}
    done = shard_dist(root, "run", *words)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("done before") == 6
    assert {path: path.stat().st_mtime_ns for path in run.glob("*.parquet")} == before


def test_every_prompt_is_accounted_for(settings: tuple[Path, list[str]]) -> None:
    run, _ = settings
    prompts, generate, selection = (
        numbers(run, name)["counts"] for name in ("prompts.json", "generate.json", "select.json")
    )
    assert prompts["read"] == prompts["train"] + prompts["val"] + prompts["test"] + sum(prompts["excluded"].values())
    assert generate["rows"] == prompts["train"] + prompts["val"] == selection["considered"]
    reasons = numbers(run, "selection.json")["reasons"]
    assert sum(reasons.values()) == selection["considered"] == selection["kept"] + selection["dropped"]


def test_the_metrics_have_every_arm_with_intervals(settings: tuple[Path, list[str]]) -> None:
    run, _ = settings
    arms = numbers(run, "metrics.json")["arms"]
    assert set(arms) == {"base", "tuned", "other"}
    for arm in arms.values():
        for name in ("refusal_rate", "benign_answer_rate", "on_topic_rate"):
            assert set(arm[name]) == {"value", "low", "high", "n"}
            assert arm[name]["low"] <= arm[name]["value"] <= arm[name]["high"]


def test_every_judge_and_check_left_its_word(settings: tuple[Path, list[str]]) -> None:
    """Each arm's every answer has a rating by each judge; leaks, fairness and perplexity are beside the rates."""
    run, _ = settings
    found = numbers(run, "metrics.json")
    ratings = pq.read_table(run / "verdicts" / "ratings.parquet").to_pylist()
    judges = ("refusal", "llama_guard", "reward")
    test = found["checks"]["leaks"]["test"]
    assert Counter(row["judge"] for row in ratings) == dict.fromkeys(judges, 3 * test)
    assert set(found["judges"]["raters"]) == set(judges)
    assert found["safety_rater"] == "llama_guard"
    assert found["arms"]["tuned"]["safe_rate"]["n"] == found["arms"]["base"]["refusal_rate"]["n"]
    assert found["checks"]["leaks"]["leaks"] == 0
    assert found["checks"]["fairness"]["arms"] == ["base", "tuned", "other"]
    assert found["capability"]["tuned"]["perplexity"]["n"] == 10
    assert set(found["capability"]["differences"]) == {"tuned_vs_base", "other_vs_base"}
    assert {test["pair"] for test in found["family"]} == {"tuned_vs_base", "other_vs_base"}
    assert found["claims"]


def test_the_model_loads_and_is_another_one(settings: tuple[Path, list[str]], root: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    run, _ = settings
    tuned = AutoModelForCausalLM.from_pretrained(run / "model")
    base = AutoModelForCausalLM.from_pretrained(root / "shard_dist" / "demo" / "seed_model")
    assert AutoTokenizer.from_pretrained(run / "model").chat_template
    theirs = dict(base.named_parameters())
    assert any(not theirs[name].equal(value.to(theirs[name].dtype)) for name, value in tuned.named_parameters())


def test_training_saw_the_answer_only(settings: tuple[Path, list[str]]) -> None:
    """Rewrite and guidelines are scaffolding: no example's prompt holds more than the user's words."""
    run, _ = settings
    texts = {row["text"] for row in pq.read_table(run / "prompts.parquet").to_pylist()}
    examples = pq.read_table(run / "examples" / "train.parquet").to_pylist()
    assert examples
    assert all([message["role"] for message in row["messages"]] == ["user"] for row in examples)
    assert all(row["messages"][0]["content"] in texts for row in examples)


def test_provenance_lies_beside_the_artefacts(settings: tuple[Path, list[str]]) -> None:
    run, _ = settings
    assert {"git_commit", "versions"} <= set(numbers(run, "run.json"))
    assert "gpus_per_worker: 0" in (run / "config.yaml").read_text()
    assert (run / "model" / "shard_dist.yaml").is_file()
    lines = [json.loads(line) for line in (run / "tracking.jsonl").read_text().splitlines()]
    assert any("train/loss" in line for line in lines)


def test_a_stage_alone_names_what_is_missing(settings: tuple[Path, list[str]], root: Path, tmp_path: Path) -> None:
    _, words = settings
    done = shard_dist(root, "train", words[0], f"run.dir={tmp_path / 'empty'}")
    assert done.returncode == 1
    assert "run `shard-dist select`" in done.stderr
    assert "Traceback" not in done.stderr


def test_no_example_left_is_an_error_that_says_why(
    settings: tuple[Path, list[str]], root: Path, tmp_path: Path
) -> None:
    _, words = settings
    refusing = ["models.student.fake.refusal_rate=1.0", "select.keep_benign_ties=false", f"run.dir={tmp_path / 'none'}"]
    sources = tmp_path / "one.csv"
    sources.write_text("id,prompt\n1,zither-xylophone\n")  # the fake engine repeats plain words only: off topic
    source = f"data.sources=[{{kind: table, path: {sources}, columns: {{id: id, text: prompt}}}}]"
    done = shard_dist(root, "run", words[0], *refusing, source, "data.split.test=0", "data.split.val=0")
    assert done.returncode == 1
    assert "no example is left to train on" in done.stderr


def test_all_of_do_not_answer_reaches_its_selection(
    settings: tuple[Path, list[str]], root: Path, tmp_path: Path, shared_data: Path
) -> None:
    _, words = settings
    file = shared_data / "do_not_answer" / "questions.csv"
    more = [
        f"data.sources=[{{kind: do_not_answer, path: {file}}}]",
        f"run.dir={tmp_path / 'dna'}",
        "models.student.fake.latency=0",
    ]
    for stage in ("prompts", "generate", "select"):
        done = shard_dist(root, stage, words[0], *more)
        assert done.returncode == 0, done.stderr
    run = tmp_path / "dna"
    prompts, selection = numbers(run, "prompts.json")["counts"], numbers(run, "selection.json")
    assert prompts["read"] == 939
    assert prompts["excluded"] == {"duplicate_text": 1}
    assert selection["kept"] + selection["dropped"] + prompts["test"] + 1 == 939
