"""What the framework costs: one-call rows of 50 ms on two fake engines of 64 slots, and the same job in Ray Data."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import ray
from fakes import OneCall, fake_pool, prompt_table, run, steady_seconds, write_prompts

from shard_dist import cluster
from shard_dist.config.cluster import ClusterConfig
from shard_dist.config.schema import Backend, FakeConfig, ModelConfig
from shard_dist.engines.fake import FakeEngine
from shard_dist.records import Call, Sampling

ROWS, LATENCY, ENGINES, SLOTS = 20_000, 0.05, 2, 64
IDEAL = ROWS * LATENCY / (ENGINES * SLOTS)  # 7.8 s
# Four batches at once, Ray Data's default, are twice the slots of an engine.
BATCH = 32
# The table comes as one block, which keeps one actor busy and the other idle; of 20, 40 and 100 blocks 20 was fastest.
BLOCKS = 20
FAKE = FakeConfig(latency=LATENCY, slots=SLOTS)


class Asking:
    """The same engine as a callable of Ray Data, over batches of prompts."""

    def __init__(self) -> None:
        self.engine = FakeEngine(ModelConfig(backend=Backend.fake, model="fake", fake=FAKE))

    async def __call__(self, batch: dict[str, Any]) -> Any:
        import asyncio

        async def one(text: str) -> tuple[float, float, str]:
            begin = time.monotonic()
            call = Call("fake", "0", ({"role": "user", "content": text},), Sampling())
            answer = (await self.engine.generate(call)).text
            return begin, time.monotonic(), answer

        begins, ends, answers = map(list, zip(*await asyncio.gather(*map(one, batch["text"])), strict=True))
        yield {**batch, "begin": begins, "end": ends, "answer": answers}


def with_ray_data(prompts: Path, out: Path, blocks: int) -> dict[str, float]:
    """Parquet, an actor pool of asynchronous callables, Parquet; the blocks as they are read where `blocks` is 0."""
    started = time.monotonic()
    cluster.join(ClusterConfig())
    try:
        joined = time.monotonic()
        ray.data.DataContext.get_current().enable_progress_bars = False
        data = ray.data.read_parquet(str(prompts))
        data = data.repartition(blocks) if blocks else data
        pool = ray.data.ActorPoolStrategy(size=ENGINES)
        data.map_batches(Asking, batch_size=BATCH, compute=pool, max_concurrency=4).write_parquet(str(out))
        run_seconds = time.monotonic() - joined
    finally:
        cluster.leave()
    whole = time.monotonic() - started
    table = pq.read_table(out, columns=["begin", "end"])
    assert table.num_rows == ROWS
    steady = max(table["end"].to_pylist()) - min(table["begin"].to_pylist())
    return {"steady": steady, "run": run_seconds, "whole": whole}


def with_the_pool(prompts: Path, home: Path) -> dict[str, float]:
    started = time.monotonic()
    with fake_pool(home, FAKE, ENGINES) as pool:
        booted = time.monotonic()
        results = run(pool, OneCall(), prompt_table(prompts), home / "spool")
        run_seconds = time.monotonic() - booted
    whole = time.monotonic() - started
    return {"steady": steady_seconds(results), "run": run_seconds, "whole": whole}


def measure(work: Path, long: bool, passes: int = 3) -> dict[str, Any]:
    """Best of `passes` for the pool (other work on the machine only ever adds time), Ray Data beside it."""
    prompts = work / "prompts.parquet"
    write_prompts(prompts, ROWS)
    ours = [with_the_pool(prompts, work / f"pass-{number}") for number in range(passes)]
    theirs = {
        "as read": with_ray_data(prompts, work / "ray_data", 0),
        f"{BLOCKS} blocks": with_ray_data(prompts, work / "ray_data_blocks", BLOCKS),
    }
    best = min(ours, key=lambda one: one["steady"])
    return {
        "what": f"{ROWS} one-call rows of {LATENCY} s on {ENGINES} fake engines of {SLOTS} slots. steady: from the "
        "first row's beginning to the last row's end; run: without the cluster's start and end (Ray Data's actors "
        "start inside of it, the pool's engines before it); whole: with them",
        "ideal_seconds": IDEAL,
        "pool": ours,
        "ray_data": theirs,
        "ratios": [
            {"name": "pool, steady: share of the ideal", "value": IDEAL / best["steady"], "at_least": 0.93},
            {"name": "pool, whole: share of the ideal", "value": IDEAL / min(one["whole"] for one in ours)},
            *(
                {"name": f"Ray Data, {name}, {kind}: share of the ideal", "value": IDEAL / seconds[kind]}
                for name, seconds in theirs.items()
                for kind in ("steady", "whole")
            ),
        ],
    }
