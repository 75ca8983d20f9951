"""One process of a group that adds up numbers over all nodes and times it: `python -m shard_dist.doctor.allreduce`.

Reads its part as JSON from its only argument and writes what it measured to the file `out` named there.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import timedelta
from itertools import pairwise
from pathlib import Path

import torch
import torch.distributed as dist

ENOUGH = 0.5  # seconds of measuring at one size
MOST_ROUNDS = 15  # rounds of pairs: all of them up to 16 nodes


@dataclass(frozen=True)
class Part:
    """One process's part. `leaders` are the first ranks of the nodes; `sizes` and `pair_size` are bytes."""

    rank: int
    world: int
    master: str
    backend: str
    sizes: list[int]
    pair_size: int
    leaders: list[int]
    seconds: float
    out: str


def bus_bandwidth(size: int, seconds: float, world: int) -> float:
    """GB/s (1e9 bytes) of an all-reduce: 2 (n - 1) / n x bytes / seconds, as nccl-tests define it."""
    return 2 * (world - 1) / world * size / seconds / 1e9


def rounds(leaders: Sequence[int]) -> list[list[tuple[int, int]]]:
    """Pairs of a tournament by the circle method: in each round every leader meets one other, at most."""
    players: list[int | None] = list(leaders) + ([None] if len(leaders) % 2 else [])
    games = []
    for _ in range(len(players) - 1):
        half = len(players) // 2
        meeting = zip(players[:half], reversed(players[half:]), strict=True)
        games.append([(min(a, b), max(a, b)) for a, b in meeting if a is not None and b is not None])
        players = [players[0], players[-1], *players[1:-1]]
    return games[:MOST_ROUNDS]


def _sum(size: int, part: Part, device: torch.device) -> tuple[bool, float]:
    """Whether the sum is right at this size, and the bus bandwidth of an all-reduce in GB/s."""
    base = torch.arange(size // 4, device=device, dtype=torch.float32).remainder_(7)
    data = base + part.rank
    _wait(device)
    start = time.perf_counter()
    dist.all_reduce(data)
    _wait(device)
    # Every rank must do as many rounds as the slowest finds enough.
    first = torch.tensor([time.perf_counter() - start], device=device)
    dist.all_reduce(first, op=dist.ReduceOp.MAX)
    right = bool((data == part.world * base + part.world * (part.world - 1) / 2).all())
    data.zero_()
    repeats = max(1, min(20, int(ENOUGH / max(first.item(), 1e-6))))
    dist.barrier()
    start = time.perf_counter()
    for _ in range(repeats):
        dist.all_reduce(data)
    _wait(device)
    return right, bus_bandwidth(size, (time.perf_counter() - start) / repeats, part.world)


def _pairs(part: Part, device: torch.device) -> dict[int, float]:
    """GB/s each way between this leader and each one that it met, the best of four exchanges after a first."""
    met: dict[int, float] = {}
    mine = torch.zeros(part.pair_size // 4, device=device)
    theirs = torch.empty_like(mine)
    for games in rounds(part.leaders):
        other = next((a + b - part.rank for a, b in games if part.rank in (a, b)), None)
        dist.barrier()
        if other is None:
            continue
        times = [time.perf_counter()]
        for _ in range(5):
            works = dist.batch_isend_irecv([dist.P2POp(dist.isend, mine, other), dist.P2POp(dist.irecv, theirs, other)])
            for work in works:
                work.wait()
            _wait(device)
            times.append(time.perf_counter())
        met[other] = part.pair_size / min(b - a for a, b in list(pairwise(times))[1:]) / 1e9
    return met


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def run(part: Part) -> None:
    device = torch.device("cuda" if part.backend == "nccl" else "cpu")  # the launcher shows a process one GPU
    dist.init_process_group(
        part.backend,
        init_method=f"tcp://{part.master}",
        rank=part.rank,
        world_size=part.world,
        timeout=timedelta(seconds=part.seconds),
        device_id=torch.device("cuda:0") if device.type == "cuda" else None,
    )
    sums = [_sum(size, part, device) for size in part.sizes]
    pairs = _pairs(part, device) if len(part.leaders) > 1 else {}
    found = {"right": [right for right, _ in sums], "bandwidth": [rate for _, rate in sums], "pairs": pairs}
    Path(part.out).write_text(json.dumps(found), encoding="utf-8")
    dist.destroy_process_group()


def words(part: Part) -> str:
    """A part as the program's argument."""
    return json.dumps(asdict(part))


if __name__ == "__main__":
    run(Part(**json.loads(sys.argv[1])))
