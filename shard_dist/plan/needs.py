"""What a configuration needs and where the machines have too little: pure arithmetic over sizes and settings.

The parts are independent: `train`, `models.<role>` of every role that a stage asks, `storage`. Each lists its accounts
and its problems, in sentences; a part without problems fits.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from shard_dist.config.schema import Backend, Config, Objective
from shard_dist.config.training import Packing
from shard_dist.engines.placement import Plan as Placed
from shard_dist.engines.placement import plan as place
from shard_dist.plan.account import GIB, Account
from shard_dist.plan.generation import GenerationMemory, generation_memory
from shard_dist.plan.machines import nodes_of, places
from shard_dist.plan.model import Shape
from shard_dist.plan.training import TrainingMemory, training_memory
from shard_dist.recipes.base import find
from shard_dist.stages.judges import judge_roles

TRAIN, STORAGE = "train", "storage"


@dataclass(frozen=True)
class Part:
    """One of them: `problems` are sentences, `notes` too, of what is allowed and worth a look."""

    name: str
    accounts: tuple[Account, ...]
    problems: tuple[str, ...]
    notes: tuple[str, ...] = ()
    memory: TrainingMemory | GenerationMemory | None = None

    @property
    def lacking(self) -> frozenset[int]:
        """Places of the accounts that do not fit, -1 for all other problems; empty where it fits."""
        short = {place for place, account in enumerate(self.accounts) if not account.fits}
        return frozenset(short | ({-1} if len(self.problems) > len(short) else set()))


@dataclass(frozen=True)
class Wave:
    """Roles whose engines a stage has at once; `placed` is None where one of them finds no place even alone."""

    stage: str
    roles: tuple[str, ...]
    placed: Placed | None


def waves(config: Config) -> list[Wave]:
    """Every placement of engines of a run, in its order; evaluation asks one arm's model after the other."""
    asked = [("generate", find(config.recipe.name).roles(config.recipe)), ("select", tuple(judge_roles(config.select)))]
    asked += [("evaluate", (role,)) for role in dict.fromkeys(["student", *config.evaluate.arms.values()])]
    asked += [("evaluate", tuple(judge_roles(config.evaluate)))]
    nodes, found = nodes_of(config.cluster.nodes), []
    for stage, roles in asked:
        try:
            placed = place([(role, config.models[role]) for role in roles], nodes)
        except ValueError:
            placed = None  # the role's own part says why
        found += [Wave(stage, roles, placed)] if roles else []
    return found


def roles_of(config: Config) -> list[str]:
    """Roles that a stage asks, in the order of the stages."""
    return list(dict.fromkeys(role for wave in waves(config) for role in wave.roles))


def role_part(config: Config, role: str, shapes: Mapping[str, Shape]) -> Part:
    """`shapes` by role; those of backends that load no model (http, fake) need none."""
    name, spec, nodes = f"models.{role}", config.models[role], config.cluster.nodes
    problems = []
    try:
        place([(role, spec)], nodes_of(nodes))
    except ValueError as error:
        problems.append(str(error))
    memory = generation_memory(shapes[role], spec, nodes) if spec.backend == Backend.vllm else None
    if memory is None:
        return Part(name, (), tuple(problems))
    problems += [f"{name}: {problem}" for problem in memory.problems] or _lacks(name, memory.device)
    return Part(name, (memory.device,), tuple(problems), tuple(f"{name}: {note}" for note in memory.notes), memory)


def training_part(config: Config, shape: Shape) -> Part:
    train, nodes = config.train, config.cluster.nodes
    memory = training_memory(shape, train, nodes, objective(config))
    accounts = (memory.device, memory.node, memory.disk)
    problems, size = [], train.long.sequence_parallel
    room = places(nodes, cpus=train.cpus_per_worker, gpus=train.gpus_per_worker)
    if train.workers > room:
        each = f"gpus_per_worker {train.gpus_per_worker:g}, cpus_per_worker {train.cpus_per_worker:g}"
        problems.append(f"train.workers is {train.workers} ({each}); the machines hold {room}")
    if not shape.splits(size):
        heads = f"{shape.heads} attention heads and {shape.kv_heads} key heads"
        problems.append(f"train.long.sequence_parallel is {size}, which does not go into {heads}")
    problems += [problem for account in accounts for problem in _lacks("train", account)]
    return Part(TRAIN, accounts, tuple(problems), tuple(_notes(config, shape)), memory)


def _notes(config: Config, shape: Shape) -> Iterator[str]:
    train = config.train
    groups, rows = train.workers // train.long.sequence_parallel, train.global_batch_size
    if rows % (groups * train.micro_batch_size) and train.packing != Packing.batch:
        whole = f"{groups} x train.micro_batch_size {train.micro_batch_size}"
        yield f"train.global_batch_size {rows} is no multiple of {whole}: some processes wait in every step"
    if train.max_tokens > shape.positions > 0:
        yield f"train.max_tokens {train.max_tokens:,} is more than the {shape.positions:,} tokens that the model knows"
    if train.gpus_per_worker and train.long.sequence_parallel > config.cluster.nodes.gpus:
        yield "train.long.sequence_parallel reaches over nodes: its exchange at every layer wants to stay within one"


def _lacks(name: str, account: Account) -> list[str]:
    """A sentence where the account does not fit, with the two largest of its lines."""
    if account.fits:
        return []
    assert account.capacity is not None
    largest = sorted(account.lines, key=lambda line: -line.bytes)[:2]
    most = " and ".join(f"{line.bytes / GIB:,.1f} {line.name}" for line in largest)
    takes, has = account.total / GIB, account.capacity / GIB
    return [f"{name}: {account.where} takes {takes:,.1f} of {has:,.1f} GiB; {most} among it"]


def objective(config: Config) -> str:
    """The heaviest objective of the examples: pairs hold two answers in a row, derta a refusal at every position."""
    given = {config.recipe.name, *(mix.objective for mix in config.recipe.mix)}
    return next((name for name in (Objective.dpo, Objective.derta) if name in given), Objective.sft).value


def storage_part(account: Account) -> Part:
    return Part(STORAGE, (account,), tuple(_lacks(STORAGE, account)))
