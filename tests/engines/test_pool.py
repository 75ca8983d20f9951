"""Engines in Ray actors: roles, deaths, growth, boot errors. Fake engines, real Ray."""

from __future__ import annotations

import json
import os
import re
import signal
import time
import urllib.request
from pathlib import Path
from typing import Any

import psutil
import pytest
import ray
from ray.util import placement_group_table

from shard_dist.config.cluster import ClusterConfig
from shard_dist.config.schema import Backend, FakeConfig, ModelConfig
from shard_dist.engines.actor import boot_error
from shard_dist.engines.pool import EnginePool
from shard_dist.engines.protocol import CallRefused
from shard_dist.engines.rows import ListRows
from shard_dist.engines.spool import Spool
from shard_dist.engines.telemetry import Telemetry
from shard_dist.engines.worker import ModelIdentity, Role, RowAsk
from shard_dist.ledger.store import Ledger
from shard_dist.records import Sampling

pytestmark = pytest.mark.ray


class Echo:
    """Asks each role once; a row called "die" kills its process the first time it comes, "stop" hangs it."""

    def __init__(self, roles: tuple[str, ...], marker: str = "") -> None:
        self.roles, self.marker = roles, marker

    async def __call__(self, row: str, ask: RowAsk) -> list[str]:
        texts = []
        for role in self.roles:
            try:
                texts.append(
                    (await ask(role, "x", ({"role": "user", "content": f"{row} to {role}"},), Sampling())).text
                )
            except CallRefused as error:
                texts.append(error.reason)
        if row in ("die", "stop") and not Path(self.marker).exists():
            Path(self.marker).touch()
            os.kill(os.getpid(), signal.SIGKILL if row == "die" else signal.SIGSTOP)
        return [row, *texts]


def role(root: Path, name: str, **settings: Any) -> Role:
    fake = FakeConfig(**{"latency": 0.01, **settings.pop("fake", {})})
    spec = ModelConfig(backend=Backend.fake, model=name, **{"fake": fake, "cpus": 0.5, **settings})
    return Role(name, spec, ModelIdentity(name, "0"), str(root / "ledger"), root / "logs")


class Pool:
    """A pool over `roles` with what it wrote down."""

    def __init__(self, root: Path, *roles: Role) -> None:
        root.mkdir(exist_ok=True)
        self.root, self.telemetry, self.runs = root, Telemetry(root / "engines.jsonl", "test"), 0
        self.pool = EnginePool(roles, ClusterConfig(), self.telemetry)

    def run(self, program: Echo, rows: list[str]) -> list[list[str]]:
        self.runs += 1
        spool = self.root / f"spool{self.runs}"
        self.pool.run(program, ListRows(rows), program.roles[0], spool, lambda done: None)
        return list(Spool(spool, len(rows)).ordered())

    def events(self) -> list[str]:
        lines = [json.loads(line) for line in (self.root / "engines.jsonl").read_text().splitlines()]
        return [line["event"] for line in lines if line["kind"] == "event"]

    def __enter__(self) -> Pool:
        self.pool.__enter__()
        return self

    def __exit__(self, *exc: object) -> None:
        self.pool.__exit__(*exc)
        self.telemetry.close()
        assert_nothing_is_left()


def left() -> list[str]:
    """Processes of ours, and placement groups."""
    titles = [process.name() for process in psutil.Process().children(recursive=True) if process.is_running()]
    groups = [group["state"] for group in placement_group_table().values() if group["state"] != "REMOVED"]
    return [title for title in titles if title.startswith(("ray::EngineActor", "ray::RowQueue"))] + groups


def assert_nothing_is_left() -> None:
    limit = time.monotonic() + 10
    while left() and time.monotonic() < limit:
        time.sleep(0.1)
    assert not left()


@pytest.fixture(autouse=True)
def quick(ray_cluster: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shard_dist.engines.fleet.BEAT", 0.1)


def test_rows_end_once_and_in_order_over_several_engines(tmp_path: Path) -> None:
    rows = [str(number) for number in range(400)]
    # Slow enough that the engine that boots last finds work.
    with Pool(tmp_path, role(tmp_path, "student", engines=2, window=4, fake={"latency": 0.1})) as pool:
        results = pool.run(Echo(("student",)), rows)
        counts = pool.pool.counts()
    assert [result[0] for result in results] == rows
    assert (counts.counters.made, counts.engine_restarts) == (400, 0)
    assert Ledger(tmp_path / "ledger").stats.lines == 400
    # Both engines worked, and a second pool finds everything done.
    samples = [json.loads(line) for line in (tmp_path / "engines.jsonl").read_text().splitlines()]
    assert {line["engine"] for line in samples if line["kind"] == "sample" and line["made"]} == {
        "student-0",
        "student-1",
    }
    with Pool(tmp_path, role(tmp_path, "student")) as pool:
        assert pool.run(Echo(("student",)), rows) == results
        assert pool.pool.counts().counters.made == 0


def test_calls_to_another_role_go_to_its_engines(tmp_path: Path) -> None:
    rows = [str(number) for number in range(300)]
    with Pool(tmp_path, role(tmp_path, "student", engines=2), role(tmp_path, "judge", engines=2)) as pool:
        results = pool.run(Echo(("student", "judge")), rows)
        assert pool.pool.counts().counters.made == 600
    assert all("" not in result for result in results)


@pytest.mark.parametrize(("row", "kind"), [("die", "died"), ("stop", "silent")])
def test_rows_of_a_process_that_died_or_hangs_are_finished_by_its_successor(
    tmp_path: Path, row: str, kind: str
) -> None:
    rows = [*map(str, range(60)), row, *map(str, range(60, 120))]
    with Pool(tmp_path, role(tmp_path, "student", silent_timeout=5)) as pool:
        results = pool.run(Echo(("student",), str(tmp_path / "marker")), rows)
        assert pool.pool.counts().engine_restarts == 1
    assert [result[0] for result in results] == rows
    stats = Ledger(tmp_path / "ledger").stats
    assert stats.entries == 121
    assert kind in pool.events()


def test_an_engine_without_a_token_is_replaced(tmp_path: Path) -> None:
    """On a busy machine a sound engine may be silent for a second, too: so many deaths in a row are no failure here."""
    silent = role(tmp_path, "student", engines=2, silent_timeout=1.0, max_deaths=100, fake={"silence_rate": 0.02})
    rows = [str(number) for number in range(200)]
    with Pool(tmp_path, silent) as pool:
        assert [result[0] for result in pool.run(Echo(("student",)), rows)] == rows
    assert "silent" in pool.events()


def test_a_poison_row_is_quarantined_and_every_other_is_answered(tmp_path: Path) -> None:
    rows = [*map(str, range(50)), "venom", *map(str, range(50, 100))]
    poisoned = role(tmp_path, "student", engines=2, fake={"poison": "venom"})
    with Pool(tmp_path, poisoned) as pool:
        results = pool.run(Echo(("student",)), rows)
    assert [row for row, text in results if text == "quarantined"] == ["venom"]
    assert pool.events().count("quarantined") == 1
    assert pool.events().count("died") == 3


def test_a_call_that_kills_another_roles_engines_is_refused(tmp_path: Path) -> None:
    judge = role(tmp_path, "judge", fake={"poison": "venom to judge"})
    with Pool(tmp_path, role(tmp_path, "student"), judge) as pool:
        results = pool.run(Echo(("student", "judge")), ["a", "venom", "b"])
    assert [result[2] == "quarantined" for result in results] == [False, True, False]
    assert results[1][1] != "quarantined"


def test_roles_that_do_not_fit_at_once_take_turns_with_the_same_results(tmp_path: Path) -> None:
    """Each role takes 3 of 4 CPUs; a call that the absent role refuses is refused in its row."""
    rows, program = [str(number) for number in range(50)], Echo(("student", "judge", "student"))
    with Pool(tmp_path / "wide", *(role(tmp_path / "wide", name, cpus=0.5) for name in ("student", "judge"))) as pool:
        expected = pool.run(program, rows)
    poisoned = {"poison": "17 to judge"}
    narrow = [role(tmp_path / "narrow", "student", cpus=3), role(tmp_path / "narrow", "judge", cpus=3, fake=poisoned)]
    with Pool(tmp_path / "narrow", *narrow) as pool:
        results = pool.run(program, rows)
        booted = [event for event in pool.events() if event == "booted"]
    assert results[17][2] == "quarantined"
    assert [row for index, row in enumerate(results) if index != 17] == [
        row for index, row in enumerate(expected) if index != 17
    ]
    assert Ledger(tmp_path / "narrow" / "ledger").stats.lines == 99
    assert len(booted) == 3 + 3  # student, judge, student; and three judges that the poison killed


def test_engines_that_only_die_end_the_run(tmp_path: Path) -> None:
    mortal = role(tmp_path, "student", max_deaths=2, fake={"death_rate": 1.0})
    with Pool(tmp_path, mortal) as pool, pytest.raises(ValueError, match="died 3 times without finishing a call"):
        pool.run(Echo(("student",)), ["a"])


def test_engines_grow_with_the_queue_and_shrink_when_idle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shard_dist.engines.fleet.IDLE", 0.3)
    elastic = role(tmp_path, "student", max_engines=3, window=4, fake={"latency": 0.05})
    with Pool(tmp_path, elastic) as pool:
        pool.run(Echo(("student",)), [str(number) for number in range(800)])
        assert len(pool.pool.fleet.lives) >= 2
        limit = time.monotonic() + 10
        while len(pool.pool.fleet.lives) > 1 and time.monotonic() < limit:
            time.sleep(0.2)
            pool.pool.fleet.refresh()
            pool.pool.fleet.shrink("student")
        assert len(pool.pool.fleet.lives) == 1
    assert {"grown", "shrunk"} <= set(pool.events())


def test_engines_tell_ray_what_they_do(tmp_path: Path) -> None:
    """The cluster's own metrics endpoint, as Prometheus would scrape it; Ray reports there every ten seconds or so."""
    port, text = ray.nodes()[0]["MetricsExportPort"], ""
    with Pool(tmp_path, role(tmp_path, "student")) as pool:
        pool.run(Echo(("student",)), [str(number) for number in range(50)])
        limit = time.monotonic() + 60
        while not re.search(r'shard_dist_calls_made{.*role="student".*} 50', text) and time.monotonic() < limit:
            time.sleep(1)
            pool.pool.fleet.refresh()
            text = urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10).read().decode()
    assert re.search(r'shard_dist_calls_made{.*engine="student-0".*} 50', text)
    assert "shard_dist_completion_tokens{" in text


def test_an_engine_that_does_not_boot_says_why(tmp_path: Path) -> None:
    spec = ModelConfig(backend=Backend.vllm, model=str(tmp_path / "nowhere"), cpus=0.5)
    broken = Role("student", spec, ModelIdentity("x", "0"), str(tmp_path / "ledger"), tmp_path / "logs")
    with (
        pytest.raises(ValueError, match=r"models\.student: the engine does not boot: ") as caught,
        Pool(tmp_path, broken),
    ):
        pass
    lines = str(caught.value).splitlines()
    assert len(lines) <= 7
    assert "nowhere" in str(caught.value)
    assert "student-0.log" in lines[-1]


def test_what_no_node_has_is_named_before_anything_starts(tmp_path: Path) -> None:
    greedy = role(tmp_path, "student", gpus=8)
    with pytest.raises(ValueError, match=r"models\.student: an engine takes 8 GPUs"), Pool(tmp_path, greedy):
        pass


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


def test_an_engine_may_die_before_it_is_asked_whether_calls_fit(tmp_path: Path) -> None:
    """As with its node, between its boot and its first work: another one tells, and the run goes on."""
    with Pool(tmp_path, role(tmp_path, "student", engines=2)) as pool:
        while len(pool.pool.fleet.ready("student")) < 2:
            pool.pool.fleet.tick()
        ray.kill(pool.pool.fleet.ready("student")[0].actor)
        pool.pool.check(Echo(("student",)), "")
        assert [row for row, _ in pool.run(Echo(("student",)), ["a", "b"])] == ["a", "b"]
        assert "died" in pool.events()
