"""The plan's memory in training against the peak on one GPU: a Llama of 1.2 B random weights, bf16, three row lengths.

    python tests/benchmarks/plan_gpu.py [--smoke] [--lengths N,N,N] [--out FILE]

Real steps of our trainer, ZeRO-3 on one rank, with recomputation; measured is what torch's allocator held at most. So
the plan's lines for the CUDA context and for fragmentation, which that is not, are left out. `--smoke` does the same
with a tiny model on a CPU, where nothing is measured. Needs neither Ray nor vLLM.
"""

from __future__ import annotations

import argparse
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import document
import torch
from plan_runs import STEPS, Case
from training_data import llama
from training_gpu import LLAMA
from training_runs import OurRun, launch

from shard_dist.config.training import TrainConfig
from shard_dist.plan.training import CONTEXT, MARGIN

PACKAGES = ("torch", "transformers", "deepspeed")
LENGTHS = (2_048, 8_192, 32_768)
BAR = 0.1
ROWS = 2  # of an optimizer step: gradients are summed
CONFIG = TrainConfig(
    gpus_per_worker=1, gradient_checkpointing=True, global_batch_size=ROWS, epochs=1.0, eval_every=0,
    checkpoint_every=10**9,
)  # fmt: skip


def compare(case: Case, home: Path) -> dict[str, Any]:
    """Plan and peak of a case, in bytes. The run is stopped at the step after the last one, so it has one more."""
    outcome = launch([OurRun(case.job(home, STEPS + 1), STEPS)])[0]
    plan = case.plan(home).device
    lines = [line for line in plan.lines if line.name not in (CONTEXT, MARGIN)]
    planned = sum(line.bytes for line in lines)
    return {
        "length": case.config.max_tokens,
        "planned_bytes": planned,
        "measured_bytes": outcome.peak_bytes,
        "ratio": planned / outcome.peak_bytes if outcome.peak_bytes else None,
        "at": plan.where,
        "lines": [vars(line) for line in lines],
    }


def measure(sizes: dict[str, Any], config: TrainConfig, lengths: tuple[int, ...]) -> dict[str, Any]:
    records = []
    for length in lengths:
        with tempfile.TemporaryDirectory(prefix="bench-plan-") as home:
            records.append(compare(Case(f"{length:,} tokens", sizes, replace(config, max_tokens=length)), Path(home)))
        print({key: records[-1][key] for key in ("length", "planned_bytes", "measured_bytes", "ratio")}, flush=True)
    bars = {"at_least": 1 - BAR, "at_most": 1 + BAR}
    compared = [record for record in records if record["ratio"]]
    return {
        "what": "peak of torch's allocator on one GPU, planned over measured; steps of two rows, recomputation",
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
        "cuda": torch.version.cuda,
        "llama": sizes,
        "records": records,
        "ratios": [{"name": f"{r['length']:,} tokens", "value": r["ratio"], **bars} for r in compared],
    }


def main() -> None:
    parser = argparse.ArgumentParser("plan_gpu.py", description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--smoke", action="store_true", help="a tiny model and short rows, on a CPU")
    parser.add_argument("--lengths", type=lambda text: tuple(map(int, text.split(","))), help="row lengths in tokens")
    parser.add_argument("--out", type=Path, default=Path("build/bench/plan_gpu.json"), help="default: %(default)s")
    options = parser.parse_args()
    sizes, config, lengths = LLAMA, CONFIG, options.lengths or LENGTHS
    if options.smoke:
        sizes = LLAMA | llama(layers=2, hidden=64) | {"vocab_size": 512, "dtype": "float32"}
        config, lengths = replace(CONFIG, gpus_per_worker=0, bf16=False, threads=1), options.lengths or (64, 128, 256)
    result = {"plan_gpu": document.measured(lambda: measure(sizes, config, lengths), PACKAGES)}
    document.write(options.out, result)
    document.tell(result, ["plan_gpu"])
    print(options.out)


if __name__ == "__main__":
    main()
