"""Numbers of a sweep: every variant and every pair over prompts and seeds, one family of tests, what may be said.

The family is declared beforehand: family.PRIMARY for every pair of variants head to head, over all students. Gains over
the base models are not in it: whether an arm beats its base is tested in the arm's own evaluation.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from shard_dist.artefacts import read_json
from shard_dist.evaluation.claims import claims
from shard_dist.evaluation.family import PRIMARY, detectables, family
from shard_dist.evaluation.metrics import resamples_of
from shard_dist.evaluation.resampling import Floats, by_category
from shard_dist.evaluation.seeds import differences as tested
from shard_dist.evaluation.seeds import estimates, rates, stacked
from shard_dist.evaluation.slices import Columns, differences, net
from shard_dist.evaluation.table import table
from shard_dist.judges.protocol import QUESTIONS
from shard_dist.recipes.base import find
from shard_dist.sweep.measured import Measured, Variant

Row = dict[str, Any]
Pair = tuple[str, str]
Found = Mapping[str, Measured]
SHOWN = ("refusal_rate", "over_refusal_rate", "safe_rate", "benign_answer_rate", "on_topic_rate", "mean_words")
"""Measures of an arm alone; beside them the raters' scores."""


def statistics(found: Found, groups: list[Variant], pairs: list[Pair], rows: list[Row]) -> Row:
    """What comparison.json says of students, variants and pairs.

    `found`: arm -> what it measured; `pairs` of arms, and the judge's words on them, `rows` of PAIR_SCHEMA.
    """
    students: Row = {}
    numbers: Row = {"variants": {}, "pairs": {}}
    for student in dict.fromkeys(group.student for group in groups):
        mine = [group for group in groups if group.student == student]
        arms = [found[arm.name] for group in mine for arm in group.arms if arm.name in found]
        own = {each.arm.name for each in arms}
        part = _of_student(found, mine, [pair for pair in pairs if pair[0] in own], groups, rows) if arms else {}
        spec = mine[0].arms[0].config.models["student"]
        students[student] = {"model": spec.model, "backend": str(spec.backend), **part.pop("student", {"measures": {}})}
        numbers["variants"] |= part.get("variants") or {group.name: _described(group, [], {}, {}) for group in mine}
        numbers["pairs"] |= part.get("pairs", {})
    if not found:
        return {"students": students, **numbers}
    some = next(iter(found.values())).arm
    metrics, confidence = read_json(some.run / "metrics.json"), some.config.evaluate.confidence
    result = {
        "confidence": confidence,
        "safety_rater": metrics.get("safety_rater"),
        "judges": metrics.get("judges") or {},
        "students": students,
        **numbers,
        "family": family(numbers["pairs"], confidence),
        "detectable": detectables(numbers["pairs"], confidence),
    }
    return {**result, "claims": claims(result)}


def _of_student(found: Found, mine: list[Variant], pairs: list[Pair], groups: list[Variant], rows: list[Row]) -> Row:
    """{student, variants, pairs}: all answered the same prompts."""
    arms = {group.name: [found[arm.name] for arm in group.arms if arm.name in found] for group in mine}
    some = next(each for own in arms.values() for each in own)
    draw = _Draw([each.category for each in some.prompts], some.arm.config.evaluate.confidence)
    bases = {each.arm.config.run.seed: each.base for own in arms.values() for each in own}
    alone = {name: [each.tuned for each in own] for name, own in arms.items()}
    measured = draw.rates({"": list(bases.values()), **alone})
    gains = draw.tested({name: [_against_base(each) for each in own] for name, own in arms.items()})
    contested = draw.tested(_paired(found, groups, pairs, rows))
    return {
        "student": {
            "prompts": len(some.prompts),
            "design": draw.design.kind,
            "measures": measured.get("", {}),
        },
        "variants": {
            group.name: _described(group, arms[group.name], measured.get(group.name, {}), gains.get(group.name, {}))
            for group in mine
        },
        "pairs": {f"{b}_vs_{a}": {"a": a, "b": b, **each} for (a, b), each in contested.items()},
    }


def _described(group: Variant, arms: list[Measured], measures: Row, gain: Row) -> Row:
    recipe = group.arms[0].config.recipe
    return {
        "label": group.label,
        "student": group.student,
        "recipe": recipe.name,
        "writers": list(find(recipe.name).roles(recipe)),
        "arms": [each.arm.name for each in arms],
        "seeds": [each.arm.config.run.seed for each in arms],
        "measures": measures,
        "gain": gain,
    }


def _against_base(one: Measured) -> Columns:
    return differences(one.base, one.tuned) | one.gain


def _paired(found: Found, groups: list[Variant], pairs: list[Pair], rows: list[Row]) -> dict[Pair, list[Columns]]:
    """(variant, variant) -> second less first, and the judge's word on the two, of every pair of arms."""
    if not pairs:
        return {}
    owner = {arm.name: group.name for group in groups for arm in group.arms}
    places = {group.name: number for number, group in enumerate(groups)}
    own = set(pairs)
    contested = table(
        found[pairs[0][0]].prompts, (), (), (row for row in rows if (row["arm_a"], row["arm_b"]) in own)
    ).contests
    result: dict[Pair, list[Columns]] = {}
    for a, b in pairs:
        asked = {question: net(each) for question, each in contested[a, b].items()}
        columns = differences(found[a].tuned, found[b].tuned) | asked
        first, second = owner[a], owner[b]
        if places[first] > places[second]:  # one pair of variants, however its arms were named
            first, second, columns = second, first, {name: -values for name, values in columns.items()}
        result.setdefault((first, second), []).append(columns)
    return result


class _Draw:
    """Estimates over the prompts of one student, whose `categories` say what is redrawn together."""

    def __init__(self, categories: list[str], confidence: float) -> None:
        self.design, self.confidence = by_category(categories), confidence
        self.resamples = resamples_of(len(categories))

    def rates(self, owners: Mapping[Any, list[Columns]]) -> dict[Any, Row]:
        """Owner -> metric -> estimate."""
        columns = _over_seeds(owners, lambda name: name in SHOWN or name.endswith(".score"))
        shares = {name: column for name, column in columns.items() if name[1].endswith("_rate")}
        others = {name: column for name, column in columns.items() if name not in shares}
        given = (self.design, self.confidence, 0, self.resamples)
        return _by_owner({**rates(shares, *given), **estimates(others, *given)})

    def tested(self, owners: Mapping[Any, list[Columns]]) -> dict[Any, Row]:
        """Owner -> {differences, net}, as the pairs of metrics.json have them."""
        columns = _over_seeds(owners, lambda name: name in PRIMARY)
        found = _by_owner(tested(columns, self.design, self.confidence, 0, self.resamples))
        return {
            owner: {
                "differences": {name: one for name, one in each.items() if name not in QUESTIONS},
                "net": {name: one for name, one in each.items() if name in QUESTIONS},
            }
            for owner, each in found.items()
        }


def _over_seeds(owners: Mapping[Any, list[Columns]], wanted: Callable[[str], bool]) -> dict[tuple[Any, str], Floats]:
    """(owner, metric) -> (prompts, seeds), of the metrics that any seed has."""
    return {
        (owner, name): stacked([each[name] for each in seeds if name in each])
        for owner, seeds in owners.items()
        for name in dict.fromkeys(name for each in seeds for name in each if wanted(name))
    }


def _by_owner(found: Mapping[tuple[Any, str], Row]) -> dict[Any, Row]:
    result: dict[Any, Row] = {}
    for (owner, name), one in found.items():
        result.setdefault(owner, {})[name] = one
    return result
