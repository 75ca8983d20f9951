"""How long each part of a run takes: what is to be done over how fast it goes, stated, measured or reckoned.

Reckoned is a model and no measurement. A decoding step reads an engine's weights once for its whole batch, and every
sequence's keys and values, at bandwidth_share of the GPU's bandwidth; prompts and training go at mfu of its peak.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path

from shard_dist.config.cluster import ClusterConfig, NodesConfig
from shard_dist.config.load import config_of, read_tree
from shard_dist.config.schema import Backend, Config, ModelConfig
from shard_dist.engines.placement import Plan, gpus_of, plan
from shard_dist.plan.generation import generation_memory
from shard_dist.plan.machines import nodes_of
from shard_dist.plan.model import Shape
from shard_dist.plan.workload import Asked, Workload
from shard_dist.rundir import Run
from shard_dist.sweep.costs import engine_lives
from shard_dist.sweep.estimate import has_gpus, measured
from shard_dist.training.throughput import ModelCost, named_peak

DISK = 1e9  # bytes a second that an engine reads of its weights, from storage that the engines share
START = 60.0  # seconds beside: processes, compilation, the trial run, graphs
REFERENCE = 4 / 3  # dpo: a forward pass of the reference beside forward and backward of the policy


@dataclass(frozen=True)
class Rate:
    """Tokens per second of a GPU, or of a process where there are none; `origin`: stated, measured or reckoned."""

    tokens: float
    origin: str
    how: str = ""


@dataclass(frozen=True)
class Rates:
    """What is known of speed: completion tokens by role ("": of every other role), and tokens in training."""

    generation: Mapping[str, Rate] = field(default_factory=dict)
    training: Rate | None = None


@dataclass(frozen=True)
class Phase:
    """A part of a stage whose roles run at the same time. Phases follow each other.

    `tokens` are completions, in training all. `tokens_per_gpu_second` is over all roles, of processes where there are
    no GPUs; `origin`: stated, measured or reckoned. These and `hours` are None where nothing is known. `gpu_hours`
    counts GPUs that wait for another role; `cost` is None where no price is stated; `how` is a rate's arithmetic.
    """

    stage: str
    part: str
    roles: tuple[str, ...]
    gpus: float
    tokens: float
    tokens_per_gpu_second: float | None
    origin: str
    hours: float | None
    gpu_hours: float | None
    cost: float | None
    how: str = ""


def rates_of(config: Config, measured: Path | None = None) -> Rates:
    """Speeds as `cluster.speed` states them, else as the finished run in the directory `measured` had them.

    Raises ValueError where that is no run that finished.
    """
    speed = config.cluster.speed
    generation, training = measured_rates(measured) if measured else ({}, None)
    if speed.generation_tokens_per_gpu_second:
        generation = {"": Rate(speed.generation_tokens_per_gpu_second, "stated", "cluster.speed")}
    if speed.training_tokens_per_gpu_second:
        training = Rate(speed.training_tokens_per_gpu_second, "stated", "cluster.speed")
    return Rates(generation, training)


def measured_rates(path: Path) -> tuple[dict[str, Rate], Rate | None]:
    """Of a finished run: by role from the log of its engines, over all roles from its stage, and of its training."""
    if not (path / "config.yaml").is_file():
        raise ValueError(f"{path} is no run's directory: no config.yaml there")
    run = Run(config_of(read_tree(path / "config.yaml", (), {}), path / "config.yaml"), path)
    found = dict(_engine_rates(run))
    overall = measured([run], "generate", "completion_tokens"), measured([run], "train", "tokens")
    if not found and not any(overall):
        raise ValueError(f"{path}: neither generate nor train has finished there, so nothing was measured")
    generation, training = (Rate(each, "measured", str(path)) if each else None for each in overall)
    return ({"": generation} if generation else {}) | found, training


def _engine_rates(run: Run) -> Iterator[tuple[str, Rate]]:
    """(role, completion tokens per second of its GPUs), between the first and the last sign of its engines' lives."""
    tokens, seconds = defaultdict[str, float](float), defaultdict[str, float](float)
    for life in engine_lives(run.config, run.path):
        tokens[life.role] += life.tokens
        seconds[life.role] += life.seconds * (life.gpus or 1)
    for role, spent in seconds.items():
        if tokens[role] and spent:
            yield role, Rate(tokens[role] / spent, "measured", str(run.path))


def hours(config: Config, work: Workload, shapes: Mapping[str, Shape], measured_run: Path | None = None) -> list[Phase]:
    """The phases of a run in their order; `shapes` by role of `models`, of the student and those that vLLM loads.

    Engines that fit on no node are taken to run all the same: that they do not is for `engines/placement.py` to say.
    Raises ValueError where `measured_run` is no finished run's directory.
    """
    rates = rates_of(config, measured_run)
    found: list[Phase] = []
    trained = False
    for (stage, part), group in groupby(work.asked, key=lambda asked: (asked.stage, asked.part)):
        if stage in ("gain", "evaluate") and not trained:
            found.append(_train(config, work, shapes["student"], rates.training))
            trained = True
        found.extend(_part(config, stage, part, list(group), shapes, rates))
    return found if trained else [*found, _train(config, work, shapes["student"], rates.training)]


def _part(
    config: Config, stage: str, part: str, asked: Sequence[Asked], shapes: Mapping[str, Shape], rates: Rates
) -> Iterator[Phase]:
    """Its roles side by side, as one phase, or one after the other, where the cluster does not hold all at once."""
    placed = _placed(config, [each.role for each in asked])
    paces = [_Pace(config, each, shapes, rates, _engines(config, each.role, placed)) for each in asked]
    groups = [paces] if placed is None or placed.side_by_side else [[pace] for pace in paces]
    for group in groups:
        known = all(pace.rate or not pace.local for pace in group)
        gpus, tokens = sum(pace.gpus for pace in group), sum(pace.asked.completion_tokens for pace in group)
        spent = max(pace.seconds for pace in group) / 3600 if known and any(pace.local for pace in group) else None
        busy = sum(pace.busy for pace in group)
        origins = dict.fromkeys(pace.rate.origin for pace in group if pace.rate)
        yield Phase(
            stage=stage,
            part=part,
            roles=tuple(pace.asked.role for pace in group),
            gpus=gpus,
            tokens=tokens,
            tokens_per_gpu_second=sum(pace.asked.completion_tokens for pace in group if pace.local) / busy
            if known and busy
            else None,
            origin=", ".join(origins) if known else "",
            hours=spent,
            gpu_hours=None if spent is None else spent * gpus,
            cost=_cost(config, spent, gpus, sum(pace.bill for pace in group)),
            how="; ".join(pace.rate.how for pace in group if pace.rate),
        )


def _cost(config: Config, spent: float | None, gpus: float, bill: float) -> float | None:
    """Of GPUs by the hour, and of servers by the token."""
    price = config.cluster.speed.gpu_hour
    if gpus and (not price or spent is None):
        return bill or None
    return (spent or 0.0) * gpus * price + bill if price or bill else None


class _Pace:
    """How long a role takes for its calls of a part, on `engines` engines."""

    def __init__(self, config: Config, asked: Asked, shapes: Mapping[str, Shape], rates: Rates, engines: int) -> None:
        name = _model(asked.role)
        spec = config.models[name]
        self.asked, self.local = asked, spec.backend != Backend.http
        self.gpus = gpus_of(spec, has_gpus(config)) * engines
        self.bill = (asked.prompt_tokens * spec.input_price + asked.completion_tokens * spec.output_price) / 1e6
        shape, units = shapes.get(name), self.gpus or engines
        self.rate = rates.generation.get(asked.role) or rates.generation.get("") if self.local else None
        if self.rate is None and self.local and shape is not None:
            self.rate = decoding(shape, spec, config.cluster, asked, engines)
        self.busy = asked.completion_tokens / self.rate.tokens if self.rate else 0.0
        self.seconds = self.busy / units
        if self.rate and shape is not None:  # each part starts its engines
            self.seconds += START + 2 * shape.parameters / DISK


def decoding(shape: Shape, spec: ModelConfig, cluster: ClusterConfig, asked: Asked, engines: int) -> Rate | None:
    """Completion tokens per GPU second, prompts included, from the GPU's data sheet; None where it is not stated."""
    nodes, speed = cluster.nodes, cluster.speed
    peak, memory = _peak(nodes), generation_memory(shape, spec, nodes)
    bandwidth = nodes.gpu_bandwidth * 1e12 * speed.bandwidth_share
    if not (peak and bandwidth and memory and memory.cache.room):
        return None
    gpus, read, written = gpus_of(spec, True), asked.prompt_tokens / asked.calls, asked.completion_tokens / asked.calls
    batch = max(1, min(memory.at_once(read + written), int(asked.calls / engines)))
    held = memory.cache.bytes(read + written / 2)
    weights = 2 * (shape.active + shape.vocab * shape.hidden)  # FLOPs of a token
    step = max((memory.weights + batch * held) / bandwidth, batch * weights / gpus / peak)
    prefill = read * 2 * shape.active / (peak * speed.mfu)  # GPU seconds
    seconds = written * step * gpus / batch + prefill
    how = (
        f"{asked.role}: {batch} sequences of {read:.0f} + {written:.0f} tokens at once; "
        f"{memory.weights / 1e9:.1f} GB + {batch} x {held / 1e6:.0f} MB at {bandwidth / 1e12:.2f} TB/s are a step of "
        f"{step * 1e3:.1f} ms; before it {read:.0f} x 2 x {shape.active / 1e9:.2f} GFLOP at {speed.mfu:g} x "
        f"{peak / 1e12:.0f} TFLOP/s"
    )
    return Rate(written / seconds, "reckoned", how)


def _train(config: Config, work: Workload, student: Shape, known: Rate | None) -> Phase:
    train, training, nodes = config.train, work.training, config.cluster.nodes
    gpus, peak = train.workers * train.gpus_per_worker, _peak(nodes)
    rate = known
    if rate is None and gpus and peak and training.tokens:
        length = max(1, round(training.mean))
        supervised = round(length * training.supervised / training.tokens)
        cost = model_cost_of(student).flops([length], supervised) / length
        cost *= REFERENCE if training.objective == "dpo" else 1
        how = f"{cost / 1e9:.1f} GFLOP a token at {config.cluster.speed.mfu:g} x {peak / 1e12:.0f} TFLOP/s"
        rate = Rate(peak * config.cluster.speed.mfu / cost, "reckoned", how)
    spent = training.tokens / rate.tokens / (gpus or train.workers) / 3600 if rate else None
    return Phase(
        stage="train",
        part="steps",
        roles=("student",),
        gpus=gpus,
        tokens=training.tokens,
        tokens_per_gpu_second=rate.tokens if rate else None,
        origin=rate.origin if rate else "",
        hours=spent,
        gpu_hours=None if spent is None else spent * gpus,
        cost=_cost(config, spent, gpus, 0.0),
        how=rate.how if rate else "",
    )


def model_cost_of(shape: Shape) -> ModelCost:
    """What a token costs in training. A state of linear attention is left out: 1 % of what the weights take."""
    windows = {0: shape.kv_layers, **dict(shape.windows)}
    return ModelCost(shape.active, shape.vocab * shape.hidden, shape.heads * shape.head_dim, windows)


def _peak(nodes: NodesConfig) -> float:
    """FLOP/s of a GPU as stated, else by its name; 0 where neither is known."""
    return nodes.gpu_tflops * 1e12 or named_peak(nodes.gpu) or 0.0


def _model(role: str) -> str:
    """Whose settings an engine of `role` has: the tuned model's are the student's."""
    return "student" if role == "tuned" else role


def _placed(config: Config, roles: Sequence[str]) -> Plan | None:
    """How engines of these roles are placed on the nodes; None where they find no place."""
    specs = [(role, config.models[_model(role)]) for role in roles]
    try:
        return plan(specs, nodes_of(config.cluster.nodes))
    except ValueError:
        return None


def _engines(config: Config, role: str, placed: Plan | None) -> int:
    """How many run: as many as asked for, and more where the cluster has room and `max_engines` lets them."""
    spec = config.models[_model(role)]
    room = placed.placements[role].room if placed else 0
    return min(max(spec.engines, spec.max_engines), spec.engines + room)
