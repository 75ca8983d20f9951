"""What the parts share: fake engines in a pool, and programs whose rows say when they began and ended."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from shard_dist import cluster
from shard_dist.config.cluster import ClusterConfig
from shard_dist.config.schema import Backend, FakeConfig, ModelConfig
from shard_dist.engines.pool import EnginePool
from shard_dist.engines.rows import Rows, TableRows
from shard_dist.engines.spool import Spool
from shard_dist.engines.telemetry import Telemetry
from shard_dist.engines.worker import ModelIdentity, Program, Role, RowAsk
from shard_dist.records import Sampling

HOME = "student"
PROMPT_SCHEMA = pa.schema([("text", pa.string()), ("category", pa.string())])


@dataclass(frozen=True)
class Stamped:
    """A program whose result is [begin, end, value], in seconds of the machine's monotonic clock."""

    program: Program

    async def __call__(self, row: Any, ask: RowAsk) -> list[Any]:
        begin = time.monotonic()
        value = await self.program(row, ask)
        return [begin, time.monotonic(), value]


class OneCall:
    """A row is the text of a prompt; the result is the answer's first sample."""

    async def __call__(self, row: str, ask: RowAsk) -> str:
        return (await ask(HOME, "answer", ({"role": "user", "content": row},), Sampling())).text


def write_prompts(path: Path, rows: int) -> None:
    """A Parquet table of `rows` distinct prompts of about 100 bytes, in row groups like those of a run."""
    with pq.ParquetWriter(path, PROMPT_SCHEMA) as writer:
        for start in range(0, rows, 1024):
            numbers = range(start, min(start + 1024, rows))
            texts = [f"How do I repair lamp number {n} of the long corridor behind the old kitchen?" for n in numbers]
            table = pa.table({"text": texts, "category": [f"category {n % 12}" for n in numbers]}, PROMPT_SCHEMA)
            writer.write_table(table)


def text_of(row: dict[str, Any]) -> str:
    return str(row["text"])


def prompt_table(path: Path) -> TableRows:
    return TableRows((path,), text_of, group="category", length="text")


@contextmanager
def fake_pool(home: Path, fake: FakeConfig, engines: int) -> Iterator[EnginePool]:
    """Engines that are up, with a ledger and logs in `home`, in a Ray cluster of their own on this machine."""
    spec = ModelConfig(backend=Backend.fake, model="fake", fake=fake, engines=engines)
    role = Role(HOME, spec, ModelIdentity("fake", "0"), str(home / "ledger"), home / "logs")
    cluster.join(ClusterConfig())
    try:
        with EnginePool([role], ClusterConfig(), Telemetry(None, "generate")) as pool:
            yield pool
    finally:
        cluster.leave()


def run(
    pool: EnginePool, program: Program, rows: Rows, spool: Path, progress: Callable[[int], None] = lambda done: None
) -> list[Any]:
    """The stamped results of a run, in the rows' order."""
    pool.run(Stamped(program), rows, HOME, spool, progress)
    return list(Spool(spool, len(rows)).ordered())


def steady_seconds(results: list[Any]) -> float:
    """From the beginning of the first row to the end of the last: engines are up, nothing is written together yet."""
    return float(max(end for _, end, _ in results) - min(begin for begin, _, _ in results))
