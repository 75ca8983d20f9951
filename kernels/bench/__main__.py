"""Benchmark of the fused loss: every provider that is installed, on the same inputs, interleaved.

Writes one JSON document, after every shape, and a plot beside it (.png). Nothing but torch is needed (and triton on a
GPU); peers that are not installed are named in the document with the reason. `make peers` installs what there is.
"""

from __future__ import annotations

import argparse
import gc
import logging
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

import torch

from bench import plot, results
from bench.measure import Bench, Errors, Loss, Outcome, Run
from bench.providers import GEMMS, PROVIDERS, load, three_gemms
from bench.shapes import CPU, DTYPES, GPU, HEADS, SHARES, Batch, Shape, draw, grid

log = logging.getLogger("bench")


def main(argv: list[str] | None = None) -> int:
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    arguments = sys.argv[1:] if argv is None else argv
    options = _options(arguments)
    try:
        return _bench(options, arguments)
    except results.Unusable as error:
        log.error("%s", error)
        return 2


def _bench(options: argparse.Namespace, arguments: list[str]) -> int:
    if options.plot_only:
        plot.draw(results.read(options.plot_only), options.plot_only.with_suffix(".png"))
        return 0
    device = torch.device(options.device)
    losses, absent = load(options.providers, device)
    for name, reason in absent.items():
        log.info("%s takes no part: %s", name, reason)
    document = results.start(device, options.repeats, absent, arguments)
    if options.resume:
        document = results.resume(options.out, document)
    shapes = grid([HEADS[name] for name in options.heads], options.dtypes, options.tokens, options.shares)
    _run(shapes, losses, device, options, document)
    plot.draw(document, options.out.with_suffix(".png"))
    return 0


def _run(
    shapes: list[Shape],
    losses: dict[str, Loss],
    device: torch.device,
    options: argparse.Namespace,
    document: dict[str, Any],
) -> None:
    begin = time.monotonic()
    bench = Bench(device)
    measured = [{key: record[key] for key in shapes[0].key()} for record in document["records"]]
    left = [shape for shape in shapes if shape.key() not in measured]
    for number, shape in enumerate(left):
        if time.monotonic() - begin > options.budget_seconds:
            missing = [other.key() for other in left[number:]]
            document["stopped"] = {"reason": f"--budget-seconds {options.budget_seconds:g} were over", "left": missing}
            log.warning(
                "%g seconds are over: %d shapes left out; --resume goes on", options.budget_seconds, len(missing)
            )
            break
        outcomes, plain = _measure(shape, losses, bench, options.repeats)
        found = results.records(shape, outcomes, plain, device)
        document["records"] += found
        document["comparisons"].append(results.comparison(shape, found, plain))
        results.write(options.out, document)
        _tell(shape, found)
    results.write(options.out, document)
    log.info("%s", options.out)


def _measure(shape: Shape, losses: dict[str, Loss], bench: Bench, repeats: int) -> tuple[dict[str, Outcome], Errors]:
    batch = draw(shape, bench.device)
    runs: dict[str, Run] = {name: partial(_step, loss, batch) for name, loss in losses.items()}
    outcomes = bench.race(runs | {GEMMS: three_gemms(batch)}, repeats, batch.clear)
    plain = bench.judge(outcomes, losses, batch)
    del batch, runs
    gc.collect()
    if bench.gpu:
        torch.cuda.empty_cache()
    return outcomes, plain


def _step(loss: Loss, batch: Batch) -> None:
    loss(batch).backward()


def _tell(shape: Shape, found: list[dict[str, Any]]) -> None:
    log.info("%s N=%d f=%g %s", shape.head.name, shape.tokens, shape.share, shape.dtype_name)
    for record in sorted(found, key=lambda r: r["hot_ms"] or float("inf")):
        if record["status"] != "ok":
            log.info("  %-18s %s: %s", record["provider"], record["status"], record["reason"])
            continue
        percent, error = record["percent_of_gemms"], record["dweight_error"]
        log.info(
            "  %-18s hot %9.2f ms  cold %9.2f ms  %6s of the GEMMs  %9.1f MiB%s%s",
            record["provider"],
            record["hot_ms"],
            record["cold_ms"],
            f"{percent:.0f} %" if percent else "-",
            record["peak_mib"],
            f" ({record['planned_mib']:.1f} planned, plan {record['plan']})" if record["plan"] else "",
            f"  dW error {error:.1e}{'' if record['exact'] else ', not exact'}" if error is not None else "",
        )


def _options(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser("python -m bench", description=__doc__)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", help="cuda, cuda:1 or cpu")
    parser.add_argument("--out", type=Path, default=Path("build/bench/kernels.json"), help="default: %(default)s")
    parser.add_argument("--heads", nargs="+", choices=HEADS, metavar="HEAD", help=f"of {', '.join(HEADS)}")
    parser.add_argument("--tokens", nargs="+", type=_count, metavar="N", help="tokens in a batch")
    parser.add_argument("--shares", nargs="+", type=_share, metavar="F", default=[*SHARES], help="supervised shares")
    parser.add_argument("--dtypes", nargs="+", choices=DTYPES, help="default: bf16, on a CPU fp32 too")
    parser.add_argument(
        "--providers", nargs="+", choices=PROVIDERS, metavar="NAME", default=[*PROVIDERS], help=", ".join(PROVIDERS)
    )
    parser.add_argument("--repeats", type=_count, help="timed rounds; default: 20, on a CPU 5")
    parser.add_argument(
        "--budget-seconds", type=float, default=float("inf"), help="begin no further shape after so long"
    )
    parser.add_argument("--resume", action="store_true", help="go on with the shapes that --out does not have yet")
    parser.add_argument("--plot-only", type=Path, metavar="JSON", help="measure nothing, plot this document")
    options = parser.parse_args(argv)
    if options.device.startswith("cuda") and not torch.cuda.is_available():
        parser.error(f"--device {options.device}: torch {torch.__version__} sees no GPU; use --device cpu")
    default = GPU if options.device.startswith("cuda") else CPU
    options.heads = options.heads or [head.name for head in default.heads]
    options.tokens = options.tokens or [*default.tokens]
    options.dtypes = options.dtypes or [*default.dtypes]
    options.repeats = options.repeats or default.repeats
    return options


def _count(text: str) -> int:
    if (value := int(text)) < 1:
        raise argparse.ArgumentTypeError(f"{text} must be 1 or more")
    return value


def _share(text: str) -> float:
    if not 0 < (value := float(text)) <= 1:
        raise argparse.ArgumentTypeError(f"{text} must be above 0, at most 1")
    return value


if __name__ == "__main__":
    raise SystemExit(main())
