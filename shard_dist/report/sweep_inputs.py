"""What the page of a sweep reads: <sweep>/comparison/comparison.json, and which arms have a page of their own."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from shard_dist.artefacts import read_json
from shard_dist.report.inputs import Estimate, Row, read_estimate

COMPARISON = "comparison/comparison.json"
SHOWN = ("lower", "higher")
TAUGHT = {"teacher", "both"}


@dataclass(frozen=True)
class Variant:
    """Arms that differ in their seed only. `gain` is how much oftener it is judged more helpful than its base model."""

    name: str
    label: str
    student: str
    arms: tuple[str, ...]
    seeds: tuple[int, ...]
    measures: dict[str, Estimate]
    gain: dict[str, Estimate]
    writers: tuple[str, ...]

    @property
    def by(self) -> str:
        """Who writes its training data: self, teacher, both, or file where no model does."""
        if not self.writers:
            return "file"
        return "self" if self.writers == ("student",) else "both" if "student" in self.writers else "teacher"


@dataclass(frozen=True)
class Test:
    """Variant `b` against `a`: `difference` is b less a; for helpfulness and harm, b more so than a, net.

    `claim` is lower, higher, not shown, or "" where the comparison is not in the family. `seeds` are its parts.
    """

    __test__ = False  # no test of pytest's

    a: str
    b: str
    metric: str
    difference: Estimate
    seeds: tuple[float, ...]
    p: float | None
    claim: str

    def seen_from(self, name: str) -> Test:
        """The same comparison with `name` as b."""
        if name == self.b:
            return self
        low, value, high = (_minus(each) for each in (self.difference.high, self.difference.value, self.difference.low))
        turned = {"lower": "higher", "higher": "lower"}.get(self.claim, self.claim)
        difference = Estimate(value, low, high, self.difference.n)
        return replace(
            self, a=self.b, b=self.a, difference=difference, claim=turned, seeds=tuple(map(_less, self.seeds))
        )


def _less(value: float) -> float:
    return 0.0 - value


def _minus(value: float | None) -> float | None:
    return None if value is None else _less(value)


@dataclass(frozen=True)
class Sweep:
    """`found` is comparison.json as it stands."""

    root: Path
    found: Row
    variants: dict[str, Variant]
    tests: list[Test]

    @property
    def name(self) -> str:
        return str(self.found["name"])

    @property
    def students(self) -> Row:
        return dict(self.found["students"])

    @property
    def arms(self) -> dict[str, Row]:
        return dict(self.found["arms"])

    @property
    def confidence(self) -> float:
        return float(self.found.get("confidence", 0.95))

    def of(self, student: str) -> list[Variant]:
        """Its variants that were measured."""
        return [each for each in self.variants.values() if each.student == student and each.arms]

    def between(self, names: set[str]) -> list[Test]:
        return [test for test in self.tests if {test.a, test.b} <= names]

    def page_of(self, arm: str) -> str:
        """Where the arm's own page is, seen from ours; "" where there is none."""
        place = f"arms/{arm}/report/index.html"
        return f"../{place}" if (self.root / place).is_file() else ""


def read_sweep(root: Path) -> Sweep:
    """Raises ValueError where the comparison is not there or damaged."""
    path = root / COMPARISON
    try:
        found = read_json(path)
        variants = {name: _variant(name, each) for name, each in found["variants"].items()}
        return Sweep(root, found, variants, list(_tests(found)))
    except FileNotFoundError as error:
        raise ValueError(f"{path} is missing: the sweep has not been compared yet") from error
    except (UnicodeDecodeError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} is damaged ({error!r}); delete it and compare again") from error


def _variant(name: str, found: Row) -> Variant:
    measures = {metric: read_estimate(each, f"{name}.{metric}") for metric, each in found["measures"].items()}
    net = {
        metric: read_estimate(each, f"{name}.gain.{metric}") for metric, each in found["gain"].get("net", {}).items()
    }
    arms, seeds, writers = (tuple(found[key]) for key in ("arms", "seeds", "writers"))
    return Variant(name, found["label"], found["student"], arms, seeds, measures, net, writers)


def _tests(found: Row) -> Iterator[Test]:
    family = {(row["pair"], row["metric"]): row for row in found.get("family") or []}
    for pair, both in found["pairs"].items():
        for metric, one in {**both["differences"], **both["net"]}.items():
            row = family.get((pair, metric)) or {}
            estimate = read_estimate(one, f"{pair}.{metric}")
            seeds, p = tuple(one.get("seeds") or ()), row.get("p_holm")
            yield Test(both["a"], both["b"], metric, estimate, seeds, p, str(row.get("claim") or ""))
