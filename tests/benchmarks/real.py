"""The full SHARD program on a real engine against one offline `LLM.chat` over exactly the same calls, both warm."""

from __future__ import annotations

import asyncio
import json
import os
import random
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from fakes import HOME, Stamped, steady_seconds
from random_model import save_random_model

from shard_dist import cluster
from shard_dist.config.cluster import ClusterConfig
from shard_dist.config.schema import ModelConfig
from shard_dist.demo.intents import GUIDELINES
from shard_dist.demo.world import SEED_MODEL, sample_request
from shard_dist.engines.pool import EnginePool
from shard_dist.engines.rows import ListRows
from shard_dist.engines.spool import Spool
from shard_dist.engines.telemetry import Telemetry
from shard_dist.engines.worker import ModelIdentity, Role, RowAsk, RowState
from shard_dist.ledger.store import Ledger
from shard_dist.prompts.render import Templates
from shard_dist.recipes.shard import Shard
from shard_dist.records import Call, Completion, Prompt, Sampling

PROMPTS, WARM_UP = 400, 60
RAY_NICENESS = 15
IDLE = 2.0  # seconds after which vLLM's processes stop polling, so that the other side has both cores
ARGUMENTS = {
    "max_model_len": 1024,
    "max_num_seqs": 32,
    "max_num_batched_tokens": 4096,
    "enforce_eager": True,
    "enable_prefix_caching": True,
    "enable_chunked_prefill": False,  # a chunked prefill of a seeded request kills the CPU engine
    "disable_log_stats": True,
}
# Random weights would fill any white space that a grammar allows.
STRICT = {"structured_outputs_config": {"backend": "xgrammar", "disable_any_whitespace": True}}
ENVIRONMENT = {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_NO_USAGE_STATS": "1", "TOKENIZERS_PARALLELISM": "false"}


@dataclass(frozen=True)
class Contest:
    """A model, how often both sides run, and the share of the offline calls/s that the program has to reach."""

    name: str
    arguments: dict[str, Any]
    passes: int
    at_least: float


SEED = Contest("seed model, 1.8 M", ARGUMENTS, passes=4, at_least=0.85)
RANDOM = Contest("random weights, 100 M", ARGUMENTS | STRICT, passes=1, at_least=0.95)


def shard(number: int) -> Shard:
    """The program of a pass: its seed makes every call of it a new one."""
    sampling = Sampling(temperature=0.3, max_tokens=96)
    return Shard(
        role=HOME,
        templates=Templates("toy"),
        guidelines=GUIDELINES,
        answer_sampling=sampling,
        rewrite_sampling=replace(sampling, max_tokens=160),
        rewrite_attempts=3,
        seed=number,
    )


@dataclass(frozen=True)
class Program:
    shard: Shard

    async def __call__(self, prompt: Prompt, ask: RowAsk) -> str:
        return (await self.shard(prompt, ask)).failure


def prompts(number: int, size: int) -> list[Prompt]:
    """New ones for every pass, so that no prefix cache knows them."""
    draw = random.Random(number)
    requests = [sample_request(draw) for _ in range(size)]
    return [
        Prompt("bench", f"{number}-{n}", request.prompt, request.intent.category) for n, request in enumerate(requests)
    ]


class Replay:
    """Answers from the ledger alone, and remembers what was asked."""

    def __init__(self, ledger: Ledger) -> None:
        self.ledger = ledger
        self.calls: dict[str, Call] = {}

    async def complete(self, key: str, call: Call, row: RowState) -> Completion:
        self.calls[key] = call
        completion = self.ledger.get(key)
        assert completion is not None, "a call that the run did not make"
        return completion


def calls_of(program: Program, rows: list[Prompt], role: Role) -> list[Call]:
    """The calls of a finished pass, by running its program over the ledger."""

    async def every() -> None:
        for row in rows:
            await program(row, RowAsk({HOME: replay}, {HOME: role.identity}))

    ledger = Ledger(role.ledger)
    replay = Replay(ledger)
    asyncio.run(every())
    ledger.close()
    return list(replay.calls.values())


class Offline:
    """The process of `offline.py`."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process

    def measure(self, calls: list[Call], path: Path) -> dict[str, Any]:
        path.write_text(json.dumps([asdict(call) for call in calls]))
        assert self.process.stdin is not None
        print(path, file=self.process.stdin, flush=True)
        done = path.with_name(path.name + ".done")
        self.wait_for(done)
        return dict(json.loads(done.read_text()))

    def wait_for(self, path: Path) -> None:
        while not path.exists():
            assert self.process.poll() is None, "the offline process ended; its log says why"
            time.sleep(0.1)


@contextmanager
def offline(work: Path, spec: ModelConfig) -> Iterator[Offline]:
    settings, ready = work / "offline.json", work / "ready"
    settings.write_text(json.dumps({"model": spec.model, "arguments": spec.engine_args, "ready": str(ready)}))
    # Ray gives its workers niceness 15: on a machine that does other work too the contest would not be even.
    script = str(Path(__file__).with_name("offline.py"))
    command = ["nice", "-n", str(RAY_NICENESS), sys.executable, script, str(settings)]
    with (work / "offline.log").open("w") as log:
        process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=log, stderr=log, text=True, env=os.environ | ENVIRONMENT
        )
    try:
        peer = Offline(process)
        peer.wait_for(ready)
        yield peer
    finally:
        assert process.stdin is not None
        process.stdin.close()
        process.wait(60)


def one_pass(pool: EnginePool, peer: Offline, role: Role, work: Path, number: int, size: int) -> dict[str, Any]:
    """The program first, then the same calls offline."""
    program, rows, spool = Program(shard(number)), prompts(number, size), work / f"spool-{number}"
    time.sleep(IDLE)
    begin = time.monotonic()
    pool.run(Stamped(program), ListRows(rows), HOME, spool, lambda done: None)
    seconds = time.monotonic() - begin
    results = list(Spool(spool, size).ordered())
    calls = calls_of(program, rows, role)
    time.sleep(IDLE)
    theirs = peer.measure(calls, work / f"calls-{number}.json")
    found = {
        "prompts": size,
        "complete": sum(not failure for _, _, failure in results),
        "calls": len(calls),
        "program_seconds": seconds,
        "program_steady_seconds": steady_seconds(results),
        "offline_seconds": theirs["seconds"],
        "completion_tokens_offline": theirs["completion_tokens"],
        "load_average": os.getloadavg()[0],
    }
    print(found, file=sys.stderr, flush=True)
    return found


def contest(work: Path, model: Path, settings: Contest) -> dict[str, Any]:
    work.mkdir()
    spec = ModelConfig(model=str(model), engine_args=dict(settings.arguments), env=dict(ENVIRONMENT))
    role = Role(HOME, spec, ModelIdentity(settings.name, "0"), str(work / "ledger"), work / "logs")
    cluster.join(ClusterConfig())
    try:
        with (
            offline(work, spec) as peer,
            EnginePool([role], ClusterConfig(), Telemetry(None, "generate")) as pool,
        ):
            warm_up = one_pass(pool, peer, role, work, 0, WARM_UP)
            passes = [one_pass(pool, peer, role, work, number + 1, PROMPTS) for number in range(settings.passes)]
    finally:
        cluster.leave()
    return {"name": settings.name, "warm_up": warm_up, "passes": passes, "ratio": best_ratio(passes, "program_seconds")}


def best_ratio(passes: list[dict[str, Any]], kind: str) -> float:
    """Calls/s of the program over calls/s offline: the best pass of each, since other work only ever adds time."""
    program = max(one["calls"] / one[kind] for one in passes)
    return float(program / max(one["calls"] / one["offline_seconds"] for one in passes))


def measure(work: Path, long: bool) -> dict[str, Any]:
    parameters = save_random_model(work / "random")
    contests = [contest(work / "seed", SEED_MODEL, SEED), contest(work / "hundred", work / "random", RANDOM)]
    ratios = []
    for settings, found in zip((SEED, RANDOM), contests, strict=True):
        name = f"{settings.name}: calls/s of the program over offline"
        ratios += [
            {"name": name, "value": found["ratio"], "at_least": settings.at_least},
            {"name": f"{name}, steady", "value": best_ratio(found["passes"], "program_steady_seconds")},
            {"name": f"{settings.name}: rows complete", "value": found["passes"][0]["complete"] / PROMPTS},
        ]
    return {
        "what": "program: the whole of pool.run; offline: the whole of LLM.chat, all asked at once; steady: from "
        "the first row's beginning to the last row's end",
        "random_parameters": parameters,
        "contests": contests,
        "ratios": ratios,
    }
