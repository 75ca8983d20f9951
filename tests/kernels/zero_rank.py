"""One of two ranks: the loss head under ZeRO-3, scenario after scenario. zero_rank.py RESULT.json, under torchrun.

Legend: B rows, L tokens, H hidden, V vocabulary. The model: embedding, two residual tanh layers, head; SGD; fp32.
"""

from __future__ import annotations

import collections
import json
import os
import sys
from pathlib import Path
from typing import Any

os.environ["DS_ACCELERATOR"] = "cpu"

import deepspeed
import torch
import torch.distributed as dist
from torch import nn

from shard_kernels import HeadOptions, linear_cross_entropy, replace_head

V, H, B, L = 96, 32, 2, 24
STEPS, RATE, WORLD = 3, 0.1, 2


class Tiny(nn.Module):
    """`kind`: the fused head, its eager twin, or the weight read from outside as a patched forward would."""

    def __init__(self, tied: bool, kind: str) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed = nn.Embedding(V, H)
        self.body = nn.ModuleList(nn.Linear(H, H) for _ in range(2))
        self.head = nn.Linear(H, V, bias=False)
        if tied:
            self.head.weight = self.embed.weight
        replace_head(self.head, HeadOptions(eager=kind == "eager"))
        self.kind = kind
        self.probe = [self.head.weight]  # in a list: asking the module for it would gather it
        self.resident: list[bool] = []

    def forward(self, ids_BL: torch.Tensor, labels_BL: torch.Tensor, denominator: float) -> torch.Tensor:
        x_BLH = self.embed(ids_BL)
        for layer in self.body:
            x_BLH = x_BLH + torch.tanh(layer(x_BLH))
            self.resident.append(self.probe[0].numel() > 0)
        if self.kind == "attribute":
            loss = linear_cross_entropy(x_BLH, self.head.weight, labels_BL, denominator=denominator)
            assert isinstance(loss, torch.Tensor)
            return loss
        return self.head(x_BLH, labels_BL, denominator=denominator)


def batches(step: int, gas: int, empty: bool) -> list[list[tuple[torch.Tensor, torch.Tensor]]]:
    """Micro-batches of every rank in one step. `empty`: the second rank has no supervised token in step 1."""
    generator = torch.Generator().manual_seed(100 + step)
    ranks = []
    for rank in range(WORLD):
        micros = []
        for _ in range(gas):
            ids_BL = torch.randint(0, V, (B, L), generator=generator)
            labels_BL = torch.randint(0, V, (B, L), generator=generator)
            labels_BL[torch.rand(B, L, generator=generator) < 0.3 + 0.4 * rank] = -100  # uneven over the ranks
            if empty and rank == 1 and step == 1:
                labels_BL[:] = -100
            micros.append((ids_BL, labels_BL))
        ranks.append(micros)
    return ranks


def config(gas: int) -> dict[str, Any]:
    return {
        "train_micro_batch_size_per_gpu": B,
        "gradient_accumulation_steps": gas,
        "gradient_clipping": 0.0,
        "zero_allow_untested_optimizer": True,
        "zero_optimization": {
            "stage": 3,
            "stage3_param_persistence_threshold": 0,
            "stage3_prefetch_bucket_size": 0,
            "stage3_max_reuse_distance": 0,
            "stage3_max_live_parameters": 0,
        },
    }


def reference(tied: bool, gas: int, empty: bool) -> tuple[list[float], dict[str, torch.Tensor]]:
    """One process, all micro-batches, torch's own loss: the losses and the trained weights."""
    model = Tiny(tied, "eager")
    optimizer = torch.optim.SGD(model.parameters(), lr=RATE)
    losses = []
    for step in range(STEPS):
        ranks = batches(step, gas, empty)
        total = sum(int((labels != -100).sum()) for micros in ranks for _, labels in micros)
        optimizer.zero_grad()
        step_losses = [model(ids, labels, total) for micros in ranks for ids, labels in micros]
        sum(step_losses).backward()
        optimizer.step()
        losses.append(sum(loss.item() for loss in step_losses))
    return losses, {name: weight.detach() for name, weight in model.named_parameters()}


def sharded(tied: bool, gas: int, empty: bool, kind: str = "fused") -> dict[str, Any]:
    """The same under ZeRO-3; what differs, how often weights were gathered, and when the head's was whole."""
    model = Tiny(tied, kind)
    optimizer = torch.optim.SGD(model.parameters(), lr=RATE)
    engine, *_ = deepspeed.initialize(model=model, optimizer=optimizer, config=config(gas))
    losses, gathers = [], []
    for step in range(STEPS):
        ranks = batches(step, gas, empty)
        total = sum(int((labels != -100).sum()) for micros in ranks for _, labels in micros)
        count = Gathers()
        value = torch.zeros(())
        with count:
            for ids_BL, labels_BL in ranks[dist.get_rank()]:
                loss = engine(ids_BL, labels_BL, total / WORLD)
                assert torch.isfinite(loss)
                engine.backward(loss, scale_wrt_gas=False)
                engine.step()
                value += loss.detach() / WORLD
        dist.all_reduce(value)
        losses.append(value.item())
        gathers.append(count.calls)
    expected_losses, expected = reference(tied, gas, empty)
    with deepspeed.zero.GatheredParameters(list(model.parameters())):
        weights = {name: (weight - expected[name]).abs().max().item() for name, weight in model.named_parameters()}
    return {
        "loss_error": max(abs(a - b) for a, b in zip(losses, expected_losses, strict=True)),
        "weight_error": max(weights.values()),
        "gathers": gathers,
        "resident": model.resident,
    }


class Gathers:
    """Counts the all-gathers of weights within the block."""

    def __enter__(self) -> None:
        self.calls = 0
        self.backend = deepspeed.comm.comm.cdb
        self.plain = self.backend.all_gather_into_tensor

        def counted(*args: Any, **kwargs: Any) -> Any:
            self.calls += 1
            return self.plain(*args, **kwargs)

        self.backend.all_gather_into_tensor = counted

    def __exit__(self, *_: object) -> None:
        self.backend.all_gather_into_tensor = self.plain


def outside_the_head() -> str:
    """The message for a weight that ZeRO-3 holds back: read in no module's forward."""
    model = Tiny(False, "fused")
    deepspeed.initialize(model=model, optimizer=torch.optim.SGD(model.parameters(), lr=RATE), config=config(1))
    try:
        linear_cross_entropy(torch.zeros(3, H), model.head.weight, torch.zeros(3, dtype=torch.long))
    except ValueError as error:
        return str(error)
    return ""


def main(result: Path) -> None:
    torch.set_num_threads(1)
    deepspeed.ops.__compatible_ops__ = collections.defaultdict(bool)  # no op of its own: the first compiles for 70 s
    dist.init_process_group("gloo")
    deepspeed.init_distributed()
    scenarios = {
        f"tied={tied} gas={gas} empty={empty}": sharded(tied, gas, empty)
        for tied in (False, True)
        for gas in (1, 2)
        for empty in (False, True)
    }
    kinds = {kind: sharded(False, 2, False, kind) for kind in ("eager", "attribute")}
    message = outside_the_head()
    if dist.get_rank() == 0:
        result.write_text(json.dumps({"scenarios": scenarios, "kinds": kinds, "message": message}))
    dist.destroy_process_group()


main(Path(sys.argv[1]))
