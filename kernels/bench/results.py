"""The document of a run: where and how it was measured, one record per shape and provider, and who was fastest."""

from __future__ import annotations

import json
import os
import platform
import shlex
import subprocess
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from bench.measure import FLUSH_BYTES, WARMUP_ROUNDS, Errors, Outcome, exact, summary
from bench.providers import GEMMS, PROVIDERS, our_plan
from bench.shapes import Shape

H100_FLOPS = 798e12  # dense bf16, measured on a square product of 8192: a burst, not a sustained rate
MIB = 2**20

PROTOCOL = {
    "what": "mean loss forward and backward, gradients for hidden and weight; the head without softcap or bias",
    "inputs": "random normal, logits N(0, 1); supervised positions drawn at random; the same for every provider",
    "order": "providers interleaved in every round; in each round a cold run, then a hot one",
    "warmup_rounds": WARMUP_ROUNDS,
    "statistic": "median over rounds, beside it the interquartile range",
    "cold": f"after a write of {FLUSH_BYTES // MIB} MiB, more than an L2 holds",
    "clock": {"cuda": "CUDA events", "cpu": "time.perf_counter"},
    "peak_mib": "most allocated during forward and backward, less what was before, less dX [N, H]; dW is counted",
    "ours": "gets the positions of supervised tokens and their labels, as a collator has them: outside of the timing",
    GEMMS: "logits, dX and dW of the supervised rows alone, by torch.mm, in the same rounds",
    "exact": "relative Frobenius errors of dX and dW at most 2 times plain torch's in the same dtype, + 1e-4",
    "truth": {"cuda": "fp32", "cpu": "fp64"},
}


class Unusable(ValueError):
    """A document that cannot be gone on with, or is none."""


def environment(device: torch.device, repeats: int) -> dict[str, Any]:
    """The head of the document."""
    packages = ["torch", "triton", *sorted({provider.package for provider in PROVIDERS.values()} - {"torch"})]
    return {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else _processor(),
        "device_type": device.type,
        "threads": torch.get_num_threads(),
        "versions": {"python": platform.python_version(), "cuda": torch.version.cuda}
        | {name: _version(name) for name in packages},
        "protocol": PROTOCOL | {"repeats": repeats},
    }


def start(device: torch.device, repeats: int, absent: dict[str, str], arguments: list[str]) -> dict[str, Any]:
    """A document without records."""
    return environment(device, repeats) | {
        "command": shlex.join(["python", "-m", "bench", *arguments]),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": _commit(),
        "absent": absent,
        "stopped": None,
        "records": [],
        "comparisons": [],
    }


def records(shape: Shape, outcomes: dict[str, Outcome], plain: Errors, device: torch.device) -> list[dict[str, Any]]:
    """One per contestant; the three products are one of them."""
    gemms = outcomes[GEMMS]
    gemm_ms = summary(gemms.hot)[0] if gemms.status == "ok" else None
    floor_ms = 1e3 * shape.flops / H100_FLOPS if device.type == "cuda" else None
    return [_record(shape, name, outcome, plain, gemm_ms, floor_ms, device) for name, outcome in outcomes.items()]


def _record(
    shape: Shape,
    name: str,
    outcome: Outcome,
    plain: Errors,
    gemm_ms: float | None,
    floor_ms: float | None,
    device: torch.device,
) -> dict[str, Any]:
    provider = PROVIDERS.get(name)
    record: dict[str, Any] = shape.key() | {
        "hidden": shape.head.hidden,
        "vocab": shape.head.vocab,
        "supervised": shape.supervised,
        "provider": name,
        "status": outcome.status,
        "reason": outcome.reason,
    }
    timed = outcome.status == "ok"
    hot, hot_spread = summary(outcome.hot) if timed else (None, None)
    cold, cold_spread = summary(outcome.cold) if timed else (None, None)
    record |= {"hot_ms": hot, "hot_iqr_ms": hot_spread, "cold_ms": cold, "cold_iqr_ms": cold_spread}
    record |= {
        "retimed": outcome.retimed,
        "percent_of_gemms": 100 * hot / gemm_ms if hot and gemm_ms else None,
        "percent_of_798_tflops": 100 * hot / floor_ms if hot and floor_ms else None,
    }
    losses = provider is not None
    dhidden = shape.tokens * shape.head.hidden * shape.dtype.itemsize if losses else 0
    plan = our_plan(name, shape, device) if provider and provider.ours else None
    model = plan.bytes if plan else provider.bytes(shape) if provider and provider.bytes else None
    record |= {
        "peak_mib": (outcome.peak - dhidden) / MIB if outcome.peak is not None else None,
        "planned_mib": model / MIB if model is not None else None,  # ours: the planner's; others: their byte model
        "plan": plan.name if plan else None,
    }
    errors = outcome.errors
    record |= {f"{key}_error": getattr(errors, key, None) for key in Errors._fields}
    return record | {"exact": exact(errors, plain) if errors else None}


def comparison(shape: Shape, found: list[dict[str, Any]], plain: Errors) -> dict[str, Any]:
    """The fastest exact peer against ours: ratios above 1 are in our favour."""
    peers = [r for r in found if r["exact"] and not PROVIDERS[r["provider"]].ours and r["hot_ms"]]
    mine = next((r for r in found if r["provider"] == "ours" and r["exact"]), None)
    result: dict[str, Any] = shape.key() | {"plain_torch_errors": plain._asdict()}
    for heat in ("hot", "cold"):
        best = min(peers, key=lambda r: r[f"{heat}_ms"], default=None)
        result[f"fastest_exact_peer_{heat}"] = best and best["provider"]
        result[f"ratio_{heat}"] = best[f"{heat}_ms"] / mine[f"{heat}_ms"] if best and mine else None
    return result


def resume(path: Path, fresh: dict[str, Any]) -> dict[str, Any]:
    """The document at `path`, to go on with; `fresh` where there is none.

    Raises Unusable where it was measured on another device, with other versions or by another protocol.
    """
    if not path.exists():
        return fresh
    old = read(path)
    for key in ("device", "versions", "protocol", "commit"):
        if old.get(key) != json.loads(json.dumps(fresh[key])):
            raise Unusable(f"{path} was measured with {key} {old.get(key)}, now {fresh[key]}; choose another --out")
    if old["command"] != fresh["command"]:
        old["command"] += f"; {fresh['command']}"
    return old | {"absent": old["absent"] | fresh["absent"], "stopped": None}


def read(path: Path) -> dict[str, Any]:
    """A document. Raises Unusable for a file that is none."""
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise Unusable(f"cannot read {path}: {error}") from error
    if not isinstance(document, dict) or not {"device", "records"} <= set(document):
        raise Unusable(f"{path} is no document of this benchmark: it has no device and records")
    return document


def write(path: Path, document: dict[str, Any]) -> None:
    """All or nothing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    partial.write_text(json.dumps(document, indent=1, allow_nan=False) + "\n", encoding="utf-8")
    os.replace(partial, path)


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _commit() -> str | None:
    """With "-dirty" where files differ; None outside a repository."""
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() or None


def _processor() -> str:
    """platform.processor() is empty on Linux."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()
