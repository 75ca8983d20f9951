"""Sums that a person can check: every byte of a plan is a line with its formula.

A plan never states a total alone. `--explain` prints the lines; without it their sums are shown.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

GIB = 2**30


@dataclass(frozen=True)
class Line:
    """One term of a sum: what it is, how it was reckoned (the formula with its numbers), and the bytes."""

    name: str
    formula: str
    bytes: float


@dataclass(frozen=True)
class Account:
    """What is held at the peak in one place: "GPU in training", "node's memory in training", "shared storage".

    `capacity` in bytes; None where nothing was stated, and then it counts as fitting.
    """

    where: str
    lines: tuple[Line, ...]
    capacity: float | None = None

    @property
    def total(self) -> float:
        return sum(line.bytes for line in self.lines)

    @property
    def fits(self) -> bool:
        return self.capacity is None or self.total <= self.capacity

    def json(self) -> dict[str, Any]:
        return {**asdict(self), "total": self.total, "fits": self.fits}


def account(where: str, lines: Iterable[Line], capacity_gib: float = 0.0) -> Account:
    """Lines without bytes are left out; a capacity of 0 is one that nobody stated."""
    return Account(where, tuple(line for line in lines if line.bytes), capacity_gib * GIB or None)
