"""Files of a run: written whole or not at all, and named by their content."""

from __future__ import annotations

import errno
import hashlib
import json
import os
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

# A model's identity is what decides its outputs: weights, configuration, tokenizer, chat template.
MODEL_FILES = ("*.safetensors", "*.bin", "*.json", "*.jinja", "*.model", "*.txt")

ROW_GROUP = 1024  # rows: a few MB, read whole where one of them is needed


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary path beside `path` that takes its place when the block ends well, and vanishes when it does not.

    Raises ValueError where the disk is full: the old file is untouched and the same command can go on later.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        yield partial
        os.replace(partial, path)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise ValueError(f"no space left to write {path}; free some and run the same command again") from error
        raise
    finally:
        partial.unlink(missing_ok=True)


def write_json(path: Path, value: Any) -> None:
    with replacing(path) as partial:
        partial.write_text(json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n", encoding="utf-8")


def read_json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def write_rows(path: Path, rows: Iterable[dict[str, Any]], schema: pa.Schema) -> int:
    """Rows to Parquet as they come, a row group at a time; how many. A table of no rows has its columns too."""
    written = 0
    with replacing(path) as partial, pq.ParquetWriter(partial, schema) as writer:
        remaining = iter(rows)
        while group := list(islice(remaining, ROW_GROUP)):
            writer.write_table(pa.Table.from_pylist(group, schema=schema))
            written += len(group)
    return written


def read_rows(path: Path) -> list[dict[str, Any]]:
    return pq.read_table(path).to_pylist()


def stream_rows(path: Path) -> Iterator[dict[str, Any]]:
    """The rows of a Parquet file, with one row group of them in memory."""
    for batch in pq.ParquetFile(path).iter_batches(ROW_GROUP):
        yield from batch.to_pylist()


def file_hash(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def whole_path(place: str) -> str:
    """A directory by its whole path, since processes on other nodes have another working directory; hub ids stay."""
    return str(Path(place).absolute()) if place and Path(place).is_dir() else place


def value_hash(value: Any) -> str:
    """sha256 of a JSON value in canonical form (sorted keys, no spaces)."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def model_hash(directory: Path) -> str:
    """Content hash of a local model: a copy elsewhere has the same, a retrained model another, whatever the dates."""
    paths = sorted({path for pattern in MODEL_FILES for path in directory.glob(pattern)})
    with ThreadPoolExecutor(8) as pool:
        hashes = list(pool.map(file_hash, paths))
    return value_hash([[path.name, digest] for path, digest in zip(paths, hashes, strict=True)])
