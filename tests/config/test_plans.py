"""Every configuration for GPUs fits the machines that it names, or one node with 8 H100 where it names none."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from operator import attrgetter
from pathlib import Path
from typing import Any

import pytest
import yaml
from transformers import AutoConfig

from shard_dist.config.load import load_config, read_values
from shard_dist.config.schema import Config
from shard_dist.plan.model import Shape, shape_of
from shard_dist.plan.plan import Plan, make_plan

ROOT = Path(__file__).parents[2]
CONFIGS, MODELS = ROOT / "configs", ROOT / "tests" / "plan" / "models"
STEM = attrgetter("stem")
# Models by the config.json that has their sizes; an instructed model and a guard have those of their base.
AT_HAND = {
    "meta-llama/Llama-3.1-8B-Instruct": "Llama-3.1-8B",
    "meta-llama/Llama-Guard-3-8B": "Llama-3.1-8B",
    "meta-llama/Llama-3.3-70B-Instruct": "Llama-3.3-70B",
    "mistralai/Mistral-7B-Instruct-v0.3": "Mistral-7B-v0.3",
    "microsoft/phi-4": "Phi-4",
    "Qwen/Qwen3.5-9B": "Qwen3.5-9B",
}
# Those whose config.json is not here are stood in for by a dense Llama of as many weights (27, 31, 122 and 23.6
# billion) and a like vocabulary: hidden, intermediate, layers, heads, key heads, vocabulary.
STAND_INS = {
    "Qwen/Qwen3.5-27B": (5120, 17408, 64, 40, 8, 248320),
    "google/gemma-4-31B-it": (5376, 21504, 66, 32, 16, 262144),
    "Qwen/Qwen3.5-122B-A10B": (8192, 28672, 140, 64, 8, 248320),
    "./runs/models/mistral_small_24b": (5120, 32768, 40, 32, 8, 131072),
}


def shipped(folder: str) -> list[Path]:
    return sorted((CONFIGS / folder).glob("*.yaml"))


# What users bring for two of the recipes, which look into it before anything starts.
PAIR = '{"prompt": [{"role": "user", "content": "Which?"}], "chosen": [{"role": "assistant", "content": "July."}], '
PAIR += '"rejected": [{"role": "assistant", "content": "No."}]}'
BROUGHT = {
    "pairs.jsonl": PAIR,
    "../shared/data/do_not_answer/answers_human.csv": "question,response,harmful\nWhich?,July.,0\nWhich?,No.,1\n",
}
PRESETS = [CONFIGS / "shard/ours.yaml", CONFIGS / "shard/faithful.yaml"]
RUNS = [file for folder in ("shard", "recipes", "large") for file in shipped(folder) if file not in PRESETS]
ONE_NODE = CONFIGS / "clusters/h100_1x8.yaml"
JUDGE, GUARD = CONFIGS / "models/judges/gemma4_31b.yaml", CONFIGS / "judges/llama_guard3.yaml"


@cache
def shape(source: str, place: Path) -> Shape:
    if source in AT_HAND:
        return shape_of(str(MODELS / AT_HAND[source]))
    hidden, intermediate, layers, heads, key_heads, vocabulary = STAND_INS[source]
    sizes = AutoConfig.for_model(
        "llama", hidden_size=hidden, intermediate_size=intermediate, num_hidden_layers=layers, head_dim=128,
        num_attention_heads=heads, num_key_value_heads=key_heads, vocab_size=vocabulary,
        max_position_embeddings=131072, architectures=["LlamaForCausalLM"],
    )  # fmt: skip
    sizes.save_pretrained(place / source.replace("/", "-"))
    return shape_of(str(place / source.replace("/", "-")))


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("models")


@pytest.fixture
def project(tmp_path: Path, models: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A user's working directory, where no model is asked of the hub."""
    place = tmp_path / "project"
    (place / "runs/models/mistral_small_24b").mkdir(parents=True)
    (place / "runs/models/mistral_small_24b/config.json").write_text("{}")
    for name, text in BROUGHT.items():
        (place / name).parent.mkdir(parents=True, exist_ok=True)
        (place / name).write_text(text)
    monkeypatch.chdir(place)
    monkeypatch.setattr("shard_dist.plan.plan.shape_of", lambda source, *_: shape(source, models))
    return place


def composed(place: Path, included: Sequence[Path], **own: Any) -> Path:
    file = place / "composed.yaml"
    file.write_text(yaml.safe_dump({"include": [str(path) for path in included], **own}))
    return file


def planned(file: Path, *words: str) -> Plan:
    config: Config = load_config(file, words)
    assert config.train.gpus_per_worker
    return make_plan(config)


@pytest.mark.parametrize("file", RUNS, ids=STEM)
def test_a_run_fits(file: Path, project: Path) -> None:
    names_a_cluster = "large" in file.parts
    plan = planned(composed(project, [file] if names_a_cluster else [ONE_NODE, file]))
    assert not plan.problems, plan.changes
    assert not plan.training.notes
    assert plan.longest
    assert plan.longest >= plan.config.train.max_tokens


@pytest.mark.parametrize("file", shipped("large"), ids=STEM)
def test_a_large_run_fits_with_the_teacher_too(file: Path, project: Path) -> None:
    plan = planned(composed(project, [file]), "recipe.generator=teacher", "run.name=taught")
    assert not plan.problems, plan.changes
    assert "models.teacher" in {part.name for part in plan.roles}


@pytest.mark.parametrize("student", shipped("models/students"), ids=STEM)
def test_a_student_fits_one_node(student: Path, project: Path) -> None:
    plan = planned(composed(project, [CONFIGS / "shard/ours.yaml", student, JUDGE, GUARD, ONE_NODE]))
    assert not plan.problems, plan.changes


def test_every_file_of_runs_is_covered() -> None:
    """What is left out is included by others, for CPUs, or no run."""
    known = {*RUNS, *PRESETS, *shipped("clusters"), *shipped("sweeps"), *shipped("judges"), *shipped("large/parts")}
    known |= {file for kind in ("students", "judges", "teachers") for file in shipped(f"models/{kind}")}
    assert set(CONFIGS.rglob("*.yaml")) - known == {CONFIGS / "base.yaml", CONFIGS / "demo.yaml"}
    assert read_values(CONFIGS / "demo.yaml")["train"]["gpus_per_worker"] == 0


def test_the_demo_fits_a_machine_of_8_gib(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(root)
    words = ["cluster.nodes={count: 1, cpus: 4, memory_gib: 8}"]
    plan = make_plan(load_config(CONFIGS / "demo.yaml", words))
    assert not plan.problems
    assert plan.work
    assert plan.work.prompts > 200
