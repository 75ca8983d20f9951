"""Train, val or test, decided for each prompt from its own key, before anything is generated."""

from __future__ import annotations

import hashlib
import json

from shard_dist.config.schema import SplitConfig
from shard_dist.records import Prompt

BLOCK = 10  # ids that differ in their last digit only


def split_of(prompt: Prompt, shares: SplitConfig, seed: int) -> str:
    """The prompt's split: a pure function of (seed, dataset, group or else id).

    Other rows have no say: adding, removing, reordering or relabelling rows never moves a prompt, and a
    group is never torn apart. Such a rule cannot count the members of a stratum, which all have the same
    expected shares; but it can spread consecutive ids evenly (permuted-block randomisation, Matts and Lachin
    1988): of ten ids that differ in their last digit, shares of 0.2 and 0.1 take exactly two and one. Data
    sets number the rows of a category one after the other, so strata come out nearly exact: of the 28 rows on
    adult content in Do-Not-Answer 14 % to 21 % fall into a test set of 20 %; by plain hashing, which is what
    ids without a last digit get, 4 % to 36 % (200 seeds).
    """
    place = position(prompt.dataset, prompt.group or prompt.id, seed)
    if place < shares.test:
        return "test"
    return "val" if place < shares.test + shares.val else "train"


def position(dataset: str, unit: str, seed: int) -> float:
    """Where the unit (a group or an id) falls in [0, 1): uniform over seeds, evenly spread within a block."""
    block, last = (unit[:-1], int(unit[-1])) if unit[-1:] in set("0123456789") else (unit, 0)
    order = digest(seed, dataset, "block", block)
    slots = sorted(range(BLOCK), key=lambda slot: order[3 * slot : 3 * slot + 3])
    within = int.from_bytes(digest(seed, dataset, "unit", unit)[:6]) / 2**48  # 48 bits: 9 + within is exact
    return (slots[last] + within) / BLOCK


def digest(*parts: int | str) -> bytes:
    return hashlib.sha256(json.dumps(parts).encode()).digest()
