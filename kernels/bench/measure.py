"""Time, memory and error of what runs once per call. The protocol: everything interleaved, cold and hot, medians.

Legend: N tokens, S supervised tokens, H hidden, V vocabulary.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from statistics import median, quantiles
from typing import NamedTuple

import torch
import torch.nn.functional as F

from bench.shapes import Batch

Run = Callable[[], object]
Loss = Callable[[Batch], torch.Tensor]
WARMUP_ROUNDS = 3
FLUSH_BYTES = 256 * 2**20  # written before a cold run; L2 holds 50 MB on an H100, 126 MB on a B200
HEAD_START_CYCLES = 2_000_000  # about 1 ms: the host gets ahead of the device, as in training, so launches cost nothing
REFERENCE_ROWS = 2048  # rows of logits at a time, so that the truth fits wherever a provider fits


class Errors(NamedTuple):
    """Relative: of the loss, and Frobenius of the gradients."""

    loss: float
    dhidden: float
    dweight: float


@dataclass
class Outcome:
    """What became of one contestant on one shape; milliseconds and bytes."""

    status: str = "ok"  # or "out of memory", or "failed"
    reason: str | None = None
    cold: list[float] = field(default_factory=list)
    hot: list[float] = field(default_factory=list)
    peak: int | None = None
    errors: Errors | None = None
    # Timings taken again because the allocator had gone to the driver meanwhile.
    retimed: int = 0

    def fail(self, error: Exception) -> None:
        """Out of memory is a result; so is a shape that a peer cannot do."""
        full = isinstance(error, torch.OutOfMemoryError | MemoryError) or "can't allocate memory" in str(error)
        self.status = "out of memory" if full else "failed"
        self.reason = f"{type(error).__name__}: {error}".strip().splitlines()[0][:300]


class Bench:
    """A device's clock and memory meter."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.gpu = device.type == "cuda"
        self.flush = torch.empty(FLUSH_BYTES, dtype=torch.uint8, device=device)

    def race(self, runs: dict[str, Run], repeats: int, between: Run) -> dict[str, Outcome]:
        """All of `runs`, in turn within each round: neighbours, clocks and heat are the same for all.

        In each round a contestant runs twice: after a write over the whole L2 (cold), and again at once (hot).
        `between` drops what a run left behind. Whoever raises is out, and the others go on.
        """
        outcomes = {name: Outcome() for name in runs}
        for number in range(WARMUP_ROUNDS + repeats):
            for name, run in runs.items():
                if outcomes[name].status == "ok":
                    self._attempt(outcomes[name], partial(self._pair, run, between), between)
            if number < WARMUP_ROUNDS:
                for outcome in outcomes.values():
                    outcome.cold, outcome.hot, outcome.retimed = [], [], 0
        for name, run in runs.items():
            if outcomes[name].status == "ok":
                self._attempt(outcomes[name], partial(self._weigh, run), between)
        return outcomes

    def judge(self, outcomes: dict[str, Outcome], losses: dict[str, Loss], batch: Batch) -> Errors:
        """Fill in errors against the truth, and return those of plain torch in the inputs' dtype.

        After the race, since the truth takes memory that a provider may need.
        """
        truth = reference(batch, torch.float32 if self.gpu else torch.float64)
        plain = compare(*reference(batch, batch.weight.dtype), truth)
        for name, loss in losses.items():
            if outcomes[name].status == "ok":
                self._attempt(outcomes[name], partial(_set_errors, loss, batch, truth), batch.clear)
                if outcomes[name].status == "out of memory":  # it did fit without the truth beside it
                    outcomes[name].status, outcomes[name].reason = "ok", "no room for the truth: errors not measured"
        return plain

    def _attempt(self, outcome: Outcome, step: Callable[[Outcome], None], between: Run) -> None:
        try:
            step(outcome)
        except Exception as error:
            outcome.fail(error)
        between()
        if outcome.status != "ok" and self.gpu:
            torch.cuda.synchronize()  # raises where the failure has broken the device: nothing after it would be true
            torch.cuda.empty_cache()

    def _pair(self, run: Run, between: Run, outcome: Outcome) -> None:
        for kept, cold in ((outcome.cold, True), (outcome.hot, False)):
            between()
            if cold:
                self.flush.zero_()
            calls = self._driver_calls()
            elapsed = self._milliseconds(run)
            if self._driver_calls() != calls:  # its neighbours had pushed its memory out of the cache
                outcome.retimed += 1
                between()
                if cold:
                    self.flush.zero_()
                elapsed = self._milliseconds(run)
            kept.append(elapsed)

    def _driver_calls(self) -> int:
        if not self.gpu:
            return 0
        stats = torch.cuda.memory_stats(self.device)
        return stats.get("num_device_alloc", 0) + stats.get("num_device_free", 0)

    def _milliseconds(self, run: Run) -> float:
        if not self.gpu:
            begin = time.perf_counter()
            run()
            return 1e3 * (time.perf_counter() - begin)
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda._sleep(HEAD_START_CYCLES)
        start.record()
        run()
        end.record()
        end.synchronize()
        return start.elapsed_time(end)

    def _weigh(self, run: Run, outcome: Outcome) -> None:
        """Most bytes alive at once during a run, beyond what was there before."""
        if self.gpu:
            torch.cuda.synchronize()
            torch.cuda.reset_peak_memory_stats(self.device)
            before = torch.cuda.memory_allocated(self.device)
            run()
            torch.cuda.synchronize()
            outcome.peak = torch.cuda.max_memory_allocated(self.device) - before
            return
        from torch.profiler import ProfilerActivity, profile

        with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as record:
            run()
        assert record.profiler is not None
        assert record.profiler.kineto_results is not None
        events = [event for event in record.profiler.kineto_results.events() if event.name() == "[memory]"]
        current = outcome.peak = 0
        for event in sorted(events, key=lambda event: event.start_ns()):
            current += event.nbytes()
            outcome.peak = max(outcome.peak, current)


def reference(batch: Batch, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Loss, dX [N, H] and dW [V, H] by plain torch in `dtype`, over the supervised rows, a few at a time.

    dW is summed at least in fp32 and rounded once, as one product over all rows would be.
    """
    weight_VH = batch.weight.detach().to(dtype).requires_grad_()
    wide = torch.promote_types(dtype, torch.float32)
    dhidden_NH = torch.zeros_like(batch.hidden, dtype=dtype)
    dweight_VH = torch.zeros_like(weight_VH, dtype=wide)
    total = torch.zeros((), dtype=torch.float64, device=weight_VH.device)
    for rows, labels in zip(batch.rows.split(REFERENCE_ROWS), batch.row_labels.split(REFERENCE_ROWS), strict=True):
        hidden = batch.hidden.detach()[rows].to(dtype).requires_grad_()
        logits = F.linear(hidden, weight_VH)
        loss = F.cross_entropy(logits.to(wide), labels, reduction="sum") / len(batch.rows)
        dhidden, dweight = torch.autograd.grad(loss, (hidden, weight_VH))
        dhidden_NH[rows] = dhidden
        dweight_VH += dweight
        total += loss.detach()
    return total, dhidden_NH, dweight_VH.to(dtype)


def compare(
    loss: torch.Tensor,
    dhidden_NH: torch.Tensor | None,
    dweight_VH: torch.Tensor | None,
    truth: tuple[torch.Tensor, torch.Tensor, torch.Tensor],
) -> Errors:
    """Of a loss and its gradients. A gradient that is missing counts as wrong altogether."""
    errors = [abs(loss.item() - truth[0].item()) / abs(truth[0].item())]
    for got, true in ((dhidden_NH, truth[1]), (dweight_VH, truth[2])):
        errors.append(1.0 if got is None else ((got.to(true.dtype) - true).norm() / true.norm()).item())
    return Errors(*errors)


def _set_errors(
    loss: Loss,
    batch: Batch,
    truth: tuple[torch.Tensor, torch.Tensor, torch.Tensor],
    outcome: Outcome,
) -> None:
    value = loss(batch)
    value.backward()
    errors = compare(value.detach(), batch.hidden.grad, batch.weight.grad, truth)
    if not all(map(math.isfinite, errors)):
        raise ValueError("the loss or a gradient is not finite")
    outcome.errors = errors


def exact(errors: Errors, plain: Errors) -> bool:
    """Gradients at most twice as far from the truth as plain torch's: QuACK's rule for its own tests.

    The loss does not decide: torch_native rounds it to bf16, which a training run never feels.
    """
    return errors.dhidden <= 2 * plain.dhidden + 1e-4 and errors.dweight <= 2 * plain.dweight + 1e-4


def summary(times: list[float]) -> tuple[float, float]:
    """Median and interquartile range."""
    spread = quantiles(times, n=4)[2] - quantiles(times, n=4)[0] if len(times) > 1 else 0.0
    return median(times), spread
