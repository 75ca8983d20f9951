"""What a sweep would ask: the stages' own programs, run here against the ledger, with a fake engine for the rest.

A call that the ledger has not is answered by `engines/fake.py`, from the call's key alone. What is asked after such an
answer is therefore not the call that the models' own answer would lead to. But two arms that share a call share its
fake answer too, and with it all that follows, so that the number of calls, and of those that arms share, is right as
far as it does not hang on what models say (a rewrite asked for again, a judge spared a refusal). A model that is still
to be trained has a placeholder for a fingerprint.
"""

from __future__ import annotations

import asyncio
import json
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from shard_dist.artefacts import value_hash
from shard_dist.config.load import identity
from shard_dist.config.schema import Backend, FakeConfig, ModelConfig
from shard_dist.data.load import read_prompts
from shard_dist.engines.fake import FakeEngine
from shard_dist.engines.placement import gpus_of
from shard_dist.engines.pool import plain
from shard_dist.engines.rows import BLOCK, ListRows, Rows
from shard_dist.engines.worker import Backend as Answering
from shard_dist.engines.worker import ModelIdentity, Role, RowAsk, RowState
from shard_dist.evaluation.arms import Contest
from shard_dist.ledger.store import Ledger
from shard_dist.progress import Progress
from shard_dist.recipes.base import find, templates_of
from shard_dist.records import Call, Completion, Prompt, Record
from shard_dist.rundir import Run, finished
from shard_dist.stages import evaluate, prompts, rounds, train
from shard_dist.stages.generate import StageWork
from shard_dist.stages.judges import judge_roles, pairwise_roles, raters, stage_panel
from shard_dist.stages.roles import Results, role_of, tuned_role
from shard_dist.stages.select import Select, jury_of
from shard_dist.sweep.plan import Arm, Sweep

Kind = tuple[str, int, bool]  # fingerprint of the model, longest completion in tokens, whether it is JSON


@dataclass(frozen=True)
class Asked:
    """One call. `kind` are calls whose answers are of like length; `tokens` are (prompt, completion) where known."""

    kind: Kind
    on_gpu: bool  # where the cluster has any
    chars: int
    tokens: tuple[int, int] | None


@dataclass
class Book:
    """Every call of the sweep by its key, and the keys that each arm asks."""

    ledger: Ledger
    calls: dict[str, Asked] = field(default_factory=dict)

    def note(self, key: str, call: Call, on_gpu: bool, known: Completion | None) -> None:
        tokens = (known.prompt_tokens, known.completion_tokens) if known else None
        chars = sum(len(message["content"]) for message in call.messages)
        kind = (call.fingerprint, call.sampling.max_tokens * call.sampling.n, call.schema is not None)
        self.calls[key] = Asked(kind, on_gpu, chars, tokens)


class DryBackend:
    """Answers what the ledger knows; anything else with the fake engine."""

    def __init__(self, role: Role, book: Book, keys: set[str]) -> None:
        fake = FakeConfig(refusal_rate=role.spec.fake.refusal_rate)  # without its faults
        self.engine = FakeEngine(ModelConfig(Backend.fake, role.spec.model, fake=fake))
        self.role, self.book, self.keys = role, book, keys

    async def complete(self, key: str, call: Call, row: RowState) -> Completion:
        known = self.book.ledger.get(key)
        if key not in self.book.calls:
            self.book.note(key, call, gpus_of(self.role.spec, True) > 0, known)
        self.keys.add(key)
        return known or await self.engine.generate(call)


@dataclass(frozen=True)
class DryResults:
    rows: list[Any]

    def ordered(self) -> Iterator[Any]:
        return iter(self.rows)


class DryEngines:
    """`Runs` without engines: `keys` are what the programs asked."""

    def __init__(self, roles: Sequence[Role], book: Book, keys: set[str]) -> None:
        self.backends: dict[str, Answering] = {role.name: DryBackend(role, book, keys) for role in roles}
        self.identities = {role.name: role.identity for role in roles}

    def run(
        self, unit: str, program: Any, rows: Rows, encode: Callable[[Any], Any] = plain, empty: Any = None
    ) -> Results:
        """Results as they come back from the spool: JSON."""
        return DryResults([json.loads(json.dumps(encode(result))) for result in asyncio.run(self._all(program, rows))])

    async def _all(self, program: Any, rows: Rows) -> list[Any]:
        found = []
        for start in range(0, len(rows), BLOCK):
            for row in rows.read(range(start, min(start + BLOCK, len(rows)))):
                found.append(await program(row, RowAsk(self.backends, self.identities)))
        return found


@dataclass(frozen=True)
class Probe:
    """What an arm asks. `done` are its stages that need not run again, `learned` the prompts that it may train on,
    `answers` the trained model's to the test prompts."""

    arm: Arm
    keys: set[str]
    done: list[str]
    learned: list[Prompt]
    answers: list[tuple[Prompt, dict[str, Any]]]


def probe(sweep: Sweep, progress: Progress) -> tuple[Book, list[Probe], set[str]]:
    """Every arm's calls, in the order of the arms, and those of comparing them. Writes nothing but temporary files."""
    with closing(Ledger(sweep.config.run.ledger)) as ledger, TemporaryDirectory(prefix="shard-dist-") as home:
        book = Book(ledger)
        with progress.bar("arms", len(sweep.arms)) as bar:
            found: list[Probe] = []
            for arm in sweep.arms:
                bar.update(len(found), arm.name)
                found.append(_probe(arm, Path(home), book, progress))
        return book, found, _compare(sweep, {each.arm.name: each for each in found}, book)


def _compare(sweep: Sweep, found: dict[str, Probe], book: Book) -> set[str]:
    """Calls of `compare`, all of whose pairs are judged by the first arm's judge."""
    keys: set[str] = set()
    for pair in sweep.compare:
        first, second = (found[name] for name in pair)
        config, run = first.arm.config, first.arm.run
        roles = [role_of(run, name) for name in pairwise_roles(config.evaluate)]
        program = Contest(stage_panel(config, config.evaluate))
        rows = [(prompt, ((a, b),)) for (prompt, a), (_, b) in zip(first.answers, second.answers, strict=True)]
        DryEngines(roles, book, keys).run("contests", program, ListRows(rows))
    return keys


def _probe(arm: Arm, home: Path, book: Book, progress: Progress) -> Probe:
    run = Run(replace(arm.config, run=replace(arm.config.run, dir=str(home / arm.name))), home / arm.name)
    run.path.mkdir(parents=True)
    _prompts(run, home, progress)
    keys, done = set[str](), _done(arm)
    records = _generate(run, book, keys)
    _select(run, records, book, keys)
    answers = _evaluate(run, _tuned(arm, done), book, keys)
    return Probe(arm, keys, done, [record.prompt for record in records if record.prompt.split == "train"], answers)


def _done(arm: Arm) -> list[str]:
    if not (arm.run / "run.json").is_file():
        return []
    return [stage.name for stage in arm.stages if finished(arm.run, stage, stage.inputs(arm.run))]


def _prompts(run: Run, home: Path, progress: Progress) -> None:
    """prompts.parquet of the arm; most arms have the same."""
    kept = home / f"{value_hash(prompts.inputs(run))}.parquet"
    if not kept.exists():
        prompts.work(run, progress)
        shutil.copyfile(run / "prompts.parquet", kept)
    shutil.copyfile(kept, run / "prompts.parquet")


def _generate(run: Run, book: Book, keys: set[str]) -> list[Record]:
    recipe = find(run.config.recipe.name)
    roles = [role_of(run, name) for name in recipe.roles(run.config.recipe)]
    work = StageWork(run, DryEngines(roles, book, keys), templates_of(run.config.recipe))
    return list(recipe.generate(work))


def _select(run: Run, records: list[Record], book: Book, keys: set[str]) -> None:
    config = run.config
    engines = DryEngines([role_of(run, name) for name in judge_roles(config.select)], book, keys)
    engines.run("records", Select(config.recipe.name, jury_of(config)), ListRows(records), asdict)


def _evaluate(run: Run, tuned: Role, book: Book, keys: set[str]) -> list[tuple[Prompt, dict[str, Any]]]:
    config, documents = run.config, evaluate.documents_of(run.config)
    test = [prompt for prompt in read_prompts(run / "prompts.parquet") if prompt.split == "test"]
    answers = {}
    for name, role in evaluate.arms_of(run, tuned).items():
        engines = DryEngines([role], book, keys)
        answers[name], _ = evaluate.ask_arm(run, name, role, test, documents, engines)
    judges = tuple(judge for judge, _ in raters(config))
    engines = DryEngines([role_of(run, name) for name in judge_roles(config.evaluate)], book, keys)
    evaluate.ask_judges(config, test, answers, judges, engines)
    return list(zip(test, answers[evaluate.TUNED], strict=True))


def _tuned(arm: Arm, done: list[str]) -> Role:
    """The model that the arm's training made, or one that stands for it."""
    if {train.STAGE.name, rounds.STAGE.name} & set(done):
        return tuned_role(arm.run)
    student = role_of(arm.run, "student")
    fingerprint = value_hash(["untrained", identity(arm.config)])
    return replace(student, name="tuned", identity=ModelIdentity("local", fingerprint))
