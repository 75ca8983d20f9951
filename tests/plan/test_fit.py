"""What is said to make a plan fit does, with nothing to spare; the largest that fits does, and a step more does not."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shard_dist.config.cluster import NodesConfig, StorageConfig
from shard_dist.config.load import load_config
from shard_dist.config.schema import Config
from shard_dist.plan.disk import storage
from shard_dist.plan.fit import (
    STEP,
    Fit,
    applied,
    fewest,
    fit,
    largest,
    largest_micro_batch,
    largest_tokens,
    valid,
)
from shard_dist.plan.model import Shape, shape_of
from shard_dist.plan.needs import role_part, roles_of, training_part
from shard_dist.plan.remedies import Remedy

MODELS = Path(__file__).with_name("models")
H100 = NodesConfig(count=1, gpus=8, gpu_memory_gib=79.6, cpus=104, memory_gib=1800, disk_gib=5000)
CONFIG = """
data:
  sources: [{kind: do_not_answer}]
models:
  student: {model: some/model, engine_args: {max_model_len: 8192, gpu_memory_utilization: 0.9}}
  judge: {backend: http, model: a-judge, base_url: "http://host:8000/v1"}
train: {gradient_checkpointing: true, workers: 8}
"""
MIDDLE, LARGE = "Llama-3.1-8B", "Llama-3.3-70B"


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("fit") / "run.yaml"
    path.write_text(CONFIG)
    return path


@pytest.fixture(scope="module")
def base(file: Path) -> Config:
    return load_config(file)


@pytest.fixture(scope="module")
def shapes() -> dict[str, Shape]:
    return {name: shape_of(str(MODELS / name)) for name in (MIDDLE, LARGE)}


def on(config: Config, **nodes: Any) -> Config:
    """The configuration on H100 nodes that differ so."""
    return replace(config, cluster=replace(config.cluster, nodes=replace(H100, **nodes)))


def problems(config: Config, shape: Shape) -> list[str]:
    """Of all parts."""
    roles = [role_part(config, role, {"student": shape}) for role in roles_of(config)]
    found = [problem for part in (*roles, training_part(config, shape)) for problem in part.problems]
    return found + ([] if storage(config, {"student": shape}, None).fits else ["storage"])


def remedied(config: Config, shape: Shape) -> Fit:
    return fit(config, {"student": shape}, None)


# (model, nodes, settings, what must be among the changes)
CASES = [
    (MIDDLE, {}, ["train.gradient_checkpointing=false", "train.max_tokens=16384"], "train.gradient_checkpointing=true"),
    (MIDDLE, {}, ["train.micro_batch_size=64"], "train.micro_batch_size=1"),
    (MIDDLE, {"gpu_memory_gib": 19.0}, [], "train.long.offload_optimizer=cpu"),
    (MIDDLE, {}, ["train.workers=32", "train.long.sequence_parallel=16"], "train.workers=8"),
    (MIDDLE, {}, ["models.student.engines=20"], "models.student.engines=8"),
    (MIDDLE, {"gpu_memory_gib": 15.8}, [], "models.student.engine_args.tensor_parallel_size=2"),
    (LARGE, {}, [], "train.long.offload_optimizer=cpu"),
    (LARGE, {"count": 4}, [], "train.workers=32"),
    (LARGE, {"memory_gib": 900}, [], "train.long.offload_optimizer=nvme"),
    (LARGE, {"count": 16}, ["train.workers=128", "train.max_tokens=131072"], "train.long.offload_activations=true"),
]  # fmt: skip


@pytest.mark.parametrize(("model", "nodes", "words", "expected"), CASES)
def test_the_changes_fit_and_none_can_be_left_out(
    model: str, nodes: dict[str, Any], words: list[str], expected: str, file: Path, shapes: dict[str, Shape]
) -> None:
    config, shape = on(load_config(file, words), **nodes), shapes[model]
    assert problems(config, shape)
    found = remedied(config, shape)
    assert not found.hopeless
    assert expected in [word for change in found.changes for word in change.words]
    assert not problems(applied(config, (change.settings for change in found.changes)), shape)
    for change in found.changes:
        others = applied(config, (each.settings for each in found.changes if each is not change))
        assert problems(others, shape) or not valid(others)


@pytest.mark.parametrize(("model", "nodes", "words", "expected"), CASES)
def test_the_changes_can_be_pasted(
    model: str, nodes: dict[str, Any], words: list[str], expected: str, file: Path, shapes: dict[str, Shape]
) -> None:
    """As overrides they say the same as what was tried."""
    found = remedied(on(load_config(file, words), **nodes), shapes[model])
    changed = [word for change in found.changes for word in change.words]
    pasted = on(load_config(file, [*words, *changed]), **nodes)
    assert pasted == applied(on(load_config(file, words), **nodes), (change.settings for change in found.changes))


@given(
    model=st.sampled_from([MIDDLE, LARGE]),
    nodes=st.integers(1, 8),
    memory=st.sampled_from([0.0, 39.4, 79.6]),
    train=st.fixed_dictionaries(
        {
            "workers": st.sampled_from([1, 4, 8, 32]),
            "max_tokens": st.sampled_from([1024, 8192, 65536]),
            "micro_batch_size": st.sampled_from([1, 4]),
            "gradient_checkpointing": st.booleans(),
        }
    ),
)
@settings(max_examples=12)
def test_whatever_does_not_fit_is_mended_or_said_to_be_hopeless(
    model: str, nodes: int, memory: float, train: dict[str, Any], base: Config, shapes: dict[str, Shape]
) -> None:
    changed = applied(base, [{("train", name): value for name, value in train.items()}])
    config, shape = on(changed, count=nodes, gpu_memory_gib=memory), shapes[model]
    found = remedied(config, shape)
    if not problems(config, shape):
        assert found == Fit()
    left = problems(applied(config, (change.settings for change in found.changes)), shape)
    assert bool(left) == bool(found.hopeless)


def test_shorter_rows_are_named_and_not_taken(file: Path, shapes: dict[str, Shape]) -> None:
    """They decide results: the sentence says what to set, and it does fit. Here nothing is shared and nothing offloads:
    a row's checkpoints are 32 GiB of the GPU's 32."""
    machine = {"gpu_memory_gib": 31.8, "memory_gib": 60, "disk_gib": 0}
    config = on(load_config(file, ["train.max_tokens=131072", "train.packing=none"]), **machine)
    found = remedied(config, shapes[MIDDLE])
    assert not found.changes
    (sentence,) = found.hopeless
    words = [word for word in sentence.split() if "=" in word]
    assert words[0].startswith("train.max_tokens=")
    shorter = on(load_config(file, ["train.packing=none", *words]), **machine)
    assert not training_part(shorter, shapes[MIDDLE]).problems


def test_what_no_setting_helps_is_said(file: Path, shapes: dict[str, Shape]) -> None:
    config = on(load_config(file), gpu_memory_gib=4, memory_gib=32, disk_gib=0)
    found = remedied(config, shapes[LARGE])
    assert not found.changes
    assert [sentence.partition(":")[0] for sentence in found.hopeless] == ["models.student", "train"]


def test_fewer_checkpoints_stay_where_the_storage_is_small(file: Path, shapes: dict[str, Shape]) -> None:
    config = on(load_config(file, ["train.keep_checkpoints=5"]))
    small = replace(config, cluster=replace(config.cluster, storage=StorageConfig("/shared", 600)))
    words = [word for change in remedied(small, shapes[MIDDLE]).changes for word in change.words]
    assert words == ["train.keep_checkpoints=3"]


SAVINGS = st.lists(st.lists(st.integers(0, 9), min_size=1, max_size=3).map(sorted), min_size=1, max_size=5)


@given(savings=SAVINGS, need=st.integers(1, 30))
@settings(max_examples=40)
def test_the_search_spares_what_costs_most(base: Config, savings: list[list[int]], need: int) -> None:
    """Over made-up remedies: none dispensable, none milder, and the costliest is needed whatever is cheaper."""
    remedies = [
        Remedy("", tuple({("train", "deepspeed", str(number)): saved} for saved in degrees))
        for number, degrees in enumerate(savings)
    ]

    def lacking(trial: Config) -> frozenset[int]:
        return frozenset({0} if sum(trial.train.deepspeed.values()) < need else ())

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("shard_dist.plan.fit.valid", lambda config: True)  # milliseconds each, and nothing to find here
        found = fewest(base, remedies, lacking)
    assert (found is None) == (sum(degrees[-1] for degrees in savings) < need)
    if found is None:
        return
    taken = {int(next(iter(changed))[2]): next(iter(changed.values())) for _, changed in found}
    assert sum(taken.values()) >= need
    for number, saved in taken.items():
        milder = [0, *(degree for degree in savings[number] if degree < saved)]
        assert all(sum(taken.values()) - saved + degree < need for degree in milder)
    assert sum(degrees[-1] for degrees in savings[: max(taken)]) < need


@given(limit=st.integers(0, 400), most=st.integers(1, 400), step=st.integers(1, 16))
def test_the_largest_fits_and_a_step_more_does_not(limit: int, most: int, step: int) -> None:
    found = largest(lambda value: value <= limit, most, step)
    assert found <= limit
    assert found == most or found % step == 0
    assert found == most or found + step > limit


@pytest.mark.parametrize("words", [[], ["train.gradient_checkpointing=false"], ["train.long.offload_optimizer=cpu"]])
@pytest.mark.parametrize("model", [MIDDLE, LARGE])
def test_the_longest_row_fits_and_256_tokens_more_do_not(
    model: str, words: list[str], file: Path, shapes: dict[str, Shape]
) -> None:
    config, shape = on(load_config(file, words)), shapes[model]

    def fits(tokens: int) -> bool:
        longer = applied(config, [{("train", "max_tokens"): tokens}])
        return not training_part(longer, shape).problems

    found = largest_tokens(config, shape)
    assert found is not None
    assert found == 0 or fits(found)
    assert found == shape.positions or not fits(found + STEP)


def test_the_most_rows_fit_and_one_more_does_not(file: Path, shapes: dict[str, Shape]) -> None:
    config, shape = on(load_config(file, ["train.global_batch_size=4096"])), shapes[MIDDLE]
    found = largest_micro_batch(config, shape)
    assert found
    for rows, does in ((found, True), (found + 1, False)):
        changed = applied(config, [{("train", "micro_batch_size"): rows}])
        assert bool(training_part(changed, shape).problems) != does


def test_nothing_is_said_of_lengths_where_no_capacity_is_stated(file: Path, shapes: dict[str, Shape]) -> None:
    config = on(load_config(file), gpu_memory_gib=0, memory_gib=0, disk_gib=0)
    assert largest_tokens(config, shapes[MIDDLE]) is largest_micro_batch(config, shapes[MIDDLE]) is None
