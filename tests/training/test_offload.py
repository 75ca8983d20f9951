"""What lives elsewhere than on the GPU: the configuration for it, and the same training with it.

Nothing here reads or writes nvme: that takes libaio and a compiler.
"""

from pathlib import Path

import pytest
from transformers import AutoModelForCausalLM

from shard_dist.config.training import LongConfig, Offload, TrainConfig
from shard_dist.training.loop import read_metrics
from shard_dist.training.zero import load_model, zero_config


def places(**long: object) -> dict:
    return zero_config(TrainConfig(long=LongConfig(**long)))["zero_optimization"]


def test_each_part_goes_where_it_is_asked_to() -> None:
    nothing = places()
    assert nothing["offload_optimizer"]["device"] == nothing["offload_param"]["device"] == "none"
    states = places(offload_optimizer=Offload.cpu)
    assert states["offload_optimizer"] == {"device": "cpu", "nvme_path": None, "pin_memory": True}
    assert states["offload_param"]["device"] == "none"
    both = places(offload_optimizer=Offload.cpu, offload_parameters=Offload.nvme, nvme_path="/disk")
    assert (both["offload_param"]["device"], both["offload_param"]["nvme_path"]) == ("nvme", "/disk")
    assert both["offload_optimizer"]["nvme_path"] is None


def test_deepspeed_takes_the_sections() -> None:
    from deepspeed.runtime.zero.config import DeepSpeedZeroConfig

    sections = places(offload_optimizer=Offload.nvme, offload_parameters=Offload.cpu, nvme_path="/d")
    parsed = DeepSpeedZeroConfig(**sections)
    assert parsed.offload_optimizer.device == "nvme"
    assert str(parsed.offload_optimizer.nvme_path) == "/d"
    assert parsed.offload_param.device == "cpu"


def test_nvme_without_its_compiled_code_is_refused_before_the_model_is_loaded(monkeypatch) -> None:
    from deepspeed.accelerator import get_accelerator

    builder = type(get_accelerator().create_op_builder("AsyncIOBuilder"))
    monkeypatch.setattr(builder, "is_compatible", lambda self, verbose: False)
    config = TrainConfig(long=LongConfig(offload_parameters=Offload.nvme, nvme_path="/disk"))
    with pytest.raises(ValueError, match="libaio"):
        load_model("no such model", "", False, config)


@pytest.mark.zero
def test_offloaded_and_tiled_training_is_the_same_and_survives_a_kill(
    tmp_path, tiny, base_model, run_ranks, plain_training
) -> None:
    """Optimizer and weights on the CPU, MLPs in tiles, several micro-batches; SIGKILL after step 3 of 6.

    An epoch's last batch is one example: one rank's row makes three tiles, the other's, of one token, only one.
    """
    offload = {"offload_optimizer": Offload.cpu, "offload_parameters": Offload.cpu, "offload_activations": True}
    long = LongConfig(mlp_tiles=3, **offload)
    job = tiny.job(tmp_path, base_model, tiny.examples(17), tiny.examples(5, seed=1), long=long,
                   gradient_checkpointing=True, max_tokens=300, micro_batch_size=1)  # fmt: skip
    assert run_ranks(job, die_after=3).returncode != 0
    again = run_ranks(job)
    assert again.returncode == 0, again.stderr[-3000:]
    expected, trained = plain_training(job, tiny.examples(17))
    losses = [line["loss"] for line in read_metrics(Path(job.metrics_file)) if "loss" in line]
    assert losses == pytest.approx(expected, abs=1e-5)
    exported = AutoModelForCausalLM.from_pretrained(job.model_dir)
    for (name, weight), other in zip(exported.named_parameters(), trained.parameters(), strict=True):
        assert (weight - other).abs().max() < 1e-5, name
