"""DeRTa: learning to break off (arXiv 2407.09121), from triples (prompt, safe answer, harmful answer).

    people's labelled answers ──> harmful x harmless to the same prompt ──> objective derta    safe: file
    run's prompts ──> the generator's answer x people's harmful ones ─────> objective derta    safe: generated

The objective itself, a safe answer after a piece of the harmful one and a refusal at every position of it, and its
weights are train.derta. Harmful answers are only ever taken from rows that people marked so: nothing here makes one.
More triples, such as files of the authors' rows, and helpful examples beside them come in by recipe.mix.

The paper's other mixtures: `plain: true` is its baseline `vanilla` (the same safe answers, no harmful one is trained
on), train.derta.rto_weight=0 its `recaug`. Deviations: the authors got their harmful answers from a model that they had
tuned to be malicious; and their 60,000 helpful rows are whatever file you name.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from shard_dist.config.schema import Config, MixConfig, RecipeConfig, SourceConfig, SourceKind
from shard_dist.data.mix import draw
from shard_dist.data.near import folded
from shard_dist.data.read import Row, did_you_mean, rows
from shard_dist.data.split import digest
from shard_dist.prompts.render import Templates
from shard_dist.recipes.base import Work, options_of
from shard_dist.recipes.derived import Derived
from shard_dist.recipes.rewards import configured, safety_raters
from shard_dist.recipes.selection import Decision, Jury
from shard_dist.recipes.steps import Answers
from shard_dist.records import Example, Prompt, Record

if TYPE_CHECKING:
    from shard_dist.engines.protocol import Ask

FILE, GENERATED = "file", "generated"
ONE, ALL = "one", "all"
COLUMNS = ("prompt", "answer", "harmful")


@dataclass
class Options:
    """The recipe's own settings."""

    answers: str = ""
    """CSV, JSONL or Parquet file of answers that people labelled, one a row; empty: triples come by recipe.mix."""
    columns: dict[str, str] = field(default_factory=dict)
    """Its columns, where prompt, answer and harmful are called otherwise: {prompt: question, answer: response}."""
    harmful: list[str] = field(default_factory=lambda: ["1"])
    """Labels of harmful answers in the column harmful; true and false are written so."""
    harmless: list[str] = field(default_factory=lambda: ["0"])
    """Labels of harmless ones. Rows with any other label are left out."""
    safe: str = FILE
    """file: safe answers are the file's harmless ones; generated: the generator's own to the run's prompts, which are
    those of the file, judged by select.raters."""
    pairs: str = ONE
    """one: every harmful answer with one harmless answer, drawn by run.seed; all: with every one (safe=file)."""
    limit: int = 0
    """How many triples of the file are drawn, by run.seed; 0: all (safe=file)."""
    plain: bool = False
    """Teach the safe answers alone, as sft: the paper's baseline."""


@dataclass(frozen=True)
class Labelled:
    """What people gave to one prompt: (number of its row from 1, answer), in the file's order."""

    prompt: str
    harmful: list[tuple[int, str]]
    harmless: list[tuple[int, str]]


def label(row: Row, column: str) -> str:
    value = row.values.get(column)
    return str(value).lower() if isinstance(value, bool) else row.text(column)


def labelled(options: Options) -> list[Labelled]:
    """The file's prompts in the order in which they first occur. Empty answers are left out.

    Raises ValueError for a file that cannot be read or lacks a column.
    """
    names = {name: name for name in COLUMNS} | options.columns
    prompt, answer, harmful = (names[name] for name in COLUMNS)
    found: dict[str, Labelled] = {}
    source = SourceConfig(kind=SourceKind.table, path=options.answers)
    for number, row in enumerate(rows(source, required=(prompt, answer, harmful)), start=1):
        asked, given, word = row.text(prompt), row.text(answer), label(row, harmful)
        if not (asked and given):
            continue
        entry = found.setdefault(asked, Labelled(asked, [], []))
        if word in options.harmful:
            entry.harmful.append((number, given))
        elif word in options.harmless:
            entry.harmless.append((number, given))
    return list(found.values())


def triples(options: Options, seed: int, templates: Templates) -> Iterator[Example]:
    """Harmful answers of the file, each with one or all of the harmless ones to its prompt."""
    dataset = Path(options.answers).stem
    for entry in labelled(options):
        for number, harmful in entry.harmful:
            safe = [each for each in entry.harmless if each[1] != harmful]
            if options.pairs == ONE:
                safe = sorted(safe, key=lambda each: digest(seed, "derta", number, each[0]))[:1]
            messages = templates.chat(entry.prompt)
            for other, answer in safe:
                example = Example(dataset, f"{number}-{other}", messages, answer)
                yield example if options.plain else replace(example, objective="derta", rejected=harmful)


class Derta(Derived):
    """Triples of files; with safe=generated also the generator's safe answers, which its judges let pass."""

    source = "arXiv 2407.09121; harmful answers only from people's labels, none is made"
    Options = Options
    kept = "kept_safe_answer"

    def roles(self, recipe: RecipeConfig) -> tuple[str, ...]:
        return (recipe.generator,) if options_of(recipe).safe == GENERATED else ()

    def check(self, config: Config) -> None:
        """Every contradiction, and a file that has no triple."""
        options = options_of(config.recipe)
        check_words(options)
        if not options.answers:
            if not any(map(may_hold_triples, config.recipe.mix)):
                raise ValueError(
                    "recipe.options.answers is empty and no file of recipe.mix has format or objective derta: there is "
                    "no harmful answer to learn from, and none is made; name a file of answers that people labelled"
                )
            return
        try:
            found = labelled(options)
        except ValueError as error:
            raise ValueError(f"recipe.options.answers: {error}") from error
        if options.safe == GENERATED:
            safety_raters(configured(config))
        if not any(entry.harmful and (entry.harmless or options.safe == GENERATED) for entry in found):
            raise ValueError(
                f"recipe.options.answers: no prompt of {options.answers} has a harmful answer and a safe one: "
                f"of {len(found)} prompts {sum(bool(entry.harmful) for entry in found)} have answers labelled "
                f"{options.harmful} and {sum(bool(entry.harmless) for entry in found)} some labelled {options.harmless}"
            )

    def generate(self, work: Work) -> Iterator[Record]:
        """With safe=file the run's prompts are for validation and tests of the model alone, and nothing is asked."""
        table, options = work.prompts(), work.options
        prompts = table.read(range(len(table)))
        if options.safe == FILE:
            yield from (Record(prompt, "derta") for prompt in prompts)
            return
        harmful = {folded(entry.prompt): entry.harmful for entry in labelled(options) if entry.harmful}
        program = Answers(
            "derta", work.recipe.generator, work.templates, work.recipe.answer_sampling.sampling(), work.seed
        )
        known = [prompt for prompt in prompts if folded(prompt.text) in harmful]
        answered = work.records("answers", program, known, empty=Prompt("", "", ""))
        for prompt in prompts:
            given = harmful.get(folded(prompt.text), [])
            if not given:
                yield Record(prompt, "derta", failure="no_harmful_answer")
                continue
            record = next(answered)
            texts = {f"harmful_{place}": text for place, (_, text) in enumerate(given, start=1)}
            yield replace(record, fields={"prompt_1": prompt.text, **record.fields, **texts})

    def may_refuse(self, record: Record, number: str) -> bool:
        return True  # what people answered harmfully may be refused

    async def decide(self, record: Record, jury: Jury, ask: Ask) -> Decision:
        if jury.options.safe == FILE:
            return Decision(*record.prompt.key, False, "triples_are_of_files")
        return await super().decide(record, jury, ask)

    def examples(self, record: Record, decision: Decision, templates: Templates) -> Iterator[Example]:
        """The safe answer with each of the prompt's harmful ones."""
        plain = next(super().examples(record, decision, templates))
        harmful = [text for name, text in record.fields.items() if name.startswith("harmful_")]
        yield from (replace(plain, objective="derta", rejected=text) for text in harmful if text != plain.target)

    def files(self, options: Any) -> tuple[str, ...]:
        return (options.answers,) if options.answers else ()

    def added(self, options: Any, seed: int, templates: Templates) -> Iterator[Example]:
        if options.answers and options.safe == FILE:
            yield from draw(triples(options, seed, templates), options.limit, seed)


def may_hold_triples(mix: MixConfig) -> bool:
    return mix.objective == "derta" or (mix.objective == "own" and mix.format in ("derta", "shard"))


def check_words(options: Options) -> None:
    """Settings that need no file."""
    allowed = {"safe": (FILE, GENERATED), "pairs": (ONE, ALL)}
    for name, words in allowed.items():
        if getattr(options, name) not in words:
            raise ValueError(f"recipe.options.{name} is {getattr(options, name)!r}; {' or '.join(words)}")
    for name in options.columns:
        if name not in COLUMNS:
            raise ValueError(f"recipe.options.columns: no field {name!r}{did_you_mean(name, COLUMNS)}")
    if not (options.harmful and options.harmless) or set(options.harmful) & set(options.harmless):
        raise ValueError("recipe.options.harmful and harmless are labels of two kinds: neither empty, none in both")
    if options.limit < 0:
        raise ValueError(f"recipe.options.limit is {options.limit}; at least 0")
    if options.safe == GENERATED and (options.limit or options.pairs == ALL or options.plain or not options.answers):
        raise ValueError(
            "recipe.options.safe=generated takes the file's harmful answers to the run's prompts: it needs answers, "
            "and pairs=all, limit and plain have no meaning with it"
        )


RECIPE = Derta()
