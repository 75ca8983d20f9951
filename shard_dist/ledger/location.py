"""Where a ledger lies: a directory, or an object store behind an fsspec URL with a local mirror of it.

An object cannot be appended to. So a ledger at a URL writes its segments into a mirror directory on this machine, and
each becomes a pack object when it is sealed. What is durable when: an appended line survives the process at once, and
the machine from the next upload on (seconds; on close at the latest). Lines of a process that was killed are uploaded
by the next ledger that is opened for the same URL on the same machine. Reads go to the mirror, never to the network.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import fsspec

PACKS, SEGMENTS = "*.parquet", "*.jsonl"


@dataclass(frozen=True)
class Local:
    """A directory, on a local disk or shared."""

    directory: Path

    def __str__(self) -> str:
        return str(self.directory)

    def pull(self) -> None:
        """Nothing to fetch."""

    def publish(self, path: Path, name: str) -> None:
        """Nothing to upload."""

    def remove(self, name: str) -> None:
        (self.directory / name).unlink(missing_ok=True)


@dataclass(frozen=True)
class Remote:
    """A prefix of an object store; `directory` is its mirror."""

    url: str
    directory: Path
    filesystem: Any
    root: str

    def __str__(self) -> str:
        return self.url

    def pull(self) -> None:
        """Bring the mirror's packs to the state of the store. Packs never change, so names are enough to compare."""
        self.directory.parent.mkdir(mode=0o700, exist_ok=True)
        if self.directory.parent.stat().st_uid != os.getuid():  # calls are nobody else's to read or to plant
            raise ValueError(f"run.ledger: {self.directory.parent} belongs to another user; set TMPDIR")
        self.directory.mkdir(exist_ok=True)
        self.filesystem.invalidate_cache()
        try:
            names = {path.rpartition("/")[2] for path in self.filesystem.ls(self.root, detail=False)}
        except FileNotFoundError:  # nothing was ever written there
            names = set()
        packs = {name for name in names if name.endswith(PACKS[1:])}
        here = {path.name for path in self.directory.glob(PACKS)}
        for name in here - packs:
            (self.directory / name).unlink(missing_ok=True)
        for name in sorted(packs - here):
            partial = self.directory / f".{name}.{os.getpid()}.partial"
            self.filesystem.get_file(f"{self.root}/{name}", str(partial))
            os.replace(partial, self.directory / name)

    def publish(self, path: Path, name: str) -> None:
        """Upload a pack under its name. The object appears whole or not at all."""
        self.filesystem.makedirs(self.root, exist_ok=True)
        with self.filesystem.open(f"{self.root}/{name}", "wb", autocommit=False) as stream:
            stream.write(path.read_bytes())
        stream.commit()

    def remove(self, name: str) -> None:
        if name.endswith(PACKS[1:]) and self.filesystem.exists(f"{self.root}/{name}"):
            self.filesystem.rm_file(f"{self.root}/{name}")
        (self.directory / name).unlink(missing_ok=True)


Location = Local | Remote


def locate(location: str | Path) -> Location:
    """A directory for a plain path, a store for anything with ://. Raises ValueError where no such store is known."""
    url = str(location)
    if "://" not in url:
        return Local(Path(location))
    try:
        filesystem, root = fsspec.core.url_to_fs(url)
    except (ImportError, ValueError) as error:
        raise ValueError(f"run.ledger: {url}: {error}") from error
    digest = hashlib.sha256(url.rstrip("/").encode()).hexdigest()[:16]
    mirror = Path(tempfile.gettempdir()) / f"shard-dist-ledger-{os.getuid()}" / digest
    return Remote(url, mirror, filesystem, root.rstrip("/"))
