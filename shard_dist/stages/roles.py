"""Models of a run in their roles: their identity in the ledger, and the programs that run in their engines."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any, Protocol

from shard_dist.artefacts import model_hash, value_hash, whole_path
from shard_dist.cluster import join
from shard_dist.config.schema import Backend, ModelConfig
from shard_dist.engines.local import run_local
from shard_dist.engines.pool import EnginePool, PoolCounts, plain
from shard_dist.engines.rows import Rows
from shard_dist.engines.spool import Spool, SpoolWriter
from shard_dist.engines.telemetry import Telemetry
from shard_dist.engines.worker import Counters, ModelIdentity, Role
from shard_dist.ledger.check import check_ledger
from shard_dist.progress import Progress
from shard_dist.rundir import Run

# Engine arguments that change what a model answers; all others change only how fast.
NUMERIC_ARGUMENTS = ("dtype", "quantization", "kv_cache_dtype", "hf_overrides", "load_format")


@cache
def _content(directory: str, state: tuple[tuple[str, int, int, int], ...]) -> str:
    """`model_hash` once per state of a directory: several stages ask, and a 70B model is 140 GB to read."""
    return model_hash(Path(directory))


def _model_hash(directory: Path) -> str:
    stats = ((path.name, path.stat()) for path in sorted(directory.iterdir()))
    return _content(str(directory), tuple((name, stat.st_ino, stat.st_size, stat.st_mtime_ns) for name, stat in stats))


def identify(spec: ModelConfig) -> ModelIdentity:
    """The model's name and a fingerprint of its weights, tokenizer and template settings, for the keys of calls.

    A local model is known by content: a copy elsewhere is the same model, a retrained one is another.
    """
    local = Path(spec.model).is_dir()
    tokenizer = Path(spec.tokenizer)
    decisive: dict[str, Any] = {
        "weights": _model_hash(Path(spec.model)) if local else [spec.model, spec.revision],
        "tokenizer": _model_hash(tokenizer) if spec.tokenizer and tokenizer.is_dir() else spec.tokenizer,
        "chat_template_kwargs": spec.chat_template_kwargs,
        "reasoning_parser": spec.reasoning_parser,
        "arguments": {name: spec.engine_args[name] for name in NUMERIC_ARGUMENTS if name in spec.engine_args},
    }
    if spec.backend == Backend.http:
        decisive["server"] = spec.base_url
    if spec.backend == Backend.fake:
        decisive["refusal_rate"] = spec.fake.refusal_rate
    return ModelIdentity("local" if local else spec.model, value_hash(decisive))


def role_of(run: Run, name: str) -> Role:
    spec = run.config.models[name]
    spec = replace(spec, model=whole_path(spec.model), tokenizer=whole_path(spec.tokenizer))
    return Role(name, spec, identify(spec), run.ledger, run / "logs")


def tuned_role(run: Run) -> Role:
    """The student with the weights that training made."""
    spec = replace(run.config.models["student"], model=str(run / "model"), revision="", tokenizer="")
    return Role("tuned", spec, identify(spec), run.ledger, run / "logs")


class Results(Protocol):
    def ordered(self) -> Iterator[Any]:
        """Every row's encoded result in the rows' order."""
        ...


class Runs(Protocol):
    """What runs programs over rows: `Engines`, or what only counts their calls."""

    def run(
        self, unit: str, program: Any, rows: Rows, encode: Callable[[Any], Any] = plain, empty: Any = None
    ) -> Results:
        """The results of `program` over `rows`. Its calls around the row `empty` must fit the engines' contexts."""
        ...


class Engines:
    """The engines of some roles, started when the first row needs one and shut down at the end of the block.

    Rows whose every call is in the ledger are finished in this process: a stage that was killed after its last call
    starts no engine at all.
    """

    def __init__(self, run: Run, stage: str, roles: Sequence[Role], home: str, progress: Progress) -> None:
        self.cluster, self.roles, self.home, self.progress = run.config.cluster, roles, home, progress
        self.spool = run.spool(stage)
        self.open = ExitStack()
        self.telemetry = self.open.enter_context(closing(Telemetry(run / "engines.jsonl", stage)))
        for location in {role.ledger for role in roles}:
            check_ledger(location)
        self.pool: EnginePool | None = None
        self.answered = Counters()

    def run(
        self,
        unit: str,
        program: Any,
        rows: Rows,
        encode: Callable[[Any], Any] = plain,
        empty: Any = None,
    ) -> Spool:
        """The results of `program` over `rows`. Its calls around the row `empty` must fit the engines' contexts."""
        directory, total = self.spool / unit, len(rows)
        missing = Spool(directory, total).missing.tolist()
        with closing(SpoolWriter(directory, "driver")) as writer:

            def save(index: int, result: Any) -> None:
                writer.append(index, encode(result))

            done, answered = run_local(program, rows, missing, self.roles, save)
        self.answered.add(answered)
        if done < len(missing):
            pool = self._started()
            if empty is not None:
                pool.check(program, empty)
            with self.progress.bar(unit, total) as bar:
                pool.run(
                    program,
                    rows,
                    self.home,
                    directory,
                    lambda done: bar.update(done, self.telemetry.line()),
                    encode,
                )
        return Spool(directory, total)

    def _started(self) -> EnginePool:
        if self.pool is None:
            names = ", ".join(f"{role.name} ({role.spec.backend}: {role.spec.model})" for role in self.roles)
            self.progress.note(f"starting engines: {names}")
            join(self.cluster)
            self.pool = self.open.enter_context(EnginePool(self.roles, self.cluster, self.telemetry))
            for line in self.pool.fleet.plan.lines():
                self.progress.note(line)
        return self.pool

    def counts(self) -> dict[str, int]:
        """For the stage's manifest: calls asked, made, answered by the ledger; tokens; faults survived."""
        engines = self.pool.counts() if self.pool else PoolCounts()
        engines.counters.add(self.answered)
        total = engines.counters
        return {
            "calls": total.calls,
            "calls_made": total.made,
            "ledger_hits": total.hits,
            "prompt_tokens": total.prompt_tokens,
            "completion_tokens": total.completion_tokens,
            "torn_lines": engines.torn_lines,
            "engine_restarts": engines.engine_restarts,
        }

    def __enter__(self) -> Engines:
        return self

    def __exit__(self, *exc: object) -> None:
        self.open.close()
