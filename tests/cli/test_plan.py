"""`shard-dist plan`: its output, its exit codes, and where its machines come from."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner, Result

from shard_dist.cli.plan import plan

MODELS = Path(__file__).parents[1] / "plan" / "models"
CLUSTERS = Path(__file__).parents[2] / "configs" / "clusters"
CONFIG = f"""
data:
  sources: [{{kind: do_not_answer}}]
models:
  student: {{model: {MODELS}/Llama-3.1-8B, engines: 8, engine_args: {{max_model_len: 8192}}}}
  judge: {{backend: http, model: a-judge, base_url: "http://host:8000/v1"}}
train: {{gradient_checkpointing: true, workers: 8}}
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "small.yaml"
    path.write_text(CONFIG)
    return path


def run(*words: object) -> Result:
    app = typer.Typer()
    app.command()(plan)
    return CliRunner().invoke(app, [str(word) for word in words])


def test_a_plan_that_fits_ends_with_0(file: Path) -> None:
    result = run(file, "--cluster", CLUSTERS / "h100_1x8.yaml")
    assert result.exit_code == 0
    assert result.stdout.splitlines()[1].strip() == "fits"


def test_a_plan_that_does_not_fit_ends_with_1_and_its_words_make_it_fit(file: Path) -> None:
    words = (file, "train.workers=64", "--cluster", CLUSTERS / "h100_1x8.yaml", "--json")
    result = run(*words)
    assert result.exit_code == 1
    found = json.loads(result.stdout)
    changes = [word for change in found["changes"] for word in change["settings"]]
    assert not found["fits"]
    assert changes == ["train.workers=8"]
    again = run(*words, *changes)
    assert again.exit_code == 0
    assert json.loads(again.stdout)["fits"]


def test_settings_come_over_the_clusters_file(file: Path) -> None:
    result = run(file, "cluster.nodes.count=3", "--cluster", CLUSTERS / "h100_1x8.yaml", "--json")
    assert json.loads(result.stdout)["machines"]["count"] == 3


def test_without_a_cluster_and_gpus_it_says_what_to_name(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    result = run(file)
    assert isinstance(result.exception, ValueError)
    assert "--cluster configs/clusters/h100_1x8.yaml" in str(result.exception)


def test_a_number_of_prompts_gives_hours(file: Path) -> None:
    found = json.loads(run(file, "--cluster", CLUSTERS / "h100_1x8.yaml", "--prompts", 100, "--json").stdout)
    assert found["work"]["prompts"] == 100
    assert {phase["stage"] for phase in found["phases"]} == {"generate", "select", "train", "evaluate"}
