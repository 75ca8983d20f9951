"""Hours from stated, measured and reckoned rates: by hand, and how they follow from the cluster."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from shard_dist.config.cluster import ClusterConfig, NodesConfig, SpeedConfig
from shard_dist.config.schema import Backend, Config, DataConfig, ModelConfig
from shard_dist.config.training import TrainConfig
from shard_dist.plan.hours import DISK, START, Phase, hours, measured_rates, model_cost_of
from shard_dist.plan.model import Shape
from shard_dist.plan.workload import Asked, Training, Workload

WEIGHTS, TABLE = 7_000_000_000, 128_000 * 4096
MODEL = Shape("8b", (WEIGHTS, TABLE, TABLE), 218_750_000, 32, 32, 4096, 14_336, 32, 8, 128, 128_000, False, 131_072,
              matrices=WEIGHTS, active=WEIGHTS)  # fmt: skip
H100 = NodesConfig(1, 8, "H100", 79.6, 989.0, 3.35, 128, 1500)
LENGTHS = {"max_model_len": 8192, "max_num_seqs": 256}
WORK = Workload(
    prompts=1000,
    asked=(
        Asked("generate", "records", "student", 2400, 2_400_000, 1_200_000),
        Asked("select", "verdicts", "judge", 4000, 5_200_000, 600_000),
        Asked("evaluate", "answers of base", "student", 200, 40_000, 120_000),
        Asked("evaluate", "answers of tuned", "tuned", 200, 40_000, 120_000),
    ),
    training=Training(2100, 1_600_000, 1_200_000, 762, "sft"),
    assumptions=(),
)


def config(nodes: NodesConfig = H100, engines: int = 4, workers: int = 8, **speed: float) -> Config:
    specs = {
        "student": ModelConfig(model="m", engines=engines, engine_args=dict(LENGTHS)),
        "judge": ModelConfig(model="j", engines=engines, engine_args=dict(LENGTHS)),
    }
    cluster = ClusterConfig(nodes=nodes, speed=SpeedConfig(**speed))
    train = TrainConfig(workers=workers, gpus_per_worker=1 if nodes.gpus else 0)
    return Config(cluster=cluster, data=DataConfig(sources=[]), models=specs, train=train)


def plan_of(settings: Config, work: Workload = WORK, measured: Path | None = None) -> list[Phase]:
    return hours(settings, work, {"student": MODEL, "judge": MODEL}, measured)


def test_phases_are_the_stages_in_their_order() -> None:
    phases = plan_of(config())
    assert [(phase.stage, phase.roles) for phase in phases] == [
        ("generate", ("student",)),
        ("select", ("judge",)),
        ("train", ("student",)),
        ("evaluate", ("student",)),
        ("evaluate", ("tuned",)),
    ]
    assert {phase.origin for phase in phases} == {"reckoned"}
    assert sum(phase.tokens for phase in phases) == 1_200_000 + 600_000 + 1_600_000 + 240_000


def test_stated_rates_count_before_all_others_and_engines_boot_first() -> None:
    rates = {"generation_tokens_per_gpu_second": 1000.0, "training_tokens_per_gpu_second": 500.0, "gpu_hour": 2.5}
    phases = plan_of(config(**rates))
    boot = START + 2 * MODEL.parameters / DISK
    assert phases[0].hours == pytest.approx((1_200_000 / 1000 / 4 + boot) / 3600)
    assert phases[2].hours == pytest.approx(1_600_000 / 500 / 8 / 3600)
    for phase in phases:
        assert phase.origin == "stated"
        assert phase.hours is not None
        assert phase.gpu_hours == pytest.approx(phase.hours * phase.gpus)
        assert phase.cost == pytest.approx(2.5 * phase.hours * phase.gpus)


def test_a_decoding_step_by_hand() -> None:
    """256 sequences of 1,000 tokens and 250 of 500 that are written: weights once, keys and values of each."""
    phase = plan_of(config(engines=1))[0]
    weights = 2 * (WEIGHTS + 2 * TABLE)
    step = (weights + 256 * 1264 * 131_072) / (3.35e12 * 0.5)  # 1,250 tokens are 79 blocks of 16
    prefill = 1000 * 2 * WEIGHTS / (0.35 * 989e12)
    assert phase.tokens_per_gpu_second == pytest.approx(500 / (500 * step / 256 + prefill))
    assert "256 sequences of 1000 + 500 tokens at once" in phase.how


def test_training_by_hand() -> None:
    phase = plan_of(config(workers=8))[2]
    flops = model_cost_of(MODEL).flops([762], round(0.75 * 762)) / 762
    assert flops == pytest.approx(6 * (WEIGHTS + 0.75 * TABLE), rel=0.02)  # attention in 762 tokens is the rest
    assert phase.tokens_per_gpu_second == pytest.approx(0.35 * 989e12 / flops)
    pairs = replace(WORK, training=replace(WORK.training, objective="dpo"))
    assert plan_of(config(), pairs)[2].hours == pytest.approx(4 / 3 * plan_of(config())[2].hours)


def together(engines: int) -> list[Phase]:
    """Two roles of one part, each with so many engines."""
    asked = tuple(replace(each, stage="select", part="verdicts") for each in WORK.asked[:2])
    return plan_of(config(engines=engines), replace(WORK, asked=asked))[:-1]


def test_roles_side_by_side_wait_for_the_slower_one_and_in_turns_for_each() -> None:
    (both,) = together(4)
    first, second = together(8)  # 16 GPUs are not there
    assert both.roles == ("student", "judge")
    assert both.gpus == first.gpus == second.gpus == 8
    assert both.gpu_hours == 8 * both.hours
    assert (first.roles, second.roles) == (("student",), ("judge",))


def test_a_server_has_its_price_by_the_token_and_no_hours() -> None:
    settings = config()
    settings.models["judge"] = ModelConfig(Backend.http, "j", base_url="http://h/v1", input_price=1.0, output_price=4.0)
    phase = plan_of(settings)[1]
    assert (phase.gpus, phase.hours) == (0, None)
    assert phase.cost == pytest.approx(5.2 * 1.0 + 0.6 * 4.0)


def test_a_cpu_has_hours_from_measured_rates_only(tmp_path: Path) -> None:
    cpu = config(nodes=NodesConfig(count=1, cpus=4), engines=1, workers=2)
    assert all(phase.hours is None and not phase.origin for phase in plan_of(cpu))
    finished(tmp_path, train={"workers": 2, "gpus_per_worker": 0})
    generated, _, trained, *_ = plan_of(cpu, measured=tmp_path)
    assert (generated.origin, trained.origin) == ("measured", "measured")
    assert generated.gpu_hours == trained.gpu_hours == 0
    boot = START + 2 * MODEL.parameters / DISK
    assert generated.hours == pytest.approx((1_200_000 / 40.0 + boot) / 3600)
    assert trained.hours == pytest.approx(1_600_000 / 100.0 / 2 / 3600)


def finished(path: Path, **settings: Any) -> None:
    """A run as it leaves itself: 4,000 tokens of two engines in 50 s each, 20,000 tokens trained on in 100 s."""
    source = {"kind": "table", "path": "p.csv", "columns": {"text": "t"}}
    tree = {"data": {"sources": [source]}, "models": {"student": {"model": "m", "engines": 2}}, **settings}
    (path / "config.yaml").write_text(yaml.safe_dump(tree))
    (path / "generate.json").write_text(json.dumps({"counts": {"completion_tokens": 4000}, "seconds": 100.0}))
    (path / "train.json").write_text(json.dumps({"counts": {"tokens": 20_000}, "seconds": 100.0}))
    counts = dict.fromkeys(("made", "hits", "prompt_tokens", "running", "waiting", "prefix_queries", "prefix_hits"), 0)
    lines = [
        {"kind": "sample", "stage": "generate", "engine": f"student-{number}", "life": "a", "time": 1000.0 + seconds,
         "completion_tokens": 40 * seconds, "kv_cache_use": 0.1, **counts}
        for number in range(2) for seconds in (0, 25, 50)
    ]  # fmt: skip
    (path / "engines.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def test_a_finished_runs_rates_are_of_its_engines_and_its_stages(tmp_path: Path) -> None:
    finished(tmp_path, train={"workers": 4})
    generation, training = measured_rates(tmp_path)
    assert generation["student"].tokens == 40.0  # between the first and the last sign of each engine
    assert generation[""].tokens == 4000 / 100 / 2  # booting and all
    assert training is not None
    assert training.tokens == 20_000 / 100 / 4
    (tmp_path / "engines.jsonl").unlink()
    assert list(measured_rates(tmp_path)[0]) == [""]


def test_a_directory_without_a_finished_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"is no run's directory"):
        measured_rates(tmp_path)
    finished(tmp_path)
    for name in ("generate.json", "train.json", "engines.jsonl"):
        (tmp_path / name).unlink()
    with pytest.raises(ValueError, match="nothing was measured"):
        measured_rates(tmp_path)


@given(st.integers(1, 4), st.floats(0.5, 4), st.floats(1, 4))
def test_less_of_the_cluster_or_more_work_never_ends_sooner(power: int, growth: float, longer: float) -> None:
    engines = 2**power
    some, half = plan_of(config(engines=engines, workers=8)), plan_of(config(engines=engines // 2, workers=4))
    asked = tuple(
        replace(each, calls=each.calls * (1 + growth), prompt_tokens=each.prompt_tokens * (1 + growth),
                completion_tokens=each.completion_tokens * (1 + growth) * longer)
        for each in WORK.asked
    )  # fmt: skip
    more = plan_of(config(engines=engines, workers=8), replace(WORK, asked=asked))
    for phase, with_half, with_more in zip(some, half, more, strict=True):
        assert phase.hours is not None
        assert with_half.hours is not None
        assert with_more.hours is not None
        assert with_half.hours >= phase.hours
        assert with_more.hours >= phase.hours - 1e-9
