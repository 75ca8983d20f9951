"""Engines in Ray actors: roles, restarts, boot errors. Fake engines, real Ray."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from shard_dist.config.schema import Backend, FakeConfig, ModelConfig
from shard_dist.engines.pool import EnginePool, Role, boot_error
from shard_dist.engines.worker import ModelIdentity, RowAsk
from shard_dist.ledger.store import Ledger
from shard_dist.records import Sampling

pytestmark = pytest.mark.ray


class Echo:
    """Asks each role once; a row called "die" kills its process the first time it comes."""

    def __init__(self, roles: tuple[str, ...], marker: str = "") -> None:
        self.roles, self.marker = roles, marker

    async def __call__(self, row: str, ask: RowAsk) -> list[str]:
        texts = []
        for role in self.roles:
            completion = await ask(role, "x", ({"role": "user", "content": f"{row} to {role}"},), Sampling())
            texts.append(completion.text)
        if row == "die" and not Path(self.marker).exists():
            Path(self.marker).touch()
            os._exit(1)
        return [row, *texts]


def role(root: Path, name: str, **settings: Any) -> Role:
    spec = ModelConfig(backend=Backend.fake, model=name, **{"fake": FakeConfig(latency=0.01), "cpus": 0.5, **settings})
    return Role(name, spec, ModelIdentity(name, "0"), root / "ledger", root / "logs")


def test_rows_end_once_and_in_order_over_several_engines(ray_cluster: None, tmp_path: Path) -> None:
    seen: list[int] = []
    with EnginePool([role(tmp_path, "student", engines=2)]) as pool:
        rows = [str(number) for number in range(60)]
        results = pool.run(Echo(("student",)), rows, "student", lambda done, _: seen.append(done))
        counts = pool.counts()
    assert [result[0] for result in results] == rows
    assert seen[-1] == 60
    assert (counts.counters.made, counts.engine_restarts) == (60, 0)
    assert Ledger(tmp_path / "ledger").stats.lines == 60


def test_calls_to_another_role_go_to_its_engines(ray_cluster: None, tmp_path: Path) -> None:
    roles = [role(tmp_path, "student"), role(tmp_path, "judge", engines=2)]
    with EnginePool(roles) as pool:
        results = pool.run(Echo(("student", "judge")), ["a", "b", "c"], "student", lambda *_: None)
        assert pool.counts().counters.made == 6
    assert [len(result) for result in results] == [3, 3, 3]


def test_rows_of_a_process_that_died_are_finished_by_its_successor(ray_cluster: None, tmp_path: Path) -> None:
    with EnginePool([role(tmp_path, "student")]) as pool:
        rows = [*map(str, range(20)), "die", *map(str, range(20, 40))]
        results = pool.run(Echo(("student",), str(tmp_path / "died")), rows, "student", lambda *_: None)
        assert pool.counts().engine_restarts <= 1  # a life that reported nothing before it ended is not seen
    assert [result[0] for result in results] == rows
    stats = Ledger(tmp_path / "ledger").stats
    assert stats.lines == stats.entries == 41


def test_an_engine_that_does_not_boot_says_why(ray_cluster: None, tmp_path: Path) -> None:
    broken = Role(
        "student",
        ModelConfig(backend=Backend.vllm, model=str(tmp_path / "nowhere"), cpus=0.5),
        ModelIdentity("x", "0"),
        tmp_path / "ledger",
        tmp_path / "logs",
    )
    with (
        pytest.raises(ValueError, match=r"models\.student: the engine does not boot: ") as caught,
        EnginePool([broken]),
    ):
        pass
    lines = str(caught.value).splitlines()
    assert len(lines) <= 7
    assert "nowhere" in str(caught.value)
    assert "student-0.log" in lines[-1]


def test_the_cause_is_the_cores_error_not_its_parents(tmp_path: Path) -> None:
    log = tmp_path / "x.log"
    log.write_text(
        "(EngineCore pid=1) ERROR ValueError: To serve at least one request, 4 GiB KV cache is needed\n"
        "(APIServer pid=2) RuntimeError: Engine core initialization failed. See root cause above.\n"
    )
    parent = RuntimeError("Engine core initialization failed.")
    assert boot_error(log, parent).startswith("ValueError: To serve at least one request")
    many = ValueError("1 validation error\n  max_model_len is larger than the model's")
    assert "larger than the model's" in boot_error(log, many)
    log.write_text("nothing of use")
    assert boot_error(log, OSError("no such device")).startswith("OSError: no such device")
