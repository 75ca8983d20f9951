"""Sequences that are too long for one process: shared ones and tiled MLPs compute what whole ones do."""

import copy
import itertools
import pickle
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM, DeepseekV3Config, LlamaConfig, MixtralConfig

from shard_dist.config.training import TrainConfig
from shard_dist.records import Example
from shard_dist.training.batches import collate, loss_weights
from shard_dist.training.head import CausalLoss
from shard_dist.training.job import TrainJob
from shard_dist.training.loop import read_metrics
from shard_dist.training.prepare import prepare
from shard_dist.training.sequence import activation_offload, check_sequence, part, tile_mlps
from shard_dist.training.tokens import TokenSet

CONFIG = TrainConfig(max_tokens=400)
EXAMPLES = 12


def mixed(tiny: ModuleType, count: int, seed: int = 0) -> list[Example]:
    """Examples of all objectives in turn."""
    turns = zip(tiny.examples(count, seed), itertools.cycle(("sft", "dpo", "derta")))
    return [
        replace(example, objective=objective, rejected="" if objective == "sft" else example.target[::-1] + "no")
        for example, objective in turns
    ]


@pytest.fixture(scope="module")
def data(tmp_path_factory, tiny) -> TokenSet:
    return tiny.token_set(tmp_path_factory.mktemp("tokens") / "set", mixed(tiny, EXAMPLES), CONFIG)


@given(items=st.sets(st.integers(0, EXAMPLES - 1)), size=st.sampled_from([2, 3, 4, 8]))
@settings(deadline=None)
def test_parts_make_up_the_row_and_its_loss(data, items, size) -> None:
    """Every token once, in order; after the exchange each target has the hidden state that it is predicted from."""
    items = sorted(items)
    whole = collate(items, data, loss_weights(data, range(EXAMPLES), CONFIG), packed=True, multiple=size)
    parts = [part(whole, place, size) for place in range(size)]
    for name in ("ids_BL", "positions_BL"):
        assert torch.equal(torch.cat([getattr(each, name) for each in parts], dim=1), getattr(whole, name))
    for name in ("targets_S", "groups_S", "token_weights_S"):
        assert torch.equal(torch.cat([getattr(each, name) for each in parts]), getattr(whole, name))
    length = parts[0].ids_BL.numel()
    sent = [torch.split(each.rows_S + place * length, each.spread.sent) for place, each in enumerate(parts)]
    received = [[pieces[place] for pieces in sent] for place in range(size)]
    for pieces, each in zip(received, parts, strict=True):
        assert [len(piece) for piece in pieces] == each.spread.received
    assert torch.equal(torch.cat([torch.cat(pieces) for pieces in received]), whole.rows_S)
    shares = [len(each.targets_S) for each in parts]
    assert max(shares) - min(shares) <= 1
    if whole.pairs is not None:
        assert sorted(pair for each in parts for pair in each.pairs.chosen_P.tolist()) == whole.pairs.chosen_P.tolist()
        assert torch.equal(torch.cat([each.pairs.segments_S for each in parts]), whole.pairs.segments_S)


def test_a_row_for_one_process_stays_as_it_is(data) -> None:
    whole = collate([0, 1], data, loss_weights(data, [0, 1], CONFIG), packed=True)
    assert part(whole, 0, 1) is whole


def llama(heads: int, key_heads: int) -> LlamaConfig:
    return LlamaConfig(hidden_size=8 * heads, num_attention_heads=heads, num_key_value_heads=key_heads)


@pytest.mark.parametrize(
    ("config", "size", "message"),
    [
        (llama(4, 2), 8, "4 attention heads must divide"),
        (llama(4, 2), 3, "4 attention heads must divide"),
        (llama(12, 3), 2, "3 key heads"),
        (DeepseekV3Config(), 2, "differ in width"),
    ],
)
def test_heads_that_cannot_be_dealt_are_refused(config, size, message) -> None:
    with pytest.raises(ValueError, match=rf"train\.long\.sequence_parallel.*{message}"):
        check_sequence(config, size)


@pytest.mark.parametrize(("heads", "key_heads", "size"), [(4, 2, 1), (4, 2, 2), (4, 2, 4), (4, 1, 4), (3, 3, 3)])
def test_heads_that_can_be_dealt(heads, key_heads, size) -> None:
    check_sequence(llama(heads, key_heads), size)


def test_more_processes_than_heads_are_refused_before_the_model_is_loaded(tmp_path, tiny, base_model) -> None:
    job = tiny.job(tmp_path, base_model, tiny.examples(2), [])
    job.config.long.sequence_parallel = 8
    with pytest.raises(ValueError, match="4 attention heads"):
        prepare(job)


@pytest.mark.parametrize("tiles", [2, 3, 1000])
def test_tiled_mlps_compute_what_whole_ones_do(data, base_model, tiles) -> None:
    """Loss and gradients, over two micro-batches, with upstream gradients other than 1; also with recomputed layers."""
    model = AutoModelForCausalLM.from_pretrained(base_model, attn_implementation="sdpa").train()
    tiled = copy.deepcopy(model)
    tile_mlps(tiled, tiles)
    if tiles == 3:
        tiled.gradient_checkpointing_enable({"use_reentrant": False})
    weights = loss_weights(data, [0, 3], CONFIG)
    for items in ([0], [3]):
        batch = collate(items, data, weights, packed=False)
        losses = [CausalLoss(each)(batch)[0] for each in (model, tiled)]
        torch.testing.assert_close(*losses)
        for loss in losses:
            (loss * 0.25).backward()
    for (name, weight), other in zip(model.named_parameters(), tiled.parameters(), strict=True):
        torch.testing.assert_close(weight.grad, other.grad, rtol=1e-4, atol=1e-7, msg=name)


def test_tiles_keep_less_for_the_backward_pass(base_model) -> None:
    """What an MLP saves shrinks to its input: three times its inner width less."""
    model = AutoModelForCausalLM.from_pretrained(base_model).train()
    hidden_BLH, saved = torch.randn(1, 64, 32, requires_grad=True), []
    mlp = model.get_decoder().layers[0].mlp

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        saved.append(tensor.numel() if not isinstance(tensor, torch.nn.Parameter) else 0)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        mlp(hidden_BLH)
        whole = sum(saved)
        saved.clear()
        tile_mlps(model, 4)
        mlp(hidden_BLH)
    assert sum(saved) == hidden_BLH.numel() < whole / 3


def test_experts_are_not_tiled() -> None:
    config = MixtralConfig(hidden_size=32, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2,
                           num_key_value_heads=1, num_local_experts=2, vocab_size=64)  # fmt: skip
    with pytest.raises(ValueError, match=r"train\.long\.mlp_tiles: MixtralDecoderLayer has experts"):
        tile_mlps(AutoModelForCausalLM.from_config(config), 2)


def test_saved_activations_leave_and_come_back(data, base_model, monkeypatch) -> None:
    """DeepSpeed moves nothing on a CPU; made to, the gradients stay, and nothing restored is held on to."""
    from deepspeed.runtime.activation_checkpointing.offload_activations import CheckpointHiddenStatesOffload

    monkeypatch.setattr(CheckpointHiddenStatesOffload, "_should_skip", lambda self, tensor: False)
    model = AutoModelForCausalLM.from_pretrained(base_model, attn_implementation="sdpa").train()
    batch = collate([0, 3], data, loss_weights(data, [0, 3], CONFIG), packed=False)
    CausalLoss(model)(batch)[0].backward()
    expected = [weight.grad.clone() for weight in model.parameters()]
    model.zero_grad()
    model.gradient_checkpointing_enable({"use_reentrant": False})
    config = TrainConfig(gpus_per_worker=0, gradient_checkpointing=True)
    config.long.offload_activations = True
    offload = activation_offload(config)
    with offload:
        CausalLoss(model)(batch)[0].backward()
        assert offload.stats.marked_tensors == 2, "the input of each layer"
        assert offload.stats.offloaded_tensors == 1, "the last layer's stays: it is needed first"
        assert offload.stats.restored_tensors == 1
        assert not offload._restored
    for weight, gradient in zip(model.parameters(), expected, strict=True):
        torch.testing.assert_close(weight.grad, gradient)


@pytest.fixture(scope="module")
def ran(tmp_path_factory, tiny, base_model, launch) -> tuple[dict[str, TrainJob], dict[str, list[torch.Tensor]]]:
    """Trainings on two ranks with and without a shared sequence: plain examples, and all objectives."""
    root, jobs = tmp_path_factory.mktemp("shared"), {}
    plain, all_objectives, val = tiny.examples(21), mixed(tiny, 12), tiny.examples(5, seed=1)
    for name, size, examples in (("plain", 2, plain), ("whole", 1, all_objectives), ("shared", 2, all_objectives)):
        (root / name).mkdir()
        jobs[name] = tiny.job(root / name, base_model, examples, val, max_tokens=300, micro_batch_size=1)
        jobs[name].config.long.sequence_parallel = size
    (root / "jobs").write_bytes(pickle.dumps(list(jobs.values())))
    done = launch(Path(__file__).with_name("long_rank.py"), root / "jobs", root / "result").wait()
    assert done.returncode == 0, done.stderr[-3000:]
    return jobs, pickle.loads((root / "result").read_bytes())


@pytest.mark.zero
def test_a_shared_row_has_the_loss_and_gradients_of_a_whole_one(ran) -> None:
    """All objectives, four heads over two key heads, and a row without examples, whose gradients are zeros."""
    _, result = ran
    assert all(value != 0 for value in result["whole"][3:6])
    for shared, whole in zip(result["shared"], result["whole"], strict=True):
        torch.testing.assert_close(shared, whole, rtol=1e-5, atol=1e-7)


@pytest.mark.zero
def test_shared_sequences_train_as_plain_torch_does(ran, tiny, plain_training) -> None:
    """Losses of all steps and of the validation set, and the weights after them."""
    job = ran[0]["plain"]
    expected, trained = plain_training(job, tiny.examples(21))
    lines = list(read_metrics(Path(job.metrics_file)))
    assert [line["loss"] for line in lines if "loss" in line] == pytest.approx(expected, abs=1e-5)
    exported = AutoModelForCausalLM.from_pretrained(job.model_dir)
    for (name, weight), other in zip(exported.named_parameters(), trained.parameters(), strict=True):
        torch.testing.assert_close(weight, other, rtol=0, atol=1e-5, msg=name)
    rows = tiny.encoded(tiny.examples(5, seed=1), job.config)
    with torch.no_grad():
        val_loss = tiny.summed_loss(exported, rows) / sum(tiny.supervised(row) for row in rows)
    assert lines[-1]["val_loss"] == pytest.approx(val_loss.item(), abs=1e-5)


@pytest.mark.zero
def test_shared_sequences_train_all_objectives_as_whole_ones_do(ran) -> None:
    jobs, _ = ran
    shared, whole = (list(read_metrics(Path(jobs[name].metrics_file))) for name in ("shared", "whole"))
    for name in ("loss", "val_loss", "grad_norm", "dpo_margin", "dpo_accuracy"):
        numbers = [[line[name] for line in lines if name in line] for lines in (shared, whole)]
        assert numbers[0], name
        assert numbers[0] == pytest.approx(numbers[1], rel=1e-4), name
