"""How much a run asks and learns: the recipe's and the stages' own programs, run here with a fake engine.

What a program asks after an answer hangs on that answer. The fake's answers are made up: as long as real ones are
taken to be, refusing as often as `models.<role>.fake.refusal_rate` says. Calls that the run's ledger has are left out.
"""

from __future__ import annotations

import json
import random
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass, replace
from itertools import product
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from shard_dist.artefacts import value_hash
from shard_dist.config.schema import Backend, Config, FakeConfig, ModelConfig
from shard_dist.data.load import load_prompts, write_prompts
from shard_dist.data.split import split_of
from shard_dist.engines.fake import REFUSAL
from shard_dist.engines.rows import ListRows
from shard_dist.engines.worker import ModelIdentity, Role, RowState
from shard_dist.evaluation.arms import Judge
from shard_dist.ledger.store import Ledger
from shard_dist.recipes.base import find, options_of, templates_of
from shard_dist.recipes.selection import Decision
from shard_dist.records import Call, Completion, Example, Prompt, Record
from shard_dist.rundir import Run
from shard_dist.stages import evaluate
from shard_dist.stages.generate import StageWork
from shard_dist.stages.judges import judge_roles, pairwise_roles, raters, stage_panel
from shard_dist.stages.prompts import split_seed
from shard_dist.stages.roles import role_of
from shard_dist.stages.select import Select, from_files, jury_of, near_test
from shard_dist.sweep.dry import Book, DryBackend, DryEngines
from shard_dist.sweep.estimate import CHARS_PER_TOKEN, known_lengths

PROBED = 120  # prompts that the programs run over; of more, every so many-th
SYNTHETIC_CHARS, SYNTHETIC_CATEGORIES = 400, 12  # of prompts where none can be read here
MOST_SYNTHETIC = 2_000
WORDS = ["".join(letters) for letters in product("abcd", repeat=7)]
ANSWER_SHARE = 0.3  # of max_tokens: 600 of 2,000 in a plain answer, 150 of 512 in a rewrite's JSON
SHORT = 32  # answers with a limit up to this (a guard's word, a score) are as long as it
# Whose prompts a stage's programs run over; all but the last are of every round.
SPLITS_OF = {"generate": ("train", "val"), "select": ("train", "val"), "gain": ("val",), "evaluate": ("test",)}


@dataclass(frozen=True)
class Asked:
    """Calls of a role in one part of a stage, and their tokens. Parts follow each other, roles of a part run together;
    "tuned" is the model that training makes."""

    stage: str
    part: str
    role: str
    calls: float
    prompt_tokens: float
    completion_tokens: float


@dataclass(frozen=True)
class Training:
    """What training sees, over all epochs and rounds. `mean` is of an example, in tokens; `objective` is the one that
    takes most memory of those that examples have."""

    examples: float
    tokens: float
    supervised: float
    mean: float
    objective: str


@dataclass(frozen=True)
class Workload:
    """`prompts` take part, those of train, val and test together. All rounds are in the numbers."""

    prompts: int
    asked: tuple[Asked, ...]
    training: Training
    assumptions: tuple[str, ...]


def workload(config: Config, prompts: int | None = None) -> Workload:
    """The calls, tokens and examples of a run over `prompts` prompts; None: as many as its files have.

    Reads prompts and files of examples, no weights, no tokenizer and nothing from the hub. Raises ValueError where
    sources are on the hub and `prompts` is not given, and for what would stop a run (a judge that cannot be had).
    """
    found, said = _prompts(config, prompts)
    total = len(found) if prompts is None else prompts
    probed = found
    if len(found) > PROBED:
        probed = found[:PROBED] if said else [found[place * len(found) // PROBED] for place in range(PROBED)]
    splits = Counter(prompt.split for prompt in found)
    sizes = {split: number * total / len(found) for split, number in splits.items()}
    try:
        asked, training, known = _walked(config, probed, sizes)
    except ValueError:
        if len(found) <= PROBED:
            raise
        probed = found  # a recipe may want more prompts of a kind than a sample has
        asked, training, known = _walked(config, probed, sizes)
    if total != len(probed):
        said.append(f"calls are those of {len(probed)} prompts, scaled to {total:,}, those for a category too")
    return Workload(total, asked, training, (*said, *_assumptions(config, known)))


def _walked(
    config: Config, prompts: list[Prompt], sizes: Mapping[str, float]
) -> tuple[tuple[Asked, ...], Training, int]:
    """What a run over so many prompts (by split) like these asks and trains on, and how many calls the ledger has."""
    rounds, ledger = config.recipe.rounds, _ledger(config)
    with TemporaryDirectory(prefix="shard-dist-") as home:
        run = Run(replace(config, models=_models(config, bool(ledger))), Path(home))
        write_prompts(run / "prompts.parquet", prompts)
        with closing(Ledger(ledger or run.ledger)) as opened:
            walk = _Walk(run, Book(opened))
            records, decisions = walk.generate()
            if rounds > 1:
                walk.gain([prompt for prompt in prompts if prompt.split == "val"])
            walk.evaluate([prompt for prompt in prompts if prompt.split == "test"])
        training = _training(run, records, decisions, sizes.get("train", 0.0))
    factors = {}
    for stage, splits in SPLITS_OF.items():
        probed = sum(prompt.split in splits for prompt in prompts)
        factors[stage] = sum(sizes.get(split, 0.0) for split in splits) / probed if probed else 0.0
        factors[stage] *= 1 if stage == "evaluate" else rounds
    asked = tuple(_scaled(each, factors[each.stage]) for each in walk.asked)
    return asked, training, sum(call.tokens is not None for call in walk.book.calls.values())


def _prompts(config: Config, prompts: int | None) -> tuple[list[Prompt], list[str]]:
    """Prompts to run the programs over, and what was assumed of them."""
    data, seed = config.data, split_seed(config)
    if prompts is not None and prompts < 1:
        raise ValueError(f"a plan for {prompts} prompts; at least 1")
    away = [source.hub or str(source.kind) for source in data.sources if not source.path]
    if not away:
        found, _ = load_prompts(data.sources, data.split, seed=seed, max_chars=data.max_chars)
        return [prompt for prompt in found if not prompt.excluded], []
    if prompts is None:
        raise ValueError(
            f"data.sources: {', '.join(away)} would come from the hub, which a plan does not read; say how many "
            "prompts there are (--prompts N), or give `path`, a file"
        )
    kind = f"{SYNTHETIC_CHARS} characters in {SYNTHETIC_CATEGORIES} categories"
    said = f"{', '.join(away)}: not read; {prompts:,} prompts of {kind}"
    made = (_synthetic(number) for number in range(max(PROBED, min(prompts, MOST_SYNTHETIC))))
    return [replace(prompt, split=split_of(prompt, data.split, seed)) for prompt in made], [said]


def _synthetic(number: int) -> Prompt:
    """Words of seven letters, of which the fake engine makes its answers."""
    words = random.Random(number).choices(WORDS, k=SYNTHETIC_CHARS // 8)
    return Prompt("plan", str(number), " ".join(words), f"category {number % SYNTHETIC_CATEGORIES}")


def _ledger(config: Config) -> str:
    """The run's ledger, where it is a directory that exists; else ""."""
    place = Run(config, Path(config.run.dir).absolute()).ledger
    return place if Path(place).is_dir() else ""


def _models(config: Config, known: bool) -> dict[str, ModelConfig]:
    """Models as the programs need them: nothing to read; with a ledger (`known`) calls have the keys of a run."""
    found = {}
    for role, spec in config.models.items():
        if known:  # the limit spares a look for the model's own; it is in no key
            found[role] = replace(spec, engine_args={"max_model_len": 0, **spec.engine_args})
            continue
        backend = Backend.http if spec.backend == Backend.http else Backend.fake
        fake = FakeConfig(refusal_rate=spec.fake.refusal_rate)
        found[role] = replace(spec, backend=backend, model=f"plan/{role}", revision="", tokenizer="", fake=fake)
    return found


class _Lifelike:
    """A dry backend whose answers have the length of real ones: later calls and examples hold them."""

    def __init__(self, dry: DryBackend) -> None:
        self.dry, self.thinks = dry, bool(dry.role.spec.reasoning_parser)

    async def complete(self, key: str, call: Call, row: RowState) -> Completion:
        found = await self.dry.complete(key, call, row)
        if self.dry.book.calls[key].tokens or call.kind != "chat" or call.sampling.logprobs:
            return found
        size = int(_length(call.sampling.max_tokens) * CHARS_PER_TOKEN)
        if call.schema:
            texts = tuple(json.dumps(_grown(call.schema, json.loads(text), size)) for text in found.texts)
            return replace(found, texts=texts)
        texts = tuple(text if text == REFUSAL else _repeated(text, size) for text in found.texts)
        return replace(found, texts=texts, thinking=tuple(found.texts) if self.thinks else found.thinking)


def _grown(schema: dict[str, Any], value: Any, size: int) -> Any:
    """The value of a schema with its free strings made longer, to some `size` characters in all."""
    if schema.get("type") == "object":
        inner = schema["properties"]
        return {name: _grown(inner[name], each, size // len(value)) for name, each in value.items()}
    if schema.get("type") == "array":
        return [_grown(schema["items"], each, size // len(value)) for each in value]
    if schema.get("type") == "string" and "enum" not in schema:
        return _repeated(value, min(size, schema.get("maxLength", size)))
    return value


def _repeated(text: str, size: int) -> str:
    return (f"{text} " * (size // (len(text) + 1) + 1))[: max(size, len(text))]


def _length(most: float) -> float:
    """Tokens of an answer of at most `most`."""
    return most if most <= SHORT else max(SHORT, ANSWER_SHARE * most)


class _Walk:
    """A run's stages, one after the other; `asked` is what they asked anew."""

    def __init__(self, run: Run, book: Book) -> None:
        self.run, self.book = run, book
        self.asked: list[Asked] = []
        self.seen: set[str] = set()

    @contextmanager
    def part(self, stage: str, part: str, roles: Sequence[Role]) -> Iterator[DryEngines]:
        """Engines whose calls are written down at the end."""
        keys = set[str]()
        engines = DryEngines(roles, self.book, keys)
        engines.backends = {role.name: _Lifelike(DryBackend(role, self.book, keys)) for role in roles}
        yield engines
        new = [call for key in sorted(keys - self.seen) if (call := self.book.calls[key]).tokens is None]
        self.seen |= keys
        known = known_lengths(self.book)
        # Two roles of a part that are one model share their calls: the first has them.
        for fingerprint, name in {role.identity.fingerprint: role.name for role in reversed(roles)}.items():
            mine = [call for call in new if call.kind[0] == fingerprint]
            written = sum(known.get(call.kind) or _length(call.kind[1]) for call in mine)
            read = sum(call.chars for call in mine) / CHARS_PER_TOKEN
            if mine:
                self.asked.append(Asked(stage, part, name, len(mine), read, written))

    def generate(self) -> tuple[list[Record], list[Decision]]:
        """Records of all prompts of train and val, and what selection made of them."""
        config = self.run.config
        recipe, templates = find(config.recipe.name), templates_of(config.recipe)
        with self.part("generate", "records", self._roles(recipe.roles(config.recipe))) as engines:
            records = list(recipe.generate(StageWork(self.run, engines, templates)))
        program = Select(config.recipe.name, jury_of(config))
        with self.part("select", "verdicts", self._roles(judge_roles(config.select))) as engines:
            decisions = list(engines.run("records", program, ListRows(records), asdict).ordered())
        return records, [Decision(**row) for row in decisions]

    def gain(self, val: list[Prompt]) -> None:
        """A round's model against the one before."""
        answers = self._answers("gain", {"student": role_of(self.run, "student"), "tuned": self._tuned()}, val)
        program = Judge(stage_panel(self.run.config, self.run.config.select), ())
        rows = ListRows(list(zip(val, zip(*answers.values(), strict=True), strict=True)))
        with self.part("gain", "verdicts", self._roles(pairwise_roles(self.run.config.select))) as engines:
            engines.run("verdicts", program, rows)

    def evaluate(self, test: list[Prompt]) -> None:
        config = self.run.config
        answers = self._answers("evaluate", evaluate.arms_of(self.run, self._tuned()), test)
        judges = tuple(judge for judge, _ in raters(config))
        with self.part("evaluate", "verdicts", self._roles(judge_roles(config.evaluate))) as engines:
            evaluate.ask_judges(config, test, answers, judges, engines)

    def _answers(self, stage: str, arms: dict[str, Role], prompts: list[Prompt]) -> dict[str, list[dict[str, Any]]]:
        """Every arm's, one arm after the other."""
        documents = evaluate.documents_of(self.run.config) if stage == "evaluate" else []
        found = {}
        for arm, role in arms.items():
            with self.part(stage, f"answers of {arm}", [role]) as engines:
                found[arm], _ = evaluate.ask_arm(self.run, arm, role, prompts, documents, engines)
        return found

    def _roles(self, names: Sequence[str]) -> list[Role]:
        return [role_of(self.run, name) for name in names]

    def _tuned(self) -> Role:
        """What stands for the model that training will make."""
        identity = ModelIdentity("local", value_hash("tuned"))
        return replace(role_of(self.run, "student"), name="tuned", identity=identity)


def _training(run: Run, records: Sequence[Record], decisions: Sequence[Decision], train: float) -> Training:
    """As if the records of all `train` prompts were kept, with examples such as those that the dry run kept."""
    config = run.config
    recipe, templates = find(config.recipe.name), templates_of(config.recipe)
    kept = [pair for pair in zip(records, decisions, strict=True) if pair[1].keep]
    made = [example for record, decision in kept for example in recipe.examples(record, decision, templates)]
    if not made:  # the fake's answers pleased nobody: plain ones instead
        answer = "x" * int(_length(config.recipe.answer_sampling.max_tokens) * CHARS_PER_TOKEN)
        made = [Example(*record.prompt.key, templates.chat(record.prompt.text), answer) for record in records]
    share = train / (len(kept) or len(records) or 1)
    files = from_files(run, recipe, options_of(config.recipe), near_test(run))[0]["train"]
    examples = share * len(made) + len(files)
    read, learnt = (share * sum(map(size, made)) + sum(map(size, files)) for size in (_read, _learnt))
    kinds = {example.objective for example in (*made, *files)}
    passes = config.train.epochs * config.recipe.rounds
    return Training(
        examples=passes * examples,
        tokens=passes * (read + learnt),
        supervised=passes * learnt,
        mean=(read + learnt) / examples if examples else 0.0,
        objective=next((kind for kind in ("dpo", "derta") if kind in kinds), "sft"),
    )


def _read(example: Example) -> float:
    """Tokens of the prompt, which a pair has twice."""
    chars = sum(len(message["content"]) for message in example.messages)
    return chars * (2 if example.rejected else 1) / CHARS_PER_TOKEN


def _learnt(example: Example) -> float:
    """Tokens of what the prompt is answered with."""
    return (len(example.target) + len(example.rejected) + len(example.thinking)) / CHARS_PER_TOKEN


def _assumptions(config: Config, known: int) -> Iterator[str]:
    """Sentences for a person."""
    yield (
        f"answers are {ANSWER_SHARE:.0%} of their max_tokens long where the ledger has none like them "
        f"({_length(config.recipe.answer_sampling.max_tokens):.0f} tokens for a plain one), and a token is "
        f"{CHARS_PER_TOKEN} characters of what is asked"
    )
    rate = config.models[config.recipe.generator].fake.refusal_rate
    yield f"{rate:.0%} of plain prompts are refused at first"
    yield "every record is kept and trained on: the most that it can be"
    if known:
        yield f"{known:,} calls are in the ledger and cost nothing"
    if config.recipe.rounds > 1:
        yield f"all {config.recipe.rounds} rounds are run"
    if config.evaluate.capability.lm_eval:
        yield "tasks of lm-evaluation-harness are not counted"


def _scaled(asked: Asked, factor: float) -> Asked:
    numbers = {name: getattr(asked, name) * factor for name in ("calls", "prompt_tokens", "completion_tokens")}
    return replace(asked, **numbers)
