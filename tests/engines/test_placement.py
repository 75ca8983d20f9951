"""Placement: an accepted plan really packs, a refused one names what is missing, and more nodes never hurt."""

from __future__ import annotations

from collections import Counter, defaultdict
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shard_dist.config.schema import Backend, ModelConfig
from shard_dist.engines.placement import Node, Plan, bundles, gpus_of, plan


def spec(tensor: int = 1, pipeline: int = 1, **settings: Any) -> ModelConfig:
    sizes = {"tensor_parallel_size": tensor, "pipeline_parallel_size": pipeline}
    return ModelConfig(model="m", engine_args=sizes, **settings)


def cluster(*gpus: float, cpus: float = 16) -> list[Node]:
    return [
        Node(f"node-{chr(97 + index)}", {"CPU": cpus, **({"GPU": count} if count else {})})
        for index, count in enumerate(gpus)
    ]


ROLE = st.builds(
    spec,
    tensor=st.sampled_from([1, 2, 3, 4, 8]),
    pipeline=st.sampled_from([1, 1, 2, 3]),
    gpus=st.sampled_from([None, None, None, 0.5, 2]),
    cpus=st.sampled_from([0.1, 1, 3]),
    engines=st.integers(1, 4),
    backend=st.sampled_from([Backend.vllm, Backend.vllm, Backend.http, Backend.fake]),
)
ROLES = st.lists(ROLE, min_size=1, max_size=3).map(lambda specs: [(f"r{n}", spec) for n, spec in enumerate(specs)])
NODES = st.lists(
    st.tuples(st.sampled_from([0, 1, 2, 4, 6, 8]), st.sampled_from([1, 4, 16])), min_size=1, max_size=5
).map(
    lambda sizes: [Node(f"n{i}", {"GPU": float(g), "CPU": float(c), "memory": 1e9}) for i, (g, c) in enumerate(sizes)]
)


def verdict(roles: list[tuple[str, ModelConfig]], nodes: list[Node]) -> Plan | None:
    try:
        return plan(roles, nodes)
    except ValueError:
        return None


@given(ROLES, NODES)
def test_an_accepted_plan_packs(roles: list[tuple[str, ModelConfig]], nodes: list[Node]) -> None:
    """No node holds more than it has, no strict group is split, no tensor-parallel group leaves its node."""
    found = verdict(roles, nodes)
    if found is None:
        return
    have = {node.name: node.resources for node in nodes}
    used: dict[tuple[str, str, str], float] = defaultdict(float)
    for role, settings in roles:
        placement = found.placements[role]
        assert len(placement.nodes) == settings.engines
        tensor = settings.engine_args["tensor_parallel_size"]
        for places in placement.nodes:
            assert len(places) == len(placement.bundles)
            for bundle, node in zip(placement.bundles, places, strict=True):
                for kind, amount in bundle.items():
                    used["" if found.side_by_side else role, node, kind] += amount
            if placement.strategy == "STRICT_PACK":
                assert len(set(places)) == 1
            else:
                assert all(count % tensor == 0 for count in Counter(places).values())
    for (_, node, kind), amount in used.items():
        assert amount <= have[node].get(kind, 0) + 1e-9


@given(ROLES, NODES, NODES)
def test_another_node_never_turns_a_plan_into_a_refusal(
    roles: list[tuple[str, ModelConfig]], nodes: list[Node], more: list[Node]
) -> None:
    has_gpus = any(node.resources["GPU"] for node in nodes)
    new = Node("new", more[0].resources)
    if has_gpus or not new.resources["GPU"]:  # the first GPU turns CPU engines into GPU engines: another question
        assert verdict(roles, nodes) is None or verdict(roles, [*nodes, new]) is not None


@given(ROLES, NODES, st.randoms(use_true_random=False))
def test_the_order_of_roles_and_nodes_does_not_matter(
    roles: list[tuple[str, ModelConfig]], nodes: list[Node], random: Any
) -> None:
    one = verdict(roles, nodes)
    other = verdict(random.sample(roles, len(roles)), random.sample(nodes, len(nodes)))
    assert (one and one.side_by_side) == (other and other.side_by_side)


@given(ROLE, NODES)
def test_room_is_what_fits_and_no_more(settings: ModelConfig, nodes: list[Node]) -> None:
    found = verdict([("r0", settings)], nodes)
    if found is None:
        return
    placement = found.placements["r0"]
    settings.engines += placement.room
    again = verdict([("r0", settings)], nodes)
    assert again is not None
    if again.placements["r0"].strategy == placement.strategy:
        assert again.placements["r0"].room == 0


def test_an_engine_on_one_node_holds_all_its_gpus_in_one_bundle() -> None:
    assert bundles(spec(4), True) == ([{"GPU": 4, "CPU": 1}], "STRICT_PACK")
    assert bundles(spec(2, 2), True) == ([{"GPU": 4, "CPU": 1}], "STRICT_PACK")


def test_an_engine_across_nodes_has_a_bundle_per_gpu_and_its_actor_in_the_first() -> None:
    group, strategy = bundles(spec(2, 2, cpus=3), True, across_nodes=True)
    assert group == [{"GPU": 1, "CPU": 3}, {"GPU": 1}, {"GPU": 1}, {"GPU": 1}]
    assert strategy == "PACK"


@pytest.mark.parametrize(
    ("settings", "cluster_has_gpus", "expected"),
    [
        (spec(4, 2), True, 8),
        (spec(4, 2), False, 0),  # vLLM's CPU build
        (spec(4, gpus=0.5), True, 0.5),
        (spec(4, backend=Backend.http), True, 0),
        (spec(4, backend=Backend.fake, gpus=2), False, 2),
    ],
)
def test_gpus_of_an_engine(settings: ModelConfig, cluster_has_gpus: bool, expected: float) -> None:
    assert gpus_of(settings, cluster_has_gpus) == expected


@pytest.mark.parametrize(
    ("settings", "nodes", "expected"),
    [
        (
            spec(8),
            cluster(4, 2),
            "models.r: an engine takes 8 GPUs on one node (tensor_parallel_size 8); the largest node has 4 (node-a); "
            "lower tensor_parallel_size or use tensor_parallel_size 4 with pipeline_parallel_size 2",
        ),
        (
            spec(4, engines=6),
            cluster(8, 8),
            "models.r: 6 engines take 24 GPUs + 6 CPUs in all; the cluster has 16 GPUs + 32 CPUs on 2 nodes: "
            "room for 4; set models.r.engines=4",
        ),
        (
            spec(8, 3),
            cluster(8, 8),
            "models.r: an engine takes 3 groups of 8 GPUs, each on one node (tensor_parallel_size 8, "
            "pipeline_parallel_size 3); the cluster has 16 GPUs + 32 CPUs on 2 nodes; add nodes",
        ),
        (
            spec(8, 2),
            cluster(4, 4, 4, 4),
            "models.r: a tensor-parallel group takes 8 GPUs on one node (tensor_parallel_size 8); the largest node "
            "has 4 (node-d); lower tensor_parallel_size or use tensor_parallel_size 4 with pipeline_parallel_size 4",
        ),
        (
            spec(backend=Backend.fake, gpus=1),
            cluster(0),
            "models.r: an engine takes 1 GPU on one node (gpus); no node has any",
        ),
        (
            spec(cpus=32),
            cluster(8),
            "models.r: an engine takes 32 CPUs on one node (cpus); the largest node has 16 (node-a); "
            "lower models.r.cpus",
        ),
        (
            spec(4, cpus=8),
            [Node("a", {"GPU": 8, "CPU": 2}), Node("b", {"CPU": 64})],
            "models.r: an engine takes 4 GPUs + 8 CPUs on one node; no node has both",
        ),
        (spec(), [], "models.r: the cluster has no nodes"),
    ],
)
def test_a_refusal_names_what_is_missing(settings: ModelConfig, nodes: list[Node], expected: str) -> None:
    with pytest.raises(ValueError, match=r".") as caught:
        plan([("r", settings)], nodes)
    assert str(caught.value) == expected


def test_pipeline_stages_go_across_nodes_only_where_one_node_is_too_small() -> None:
    assert plan([("r", spec(4, 2))], cluster(8, 8)).placements["r"].strategy == "STRICT_PACK"
    across = plan([("r", spec(4, 2, engines=2))], cluster(4, 4, 4, 4)).placements["r"]
    assert (across.strategy, across.room) == ("PACK", 0)
    assert [len(set(places)) for places in across.nodes] == [2, 2]


def test_roles_share_the_cluster_where_they_fit() -> None:
    student, judge = spec(4, engines=2), spec(8)
    both = plan([("student", student), ("judge", judge)], cluster(8, 8))
    assert both.side_by_side
    assert both.lines() == [
        "student: 2 engines x 4 GPUs + 1 CPU, side by side with judge, on node-b",
        "judge: 1 engine x 8 GPUs + 1 CPU, side by side with student, on node-a",
    ]
    turns = plan([("student", student), ("judge", judge)], cluster(8))
    assert not turns.side_by_side
    assert list(turns.placements) == ["student", "judge"]
    assert turns.lines()[1:] == [
        "judge: 1 engine x 8 GPUs + 1 CPU, number 2 one after the other, on node-a",
        "student, judge do not fit on the cluster at once: one after the other",
    ]


def test_a_role_alone_says_how_far_it_may_grow() -> None:
    assert plan([("student", spec(2))], cluster(*[8] * 6)).lines() == [
        "student: 1 engine x 2 GPUs + 1 CPU, on node-a; room for 23 more"
    ]
