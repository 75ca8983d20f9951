"""dpo against the formula of Rafailov et al. 2023 over full logits, with two copies of the model."""

from __future__ import annotations

import math
import random
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
import torch
import torch.distributed as dist
from hypothesis import given
from hypothesis import strategies as st
from tiny import plain_update
from transformers import AutoModelForCausalLM, PreTrainedModel

from shard_dist.config.training import DpoConfig, Packing
from shard_dist.records import Example
from shard_dist.training.attention import NAME, register
from shard_dist.training.batches import Pairs
from shard_dist.training.head import CausalLoss, head_options, pair_losses
from shard_dist.training.job import TrainJob
from shard_dist.training.loop import read_metrics
from shard_dist.training.objectives import IGNORE, Segment
from shard_dist.training.order import Order
from shard_dist.training.prepare import prepare
from shard_dist.training.reference import reference_logprobs
from shard_dist.training.schedule import learning_rate
from shard_dist.training.step import Sums, read_sums, run_through
from shard_dist.training.tokens import TokenSet

Pair = tuple[Segment, Segment]


def pairs(count: int, seed: int = 3) -> list[Example]:
    """Two answers of uneven lengths to each prompt."""
    draw = random.Random(seed)

    def word() -> str:
        return "".join(draw.choices("abcdefgh", k=draw.choice((2, 9, 40))))

    return [
        Example("pairs", str(n), ({"role": "user", "content": word()[:9]},), "y" + word(), "dpo", "n" + word())
        for n in range(count)
    ]


def logprob(model: PreTrainedModel, segment: Segment) -> torch.Tensor:
    """log p of the labelled tokens, by full logits."""
    logps = model(input_ids=torch.tensor(segment.ids)[None]).logits[0, :-1].log_softmax(-1)
    labels = torch.tensor(segment.labels)[1:]
    at = (labels != IGNORE).nonzero()[:, 0]
    return logps[at, labels[at]].sum(dtype=torch.float64)


def gains(policy: PreTrainedModel, frozen: PreTrainedModel, batch: list[Pair]) -> torch.Tensor:
    """The bracket of eq. 7 for each pair [P]."""
    with torch.no_grad():
        before = torch.stack([logprob(frozen, chosen) - logprob(frozen, rejected) for chosen, rejected in batch])
    return torch.stack([logprob(policy, chosen) - logprob(policy, rejected) for chosen, rejected in batch]) - before


def paper_loss(gains_P: torch.Tensor, config: DpoConfig) -> torch.Tensor:
    """Eq. 7, and its mean over labels that are the wrong way round with probability e."""
    right, wrong = (-torch.log(torch.sigmoid(sign * config.beta * gains_P)) for sign in (1, -1))
    return ((1 - config.label_smoothing) * right + config.label_smoothing * wrong).mean()


class OneProcess:
    """What a pass asks of the DeepSpeed engine, in one process with plain gradients."""

    def __init__(self, module: CausalLoss) -> None:
        self.module, self.forwards = module, 0

    def __call__(self, batch: object) -> tuple[torch.Tensor, ...]:
        self.forwards += 1
        return self.module(batch)

    def backward(self, loss: torch.Tensor, **_: object) -> None:
        loss.backward()

    def set_gradient_accumulation_boundary(self, _: bool) -> None: ...

    def eval(self) -> None:
        self.module.eval()

    def train(self) -> None:
        self.module.train()


@pytest.fixture(scope="module")
def alone() -> Iterator[None]:
    """A process group of one."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def load(directory: Path) -> PreTrainedModel:
    register()
    return AutoModelForCausalLM.from_pretrained(directory, attn_implementation=NAME, dtype=torch.float32)


def training_of(job: TrainJob, model: PreTrainedModel | None = None) -> SimpleNamespace:
    """What a pass asks of a Training, in one process."""
    train, val = prepare(job).open()
    module = CausalLoss(model or load(Path(job.model)), head_options(job.config), job.config.dpo).train()
    return SimpleNamespace(
        job=job, engine=OneProcess(module), device=torch.device("cpu"), train=train, val=val, rank=0, ranks=1,
        cost=None, offload=nullcontext(), asked=lambda: False,
    )  # fmt: skip


def one_pass(training: SimpleNamespace, data: TokenSet, references: np.ndarray, learn: bool = True) -> Sums:
    """Over all of `data` as one batch."""
    items = range(len(data))
    return read_sums(run_through(training, data, [(item,) for item in items], references, learn=learn), data, items)


def two_by_two(tiny: ModuleType, job: TrainJob, examples: list[Example]) -> list[Pair]:
    segments = tiny.encoded(examples, job.config, job.seed)
    return list(zip(segments[::2], segments[1::2], strict=True))


@pytest.mark.parametrize(
    ("packing", "settings"),
    [(Packing.batch, {}), (Packing.none, {}), (Packing.batch, {"fused_loss": False, "max_tokens": 150})],
    ids=["packed", "padded", "plain head, several micro-batches"],
)
@pytest.mark.parametrize("dpo", [DpoConfig(), DpoConfig(beta=0.7, label_smoothing=0.2)], ids=["plain", "smoothed"])
def test_losses_margins_and_gradients_are_the_papers(
    alone, tmp_path, tiny, base_model, packing: Packing, settings: dict, dpo: DpoConfig
) -> None:
    """By a policy that has left the reference, so that no gain is 0."""
    job = tiny.job(tmp_path, base_model, pairs(5), [], packing=packing, dpo=dpo, **settings)
    training = training_of(job)
    references = reference_logprobs(training, training.train, "tiny")
    policy, frozen = training.engine.module.model, load(base_model)
    torch.manual_seed(1)
    with torch.no_grad():
        for weight in policy.parameters():
            weight.add_(0.02 * torch.randn_like(weight))
    sums = one_pass(training, training.train, references)
    ours = {name: weight.grad.clone() for name, weight in policy.named_parameters()}
    policy.zero_grad()
    gains_P = gains(policy, frozen, two_by_two(tiny, job, pairs(5)))
    expected = paper_loss(gains_P, dpo)
    expected.backward()
    assert sums.loss == pytest.approx(expected.item(), abs=1e-6)
    assert (sums.pairs, sums.accuracy) == (5, (gains_P > 0).double().mean().item())
    assert sums.margin == pytest.approx(gains_P.mean().item(), abs=1e-5)
    assert gains_P.abs().min() > 1e-2
    for name, weight in policy.named_parameters():
        torch.testing.assert_close(ours[name], weight.grad, rtol=1e-3, atol=1e-6, msg=name)


def test_the_first_loss_is_log_2_because_the_policy_is_the_reference(alone, tmp_path, tiny, base_model) -> None:
    job = tiny.job(tmp_path, base_model, pairs(12), pairs(3, seed=4))
    training = training_of(job)
    for data in (training.train, training.val):
        references = reference_logprobs(training, data, "tiny")
        sums = one_pass(training, data, references, learn=False)
        assert sums.loss == pytest.approx(math.log(2), abs=1e-6)
        assert abs(sums.margin) < 1e-5


def test_pairs_and_plain_examples_in_one_batch_add_their_means(alone, tmp_path, tiny, base_model) -> None:
    mixed = [*tiny.examples(4), *pairs(3)]
    with pytest.warns(UserWarning, match="dpo examples beside others"):
        training = training_of(job := tiny.job(tmp_path, base_model, mixed, []))
    references = reference_logprobs(training, training.train, "tiny")
    shifts = np.linspace(-4, 4, len(references))  # so that no gain is 0
    sums = one_pass(training, training.train, references + shifts)
    policy = training.engine.module.model
    ours = {name: weight.grad.clone() for name, weight in policy.named_parameters()}
    policy.zero_grad()
    rows = tiny.encoded(tiny.examples(4), job.config)
    plain = tiny.summed_loss(policy, rows) / sum(map(tiny.supervised, rows))
    gains_P = gains(policy, load(base_model), two_by_two(tiny, job, pairs(3)))
    gains_P = gains_P - torch.from_numpy(shifts[4:].reshape(3, 2) @ [1, -1])
    expected = plain + paper_loss(gains_P, job.config.dpo)
    expected.backward()
    assert sums.loss == pytest.approx(expected.item(), abs=1e-6)
    for name, weight in policy.named_parameters():
        torch.testing.assert_close(ours[name], weight.grad, rtol=1e-3, atol=1e-6, msg=name)
    assert sums.by_source["tiny/sft"] == pytest.approx(plain.item(), abs=1e-5)
    assert set(sums.by_source) == {"tiny/sft", "pairs/dpo.chosen", "pairs/dpo.rejected"}


def test_references_are_log_probs_of_pairs_alone_computed_once(alone, tmp_path, tiny, base_model) -> None:
    mixed = [*pairs(2), *tiny.examples(3), *pairs(2, seed=5)]
    job = tiny.job(tmp_path, base_model, mixed, tiny.examples(2), global_batch_size=4, max_tokens=300)
    with pytest.warns(UserWarning, match="dpo examples beside others"):
        training = training_of(job)
    references = reference_logprobs(training, training.train, "tiny")
    assert training.engine.module.training, "the engine goes back to learning"
    with torch.no_grad():
        frozen = load(base_model)
        expected = [
            float(logprob(frozen, segment)) if segment.term.startswith("dpo") else 0.0
            for segment in tiny.encoded(mixed, job.config)
        ]
    assert references == pytest.approx(expected, abs=1e-4)
    passes = training.engine.forwards
    assert passes > 0
    assert reference_logprobs(training, training.val, "tiny") is None, "no pairs, no cost"
    assert np.array_equal(reference_logprobs(training, training.train, "tiny"), references)
    assert training.engine.forwards == passes


def test_references_of_another_model_precision_or_attention_are_not_taken(alone, tmp_path, tiny, base_model) -> None:
    job = tiny.job(tmp_path, base_model, pairs(2), [])
    training = training_of(job)
    reference_logprobs(training, training.train, "tiny")
    for number, (model, changes) in enumerate(
        [("other", {}), ("tiny", {"bf16": True}), ("tiny", {"attention": "sdpa"})], start=2
    ):
        training.job = replace(job, config=replace(job.config, **changes))
        reference_logprobs(training, training.train, model)
        assert len(list(training.train.directory.glob("reference-*.npy"))) == number


def test_dropout_is_off_for_the_reference(alone, tmp_path, tiny, base_model) -> None:
    job = tiny.job(tmp_path, base_model, pairs(3), [])
    model = load(base_model)
    for layer in model.model.layers:
        layer.mlp = torch.nn.Sequential(layer.mlp, torch.nn.Dropout(0.5))
    dropping = training_of(job, model)
    references = reference_logprobs(dropping, dropping.train, "dropping")
    assert references == pytest.approx(reference_logprobs(training_of(job), dropping.train, "plain"), abs=1e-4)
    torch.manual_seed(0)
    sums = one_pass(dropping, dropping.train, references)
    assert abs(sums.margin) > 1e-3, "the policy's own pass drops"


def test_full_rows_have_the_same_references(alone, tmp_path, tiny, base_model) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    batch = training_of(tiny.job(tmp_path / "a", base_model, pairs(6), []))
    rows = training_of(tiny.job(tmp_path / "b", base_model, pairs(6), [], packing=Packing.dataset, max_tokens=256))
    expected = reference_logprobs(batch, batch.train, "tiny")
    assert reference_logprobs(rows, rows.train, "tiny") == pytest.approx(expected, abs=1e-4)


@given(
    gain=st.floats(-1e4, 1e4), beta=st.floats(0.01, 2), smooth=st.just(0.0) | st.floats(1e-9, 0.49),
    reference=st.floats(-50, 50),
)  # fmt: skip
def test_pair_losses_stay_finite_and_are_least_where_the_paper_says(gain, beta, smooth, reference) -> None:
    """One token for each answer; with a smoothing of e the loss is least at log((1 - e) / e) / beta."""
    before = torch.tensor([reference], dtype=torch.float64)
    pair = Pairs(torch.tensor([0, 1]), torch.tensor([0]), torch.tensor([1]), before, 1.0, 2)
    config = DpoConfig(beta=beta, label_smoothing=smooth)

    def at(gain: float) -> torch.Tensor:
        logprobs = torch.tensor([gain + reference, 0.0], dtype=torch.float64)
        return pair_losses(logprobs, pair, config)[0]

    assert torch.isfinite(at(gain)).all()
    best = math.log((1 - smooth) / smooth) / beta if smooth else 1e6
    assert at(best) <= at(gain) + 1e-9
    assert at(0.0).item() == pytest.approx(math.log(2))


@pytest.mark.parametrize("settings", [{"label_smoothing": 0.1}, {"z_loss": 1e-4}])
def test_what_changes_the_compared_log_probs_is_refused(tmp_path, tiny, base_model, settings: dict) -> None:
    with pytest.raises(ValueError, match="change the log-probabilities that dpo compares"):
        prepare(tiny.job(tmp_path, base_model, pairs(1), [], **settings))
    prepare(tiny.job(tmp_path, base_model, tiny.examples(1), [], **settings))


def test_a_pair_of_equal_answers_is_refused(tmp_path, tiny, base_model) -> None:
    same = replace(pairs(1)[0], target="no", rejected=" no\n")
    with pytest.raises(ValueError, match="example pairs/0: chosen and rejected answer are the same"):
        prepare(tiny.job(tmp_path, base_model, [same], []))


def plain_dpo(job: TrainJob, batches: list[Pair]) -> tuple[list[float], list[float], PreTrainedModel]:
    """Losses and mean gains of a whole training in plain torch, and the policy it ends with."""
    config = job.config
    policy, frozen = load(Path(job.model)), load(Path(job.model))
    optimizer = torch.optim.AdamW(policy.parameters(), betas=tuple(config.betas), weight_decay=config.weight_decay)
    order = Order([1] * len(batches), job.seed, config.global_batch_size)
    losses, margins = [], []
    for step in range(steps := order.steps(config.epochs)):
        gains_P = gains(policy, frozen, [batches[item] for (item,) in order.batch(step)])
        loss = paper_loss(gains_P, config.dpo)
        plain_update(policy, optimizer, loss, learning_rate(step, steps, config), config.max_grad_norm)
        losses.append(loss.item())
        margins.append(gains_P.mean().item())
    return losses, margins, policy


@pytest.mark.zero
def test_a_training_on_two_ranks_is_the_papers(tmp_path, tiny, base_model, run_ranks) -> None:
    """ZeRO-3, packed, an odd last batch, a death after step 5 and the same call again."""
    train, val = pairs(7), pairs(3, seed=4)
    settings = {"global_batch_size": 4, "epochs": 3.0, "checkpoint_every": 4, "dpo": DpoConfig(0.5)}
    job = tiny.job(tmp_path, base_model, train, val, **settings)
    died = run_ranks(job, die_after=5)
    assert died.returncode != 0
    prepared = prepare(job)
    (kept,) = Path(prepared.train).glob("reference-*.npy")
    (lost,) = Path(prepared.val).glob("reference-*.npy")
    written = kept.stat().st_mtime_ns
    lost.unlink()
    done = run_ranks(job)
    assert done.returncode == 0, done.stderr[-3000:]
    assert kept.stat().st_mtime_ns == written, "a resumed run computes nothing anew"
    assert lost.is_file(), "what is missing is computed again: by the base model, as the validation loss shows"
    losses, margins, policy = plain_dpo(job, two_by_two(tiny, job, train))
    lines = [line for line in read_metrics(Path(job.metrics_file)) if "loss" in line]
    assert [line["loss"] for line in lines] == pytest.approx(losses, abs=1e-5)
    assert [line["dpo_margin"] for line in lines] == pytest.approx(margins, abs=1e-3)
    assert losses[0] == pytest.approx(math.log(2), abs=1e-6)
    assert losses[0] - losses[-1] > 0.1, "the model learns"
    with torch.no_grad():
        gains_P = gains(policy, load(base_model), two_by_two(tiny, job, val))
    last = [line for line in read_metrics(Path(job.metrics_file)) if "val_loss" in line][-1]
    assert last["val_loss"] == pytest.approx(paper_loss(gains_P, job.config.dpo).item(), abs=1e-5)
    assert last["val_dpo_accuracy"] == pytest.approx((gains_P > 0).double().mean().item())
