"""Which settings would make a configuration fit: tried for real, each on a changed Config that is checked and reckoned.

Remedies are taken up in the order of what they cost (plan/remedies.py says the order and why) until it fits. Then, the
costliest first, each is given back or made as mild as will do. So the costliest change that is reported is one that all
cheaper ones together cannot replace, and none can be left out. What decides results is named and never taken.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, is_dataclass, replace
from enum import Enum
from typing import Any

from shard_dist.config.check import check
from shard_dist.config.schema import Config
from shard_dist.plan import remedies
from shard_dist.plan.disk import storage
from shard_dist.plan.model import Shape
from shard_dist.plan.needs import STORAGE, TRAIN, role_part, roles_of, storage_part, training_part
from shard_dist.plan.remedies import Remedy, Settings
from shard_dist.plan.workload import Workload

Lacking = Callable[[Config], frozenset[int]]  # Part.lacking of a configuration
STEP = 256  # tokens between the lengths that are tried


@dataclass(frozen=True)
class Change:
    """Settings that belong together, for the part that they help."""

    part: str
    settings: Settings
    why: str

    @property
    def words(self) -> list[str]:
        """As overrides: ["train.long.sequence_parallel=4"]."""
        return [f"{'.'.join(key)}={_text(value)}" for key, value in self.settings.items()]


def _text(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return str(value.value if isinstance(value, Enum) else value)


def applied(config: Config, changes: Iterable[Settings]) -> Config:
    """A copy with these settings; later ones win."""
    result: Any = config
    for settings in changes:
        for key, value in settings.items():
            result = _with(result, key, value)
    assert isinstance(result, Config)
    return result


def _with(tree: Any, key: Sequence[str], value: Any) -> Any:
    if not key:
        return value
    head, rest = key[0], key[1:]
    if is_dataclass(tree) and not isinstance(tree, type):
        return replace(tree, **{head: _with(getattr(tree, head), rest, value)})
    return {**tree, head: _with(tree.get(head), rest, value)}


@dataclass(frozen=True)
class Fit:
    """`changes` make fit what can be made to; `hopeless` are sentences about what no setting helps."""

    changes: tuple[Change, ...] = ()
    hopeless: tuple[str, ...] = ()


def fit(config: Config, shapes: Mapping[str, Shape], work: Workload | None) -> Fit:
    """What to change in the parts that do not fit; nothing where all do."""
    changes: list[Change] = []
    hopeless: list[str] = []
    student = shapes["student"]

    def mend(part: str, choices: Iterable[Remedy], lacking: Lacking, resort: Callable[[], str]) -> None:
        if not lacking(config):
            return
        found = fewest(config, [*choices], lacking)
        changes.extend(_changes(part, found))
        hopeless.extend([f"{part}: {resort()}"] if found is None else [])

    for role in roles_of(config):
        choices = remedies.engines(config, role, shapes.get(role))
        mend(
            f"models.{role}",
            choices,
            _engines_lack(role, shapes),
            lambda: "no setting helps; a smaller or quantised model, or larger GPUs would",
        )
    mend(TRAIN, remedies.training(config, student), _training_lacks(student), lambda: _last_resort(config, student))
    mend(
        STORAGE,
        remedies.storage(config),
        lambda changed: storage_part(storage(changed, shapes, work)).lacking,
        lambda: "no setting helps: it takes more space",
    )
    return Fit(tuple(changes), tuple(hopeless))


def _changes(part: str, found: list[tuple[Remedy, Settings]] | None) -> list[Change]:
    return [Change(part, settings, remedy.why) for remedy, settings in found or ()]


def _engines_lack(role: str, shapes: Mapping[str, Shape]) -> Lacking:
    return lambda config: role_part(config, role, shapes).lacking


def _training_lacks(shape: Shape) -> Lacking:
    return lambda config: training_part(config, shape).lacking


def _last_resort(config: Config, shape: Shape) -> str:
    """What decides results and would help: shorter rows, and what else they take."""
    lacking, choices = _training_lacks(shape), [*remedies.training(config, shape)]
    everything = exhausted(config, choices, lacking)

    def with_tokens(config: Config, tokens: int) -> Config:
        return applied(config, [{("train", "max_tokens"): tokens}])

    tokens = largest(lambda tokens: not lacking(with_tokens(everything, tokens)), config.train.max_tokens, STEP)
    if not tokens:
        return "no setting helps, shorter rows neither; more GPUs or a smaller model would"
    words = [
        word for each in _changes(TRAIN, fewest(with_tokens(config, tokens), choices, lacking)) for word in each.words
    ]
    return (
        "no setting helps that leaves results as they are. Shorter rows would, but leave longer examples out: "
        + " ".join([f"train.max_tokens={tokens}", *words])
    )


def largest_tokens(config: Config, shape: Shape) -> int | None:
    """The longest rows that fit as the configuration stands, up to the model's context; None: no capacity is stated."""
    most = max(shape.positions, config.train.max_tokens)
    return _largest(config, shape, "max_tokens", most, STEP)


def largest_micro_batch(config: Config, shape: Shape) -> int | None:
    """The most rows at a time that fit as the configuration stands, up to all that a process has in a step."""
    train = config.train
    rows = math.ceil(train.global_batch_size * train.long.sequence_parallel / train.workers)
    return _largest(config, shape, "micro_batch_size", max(rows, train.micro_batch_size), 1)


def _largest(config: Config, shape: Shape, name: str, most: int, step: int) -> int | None:
    if all(account.capacity is None for account in training_part(config, shape).accounts):
        return None

    def fits(value: int) -> bool:
        changed = applied(config, [{("train", name): value}])
        return all(account.fits for account in training_part(changed, shape).accounts)

    return largest(fits, most, step)


def fewest(config: Config, choices: Sequence[Remedy], lacking: Lacking) -> list[tuple[Remedy, Settings]] | None:
    """The remedies with which it fits, none of them dispensable; None where all together do not do."""
    for taken, left in _taken_up(config, choices, lacking):
        if not left:
            spared = _spared(config, choices, lacking, taken)
            return [(choices[number], choices[number].degrees[degree]) for number, degree in sorted(spared.items())]
    return None


def exhausted(config: Config, choices: Sequence[Remedy], lacking: Lacking) -> Config:
    """The configuration with all remedies, each in its strongest degree that the others allow."""
    taken: dict[int, int] = {}
    for taken, _ in _taken_up(config, choices, lacking):  # noqa: B007  the last one counts
        pass
    return _changed(config, choices, taken)


def _taken_up(
    config: Config, choices: Sequence[Remedy], lacking: Lacking
) -> Iterator[tuple[dict[int, int], frozenset[int]]]:
    """(remedy -> degree, what is lacking then), one step further each time.

    Passed over: settings that contradict others, and those that move the want to another place, as from a GPU to a
    node whose memory is too small for it.
    """
    taken: dict[int, int] = {}
    left = lacking(config)
    for number, remedy in enumerate(choices):
        for degree in range(len(remedy.degrees)):
            trial = {**taken, number: degree}
            changed = _changed(config, choices, trial)
            if not valid(changed) or any(place > 0 for place in lacking(changed) - left):
                continue
            taken, left = trial, lacking(changed)
            yield taken, left


def _spared(config: Config, choices: Sequence[Remedy], lacking: Lacking, taken: dict[int, int]) -> dict[int, int]:
    """Each given back, or in its mildest degree that will do; the costliest first."""
    for number in sorted(taken, reverse=True):
        others = {each: degree for each, degree in taken.items() if each != number}
        for milder in (others, *({**others, number: degree} for degree in range(taken[number]))):
            changed = _changed(config, choices, milder)
            if valid(changed) and not lacking(changed):
                taken = milder
                break
    return taken


def _changed(config: Config, choices: Sequence[Remedy], taken: Mapping[int, int]) -> Config:
    return applied(config, (choices[number].degrees[degree] for number, degree in sorted(taken.items())))


def valid(config: Config) -> bool:
    """Whether the settings contradict each other nowhere; what is only of no effect passes."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            check(config)
        except ValueError:
            return False
    return True


def largest(fits: Callable[[int], bool], most: int, step: int = 1) -> int:
    """The largest multiple of `step` below `most`, or `most` itself, that fits; 0 where none does. By bisection."""
    if fits(most):
        return most
    low, high = 0, math.ceil(most / step)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle * step) else (low, middle)
    return low * step
