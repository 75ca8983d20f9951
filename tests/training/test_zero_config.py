"""The DeepSpeed configuration: what is ours, what a user may change."""

import pytest

from shard_dist.config.schema import TrainConfig
from shard_dist.training.zero import zero_config


def test_the_batch_adds_up() -> None:
    config = zero_config(TrainConfig(workers=4, micro_batch_size=2, global_batch_size=32))
    assert config["gradient_accumulation_steps"] == 4
    assert config["train_batch_size"] == 32
    assert config["zero_optimization"]["stage"] == 3


def test_user_keys_go_over_the_defaults_and_leave_the_rest() -> None:
    user = {
        "zero_optimization": {"reduce_bucket_size": 7, "offload_optimizer": {"device": "cpu"}},
        "wall_clock_breakdown": True,
    }
    config = zero_config(TrainConfig(deepspeed=user))
    assert config["zero_optimization"]["reduce_bucket_size"] == 7
    assert config["zero_optimization"]["offload_optimizer"] == {"device": "cpu"}
    assert config["zero_optimization"]["stage"] == 3
    assert config["zero_optimization"]["stage3_prefetch_bucket_size"] == 50_000_000
    assert config["wall_clock_breakdown"] is True


@pytest.mark.parametrize(
    ("user", "key"),
    [
        ({"zero_optimization": {"stage": 2}}, "train.deepspeed.zero_optimization.stage"),
        ({"gradient_clipping": 0.5}, "train.deepspeed.gradient_clipping"),
        ({"bf16": {"enabled": True}}, "train.deepspeed.bf16.enabled"),
        ({"fp16": {"enabled": True}}, "train.deepspeed.fp16.enabled"),
        ({"optimizer": {"type": "SGD"}}, "train.deepspeed.optimizer"),
        ({"zero_optimization": 3}, "train.deepspeed.zero_optimization"),
    ],
)
def test_keys_that_decide_the_result_are_refused_by_name(user: dict, key: str) -> None:
    with pytest.raises(ValueError, match=key.replace(".", r"\.") + " is set by"):
        zero_config(TrainConfig(deepspeed=user))
