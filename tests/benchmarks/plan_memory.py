"""The plan's memory in training against measured peaks: ZeRO-3 on CPU processes, three shapes, one and two ranks.

    python tests/benchmarks/plan_memory.py [--cases NAME,NAME] [--out FILE]

Real steps of our trainer under torchrun with gloo. Measured is a process's private resident memory (anonymous pages, at
the kernel's own high-water mark) over what it held before the model was loaded; measured_rank.py says how.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import document
from plan_runs import RANK, STEPS, Case, highest, measured

from shard_dist.config.training import LongConfig, Offload, Packing, TrainConfig

PACKAGES = ("torch", "transformers", "deepspeed")
BAR = 0.1
MIB = 2**20
PLAIN = TrainConfig(
    gpus_per_worker=0, bf16=False, threads=1, max_tokens=512, packing=Packing.dataset, epochs=1.0, eval_every=0,
    checkpoint_every=10**9,
)  # fmt: skip
DEEP = {  # 45 M
    "vocab_size": 4_096, "hidden_size": 512, "intermediate_size": 1_536, "num_hidden_layers": 12,
    "num_attention_heads": 8, "num_key_value_heads": 8, "max_position_embeddings": 4_096,
}  # fmt: skip
WORDY = DEEP | {  # 33 M, half of it an embedding that is the head too
    "vocab_size": 32_768, "num_hidden_layers": 5, "num_key_value_heads": 4, "tie_word_embeddings": True,
}  # fmt: skip
BROAD = DEEP | {  # 67 M
    "vocab_size": 8_192, "hidden_size": 1_024, "intermediate_size": 2_816, "num_hidden_layers": 4,
    "num_attention_heads": 16, "num_key_value_heads": 8,
}  # fmt: skip
OFFLOADED = LongConfig(offload_optimizer=Offload.cpu, offload_parameters=Offload.cpu)
SHAPES = {
    "deep": (DEEP, PLAIN),
    "wordy": (WORDY, replace(PLAIN, gradient_checkpointing=True, max_tokens=1_024)),
    "broad": (BROAD, replace(PLAIN, gradient_checkpointing=True, bf16=True)),
    "deep offloaded": (DEEP, replace(PLAIN, long=OFFLOADED)),
}


def cases() -> dict[str, Case]:
    """Two micro-batches to a step: gradients are summed."""
    found = {}
    for name, (llama, config) in SHAPES.items():
        for ranks in (1, 2):
            title = f"{name} on {ranks} rank{'s' * (ranks > 1)}"
            found[title] = Case(title, llama, replace(config, workers=ranks, global_batch_size=2 * ranks))
    return found


def compare(case: Case, home: Path) -> dict[str, Any]:
    """Plan and peaks of a case, in bytes."""
    ranks, job, out = case.config.workers, case.pickled(home), home / "out"
    torchrun = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}"]
    environment = {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "DS_ACCELERATOR": "cpu"}
    command = [sys.executable, *torchrun, str(RANK), str(job), str(STEPS), str(out)]
    subprocess.run(command, env=os.environ | environment, check=True, stdout=sys.stderr)
    found, plan = measured(out, ranks), case.plan(home)
    return {
        "case": case.name,
        "planned_bytes": plan.device.total,
        "measured_bytes": highest(found),
        "ratio": plan.device.total / highest(found),
        "at": plan.device.where,
        "lines": plan.device.json()["lines"],
        "moments": {moment.where: moment.total for moment in plan.moments},
        "ranks": found,
    }


def measure(chosen: Iterable[Case]) -> dict[str, Any]:
    records = []
    for case in chosen:
        with tempfile.TemporaryDirectory(prefix="bench-plan-") as home:
            records.append(compare(case, Path(home)))
        print({key: records[-1][key] for key in ("case", "planned_bytes", "measured_bytes", "ratio")}, flush=True)
    bars = {"at_least": 1 - BAR, "at_most": 1 + BAR}
    return {
        "what": "peak of a training process's private memory, planned over measured; step 2, two micro-batches each",
        "records": records,
        "ratios": [{"name": record["case"], "value": record["ratio"], **bars} for record in records],
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        "plan_memory.py", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--cases", help="names that begin so, separated by commas; default: all")
    parser.add_argument("--out", type=Path, default=Path("build/bench/plan_memory.json"), help="default: %(default)s")
    options = parser.parse_args()
    begin = tuple((options.cases or "").split(","))
    chosen = [case for name, case in cases().items() if name.startswith(begin)]
    result = {"plan_memory": document.measured(lambda: measure(chosen), PACKAGES)}
    document.write(options.out, result)
    document.tell(result, ["plan_memory"])
    print(options.out)


if __name__ == "__main__":
    main()
