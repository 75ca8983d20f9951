"""From 1 to 64 nodes of eight GPUs: throughput, and what limits it, by simulation. Writes nodes.json and nodes.svg.

    python tests/benchmarks/many_nodes.py [--measure] [--out DIRECTORY]

Without --measure from the measurements in nodes.json, the same bytes every time, in minutes. With it they are made anew
on this machine first: Ray nodes in network namespaces (root, iproute2), 15 minutes more.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import random
import statistics
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import node_training
from node_model import Costs, Machines, simulate
from node_plot import plot
from node_training import Trainer, training
from schedule import DRAFT, REFRAME, REWRITE, Row, drawn_rows

from shard_dist.engines.pool import LOOK

RESULTS = Path(__file__).parent / "results"
NODES = (1, 2, 3, 4, 8, 16, 32, 64)
PROMPTS = (939, 20_000, 1_000_000)
FITTED = ("one node", "two nodes")  # of the real runs; the others are predicted from these
IDLE, RARE = 0.05, 0.01  # share of the time, failures expected: below that a run without them is not simulated
LATE, DRAWS = 1.0, 9  # seconds, and how many runs a prediction is the median of
COARSE = 2_500  # rows simulated at most; each then stands for several
TRAINED, EPOCHS = 0.8, 3  # share of the prompts that is trained on, and how often
MONTH = 30 * 86_400.0  # between failures of a node

# Stated, not measured. H100 SXM: 3.35 TB/s and 989 TFLOP/s by the data sheet, of which decoding reaches half and
# prefill 35 % (the defaults of cluster.speed). A call has 700 tokens in the cache on average, 400 of its prompt are
# not there yet. Boots: compilation and graphs. The shared file system: 20 GB/s, 5 GB/s to a node, 50,000 appends/s.
BANDWIDTH, FLOPS, CONTEXT, PREFILL = 3.35e12 * 0.5, 989e12 * 0.35, 700, 400
STORAGE = {"storage": 20e9, "storage_per_node": 5e9, "writes": 50_000.0}
PARAMETERS = {"8B": 8.03e9, "70B": 70.6e9}
LAYERS = {"8B": 32, "70B": 80}
TENSOR = {"8B": 1, "70B": 4}  # GPUs of an engine
BOOT = {"8B": 60.0, "70B": 120.0}
KV_BYTES = {"8B": 2 * 2 * 32 * 8 * 128, "70B": 2 * 2 * 80 * 8 * 128}  # of a token


def machines(shape: str) -> Machines:
    gpus, weights = TENSOR[shape], 2 * PARAMETERS[shape]
    return Machines(
        engines_per_node=8 // gpus,
        slots=256,
        step=weights / (gpus * BANDWIDTH),
        step_per_call=CONTEXT * KV_BYTES[shape] / (gpus * BANDWIDTH),
        prefill=PREFILL * weights / (gpus * FLOPS),
        boot=BOOT[shape],
        weights=weights,
        **STORAGE,
    )


def trainer(shape: str, prompts: int, nodes: int, groups: dict[str, Any]) -> Trainer:
    # One group of the same size starts once; after a loss another one does, once Ray has noticed.
    return Trainer(
        weights=PARAMETERS[shape],
        layers=LAYERS[shape],
        examples=round(prompts * TRAINED) * EPOCHS,
        nodes=nodes,
        start=groups["start_seconds"],
        restart=groups["restart_seconds"],
        mtbf=MONTH,
    )


# -- what was measured, as parameters


def slope(low: tuple[float, float], high: tuple[float, float]) -> float:
    return max(0.0, (high[1] - low[1]) / (high[0] - low[0]))


def by_engines(found: dict[str, float]) -> tuple[float, float]:
    """Cost without engines, and more per engine, from the fewest and the most that were measured."""
    points = sorted((int(number), seconds) for number, seconds in found.items())
    each = slope(points[0], points[-1])
    return points[0][1] - each * points[0][0], each


def costs_of(calibration: dict[str, Any], fitted: Sequence[str]) -> Costs:
    pieces, runs = calibration["pieces"], calibration["pool"]
    sizes = sorted(runs.values(), key=lambda run: run["engines"])
    talk, dry = (by_engines(pieces[f"queue_{kind}_by_engines"]) for kind in ("talk", "dry_talk"))
    row = by_engines(pieces["queue_row_by_engines"])
    looks = [(run["engines"], run["driver_cpu"] / run["run_seconds"]) for run in (sizes[0], sizes[-1])]
    base = Costs(
        start=min(runs[name]["booted"][0] for name in fitted),
        begin=min(runs[name]["first_row_seconds"] for name in fitted),
        call=0.0,
        talk=pieces["queue_actor"]["talk_cpu"] + talk[0],
        talk_per_engine=max(talk[1], dry[1]),
        row=row[0],
        row_per_engine=row[1],
        watch=LOOK * slope(*looks),
        notice=calibration["notice_seconds"],
        end=min(runs[name]["last_row_to_return"] for name in fitted),
        end_per_row=pieces["driver_end_row"] + pieces["spool_look_row"],
        line=pieces["ledger"]["bytes"],
    )
    tries = [replace(base, call=milliseconds / 1000) for milliseconds in range(0, 21, 4)]
    return min(
        tries, key=lambda one: sum(check(runs[name], calibration["lengths"], one)["error"] ** 2 for name in fitted)
    )


def check(run: dict[str, Any], lengths: Sequence[Row], costs: Costs) -> dict[str, float]:
    """A real run predicted: seconds from the first row's beginning to the last row's end.

    When its engines were up is taken from the run: on a busy machine that is anybody's guess. Who gets the last long
    rows hangs on fractions of a second, so this is the median and the range where engines are up to a second late.
    """
    machine, rows, draw = Machines(1, run["slots"], run["step"]), lengths[: run["rows"]], random.Random(0)
    lose = run["booted"][0] + run["killed_after_seconds"] if run["lose"] else math.inf
    predicted = []
    for late in [0.0] + [LATE] * (DRAWS - 1):
        up = [time + late * draw.random() for time in run["booted"]]
        found = simulate(rows, run["nodes"], machine, costs, up=up, lose=lose)
        predicted.append(found.rows - found.begun)
    middle = statistics.median(predicted)
    return {
        "predicted": middle,
        "lowest": min(predicted),
        "highest": max(predicted),
        "measured": run["rows_seconds"],
        "error": middle / run["rows_seconds"] - 1,
        "rows_per_second": run["rows"] / run["rows_seconds"],
        "load_average": run["load_average"],
    }


# -- what is taken away, to see what it cost

FREE: dict[str, Callable[[list[Row], Machines, Costs], tuple[list[Row], Machines, Costs]]] = {
    "GPUs": lambda rows, m, c: (rows, replace(m, step_per_call=0.0, prefill=0.0, slots=64 * m.slots), c),
    "longest rows": lambda rows, m, c: (_even(rows), m, c),
    "boots": lambda rows, m, c: (
        rows, replace(m, boot=0.0, weights=0.0, boots_per_node=math.inf), replace(c, start=0.0),
    ),
    "row queue": lambda rows, m, c: (rows, m, replace(c, talk=0.0, talk_per_engine=0.0, row=0.0, row_per_engine=0.0)),
    "driver": lambda rows, m, c: (rows, m, replace(c, watch=0.0, begin=0.0, end=0.0, end_per_row=0.0)),
    "shared storage": lambda rows, m, c: (
        rows, replace(m, storage=math.inf, storage_per_node=math.inf, writes=math.inf), c,
    ),
}  # fmt: skip


def _even(rows: list[Row]) -> list[Row]:
    """Rows of the same work, each as long as the mean."""
    mean = tuple(max(1, round(sum(row[kind] for row in rows) / len(rows))) for kind in (REWRITE, DRAFT, REFRAME))
    return [(mean[0], mean[1], mean[2])] * len(rows)


# -- the grid


def coarse(prompts: int, slots: int) -> tuple[list[Row], float]:
    """Rows to simulate, and how many real ones each of them is."""
    grain = min(max(1, 2 ** math.ceil(math.log2(prompts / COARSE))), slots // 4)
    return drawn_rows(round(prompts / grain), seed=0), prompts / round(prompts / grain)


def generation_point(shape: str, prompts: int, nodes: int, costs: Costs) -> dict[str, Any]:
    """One stage, and the seconds that it would be shorter by if one resource were free."""
    machine = machines(shape)
    rows, grain = coarse(prompts, machine.slots)
    found = simulate(rows, nodes, machine, costs, grain=grain)
    expected, lost = found.whole * nodes / MONTH, 0.0
    if expected > RARE:
        later = simulate(rows, nodes, machine, costs, grain=grain, lose=(found.begun + found.rows) / 2)
        lost = expected * (later.whole - found.whole)
    saved = {"failures": lost}
    busy = {
        "row queue": found.queue_busy,
        "shared storage": machine.weights * nodes / machine.storage / found.whole,
    }
    for name, free in FREE.items():
        if busy.get(name, 1.0) > IDLE:  # what is idle nearly all the time saves nothing
            saved[name] = found.whole - simulate(*_moved(free(rows, machine, costs), nodes), grain=grain).whole
    seconds = found.whole + lost
    return {
        "shape": shape, "prompts": prompts, "nodes": nodes, "engines": nodes * machine.engines_per_node,
        "seconds": seconds, "rows_per_second": prompts / seconds, "tokens_per_second": found.tokens / seconds,
        "first_engine_seconds": found.first, "last_row_seconds": found.rows, "queue_busy": found.queue_busy,
        "decoding": found.decoding, "failures_expected": expected, "saved_if_free": saved,
        "bottleneck": max(saved, key=lambda name: saved[name]),
    }  # fmt: skip


def _moved(parts: tuple[list[Row], Machines, Costs], nodes: int) -> tuple[list[Row], int, Machines, Costs]:
    rows, machine, costs = parts
    return rows, nodes, machine, costs


def training_point(shape: str, prompts: int, nodes: int, groups: dict[str, Any]) -> dict[str, Any]:
    one = trainer(shape, prompts, nodes, groups)
    found = training(one)
    saved = {name: found["seconds"] - training(free(one))["seconds"] for name, free in node_training.FREE.items()}
    bottleneck = max(saved, key=lambda name: saved[name])
    return {
        "shape": shape, "prompts": prompts, "nodes": nodes, "ranks": one.ranks,
        "ranks_with_work": min(one.ranks, one.batch), **found, "saved_if_free": saved, "bottleneck": bottleneck,
    }  # fmt: skip


def with_efficiency(points: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Beside each point how many times as fast as one node it is, and that over the nodes."""
    alone = {(one["shape"], one["prompts"]): one["seconds"] for one in points if one["nodes"] == 1}
    for one in points:
        one["times_one_node"] = alone[one["shape"], one["prompts"]] / one["seconds"]
        one["efficiency"] = one["times_one_node"] / one["nodes"]
    return points


def remedies(costs: Costs, groups: dict[str, Any]) -> list[dict[str, Any]]:
    """What settings that exist already change at 64 nodes."""
    found = []
    for shape in PARAMETERS:
        machine, (rows, grain) = machines(shape), coarse(20_000, 256)
        before = simulate(rows, 64, machine, costs, grain=grain).whole
        all_at_once = replace(machine, boots_per_node=float(machine.engines_per_node))
        after = simulate(rows, 64, all_at_once, costs, grain=grain).whole
        found.append(_change(f"generation, {shape}, 20,000 prompts: cluster.boots_at_once: all", before, after))
        one = trainer(shape, 1_000_000, 64, groups)
        larger = training(replace(one, batch=512))["seconds"]
        name = f"training, {shape}, 1,000,000 prompts: train.global_batch_size: 512"
        found.append(_change(name, training(one)["seconds"], larger))
    return found


def _change(name: str, before: float, after: float) -> dict[str, Any]:
    return {"what": name, "seconds_before": before, "seconds": after, "times_as_fast": before / after}


def document(
    calibration: dict[str, Any], nodes: Sequence[int] = NODES, prompts: Sequence[int] = PROMPTS
) -> dict[str, Any]:
    """Everything that follows from a calibration: parameters, how well they predict, the grid."""
    costs = costs_of(calibration, FITTED)
    checks = {
        name: check(run, calibration["lengths"], costs) | {"fitted": name in FITTED}
        for name, run in calibration["pool"].items()
    }
    groups = groups_of(calibration["groups"])
    points = [(shape, asked, number, costs) for shape in PARAMETERS for asked in prompts for number in nodes]
    with ProcessPoolExecutor(os.cpu_count()) as pool:
        generated = list(pool.map(generation_point, *zip(*points, strict=True)))
    trained = [training_point(shape, asked, number, groups) for shape, asked, number, _ in points]
    return {
        "calibration": calibration,
        "costs": vars(costs),
        "groups": groups,
        "checks": checks,
        "generation": with_efficiency(generated),
        "training": with_efficiency(trained),
        "remedies": remedies(costs, groups),
    }


def groups_of(found: dict[str, Any]) -> dict[str, float]:
    """Seconds that a worker group takes to start, and to run again after a node's death: the least of what was seen."""
    return {
        "start_seconds": min(run["start_seconds"] for run in found.values()),
        "restart_seconds": found["3, one lost"]["restart_seconds"],
    }


def rounded(value: Any) -> Any:
    """Four digits, so that the last bits of a machine's arithmetic do not show."""
    if isinstance(value, dict):
        return {name: rounded(inner) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return [rounded(inner) for inner in value]
    return float(f"{value:.4g}") if isinstance(value, float) else value


def text_of(found: dict[str, Any]) -> str:
    """JSON, lists of numbers on one line each."""
    compact = {"lengths": found["calibration"]["lengths"]}
    lines = json.dumps({**found, "calibration": {**found["calibration"], "lengths": 0}}, indent=1)
    return lines.replace('"lengths": 0', f'"lengths": {json.dumps(compact["lengths"], separators=(",", ":"))}') + "\n"


def measured() -> dict[str, Any]:
    """Measure on this machine."""
    import node_costs
    import node_runs

    runs = node_runs.measure()
    lengths = max((run.pop("lengths") for run in runs["pool"].values()), key=len)
    notice = runs["pool"]["three nodes, one lost"]["notice_seconds"]
    return {**runs, "lengths": lengths, "notice_seconds": notice, "pieces": node_costs.measure()}


def tell(found: dict[str, Any]) -> None:
    for name, one in found["checks"].items():
        how = "fitted" if one["fitted"] else "predicted"
        print(f"{name:45s} {one['measured']:7.1f} s measured, {one['predicted']:7.1f} s {how} ({one['error']:+.1%})")
    for kind in ("generation", "training"):
        for one in found[kind]:
            place = f"{kind} {one['shape']:4s}{one['prompts']:9,d} prompts {one['nodes']:3d} nodes"
            print(f"{place}{one['seconds']:11,.0f} s {one['tokens_per_second']:11,.0f} tokens/s "
                  f"{one['efficiency']:5.0%}  {one['bottleneck']}")  # fmt: skip
    for one in found["remedies"]:
        print(f"{one['what']}: {one['seconds_before']:,.0f} s -> {one['seconds']:,.0f} s")


def main() -> None:
    parser = argparse.ArgumentParser(
        "many_nodes.py", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--measure", action="store_true", help="measure anew first (root; 15 minutes)")
    parser.add_argument("--out", type=Path, default=RESULTS, help="default: %(default)s")
    options = parser.parse_args()
    calibration = measured() if options.measure else json.loads((RESULTS / "nodes.json").read_text())["calibration"]
    found = rounded(document(rounded(calibration)))
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "nodes.json").write_text(text_of(found))
    (options.out / "nodes.svg").write_text(plot(found))
    tell(found)


if __name__ == "__main__":
    main()
