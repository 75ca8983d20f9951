"""One rank of a training whose memory is measured: measured_rank.py JOB.pickle STEPS OUT, under torchrun or warm.

Every rank writes OUT.<rank>: bytes over what the process held before the model was loaded, `peaks` by moment and
`held` after the last step. The first step has no moments of AdamW in its forward, and DeepSpeed gathers ahead from its
second micro-batch on, so the second step is the first that has all.
"""

import ctypes
import gc
import json
import pickle
import re
import sys
from pathlib import Path

import torch
import torch.distributed as dist

from shard_dist.training import zero
from shard_dist.training.__main__ import leave
from shard_dist.training.loop import open_training
from shard_dist.training.prepare import prepare
from shard_dist.training.ranks import agree
from shard_dist.training.step import optimizer_step

M_MMAP_THRESHOLD = -3  # of mallopt


class Memory:
    """This process's private memory, less what it was at the beginning."""

    def __init__(self) -> None:
        # Freed blocks of 128 KiB and more go back to the system at once. glibc would raise that limit to 32 MiB when it
        # meets such blocks, and keep what a training has freed.
        libc = ctypes.CDLL(None)
        libc.mallopt(M_MMAP_THRESHOLD, 2**17)
        gc.collect()
        libc.malloc_trim(0)
        self.before = self._status()["RssAnon"]
        self._forget()

    def now(self) -> int:
        return self._status()["RssAnon"] - self.before

    def peak(self) -> int:
        """The highest since the last reading: Linux' own mark, which no sample can miss, without mapped files."""
        status = self._status()
        self._forget()
        return status["VmHWM"] - status["RssFile"] - status["RssShmem"] - self.before

    def _forget(self) -> None:
        Path("/proc/self/clear_refs").write_text("5")

    def _status(self) -> dict[str, int]:
        text = Path("/proc/self/status").read_text()
        return {name: 1024 * int(kib) for name, kib in re.findall(r"^(\w+):\s+(\d+) kB", text, re.MULTILINE)}


def main(job_file: Path, steps: int, out: Path) -> None:
    job = pickle.loads(job_file.read_bytes())
    device = zero.prepare_process(job.config)
    prepared = agree(lambda: prepare(job))
    zero.start_engine(torch.nn.Linear(8, 8), job.config)  # imports 560 modules, 50 MB, that are no model's
    memory = Memory()
    training = open_training(job, prepared, device, lambda: False)
    peaks = {"loading": memory.peak()}
    for step in range(steps):
        optimizer_step(training, step)
        peaks[f"step {step + 1}"] = memory.peak()
    found = {"peaks": peaks, "held": memory.now()}
    out.with_name(f"{out.name}.{dist.get_rank()}").write_text(json.dumps(found))
    dist.barrier()
    leave(0)


main(Path(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]))
