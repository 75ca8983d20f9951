"""Sweeps over the demo's prompts with fake models; engines run in the test's process, trainings are stubs."""

from __future__ import annotations

import asyncio
import io
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml
from rich.console import Console

import shard_dist.sweep.run
from shard_dist.artefacts import write_json
from shard_dist.config.cluster import ClusterConfig
from shard_dist.engines.fake import FakeEngine
from shard_dist.engines.pool import PoolCounts
from shard_dist.engines.rows import Rows
from shard_dist.engines.spool import Spool, SpoolWriter
from shard_dist.engines.worker import LocalBackend, Role, RowAsk
from shard_dist.ledger.store import Ledger
from shard_dist.progress import Progress
from shard_dist.rundir import Run, locked, run_stage
from shard_dist.stages import roles, train
from shard_dist.sweep.plan import Arm

RECIPE = {"self": {"recipe.generator": "student"}, "teacher": {"recipe.generator": "teacher"}}
SweepFile = Callable[..., Path]


@pytest.fixture
def sweep_file(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> SweepFile:
    """`sweep_file({"axes": ...}, key=value, ...)`: a sweep over 40 prompts of the demo, a fake student and teacher."""
    monkeypatch.chdir(root)

    def write(sweep: dict[str, Any], **sections: Any) -> Path:
        config = {
            "include": [str(root / "configs" / "demo.yaml")],
            "run": {"dir": str(tmp_path / "sweep")},
            "models": {
                "student": {"backend": "fake", "model": "some/student", "engine_args": {}},
                "teacher": {"backend": "fake", "model": "some/teacher"},
            },
            "tracking": {"wandb": "disabled"},
        }
        path = tmp_path / "fake.yaml"
        path.write_text(yaml.safe_dump({**config, **sections, "sweep": sweep}, sort_keys=False))
        return path

    return write


SMALL = ("data.sources[0].limit=40", "data.split.val=0.1", "data.split.test=0.3")


@pytest.fixture
def progress() -> Progress:
    return Progress(Console(file=io.StringIO()), 60.0)


class PoolHere:
    """`EnginePool` with fake engines in this process: what stages use of it, no Ray."""

    fleet = SimpleNamespace(plan=SimpleNamespace(lines=list))

    def __init__(self, roles: Sequence[Role], settings: ClusterConfig, telemetry: Any) -> None:
        self.roles, self.made = roles, PoolCounts()

    def __enter__(self) -> PoolHere:
        return self

    def __exit__(self, *exc: object) -> None:
        return None

    def check(self, program: Any, empty: Any) -> None:
        return None

    def counts(self) -> PoolCounts:
        return self.made

    def run(
        self, program: Any, rows: Rows, home: str, spool: Path, progress: Any, encode: Callable[[Any], Any]
    ) -> None:
        missing = Spool(spool, len(rows)).missing.tolist()
        identities = {role.name: role.identity for role in self.roles}
        with closing(Ledger(self.roles[0].ledger)) as ledger, closing(SpoolWriter(spool, "here")) as writer:

            async def all_rows() -> None:
                backends = {
                    role.name: LocalBackend(FakeEngine(role.spec), ledger, 8, self.made.counters) for role in self.roles
                }
                for index, row in zip(missing, rows.read(missing), strict=True):
                    writer.append(index, encode(await program(row, RowAsk(dict(backends), identities))))

            asyncio.run(all_rows())


@pytest.fixture
def without_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(roles, "EnginePool", PoolHere)
    monkeypatch.setattr(roles, "join", lambda cluster: None)
    for name, stub in (("join", lambda cluster: None), ("leave", lambda: None), ("fits", lambda **share: 2)):
        monkeypatch.setattr(shard_dist.sweep.run, name, stub)


def made_up(run: Run, progress: Progress) -> dict[str, Any]:
    """A model whose content follows from what decides the training, as that of the real one does."""
    write_json(run / "model" / "config.json", train.inputs(run))
    return {"steps": 1, "examples": 1, "tokens": 1}


@pytest.fixture
def trainer() -> Callable[[Arm, Progress], None]:
    def stub(arm: Arm, progress: Progress) -> None:
        with locked(arm.run):
            run_stage(arm.run, replace(train.STAGE, work=made_up), progress)

    return stub
