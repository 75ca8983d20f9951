"""Peak memory of this process and of Ray's actors under it, sampled while a block runs."""

from __future__ import annotations

import re
import threading
from pathlib import Path

import psutil

SECONDS = 0.5


class PeakMemory:
    """Resident bytes but those of shared memory (Linux' VmRSS less RssShmem: Ray maps its object store into everyone).

    `peaks`: the driver and, by Ray's name of the process, the largest of each class of actor.
    """

    def __init__(self) -> None:
        self.peaks: dict[str, int] = {}
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> PeakMemory:
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._over.set()
        self._thread.join()

    def _watch(self) -> None:
        driver = psutil.Process()
        while not self._over.wait(SECONDS):
            self._keep("driver", driver.pid)
            for child in driver.children(recursive=True):
                try:
                    actor = re.match(r"ray::(EngineActor|RowQueue)", " ".join(child.cmdline()))
                except psutil.Error:  # it ended meanwhile
                    continue
                if actor:
                    self._keep(actor[1], child.pid)

    def _keep(self, name: str, pid: int) -> None:
        try:
            status = Path(f"/proc/{pid}/status").read_text(encoding="utf-8")
        except OSError:
            return
        kib = {field: int(size) for field, size in re.findall(r"^(VmRSS|RssShmem):\s+(\d+) kB", status, re.MULTILINE)}
        if kib:  # a process that is being buried has none
            self.peaks[name] = max(self.peaks.get(name, 0), 1024 * (kib["VmRSS"] - kib["RssShmem"]))
