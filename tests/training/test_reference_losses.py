"""Losses and gradients of pairs and of DeRTa's two terms against the papers' formulas in fp64, and against TRL's DPO.

The formulas are written out here in plain torch, token by token over full logits, without anything of `training` but
the tokens of the examples. Legend: P pairs.
"""

from __future__ import annotations

import pickle
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

from shard_dist.config.training import DertaConfig, DpoConfig, Normalize, TrainConfig
from shard_dist.records import Example
from shard_dist.training.attention import NAME, register
from shard_dist.training.batches import MicroBatch, Weights, collate, loss_weights
from shard_dist.training.head import CausalLoss, head_options
from shard_dist.training.objectives import IGNORE, TERMS, Segment

ASKED = ({"role": "user", "content": "how?"},)
ANSWERS = [("Do not.", "First, take it."), ("No", "abcabcabcabc" * 4), ("Ask somebody who knows that.", "Sure!")]
PAIRS = [Example("p", str(n), ASKED, chosen, "dpo", rejected) for n, (chosen, rejected) in enumerate(ANSWERS)]
TRIPLES = [replace(pair, objective="derta", dataset="t") for pair in PAIRS]
PLAIN = Example("s", "1", ASKED, "four", "sft")
BAR = 1e-9  # the largest distance seen was 6e-15
WAYS = pytest.mark.parametrize(
    ("packed", "fused"), [(True, True), (False, False)], ids=["packed, fused", "padded, plain"]
)


def load(directory: Path, dtype: torch.dtype = torch.float64, moved: int = 0) -> PreTrainedModel:
    """The tiny model, `moved` away from where it was saved."""
    register()
    model = AutoModelForCausalLM.from_pretrained(directory, attn_implementation=NAME, dtype=dtype)
    torch.manual_seed(moved)
    with torch.no_grad():
        for weight in model.parameters() if moved else ():
            weight.add_(0.05 * torch.randn_like(weight))
    return model


def logprobs(model: PreTrainedModel, segment: Segment) -> list[torch.Tensor]:
    """log p of every labelled token given all before it: logit minus the log of the summed exponentials."""
    logits = model(input_ids=torch.tensor(segment.ids)[None]).logits[0]
    places = [place for place in range(1, len(segment.ids)) if segment.labels[place] != IGNORE]
    return [logits[place - 1, segment.labels[place]] - logits[place - 1].exp().sum().log() for place in places]


def dpo_formula(policy: PreTrainedModel, frozen: PreTrainedModel, segments: list[Segment], beta: float) -> torch.Tensor:
    """Rafailov et al. 2023, eq. 7: the mean over pairs of -log sigmoid(beta (log-ratio of chosen - of rejected))."""
    losses = []
    for chosen, rejected in zip(segments[::2], segments[1::2], strict=True):
        with torch.no_grad():
            before = sum(logprobs(frozen, chosen)) - sum(logprobs(frozen, rejected))
        now = sum(logprobs(policy, chosen)) - sum(logprobs(policy, rejected))
        losses.append(torch.log(1 + torch.exp(-beta * (now - before))))
    return torch.stack(losses).mean()


def derta_formula(model: PreTrainedModel, segments: list[Segment], config: DertaConfig) -> torch.Tensor:
    """Yuan et al. 2024, eq. 3, both sums over a batch divided by their tokens, together or each by its own."""
    tokens = {term: [] for term in TERMS}
    for segment in segments:
        tokens[segment.term] += logprobs(model, segment)
    plain, refusals = tokens["sft"] + tokens["derta.safe"], tokens["derta.refusal"]
    together = len(plain) + len(refusals)
    by_plain, by_refusals = (
        (together, together) if config.normalize == Normalize.tokens else (len(plain), len(refusals))
    )
    return -sum(plain) / by_plain - config.rto_weight * sum(refusals) / by_refusals


def unrounded(batch: MicroBatch, weights: Weights) -> MicroBatch:
    """With the tokens' weights in fp64. Training has them in fp32, which moves these losses by up to 1.5e-7."""
    if batch.token_weights_S is None:
        return batch
    return replace(batch, token_weights_S=torch.from_numpy(weights.terms)[batch.groups_S % len(TERMS)])


def gradients(model: PreTrainedModel, loss: torch.Tensor) -> dict[str, torch.Tensor]:
    model.zero_grad()
    loss.backward()
    return {name: weight.grad.clone() for name, weight in model.named_parameters()}


def furthest(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> float:
    assert one.keys() == other.keys()
    return max(float((one[name] - other[name]).abs().max()) for name in one)


def in_parts(
    module: CausalLoss, shares: list[list[int]], batch_of: Callable[[list[int]], MicroBatch]
) -> tuple[float, dict[str, torch.Tensor]]:
    """Loss and gradients of a step whose micro-batches are `shares`."""
    module.zero_grad()
    losses = [module(batch_of(share))[0] for share in shares]
    for loss in losses:
        loss.backward()
    return sum(loss.item() for loss in losses), {n: w.grad.clone() for n, w in module.model.named_parameters()}


@WAYS
@pytest.mark.parametrize("beta", [0.1, 0.7])
def test_dpo_is_its_formula_in_fp64(tiny, tmp_path, base_model, packed, fused, beta) -> None:
    config = TrainConfig(dpo=DpoConfig(beta), fused_loss=fused)
    data = tiny.token_set(tmp_path / "set", PAIRS, config)
    segments = tiny.encoded(PAIRS, config)
    policy, frozen = load(base_model, moved=1), load(base_model)
    expected = dpo_formula(policy, frozen, segments, beta)
    wanted = gradients(policy, expected)
    with torch.no_grad():
        reference = np.array([float(sum(logprobs(frozen, segment))) for segment in segments])
    weights = loss_weights(data, range(len(PAIRS)), config)
    module = CausalLoss(policy, head_options(config), config.dpo)
    loss, grads = in_parts(
        module, [[0, 2], [1]], lambda share: unrounded(collate(share, data, weights, packed, reference), weights)
    )
    assert loss == pytest.approx(expected.item(), abs=BAR, rel=0)
    assert furthest(grads, wanted) < BAR
    assert max(float(grad.abs().max()) for grad in wanted.values()) > 1e-3


@WAYS
@pytest.mark.parametrize("normalize", list(Normalize))
@pytest.mark.parametrize("rto_weight", [1.0, 0.3])
def test_derta_is_its_formula_in_fp64(tiny, tmp_path, base_model, packed, fused, normalize, rto_weight) -> None:
    derta = DertaConfig(rto_weight=rto_weight, normalize=normalize, keep=0.3)
    config, examples = TrainConfig(derta=derta, fused_loss=fused), [PLAIN, *TRIPLES]
    data = tiny.token_set(tmp_path / "set", examples, config)
    model = load(base_model)
    expected = derta_formula(model, tiny.encoded(examples, config), derta)
    wanted = gradients(model, expected)
    weights = loss_weights(data, range(len(examples)), config)
    loss, grads = in_parts(
        CausalLoss(model, head_options(config)), [[0, 2], [3, 1]],
        lambda share: unrounded(collate(share, data, weights, packed), weights),
    )  # fmt: skip
    assert loss == pytest.approx(expected.item(), abs=BAR, rel=0)
    assert furthest(grads, wanted) < BAR
    assert max(float(grad.abs().max()) for grad in wanted.values()) > 1e-3


@pytest.mark.zero
def test_dpo_is_trls(tiny, tmp_path, base_model) -> None:
    """A policy that has left the reference, fp32 on both sides, TRL in a process of its own."""
    pytest.importorskip("trl")
    config = TrainConfig(dpo=DpoConfig(0.3))
    policy, frozen = load(base_model, torch.float32, moved=1), load(base_model, torch.float32)
    policy.save_pretrained(tmp_path / "policy")
    tiny.tokenizer().save_pretrained(tmp_path / "policy")
    run = {"policy": tmp_path / "policy", "reference": base_model, "examples": PAIRS, "beta": config.dpo.beta}
    (tmp_path / "run.pickle").write_bytes(pickle.dumps(run))
    script, out = Path(__file__).with_name("trl_dpo.py"), tmp_path / "result.pt"
    done = subprocess.run(
        [sys.executable, str(script), str(tmp_path / "run.pickle"), str(out)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    theirs = torch.load(out)
    data = tiny.token_set(tmp_path / "set", PAIRS, config)
    with torch.no_grad():
        reference = np.array([float(sum(logprobs(frozen, segment))) for segment in tiny.encoded(PAIRS, config)])
    weights = loss_weights(data, range(len(PAIRS)), config)
    loss, grads = in_parts(
        CausalLoss(policy, head_options(config), config.dpo), [[0, 1, 2]],
        lambda share: collate(share, data, weights, True, reference),
    )  # fmt: skip
    assert theirs["tokens"] == int(data.segment_supervised.sum())
    assert loss == pytest.approx(theirs["loss"], abs=1e-5, rel=0)
    assert furthest(grads, theirs["gradients"]) < 1e-5
