"""What a recipe is: how prompts become records, which records become examples, and what those are. All else is shared.

A recipe is one module of this package with an instance `RECIPE`; its name is the module's. It knows rows, programs and
texts; engines, files and clusters are behind `Work`.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields, is_dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import shard_dist.recipes
from shard_dist.config.load import typed
from shard_dist.config.schema import Config, RecipeConfig
from shard_dist.prompts.render import Templates
from shard_dist.recipes.selection import Decision, Jury, compare_and_gate
from shard_dist.records import Example, Prompt, Record

if TYPE_CHECKING:
    from shard_dist.engines.protocol import Ask
    from shard_dist.engines.rows import Rows

NOT_RECIPES = ("base", "derived", "learner", "refusals", "rewards", "selection", "steps")


class Work(Protocol):
    """What a recipe may use while it generates. `options` are its own settings, of its class `Options`."""

    recipe: RecipeConfig
    options: Any
    templates: Templates
    seed: int

    folder: Path
    """The run's `findings/`: what the recipe found on the way lies there (guidelines, a library, a retriever)."""

    def prompts(self, *splits: str) -> Rows:
        """Prompts of these splits in their order; without any those of train and val, which need a record each.

        Nothing is generated for prompts of test; a recipe may look something up for them.
        """
        ...

    def categories(self) -> list[str]:
        """Distinct categories of those prompts, "" left out."""
        ...

    def map(self, unit: str, program: Any, rows: Rows | Sequence[Any], empty: Any = None) -> Iterator[Any]:
        """`program` over `rows`, results (plain JSON) in their order.

        `unit` names it in the run; killed, it goes on where it was.
        Around the row `empty` the program's calls must fit the engines' contexts: found before the first row runs.
        """
        ...

    def records(self, unit: str, program: Any, rows: Rows | Sequence[Any], empty: Any = None) -> Iterator[Record]:
        """The same for programs whose results are records."""
        ...

    def save(self, name: str, value: Any) -> None:
        """A JSON file in `folder`. contexts.json maps `context_key(prompt)` of test prompts to what the arms of
        `evaluate.contexts` read beneath the system message."""
        ...


class Recipe:
    """A method, by default selected as SHARD is: an answer must be more helpful than a draft and not more harmful.

    Subclasses say `generate`, and of the rest what differs.
    """

    source: str = ""
    """Paper, repository, and what is done otherwise, in a line for reports."""
    Options: type = type(None)
    """Dataclass of the recipe's own settings, `recipe.options`; NoneType: it has none."""
    target: str = "reframed"
    """Field of a record that becomes the answer of its example."""
    texts: Mapping[str, str] = {}
    """Templates that the recipe brings along, by file name; a template set's own file of that name comes first."""
    variables: Mapping[str, frozenset[str]] = {}
    """Step -> what those templates are given."""

    def roles(self, recipe: RecipeConfig) -> tuple[str, ...]:
        """Roles of `models` that generation asks; its programs run beside the first."""
        return (recipe.generator,)

    def steps(self, recipe: RecipeConfig) -> list[str]:
        """Templates that it needs."""
        return list(self.variables)

    def generate(self, work: Work) -> Iterator[Record]:
        """One record for every prompt, in their order."""
        raise NotImplementedError

    def check(self, config: Config) -> None:
        """Raise ValueError for settings that contradict each other, before anything is read or asked."""

    def empty(self) -> Record:
        """The shortest record that judges are asked about: its calls must fit their contexts."""
        fields = {"draft": "", self.target: "yes", f"{self.target}_finish_reason": "stop"}
        return Record(Prompt("", "", ""), "", fields)

    async def decide(self, record: Record, jury: Jury, ask: Ask) -> Decision:
        """Whether a record becomes an example, and why."""
        return await compare_and_gate(record, self.target, jury, ask)

    def examples(self, record: Record, decision: Decision, templates: Templates) -> Iterator[Example]:
        """What a record that was kept teaches: the prompt as the assistant gets it, and the answer. No scaffolding.

        With a rejected answer it is a pair for `dpo`.
        """
        messages = templates.chat(record.prompt.text)
        target = record.fields[decision.chosen or self.target]
        if decision.rejected:
            yield Example(*record.prompt.key, messages, target, "dpo", record.fields[decision.rejected])
        else:
            yield Example(*record.prompt.key, messages, target, thinking=record.fields.get(decision.thinking, ""))

    def files(self, options: Any) -> tuple[str, ...]:
        """Files of the recipe's own that it reads: a stage is done again where their content has changed."""
        return ()

    def added(self, options: Any, seed: int, templates: Templates) -> Iterator[Example]:
        """Examples that come from these files rather than from records, in their order."""
        yield from ()


def context_key(prompt: Prompt) -> str:
    return "\n".join(prompt.key)


def overview() -> dict[str, tuple[str, str]]:
    """Recipe -> where it is from, its own settings with their defaults."""
    found = {}
    for name in names():
        recipe = find(name)
        own = fields(recipe.Options) if is_dataclass(recipe.Options) else ()
        shown = ", ".join(f"{item.name}={getattr(recipe.Options(), item.name)}" for item in own)
        found[name] = (recipe.source, shown)
    return found


@cache
def names() -> tuple[str, ...]:
    """Every recipe there is."""
    modules = (module.name for module in pkgutil.iter_modules(shard_dist.recipes.__path__))
    return tuple(sorted(name for name in modules if name not in NOT_RECIPES and not name.startswith("_")))


def options_of(recipe: RecipeConfig) -> Any:
    """The recipe's own settings as an instance of its Options. Raises ValueError for one that it does not have."""
    kind = find(recipe.name).Options
    if kind is type(None):
        if recipe.options:
            raise ValueError(f"recipe.options: {recipe.name} has none, found {', '.join(recipe.options)}")
        return None
    return typed(recipe.options, kind, "recipe.options")


def templates_of(recipe: RecipeConfig) -> Templates:
    return Templates(recipe.templates, find(recipe.name).texts)


def find(name: str) -> Recipe:
    """Raises ValueError for a name that is no recipe's."""
    if name not in names():
        raise ValueError(f"recipe.name: no recipe {name!r}; there are {', '.join(names())}")
    recipe = importlib.import_module(f"shard_dist.recipes.{name}").RECIPE
    assert isinstance(recipe, Recipe), name
    return recipe
