"""The whole plan of a run: machines, engines, memory, storage, tokens, hours; what does not fit, and what would.

A model's config.json and the settings are all that is read: no weights, no GPU, no cluster.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from shard_dist.config.cluster import NodesConfig
from shard_dist.config.schema import Backend, Config
from shard_dist.plan.account import Account
from shard_dist.plan.disk import storage
from shard_dist.plan.fit import Change, Fit, applied, fit, largest_micro_batch, largest_tokens
from shard_dist.plan.generation import GenerationMemory
from shard_dist.plan.hours import Phase, hours
from shard_dist.plan.machines import with_machines
from shard_dist.plan.model import Shape, shape_of
from shard_dist.plan.needs import Part, Wave, role_part, roles_of, storage_part, training_part, waves
from shard_dist.plan.workload import Workload, workload
from shard_dist.stages import generate

PLACES = ("device", "node", "disk")
HUB = "prompts are on the hub, which a plan does not read: --prompts N gives tokens, hours and costs"


@dataclass(frozen=True)
class Plan:
    """`config` has its machines filled in, `origin` says from where. `longest` row (tokens) and `most_rows` at a time
    are what training could have as the configuration stands; None where no capacity is stated. `phases` are those of
    the configuration with `fit`'s changes; none where they do not help."""

    config: Config
    origin: str
    shapes: dict[str, Shape]
    waves: tuple[Wave, ...]
    roles: tuple[Part, ...]
    training: Part
    storage: Part
    work: Workload | None
    phases: tuple[Phase, ...]
    fit: Fit
    longest: int | None
    most_rows: int | None

    @property
    def nodes(self) -> NodesConfig:
        return self.config.cluster.nodes

    @property
    def parts(self) -> tuple[Part, ...]:
        return (*self.roles, self.training, self.storage)

    @property
    def problems(self) -> list[str]:
        """Sentences; each names its part."""
        return [problem for part in self.parts for problem in part.problems]

    @property
    def fits(self) -> bool:
        return not self.problems

    @property
    def changes(self) -> tuple[Change, ...]:
        """Settings that were tried and make it fit."""
        return self.fit.changes

    @property
    def notes(self) -> list[str]:
        """What is worth a look, and what was assumed."""
        return [*(note for part in self.parts for note in part.notes), *(self.work.assumptions if self.work else [HUB])]

    @property
    def accounts(self) -> list[tuple[str, Account]]:
        """(part, account) of every place that holds something."""
        return [(part.name, account) for part in self.parts for account in part.accounts if account.lines]

    def json(self) -> dict[str, Any]:
        """All of it as plain values; sums beside their lines."""
        return {
            "run": self.config.run.name,
            "fits": self.fits,
            "problems": self.problems,
            "changes": [{"part": each.part, "settings": each.words, "why": each.why} for each in self.changes],
            "hopeless": list(self.fit.hopeless),
            "machines": {**asdict(self.nodes), "origin": self.origin},
            "stages": [_stage(wave) for wave in self.waves],
            "roles": [self._role(part) for part in self.roles],
            "training": self._training(),
            "storage": self.storage.accounts[0].json(),
            "work": asdict(self.work) if self.work else None,
            "phases": [asdict(phase) for phase in self.phases],
            "total": self.total(),
            "notes": self.notes,
        }

    def total(self) -> dict[str, float | None]:
        """Sums over the phases; None where one of them is not known."""
        return {name: _sum(getattr(phase, name) for phase in self.phases) for name in ("hours", "gpu_hours", "cost")}

    def _role(self, part: Part) -> dict[str, Any]:
        role = part.name.removeprefix("models.")
        spec, shape = self.config.models[role], self.shapes.get(role)
        memory = part.memory if isinstance(part.memory, GenerationMemory) else None
        return {
            "role": role,
            "model": spec.model,
            "backend": spec.backend.value,
            "parameters": shape.parameters if shape else None,
            "engines": spec.engines,
            "fits": not part.problems,
            "memory": memory.device.json() if memory else None,
            "kv_tokens": memory.kv_tokens if memory else None,
            "sequences": memory.sequences if memory else None,
        }

    def _training(self) -> dict[str, Any]:
        train = self.config.train
        return {
            "workers": train.workers,
            "gpus": train.workers * train.gpus_per_worker,
            "sequence_parallel": train.long.sequence_parallel,
            "max_tokens": train.max_tokens,
            "micro_batch_size": train.micro_batch_size,
            "largest_max_tokens": self.longest,
            "largest_micro_batch_size": self.most_rows,
            "fits": not self.training.problems,
            "memory": {name: account.json() for name, account in zip(PLACES, self.training.accounts, strict=True)},
        }


def make_plan(config: Config, prompts: int | None = None, measured: Path | None = None) -> Plan:
    """The plan of a checked configuration for so many prompts, with the rates of a run that is `measured`.

    Raises ValueError where no machines are stated and this one cannot stand in, where a model's config.json is not at
    hand, and for what would stop the run itself.
    """
    generate.check(config)
    config, origin = with_machines(config)
    shapes = _shapes(config)
    work = None if prompts is None and _on_hub(config) else workload(config, prompts)
    student, found = shapes["student"], fit(config, shapes, work)
    fitting = applied(config, (change.settings for change in found.changes))
    timed = hours(fitting, work, shapes, measured) if work and not found.hopeless else ()
    return Plan(
        config=config,
        origin=origin,
        shapes=shapes,
        waves=tuple(waves(config)),
        roles=tuple(role_part(config, role, shapes) for role in roles_of(config)),
        training=training_part(config, student),
        storage=storage_part(storage(config, shapes, work)),
        work=work,
        phases=tuple(timed),
        fit=found,
        longest=largest_tokens(config, student),
        most_rows=largest_micro_batch(config, student),
    )


def _shapes(config: Config) -> dict[str, Shape]:
    """By role: of the student and of every model that vLLM loads here; a model in two roles is looked at once."""
    roles = [role for role in roles_of(config) if config.models[role].backend == Backend.vllm]
    found: dict[tuple[str, str, bool], Shape] = {}
    shapes = {}
    for role in dict.fromkeys(["student", *roles]):
        spec = config.models[role]
        source = (spec.model, spec.revision, spec.trust_remote_code)
        shapes[role] = found[source] = found.get(source) or shape_of(*source)
    return shapes


def _on_hub(config: Config) -> bool:
    return any(not source.path for source in config.data.sources)


def _stage(wave: Wave) -> dict[str, Any]:
    placed = wave.placed
    return {
        "stage": wave.stage,
        "roles": list(wave.roles),
        "side_by_side": placed and placed.side_by_side,
        "placements": {role: asdict(each) for role, each in placed.placements.items()} if placed else None,
    }


def _sum(values: Iterator[float | None]) -> float | None:
    known = list(values)
    return None if None in known else sum(value for value in known if value is not None)
