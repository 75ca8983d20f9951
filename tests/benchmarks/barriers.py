"""Row programs against three stages that each wait for their slowest row: the same engine, the same calls."""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import psutil
from fakes import HOME, fake_pool, run, steady_seconds
from schedule import SHAPES, SIGMA, Row, barriers, compare, drawn_rows, long_chains, lower_bound, rows_in_flight

from shard_dist.config.schema import FakeConfig
from shard_dist.engines.pool import EnginePool
from shard_dist.engines.rows import ListRows
from shard_dist.engines.worker import RowAsk
from shard_dist.ledger.store import Ledger
from shard_dist.prompts.render import Templates
from shard_dist.recipes.shard import Shard
from shard_dist.records import Prompt, Record, Sampling

# A step of a 7B model at a batch of 256 takes about 25 ms; 5 ms are as slow as it takes for the machine not to matter.
STEP = 0.005
CAP = 2_000
EXPECTED = {939: 1.24, 4_206: 1.12, 20_000: 1.02}  # times as fast, simulated before with shorter tails
SHARE = 0.95
SHARD = Shard(
    role=HOME,
    templates=Templates("toy"),
    guidelines={},
    answer_sampling=Sampling(max_tokens=CAP),
    rewrite_sampling=Sampling(max_tokens=CAP),
    rewrite_attempts=3,
    seed=0,
)


class Program:
    """SHARD, and of its record the keys of its calls."""

    async def __call__(self, prompt: Prompt, ask: RowAsk) -> dict[str, list[str]]:
        record: Record = await SHARD(prompt, ask)
        assert not record.failure
        return record.calls


@dataclass(frozen=True)
class OneStage:
    """A step of SHARD as a stage of its own; a row is the prompt and the fields that earlier stages have made."""

    step: str

    async def __call__(self, row: tuple[Prompt, dict[str, str]], ask: RowAsk) -> dict[str, str]:
        prompt, fields = row[0], dict(row[1])
        await {"rewrite": SHARD._rewrite, "draft": SHARD._draft, "reframe": SHARD._reframe}[self.step](
            prompt, ask, fields
        )
        return fields


def in_stages(pool: EnginePool, prompts: list[Prompt], home: Path) -> float:
    """Seconds in stages, without what lies between them."""
    fields: list[dict[str, str]] = [{} for _ in prompts]
    seconds = 0.0
    for step in ("rewrite", "draft", "reframe"):
        results = run(pool, OneStage(step), ListRows(list(zip(prompts, fields, strict=True))), home / f"spool-{step}")
        fields = [value for _, _, value in results]
        seconds += steady_seconds(results)
    return seconds


def as_rows(pool: EnginePool, prompts: list[Prompt], home: Path) -> tuple[float, list[dict[str, list[str]]]]:
    results = run(pool, Program(), ListRows(prompts), home / "spool")
    return steady_seconds(results), [value for _, _, value in results]


def lengths(calls: list[dict[str, list[str]]], location: Path) -> list[Row]:
    """What the engine drew, read back from the ledger."""
    ledger = Ledger(location)
    rows = []
    for row in calls:
        found = [ledger.get(row[step][0]) for step in ("rewrite", "draft", "reframe")]
        rewrite, draft, reframe = (one.completion_tokens for one in found if one)
        rows.append((rewrite, draft, reframe))
    ledger.close()
    return rows


def one_shape(work: Path, number: int, slots: int) -> dict[str, Any]:
    prompts = [
        Prompt("bench", str(n), f"How do I repair the old lamp number {n}?", f"c{n % 12}") for n in range(number)
    ]
    fake = FakeConfig(slots=slots, step_seconds=STEP, mean_tokens=400, mean_schema_tokens=120, refusal_rate=0)
    psutil.cpu_percent()
    with fake_pool(work / f"rows-{number}", fake, engines=1) as pool:
        rows_seconds, calls = as_rows(pool, prompts, work / f"rows-{number}")
    busy_rows = psutil.cpu_percent()
    with fake_pool(work / f"stages-{number}", fake, engines=1) as pool:
        stages_seconds = in_stages(pool, prompts, work / f"stages-{number}")
    busy_stages = psutil.cpu_percent()
    drawn = lengths(calls, work / f"rows-{number}" / "ledger")
    best = rows_in_flight(drawn, slots, long_chains, window=number)
    return {
        "rows": number,
        "slots": slots,
        "rows_seconds": rows_seconds,
        "stages_seconds": stages_seconds,
        "cpu_percent_of_the_machine": {"rows": busy_rows, "stages": busy_stages},
        "simulated_seconds": {
            "lower bound": lower_bound(drawn, slots) * STEP,
            "stages": barriers(drawn, slots) * STEP,
            "rows": best * STEP,
        },
        "times_as_fast": stages_seconds / rows_seconds,
        "ideal_times_as_fast": barriers(drawn, slots) / best,
    }


def ratios(shape: dict[str, Any]) -> list[dict[str, Any]]:
    name = f"{shape['rows']} prompts on {shape['slots']} slots"
    fast, ideal, expected = shape["times_as_fast"], shape["ideal_times_as_fast"], EXPECTED[shape["rows"]]
    return [
        {
            "name": f"{name}: times as fast as three stages",
            "value": fast,
            "at_least": SHARE * expected,
        },
        {"name": f"{name}: share of the ideal {ideal:.2f}", "value": fast / ideal, "at_least": SHARE},
    ]


def measure(work: Path, long: bool) -> dict[str, Any]:
    """The two shorter shapes; the longest, 7 minutes, where `long`."""
    begun = time.monotonic()
    simulated = [compare(drawn_rows(number, seed=0), slots) for number, slots in SHAPES]
    simulation_seconds = time.monotonic() - begun
    shapes = [one_shape(work, number, slots) for number, slots in SHAPES if long or number < 20_000]
    return {
        "what": "SHARD on one fake engine; seconds from the first row's beginning to the last row's end, for stages "
        "the sum of theirs; ideal: simulated over the lengths that the engine drew, all rows open, long chains first",
        "engine": asdict(FakeConfig(step_seconds=STEP)) | {"sigma": SIGMA, "cap": CAP},
        "shapes": shapes,
        "policies": {"seconds": simulation_seconds, "steps": simulated},
        "ratios": [ratio for shape in shapes for ratio in ratios(shape)],
    }
