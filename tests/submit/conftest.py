"""A directory with a configuration that can be submitted, and a cluster that has what it wants."""

from __future__ import annotations

import importlib.metadata
import platform
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from shard_dist.submit.fake import FakeJobs
from shard_dist.submit.jobs import Facts
from shard_dist.submit.request import Request, load, request


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The person stands here: a configuration that includes another and reads a file that is never committed."""
    place = tmp_path / "here"
    (place / "configs").mkdir(parents=True)
    (place / "seed").mkdir()
    (place / "seed" / "model.safetensors").write_bytes(b"weights")
    (place / "prompts.csv").write_text("id,text\n1,Why?\n")
    source = {"kind": "table", "path": "prompts.csv", "columns": {"id": "id", "text": "text"}}
    base = {"data": {"sources": [source]}, "select": {"judge": "rule"}, "evaluate": {"judge": "rule"}}
    student = {"backend": "fake", "model": "seed"}
    (place / "configs" / "base.yaml").write_text(yaml.safe_dump(base))
    (place / "configs" / "mine.yaml").write_text(
        yaml.safe_dump({"include": ["base.yaml"], "models": {"student": student}})
    )
    monkeypatch.chdir(place)
    return place


@pytest.fixture
def ask(here: Path) -> Callable[..., Request]:
    """`ask("train.epochs=2")`: the request for the configuration with these settings, storage at /shared."""

    def made(*overrides: str, cluster: Path | None = None, storage: str = "/shared") -> Request:
        file, words = Path("configs/mine.yaml"), list(overrides)
        words += [f"cluster.storage.path={storage}"] if storage else []
        return request(file, words, load(file, words, cluster), here)

    return made


@pytest.fixture
def jobs() -> FakeJobs:
    return FakeJobs(Facts(importlib.metadata.version("ray"), platform.python_version(), "/opt/ray/bin/python"))
