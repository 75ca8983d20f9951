"""The whole plan: its sums are those of their lines, its machines are stated or here, its parts are the run's."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from shard_dist.config.cluster import NodesConfig
from shard_dist.config.load import load_config
from shard_dist.config.schema import Config
from shard_dist.plan import machines
from shard_dist.plan.account import GIB
from shard_dist.plan.disk import CALL_BYTES, TOKEN_BYTES, storage
from shard_dist.plan.machines import nodes_of, places, with_machines
from shard_dist.plan.plan import Plan, make_plan
from shard_dist.plan.table import tables

MODELS = Path(__file__).with_name("models")
CONFIG = f"""
data:
  sources: [{{kind: table, path: prompts.csv, name: few, columns: {{id: id, text: text, category: category}}}}]
models:
  student: {{model: {MODELS}/Llama-3.1-8B, engines: 8, engine_args: {{max_model_len: 8192}}}}
  judge: {{model: {MODELS}/Llama-3.3-70B, engines: 2, engine_args: {{tensor_parallel_size: 4, max_model_len: 16384}}}}
  guard: {{model: {MODELS}/Llama-3.1-8B, engine_args: {{max_model_len: 8192}}}}
evaluate: {{raters: [{{kind: llama_guard, role: guard}}]}}
train: {{gradient_checkpointing: true, workers: 8}}
cluster:
  nodes: {{count: 1, gpus: 8, gpu: H100, gpu_memory_gib: 79.6, gpu_tflops: 989, gpu_bandwidth: 3.35, cpus: 104,
          memory_gib: 1800, disk_gib: 5000}}
  storage: {{path: /shared, size_gib: 10000}}
  speed: {{gpu_hour: 2.5}}
"""


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("plan")
    rows = (f"{number},What is number {number}?,c{number % 2}" for number in range(20))
    (place / "prompts.csv").write_text("\n".join(["id,text,category", *rows]))
    path = place / "few.yaml"
    path.write_text(CONFIG.replace("prompts.csv", str(place / "prompts.csv")))
    return path


@pytest.fixture(scope="module")
def plan(file: Path) -> Plan:
    return make_plan(load_config(file))


def accounts(value: Any) -> list[dict[str, Any]]:
    """Every account in a JSON object."""
    if isinstance(value, dict) and "lines" in value:
        return [value]
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else []
    return [each for item in inner for each in accounts(item)]


def test_the_totals_are_the_sums_of_their_lines(plan: Plan) -> None:
    found = json.loads(json.dumps(plan.json()))
    assert len(accounts(found)) == 7  # three roles, a GPU, a node, its disk, the storage
    for account in accounts(found):
        assert account["total"] == pytest.approx(sum(line["bytes"] for line in account["lines"]))
        assert account["fits"] == (account["capacity"] is None or account["total"] <= account["capacity"])
    for name in ("hours", "gpu_hours", "cost"):
        assert found["total"][name] == pytest.approx(sum(phase[name] for phase in found["phases"]))
    assert found["total"]["cost"] == pytest.approx(2.5 * found["total"]["gpu_hours"])


def test_a_plan_that_fits_has_nothing_to_change(plan: Plan) -> None:
    assert plan.fits
    assert not plan.problems
    assert not plan.changes
    assert plan.json()["fits"] is True


def test_roles_of_a_stage_share_the_machines_or_take_turns(plan: Plan) -> None:
    """Two judges of four GPUs each leave none to the guard."""
    stages = [(each["stage"], each["roles"], each["side_by_side"]) for each in plan.json()["stages"]]
    assert stages == [
        ("generate", ["student"], True),
        ("select", ["judge"], True),
        ("evaluate", ["student"], True),
        ("evaluate", ["judge", "guard"], False),
    ]


def test_all_that_a_run_asks_and_trains_has_its_hours(plan: Plan) -> None:
    assert [phase.stage for phase in plan.phases] == ["generate", "select", "train", *["evaluate"] * 4]
    assert all(phase.hours is not None and phase.hours > 0 for phase in plan.phases)


def test_changes_are_in_the_hours(file: Path) -> None:
    """What does not fit has no hours; with its changes it has."""
    found = make_plan(load_config(file, ["models.student.engines=20"]))
    assert [change.words for change in found.changes] == [["models.student.engines=8"]]
    assert found.phases[0].gpus == 8


def test_what_no_change_helps_has_no_hours(file: Path) -> None:
    found = make_plan(load_config(file, ["cluster.nodes.gpu_memory_gib=4", "cluster.nodes.memory_gib=16"]))
    assert not found.fits
    assert found.fit.hopeless
    assert not found.phases
    tables(found)


def test_prompts_of_the_hub_have_no_tokens_until_their_number_is_stated(file: Path) -> None:
    words = ["data.sources=[{kind: do_not_answer}]"]
    unknown = make_plan(load_config(file, words))
    assert unknown.work is None
    assert any("--prompts" in note for note in unknown.notes)
    assert unknown.fits
    assert make_plan(load_config(file, words), prompts=10).work


def test_a_role_behind_a_server_takes_no_memory_here(file: Path) -> None:
    other = file.with_name("server.yaml")
    engine = "engine_args: {tensor_parallel_size: 4, max_model_len: 16384}"
    server = "backend: http, base_url: 'http://host:8000/v1'"
    other.write_text(file.read_text().replace(engine, server))
    role = next(each for each in make_plan(load_config(other)).json()["roles"] if each["role"] == "judge")
    assert role["memory"] is role["parameters"] is None
    assert role["fits"]


def test_the_storage_holds_checkpoints_the_model_and_every_call(file: Path, plan: Plan) -> None:
    """A weight: 12 bytes in a checkpoint, of which there are three; twice that in a conversion; 2 in the export."""
    assert plan.work
    lines = {line.name: line.bytes for line in plan.storage.accounts[0].lines}
    weights = plan.shapes["student"].parameters
    assert lines["checkpoints"] == pytest.approx(2 * 12 * weights, rel=1e-6)
    assert lines["checkpoint being written"] == pytest.approx(12 * weights, rel=1e-6)
    assert lines["checkpoint converted for other workers"] == 24 * weights
    assert lines["trained model"] == 2 * weights
    calls = sum(asked.calls for asked in plan.work.asked)
    tokens = sum(asked.prompt_tokens + asked.completion_tokens for asked in plan.work.asked)
    assert lines["ledger"] == pytest.approx(CALL_BYTES * calls + TOKEN_BYTES * tokens)
    twice = storage(load_config(file, ["recipe.rounds=2", "train.keep_best=true"]), plan.shapes, None)
    assert next(line.bytes for line in twice.lines if line.name == "checkpoints") == 3 * lines["checkpoints"]


# -- machines


def bare(file: Path, *words: str) -> Config:
    """Without a word about machines."""
    config = load_config(file, words)
    config.cluster.nodes = NodesConfig()
    return config


def test_stated_machines_are_taken_as_they_are(file: Path) -> None:
    config = load_config(file)
    assert with_machines(config) == (config, "stated")


def test_facts_of_nodes_without_their_number_are_refused(file: Path) -> None:
    config = bare(file)
    config.cluster.nodes.gpus = 8
    with pytest.raises(ValueError, match="count"):
        with_machines(config)


def test_a_machine_without_gpus_cannot_stand_in_for_some(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(ValueError, match=r"--cluster configs/clusters/h100_1x8\.yaml"):
        with_machines(bare(file))


def test_this_machines_gpus_are_counted(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Properties:
        name, total_memory = "Some GPU", 40 * GIB

    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    monkeypatch.setattr("torch.cuda.get_device_properties", lambda index: Properties)
    nodes = with_machines(bare(file))[0].cluster.nodes
    assert (nodes.count, nodes.gpus, nodes.gpu, nodes.gpu_memory_gib) == (1, 2, "Some GPU", 40)


def test_training_on_cpus_is_planned_for_this_machine(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machines.os, "cpu_count", lambda: 2)
    config, origin = with_machines(bare(file, "train.gpus_per_worker=0"))
    nodes = config.cluster.nodes
    assert origin == "this machine"
    assert (nodes.count, nodes.gpus, nodes.cpus) == (1, 0, 4)  # Ray counts no fewer than four there
    assert nodes.memory_gib > 0.5


@pytest.mark.parametrize(
    ("cpus", "each", "expected"),
    [(16, (1, 1), 8), (0, (100, 1), 8), (16, (8, 1), 2), (16, (1, 0.1), 16), (16, (1, 3), 2)],
)
def test_a_process_stays_on_one_node(cpus: int, each: tuple[float, float], expected: int) -> None:
    """Of one node with 8 GPUs; unstated CPUs limit nothing. A tenth of a GPU fits ten times into one."""
    nodes = NodesConfig(count=1, gpus=8, cpus=cpus)
    assert places(nodes, cpus=each[0], gpus=each[1]) == expected
    assert len(nodes_of(nodes)) == 1
