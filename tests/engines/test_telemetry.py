"""Telemetry: sums over lives, rates of the live line, and a file that survives kills and stays small."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shard_dist.engines import telemetry as module
from shard_dist.engines.protocol import EngineStats
from shard_dist.engines.telemetry import DETAIL, FAULTS, KINDS, MOST_EVENTS, Telemetry
from shard_dist.engines.worker import Counters


class Clock:
    """Time that passes only when a test says so."""

    def __init__(self) -> None:
        self.now = 1_767_322_800.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "engines.jsonl"


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def run_steadily(telemetry: Telemetry, clock: Clock, seconds: int, engines: int = 1) -> None:
    """Per engine and second 20 calls made, 5 answered by the ledger, 300 tokens written, 3 of 4 prompt tokens known."""
    for second in range(seconds + 1):
        for number in range(engines):
            counters = Counters(calls=26 * second, made=20 * second, hits=5 * second)
            stats = EngineStats(400 * second, 300 * second, 70, 15, 0.61, 400 * second, 300 * second)
            telemetry.sample(f"student-{number}", "first", counters, stats)
        clock.now += 1


STEPS = st.lists(st.tuples(st.integers(0, 2), st.booleans(), st.tuples(*[st.integers(0, 9)] * 5)), max_size=60)


@given(steps=STEPS, every=st.sampled_from([0.0, 2.0, 50.0]))
def test_sums_over_lives_never_fall_and_are_those_of_the_last_sample_of_each_life(
    tmp_path_factory: pytest.TempPathFactory, steps: list[tuple[int, bool, tuple[int, ...]]], every: float
) -> None:
    path, clock = tmp_path_factory.mktemp("telemetry") / "engines.jsonl", Clock()
    telemetry = Telemetry(path, "generate", every, clock=clock)
    lives: dict[tuple[str, str], Counters] = {}
    number, before = [0, 0, 0], Counters()
    for engine, replaced, more in steps:
        clock.now += 1
        if replaced:
            telemetry.gone(f"student-{engine}")
            number[engine] += 1
        life = (f"student-{engine}", f"life-{number[engine]}")
        counters = lives.setdefault(life, Counters())
        counters.add(Counters(*more))
        telemetry.sample(*life, counters, EngineStats())
        total = telemetry.counters()
        assert all(value >= getattr(before, name) for name, value in vars(total).items())
        before = total
    telemetry.close()
    expected = Counters()
    for counters in lives.values():
        expected.add(counters)
    assert telemetry.counters() == expected
    last = {(line["engine"], line["life"]): line for line in (lines(path) if steps else [])}
    for name, value in vars(expected).items():
        assert sum(line[name] for line in last.values()) == value


def test_a_sample_is_a_copy_of_what_it_was_given(clock: Clock) -> None:
    telemetry, counters, stats = Telemetry(None, "generate", clock=clock), Counters(), EngineStats()
    telemetry.sample("student-0", "first", counters, stats)
    counters.made, stats.running = 7, 7
    assert telemetry.counters() == Counters()
    assert "0 running" in telemetry.line()


@pytest.mark.parametrize("seconds", [5, 60])
def test_the_rates_of_steady_engines_are_their_rates(clock: Clock, seconds: int) -> None:
    telemetry = Telemetry(None, "generate", clock=clock)
    telemetry.begin("prompts", 1000, 0)
    run_steadily(telemetry, clock, seconds, engines=3)
    clock.now -= 1  # asked for at the moment of the last samples
    expected = "75 calls/s, 900 tokens/s, 20 % from the ledger, 210 running, 45 waiting, KV 61 %, prefix hits 75 %"
    assert telemetry.line() == f"3 engines, {expected}"


def test_rates_forget_what_was_before_the_window_and_fall_to_zero_when_engines_stand_still(clock: Clock) -> None:
    telemetry = Telemetry(None, "generate", clock=clock)
    run_steadily(telemetry, clock, 30)
    counters, stats = telemetry.counters(), EngineStats(400 * 30, 300 * 30, 70, 0, 0.61, 400 * 30, 300 * 30)
    for _ in range(12):
        telemetry.sample("student-0", "first", counters, stats)
        clock.now += 1
    assert telemetry.line() == "1 engine, 0.0 calls/s, 0.0 tokens/s, 70 running, 0 waiting, KV 61 %"


def test_a_run_that_begins_does_not_count_what_the_run_before_it_did(clock: Clock) -> None:
    telemetry = Telemetry(None, "generate", clock=clock)
    telemetry.begin("prompts", 1000, 0)
    run_steadily(telemetry, clock, 30)
    clock.now += 3600
    telemetry.begin("pairs", 10, 0)
    clock.now += 2
    assert "0.0 calls/s" in telemetry.line()


def test_an_engine_that_is_gone_keeps_its_counts_and_loses_its_gauges(path: Path, clock: Clock) -> None:
    telemetry = Telemetry(path, "generate", every=1000, clock=clock)
    run_steadily(telemetry, clock, 10, engines=2)
    telemetry.gone("student-0")
    telemetry.gone("never-there")
    assert telemetry.line().startswith("1 engine, ")
    assert "70 running" in telemetry.line()
    assert telemetry.counters().made == 400
    assert [line["made"] for line in lines(path) if line["engine"] == "student-0"] == [0, 200]


def test_the_line_of_no_engines_is_a_line(clock: Clock) -> None:
    assert Telemetry(None, "generate", clock=clock).line() == (
        "0 engines, 0.0 calls/s, 0.0 tokens/s, 0 running, 0 waiting"
    )


def test_tokens_are_the_engines_own_where_it_counts_them(path: Path, clock: Clock) -> None:
    telemetry = Telemetry(path, "generate", clock=clock)
    counters = Counters(made=1, prompt_tokens=10, completion_tokens=20)
    telemetry.sample("vllm", "first", counters, EngineStats(prompt_tokens=11, completion_tokens=29))
    telemetry.sample("http", "first", counters, EngineStats())
    assert [(line["prompt_tokens"], line["completion_tokens"]) for line in lines(path)] == [(11, 29), (10, 20)]


def test_lines_hold_the_state_of_their_run(path: Path, clock: Clock) -> None:
    telemetry = Telemetry(path, "generate", clock=clock)
    telemetry.begin("prompts", 1000, 40)
    telemetry.rows(55)
    telemetry.sample("student-0", "a1", Counters(3, 2, 1), EngineStats(10, 20, 4, 5, 0.5, 7, 6))
    telemetry.event("died", "student-0", "exit code 1")
    place = {"time": clock.now, "stage": "generate", "unit": "prompts", "engine": "student-0"}
    totals = {"calls": 3, "made": 2, "hits": 1, "prompt_tokens": 10, "completion_tokens": 20}
    gauges = {"running": 4, "waiting": 5, "kv_cache_use": 0.5, "prefix_queries": 7, "prefix_hits": 6}
    sample = {**place, "kind": "sample", "rows": 1000, "done": 55, "life": "a1", **totals, **gauges}
    assert lines(path) == [sample, {**place, "kind": "event", "event": "died", "detail": "exit code 1"}]


@pytest.mark.parametrize("cut", [1, 2, 40])
def test_a_torn_last_line_is_lost_alone(path: Path, clock: Clock, cut: int) -> None:
    """`cut` 1 takes the end of the line only: the next writer must not go on in it."""
    for stage in ("generate", "evaluate"):
        telemetry = Telemetry(path, stage, clock=clock)
        telemetry.sample("student-0", "a1", Counters(), EngineStats())
        telemetry.event("died", "student-0", "killed")
        telemetry.close()
        if stage == "generate":
            path.write_bytes(path.read_bytes()[:-cut])
    found = path.read_text().splitlines()
    assert len(found) == 4
    whole = [json.loads(line) for line in found if line.endswith("}")]
    assert [line["kind"] for line in whole] == ["sample", *(["event"] if cut == 1 else []), "sample", "event"]


def test_an_engine_has_one_line_per_interval_and_its_last_sample_at_the_end(path: Path, clock: Clock) -> None:
    telemetry = Telemetry(path, "generate", every=4, clock=clock)
    run_steadily(telemetry, clock, 30, engines=2)
    telemetry.close()
    made = [line["made"] // 20 for line in lines(path) if line["engine"] == "student-1"]
    assert made == [*range(0, 29, 4), 30]


def test_the_file_grows_with_the_logarithm_of_the_run(
    path: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "THINNING", 4096)
    sizes = []
    for _ in range(4):  # resumed three times: the interval is a matter of the file, not of the process
        telemetry = Telemetry(path, "generate", every=1, clock=clock)
        run_steadily(telemetry, clock, 2_000, engines=2)
        telemetry.close()
        sizes.append(path.stat().st_size)
    line = len(path.read_bytes().splitlines()[-1]) + 1
    unthinned = 4 * 2 * 2_001 * line
    assert sizes[-1] <= 4096 * math.log2(1 + unthinned / 4096) + 4 * 4 * line
    assert sizes[-1] < unthinned / 40
    assert sizes == sorted(set(sizes))


@given(detail=st.text(st.characters(), max_size=2 * DETAIL))
def test_any_detail_is_one_short_line(tmp_path_factory: pytest.TempPathFactory, detail: str) -> None:
    path = tmp_path_factory.mktemp("telemetry") / "engines.jsonl"
    Telemetry(path, "generate").event("quarantined", "student-0", detail)
    assert path.read_bytes().count(b"\n") == 1
    found = lines(path)[0]["detail"]
    assert len(found) <= DETAIL
    assert found.rstrip("…") in " ".join(detail.split())


def test_faults_are_counted_by_kind_and_other_events_are_none(clock: Clock) -> None:
    telemetry = Telemetry(None, "generate", clock=clock)
    for kind in [*KINDS, "died"]:
        telemetry.event(kind, "student-0", "")
    assert telemetry.faults == {**dict.fromkeys(FAULTS, 1), "died": 2}
    assert f", {len(FAULTS) + 1} faults, " in telemetry.line()
    with pytest.raises(AssertionError, match="exploded"):
        telemetry.event("exploded", "student-0", "")


def test_a_storm_of_events_is_counted_and_not_written(path: Path, clock: Clock) -> None:
    telemetry = Telemetry(path, "generate", clock=clock)
    for number in range(MOST_EVENTS + 10):
        telemetry.event("quarantined", "student-0", f"row {number}")
    assert telemetry.faults == {"quarantined": MOST_EVENTS + 10}
    assert len(lines(path)) == MOST_EVENTS
    assert "further events" in lines(path)[-1]["detail"]


def test_a_file_that_cannot_be_written_is_a_warning_and_counting_goes_on(tmp_path: Path, clock: Clock) -> None:
    telemetry = Telemetry(tmp_path / "gone" / "engines.jsonl", "generate", clock=clock)
    with pytest.warns(UserWarning, match=r"engines\.jsonl.*report will lack"):
        telemetry.sample("student-0", "first", Counters(made=1), EngineStats())
    telemetry.sample("student-0", "first", replace(telemetry.counters(), made=2), EngineStats())
    telemetry.event("died", "student-0", "")
    telemetry.close()
    assert telemetry.counters().made == 2
    assert telemetry.faults == {"died": 1}


def test_a_full_disk_is_a_warning(path: Path, clock: Clock) -> None:
    if not Path("/dev/full").exists():
        pytest.skip("no /dev/full on this system")
    path.symlink_to("/dev/full")
    with pytest.warns(UserWarning, match="No space left"):
        Telemetry(path, "generate", clock=clock).event("died", "student-0", "")
