"""The ledger: every finished call, appended as soon as it is finished. The only durable truth of generation.

One segment per writer, so no locks: `<host>-<pid>-<random>.jsonl`, one JSON object a line. A process killed in the
middle of a line leaves a torn line; readers skip and count it, and its call is made again.
"""

from __future__ import annotations

import errno
import json
import os
import socket
import uuid
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from shard_dist.records import Call, Completion


@dataclass
class LedgerStats:
    """`entries` distinct keys, `lines` whole lines (more of them if a call was made twice), `torn_lines` all others."""

    entries: int = 0
    lines: int = 0
    torn_lines: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0


def _completion(value: dict[str, Any]) -> Completion:
    return Completion(
        texts=tuple(value["texts"]),
        finish_reasons=tuple(value["finish_reasons"]),
        prompt_tokens=int(value["prompt_tokens"]),
        completion_tokens=int(value["completion_tokens"]),
        thinking=tuple(value["thinking"]),
    )


class Ledger:
    """All segments of a directory as one mapping key -> Completion, and one segment of our own to append to.

    The segment is created with the first append, so a reader leaves no empty file behind.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.stats = LedgerStats()
        self._entries: dict[str, Completion] = {}
        self._segment: Any = None
        for path in sorted(directory.glob("*.jsonl")):
            self._read(path)

    def _read(self, path: Path) -> None:
        with path.open("rb") as stream:
            for line in stream:
                try:
                    value = json.loads(line)
                    key, completion = value["key"], _completion(value["completion"])
                except (ValueError, KeyError, TypeError):
                    self.stats.torn_lines += 1
                    continue
                self._remember(key, completion)

    def _remember(self, key: str, completion: Completion) -> None:
        self.stats.lines += 1
        if key not in self._entries:
            self.stats.entries += 1
            self.stats.prompt_tokens += completion.prompt_tokens
            self.stats.completion_tokens += completion.completion_tokens
        self._entries[key] = completion

    def get(self, key: str) -> Completion | None:
        return self._entries.get(key)

    def append(self, key: str, call: Call, completion: Completion) -> None:
        """Write one finished call in a single write to an O_APPEND file; after that a kill cannot lose it.

        Raises ValueError where the disk is full.
        """
        entry = {"key": key, "completion": asdict(completion), "call": asdict(call)}
        line = json.dumps(entry, ensure_ascii=True, separators=(",", ":")) + "\n"
        try:
            if self._segment is None:
                self.directory.mkdir(parents=True, exist_ok=True)
                name = f"{socket.gethostname()}-{os.getpid()}-{uuid.uuid4().hex[:8]}.jsonl"
                self._segment = (self.directory / name).open("xb", buffering=0)
            written = self._segment.write(line.encode())
            if written != len(line):
                raise OSError(errno.ENOSPC, "short write")
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise ValueError(
                    f"no space left for the ledger in {self.directory}; free some and run the same command again: "
                    "every call in it is kept"
                ) from error
            raise
        self._remember(key, completion)

    def close(self) -> None:
        if self._segment is not None:
            self._segment.close()
            self._segment = None
