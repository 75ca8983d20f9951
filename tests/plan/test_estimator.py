"""The plan's model states against DeepSpeed's own estimator.

It counts 18 bytes for a weight (bf16 weight 2, fp32 master 4, two moments 8, fp32 gradient 4) over all ranks, without
padding, and beside them the largest single module gathered, with its gradient. With the optimizer offloaded 16 of the
18 are on the node, with the weights too all of them, times a factor for buffers that is a guess and here 1. It has no
activations, buckets or prefetching, and not the second fp32 gradient that DeepSpeed keeps where the optimizer is
offloaded. Those are lines of the plan's own and no part of what is compared.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from shard_dist.config.cluster import NodesConfig
from shard_dist.config.training import LongConfig, Offload, TrainConfig
from shard_dist.plan.account import Account
from shard_dist.plan.model import Shape, shape_of
from shard_dist.plan.states import Sharding, model_states
from shard_dist.plan.training import training_memory

MODELS = Path(__file__).with_name("models")
GPUS = 8  # of a node


def estimate(shape: Shape, nodes: int, long: LongConfig) -> tuple[float, float]:
    """Bytes of a node's memory and of a GPU, the gathered module apart."""
    from deepspeed.runtime.zero.stage3 import estimate_zero3_model_states_mem_needs

    node, gpu, gathered = estimate_zero3_model_states_mem_needs(
        shape.parameters, max(shape.tensors), num_gpus_per_node=GPUS, num_nodes=nodes,
        cpu_offload=long.offload_optimizer == Offload.cpu, cpu_offload_params=long.offload_parameters == Offload.cpu,
        additional_buffer_factor=1.0,
    )  # fmt: skip
    # Without offloading its figure for the node is one module on its way to the GPUs, gone once it is loaded.
    return node if long.offload_optimizer == Offload.cpu else 0, gpu - gathered


@pytest.mark.parametrize("nodes", [1, 4])
@pytest.mark.parametrize("model", ["Llama-3.1-8B", "Phi-4", "Llama-3.3-70B"])
@pytest.mark.parametrize("offloaded", ["nothing", "optimizer", "both"])
def test_model_states_are_those_of_deepspeeds_estimator(model: str, nodes: int, offloaded: str) -> None:
    """Within 2 %."""
    long = LongConfig(
        offload_optimizer=Offload.none if offloaded == "nothing" else Offload.cpu,
        offload_parameters=Offload.cpu if offloaded == "both" else Offload.none,
    )
    shape, train = shape_of(str(MODELS / model)), TrainConfig(workers=nodes * GPUS, long=long)
    hardware = NodesConfig(count=nodes, gpus=GPUS)
    names = {line.name for line in model_states(Sharding(shape, train, hardware)).values()}

    def states(account: Account) -> float:
        return sum(line.bytes for line in account.lines if line.name in names)

    plan, (node, gpu) = training_memory(shape, train, hardware), estimate(shape, nodes, long)
    assert states(plan.device) == pytest.approx(gpu, rel=0.02)
    assert states(plan.node) == pytest.approx(node, rel=0.02)
