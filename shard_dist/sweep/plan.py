"""A sweep's file -> its arms: every combination of the axes' values, checked before anything starts.

    include: [../demo.yaml]
    sweep:
      axes:
        recipe: {self: {recipe.generator: student}, teacher: {recipe.generator: teacher}}
        run.seed: [0, 1]                              # one setting and its values
      exclude: [{recipe: teacher, run.seed: 1}]       # combinations left out
      include: [{name: hot, settings: {recipe.answer_sampling.temperature: 1.0}}]
      compare: [[self-seed0, teacher-seed0]]          # default: every two arms of one student and seed
      costs: {gpu_hour: 2.5}

The file is a configuration plus the key `sweep`; an arm is that configuration with the settings of its values. Settings
may name files, `include: [student.yaml]`, which come before words of the command line and before the other settings.
"""

from __future__ import annotations

import difflib
import json
import re
import warnings
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import combinations, product
from pathlib import Path
from typing import Any

from omegaconf import MISSING, DictConfig

from shard_dist.config.check import check
from shard_dist.config.check_evaluate import NAME
from shard_dist.config.load import config_of, identity, include, override, read_tree, read_values, typed
from shard_dist.config.schema import Config
from shard_dist.pipeline import STAGES, stages_of
from shard_dist.recipes.base import find
from shard_dist.rundir import Run, Stage
from shard_dist.stages.roles import identify

Settings = dict[str, Any]  # dotted key -> value
OWN_KEYS = ("run.name", "run.dir", "run.ledger", "cluster", "tracking")  # of the sweep as a whole


@dataclass
class Costs:
    """What the estimate of a dry run goes by; 0: not stated."""

    gpu_hour: float = 0.0
    """Price of a GPU hour, in any currency."""
    generation_tokens_per_gpu_second: float = 0.0
    """Completion tokens that a GPU makes in a second while engines generate."""
    training_tokens_per_gpu_second: float = 0.0
    """Tokens that a GPU trains on in a second."""


@dataclass
class Further:
    """An arm that is no combination."""

    name: str = MISSING
    settings: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Arm:
    """`values` are axis -> name of its value, {} for an arm of `sweep.include`; `settings` are over the file's own."""

    name: str
    values: dict[str, str]
    settings: Settings
    config: Config

    @property
    def run(self) -> Run:
        return Run(self.config, Path(self.config.run.dir))

    @property
    def student(self) -> str:
        """Fingerprint of the model that it trains."""
        return identify(self.config.models["student"]).fingerprint

    @property
    def stages(self) -> list[Stage]:
        return stages_of(self.config, [stage.name for stage in STAGES])


@dataclass(frozen=True)
class Sweep:
    """`path` is its directory, `arms` in the order in which they run, `compare` the pairs of names head to head."""

    name: str
    path: Path
    arms: tuple[Arm, ...]
    axes: dict[str, tuple[str, ...]]
    compare: tuple[tuple[str, str], ...]
    costs: Costs

    @property
    def config(self) -> Config:
        """Whose cluster and tracking are the sweep's."""
        return self.arms[0].config


def load_sweep(file: str | Path, overrides: Sequence[str] = ()) -> Sweep:
    """The sweep of a file, with `key=value` words for all arms. Raises ValueError that names the arm and the fault."""
    path = Path(file)
    section = _section(path)
    axes = _axes(section.get("axes"))
    files, tree = (read_tree(path, words, {}, beside="sweep") for words in ((), overrides))
    arms = [_arm(files, path, overrides, *found) for found in _combinations(axes, section)]
    _check_names([arm.name for arm in arms])
    _check_together(arms)
    _check_arms(arms)
    placed = tuple(_placed(arm, tree) for arm in arms)
    return Sweep(
        name=tree.run.name,
        path=Path(tree.run.dir).absolute(),
        arms=placed,
        axes={axis: tuple(values) for axis, values in axes.items()},
        compare=_compare(section.get("compare"), placed),
        costs=typed(section.get("costs") or {}, Costs, "sweep.costs"),
    )


def _section(path: Path) -> dict[str, Any]:
    section = read_values(path).get("sweep")
    if not isinstance(section, dict):
        raise ValueError(f"{path}: a sweep's file has a key `sweep`, a mapping with the key `axes`")
    for key in section:
        _known(str(key), ("axes", "exclude", "include", "compare", "costs"), "sweep")
    for key in ("exclude", "include", "compare"):
        if not isinstance(section.get(key) or [], list):
            raise ValueError(f"sweep.{key} is a list")
    return section


def _known(word: str, known: Collection[str], where: str) -> None:
    if word not in known:
        near = difflib.get_close_matches(word, known, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(known)}"
        raise ValueError(f"{where}: unknown {word!r}; {hint}")


def _axes(given: Any) -> dict[str, dict[str, Settings]]:
    """Axis -> name of each value -> its settings."""
    if not isinstance(given, dict) or not given:
        raise ValueError("sweep.axes is empty: name at least one axis, such as run.seed: [0, 1]")
    axes = {}
    for axis, values in ((str(axis), values) for axis, values in given.items()):
        if isinstance(values, list):
            axes[axis] = {value_name(axis, value): {axis: value} for value in values}
            if len(axes[axis]) < len(values):
                raise ValueError(f"sweep.axes.{axis}: two values would have one name; write name: {{{axis}: value}}")
        elif isinstance(values, dict):
            axes[axis] = {str(name): settings or {} for name, settings in values.items()}
        if not axes.get(axis) or not all(isinstance(settings, dict) for settings in axes[axis].values()):
            raise ValueError(f"sweep.axes.{axis}: a list of values, or a mapping of names to settings; not {values!r}")
        for name, settings in axes[axis].items():
            _check_include(settings.get("include", []), f"sweep.axes.{axis}.{name}")
    return axes


def _check_include(given: Any, where: str) -> None:
    if not isinstance(given, list) or not all(isinstance(name, str) for name in given):
        raise ValueError(f"{where}.include must be a list of file names")


def value_name(key: str, value: Any) -> str:
    """A name for a value of a setting: seed0, epochs3; words are their own names, of paths the last part."""
    number = isinstance(value, int | float) or value is None
    text = f"{key.rpartition('.')[2]}{value}" if number else str(value).rstrip("/").rpartition("/")[2]
    return re.sub(r"[^A-Za-z0-9_.]+", "_", text).strip("_") or "value"


def _combinations(
    axes: dict[str, dict[str, Settings]], section: dict[str, Any]
) -> Iterator[tuple[str, dict[str, str], Settings]]:
    """(name, values, settings) of every arm."""
    rules = [_rule(rule, axes, f"sweep.exclude[{index}]") for index, rule in enumerate(section.get("exclude") or [])]
    useful = set()
    for names in product(*axes.values()):
        values = dict(zip(axes, names, strict=True))
        hits = [index for index, rule in enumerate(rules) if all(values[axis] in rule[axis] for axis in rule)]
        useful |= set(hits[:1])
        if not hits:
            yield "-".join(names), values, _joined(axes, values)
    for index in sorted(set(range(len(rules))) - useful):
        warnings.warn(f"sweep.exclude[{index}] leaves nothing out, or only what those before it do", stacklevel=2)
    for index, entry in enumerate(section.get("include") or []):
        further = typed(entry, Further, f"sweep.include[{index}]")
        _check_include(further.settings.get("include", []), f"sweep.include[{index}].settings")
        yield str(further.name), {}, further.settings


def _rule(rule: Any, axes: dict[str, dict[str, Settings]], where: str) -> dict[str, set[str]]:
    """Axis -> the names of the values that an exclude means; a value or a list of them."""
    if not isinstance(rule, dict) or not rule:
        raise ValueError(f"{where}: a mapping of axes to values, not {rule!r}")
    wanted: dict[str, set[str]] = {}
    for axis, given in ((str(axis), given) for axis, given in rule.items()):
        _known(axis, axes, where)
        names = axes[axis]
        values = given if isinstance(given, list) else [given]
        wanted[axis] = {str(v) if str(v) in names else value_name(axis, v) for v in values}
        for name in wanted[axis]:
            _known(name, names, f"{where}.{axis}")
    return wanted


def _joined(axes: dict[str, dict[str, Settings]], values: dict[str, str]) -> Settings:
    """Settings of all values of a combination. Raises ValueError where two axes set one thing."""
    joined: Settings = {}
    owner: dict[str, str] = {}
    for axis, name in values.items():
        for key, value in axes[axis][name].items():
            if key == "include":
                joined[key] = [*joined.get(key, []), *value]
                continue
            for other, theirs in owner.items():
                if theirs != axis and f"{key}.".startswith(f"{other}.") | f"{other}.".startswith(f"{key}."):
                    raise ValueError(f"sweep.axes: {theirs} and {axis} both set {key}")
            joined[key], owner[key] = value, axis
    return joined


def _arm(
    tree: DictConfig, path: Path, overrides: Sequence[str], name: str, values: dict[str, str], settings: Settings
) -> Arm:
    """Unchecked, in the directory of the sweep itself. `tree` is the file's."""
    try:
        for file in settings.get("include", []):
            tree = include(tree, path.parent / file)
        for word in overrides:
            tree = override(tree, word)
        for key in settings.keys() - {"include"}:
            if any(f"{key}.".startswith(f"{own}.") for own in OWN_KEYS):
                raise ValueError(f"{key} is the sweep's own; set it beside `sweep`")
            tree = override(tree, f"{key}={json.dumps(settings[key], default=str)}")  # JSON is YAML
        return Arm(name, values, settings, config_of(tree, path))
    except ValueError as error:
        raise ValueError(f"sweep arm {name}: {error}") from error


def _check_names(names: list[str]) -> None:
    if not names:
        raise ValueError("sweep: no arm is left")
    for name in names:
        if not NAME.fullmatch(name):
            raise ValueError(f"sweep: {name!r} cannot name an arm; letters, digits, _ . - only, at most 64")
        if names.count(name) > 1:
            raise ValueError(f"sweep: two arms are called {name!r}; name their values otherwise")


def _check_together(arms: list[Arm]) -> None:
    """Arms must differ from each other, but not in their prompts: the test set is one for all of them."""
    data, known = arms[0].config.data, dict[str, str]()
    for arm in arms:
        theirs = arm.config.data
        if theirs != data:
            keys = ", ".join(f"data.{key}" for key, value in vars(data).items() if value != vars(theirs)[key])
            raise ValueError(
                f"sweep arms {arms[0].name} and {arm.name} differ in {keys}: their test sets would differ; make two "
                "sweeps of them"
            )
        mine = json.dumps(identity(arm.config), sort_keys=True)
        if mine in known:
            raise ValueError(f"sweep arms {known[mine]} and {arm.name} are the same: no setting of results differs")
        known[mine] = arm.name


def _check_arms(arms: list[Arm]) -> None:
    """Every arm as a run of its own; warnings that all arms share are given once."""
    told: dict[str, list[str]] = {}
    for arm in arms:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always", UserWarning)
            _check_arm(arm)
        for text in {str(warning.message) for warning in caught}:
            told.setdefault(text, []).append(arm.name)
    for text, names in told.items():
        if len(names) == len(arms):
            warnings.warn(text, stacklevel=3)
        elif not text.endswith("is used by nothing"):  # other arms use that model
            warnings.warn(f"sweep arms {', '.join(names)}: {text}", stacklevel=3)


def _check_arm(arm: Arm) -> None:
    """What a run of this configuration would be refused for, and a teacher that is the student."""
    config = arm.config
    try:
        check(config)
        for stage in arm.stages:
            stage.check(config)
        for role in find(config.recipe.name).roles(config.recipe):
            if role != "student" and identify(config.models[role]).fingerprint == arm.student:
                raise ValueError(f"models.{role} and models.student are the same model; ask the student itself")
    except ValueError as error:
        raise ValueError(f"sweep arm {arm.name}: {error}") from error


def _placed(arm: Arm, tree: DictConfig) -> Arm:
    """The arm with its directory, the ledger of all arms, and their split."""
    config, home = arm.config, Path(tree.run.dir).absolute()
    own = tree.data.split.seed
    run = replace(
        config.run,
        name=f"{tree.run.name}/{arm.name}",
        dir=str(home / "arms" / arm.name),
        ledger=tree.run.ledger or str(home / "ledger"),
    )
    split = replace(config.data.split, seed=tree.run.seed if own is None else own)
    return replace(arm, config=replace(config, run=run, data=replace(config.data, split=split)))


def _compare(given: list[Any] | None, arms: tuple[Arm, ...]) -> tuple[tuple[str, str], ...]:
    """Pairs of arms head to head: as given, else every two of one student and one seed."""
    names = [arm.name for arm in arms]
    if given is None:
        group = {arm.name: (arm.student, arm.config.run.seed) for arm in arms}
        return tuple(pair for pair in combinations(names, 2) if group[pair[0]] == group[pair[1]])
    for index, pair in enumerate(given):
        where = f"sweep.compare[{index}]"
        if not isinstance(pair, list) or len(pair) != 2 or pair[0] == pair[1]:
            raise ValueError(f"{where}: two names of arms, such as [{', '.join(names[:2])}], not {pair!r}")
        for name in pair:
            _known(str(name), names, where)
    return tuple((str(a), str(b)) for a, b in given)
