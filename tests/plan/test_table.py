"""What a terminal shows: the verdict first, on one screen, every sum by --explain, names as they are."""

from __future__ import annotations

import io
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
from rich.console import Console

from shard_dist.config.load import load_config
from shard_dist.plan.plan import Plan, make_plan
from shard_dist.plan.table import tables

MODELS = Path(__file__).with_name("models")
HOSTILE = "[red]x[/] [link=file:///]\x1b[2J\x07 %s {0} [/nothing]"


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("table")
    rows = (f"{number},What is number {number}?" for number in range(20))
    (place / "prompts.csv").write_text("\n".join(["id,text", *rows]))
    path = place / "few.yaml"
    path.write_text(f"""
data:
  sources: [{{kind: table, path: {place}/prompts.csv, name: few, columns: {{id: id, text: text}}}}]
models:
  student: {{model: {MODELS}/Llama-3.1-8B, engines: 8, engine_args: {{max_model_len: 8192}}}}
  judge: {{model: {MODELS}/Llama-3.3-70B, engines: 2, engine_args: {{tensor_parallel_size: 4, max_model_len: 16384}}}}
train: {{gradient_checkpointing: true, workers: 8}}
cluster:
  nodes: {{count: 1, gpus: 8, gpu: H100, gpu_memory_gib: 79.6, gpu_tflops: 989, gpu_bandwidth: 3.35, cpus: 104,
          memory_gib: 1800, disk_gib: 5000}}
  speed: {{gpu_hour: 2.5}}
""")
    return path


@cache
def planned(file: Path, *words: str) -> Plan:
    return make_plan(load_config(file, words))


def shown(plan: Plan, width: int = 80, explain: bool = False) -> str:
    """As a terminal of that width has it, without colours."""
    console = Console(file=io.StringIO(), width=width)
    console.print(tables(plan, explain))
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_the_verdict_comes_first_and_all_is_on_one_screen(file: Path) -> None:
    lines = shown(planned(file)).splitlines()
    assert lines[0].startswith("few on 1 node with 8 x H100")
    assert lines[1].strip() == "fits"
    assert len(lines) <= 24


def test_what_does_not_fit_and_what_would_are_named(file: Path) -> None:
    """Settings stand on a line of their own, as they are pasted."""
    plan = planned(file, "train.workers=32", "models.student.engines=20")
    lines = [line.strip() for line in shown(plan, 120).splitlines()]
    assert lines[1] == "does not fit"
    for problem in plan.problems:
        assert problem in " ".join(lines)
    assert {"train.workers=8", "models.student.engines=8"} <= set(lines)
    assert any(line.startswith("student, 20 x 1 GPU ") for line in lines), "they have no place and GPUs all the same"


@pytest.mark.parametrize("width", [80, 120])
@pytest.mark.parametrize("explain", [False, True])
def test_no_line_is_longer_than_the_terminal(width: int, explain: bool, file: Path) -> None:
    assert max(map(len, shown(planned(file), width, explain).splitlines())) <= width


def test_every_line_of_every_sum_is_explained(file: Path) -> None:
    plan = planned(file)
    words = shown(plan, 400, explain=True)
    for _, account in plan.accounts:
        for line in account.lines:
            assert f"{line.name} " in words
            assert line.formula in words
    assert words.count("there is") == len(plan.accounts)
    for note in plan.notes:
        assert note in words


def test_names_of_others_are_neither_markup_nor_control_characters(file: Path) -> None:
    plan = planned(file, "train.workers=32")
    config = replace(plan.config, run=replace(plan.config.run, name=HOSTILE))
    config.cluster.nodes.gpu = HOSTILE
    part = replace(plan.roles[0], name=f"models.{HOSTILE}", problems=(HOSTILE,))
    phase = replace(plan.phases[0], roles=(HOSTILE,), how=HOSTILE)
    models = {**config.models, HOSTILE: config.models["student"]}
    changes = tuple(replace(each, why=HOSTILE) for each in plan.changes)
    hostile = replace(
        plan,
        config=replace(config, models=models),
        origin=HOSTILE,
        roles=(part,),
        phases=(phase,),
        fit=replace(plan.fit, changes=changes, hopeless=(HOSTILE,)),
    )
    words = shown(hostile, 400, explain=True)
    assert not {"\x1b", "\x07"} & set(words)
    assert words.count("[red]x[/] [link=file:///]") >= 6


def test_amounts_that_nobody_knows_are_said_to_be_unknown(file: Path) -> None:
    words = shown(planned(file, "cluster.nodes.gpu=''", "cluster.nodes.gpu_tflops=0", "cluster.nodes.gpu_memory_gib=0"))
    assert "unknown" in words
    assert "not stated" in words
