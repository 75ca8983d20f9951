"""The generation section: sums and rates are those of the samples, pauses are pauses, and details are text."""

from __future__ import annotations

import json
import re
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shard_dist.report.build import build_report
from shard_dist.report.generation import EVENTS_SHOWN, Generation, Timeline, generation
from shard_dist.report.inputs import EngineLog, read_run

START = 1_767_322_800.0
ZEROS = dict.fromkeys(("made", "hits", "prompt_tokens", "running", "waiting", "prefix_queries", "prefix_hits"), 0)


def sample(time: float, tokens: int, life: str = "a1", engine: str = "student-0", **values: Any) -> dict[str, Any]:
    place = {"kind": "sample", "time": START + time, "stage": "generate", "engine": engine, "life": life}
    return {**place, **ZEROS, "completion_tokens": tokens, "kv_cache_use": None, **values}


def event(kind: str, detail: str = "", engine: str = "student-0") -> dict[str, Any]:
    place = {"kind": "event", "time": START, "stage": "generate", "engine": engine}
    return {**place, "event": kind, "detail": detail}


def curves(made: Generation, title: str) -> list[list[tuple[float, float]]]:
    """The lines of a panel of the only stage, in percent of the frame from its lower left."""
    panel = next(panel for panel in made.stages[0].panels if panel.title == title)
    paths = re.findall(r'<path class="[^"]*" d="M([^"]*)"', panel.plot)
    return [[(float(x), 100 - float(y)) for x, y in map(str.split, path.split("L"))] for path in paths]


def section(page: str) -> str:
    return page.split('<section id="generation">', 1)[1].split("</section>", 1)[0]


def test_a_steady_engine_has_its_rate_everywhere() -> None:
    made = generation(EngineLog([sample(t, 50 * t, running=8) for t in range(0, 601, 2)]))
    (stage,) = made.stages
    assert (stage.seconds, stage.pauses) == (600, [])
    assert stage.engines[0].tokens_per_second == pytest.approx(50)
    assert stage.panels[0].note == "50 on average, at most 50"
    assert stage.panels[2].note == "8 on average, at most 8"
    (line,) = curves(made, "Tokens written per second")
    assert {y for _, y in line} == {line[0][1]}
    assert (line[0][0], line[-1][0]) == (0, 100)


def test_where_nothing_ran_is_a_pause_that_is_not_to_scale_and_no_line_crosses_it() -> None:
    first = [sample(t, 10 * t) for t in range(0, 101, 2)]
    again = [sample(36_000 + t, 10 * t, life="b2") for t in range(0, 101, 2)]
    made = generation(EngineLog(first + again))
    assert made.stages[0].seconds == 200
    assert made.stages[0].pauses == [35_900]
    assert made.stages[0].panels[0].note == "10 on average, at most 10"
    before, after = curves(made, "Tokens written per second")
    assert (before[0][0], after[-1][0]) == (0, 100)
    assert 1 < after[0][0] - before[-1][0] < 3
    assert "no engine ran for 9 h 58 min" in made.stages[0].panels[0].plot


def test_lives_that_overlap_or_follow_at_once_are_no_pause_and_their_rates_add_up() -> None:
    rows = [sample(t, 10 * t) for t in range(0, 101, 2)]
    rows += [sample(t, 30 * (t - 40), life="b2", engine="student-1") for t in range(40, 81, 2)]
    rows += [sample(t, 10 * (t - 103), life="c3") for t in range(103, 201)]
    made = generation(EngineLog(rows))
    assert made.stages[0].pauses == []
    assert len(curves(made, "Tokens written per second")) == 1
    assert made.stages[0].panels[0].note.endswith("at most 40")
    assert [(engine.name, engine.lives) for engine in made.stages[0].engines] == [("student-0", 2), ("student-1", 1)]


LIVES = st.lists(
    st.lists(st.tuples(st.integers(1, 60), st.integers(0, 1000), st.integers(0, 9)), min_size=1, max_size=8),
    min_size=1,
    max_size=6,
)


@given(LIVES, st.lists(st.integers(0, 20_000), min_size=6, max_size=6))
def test_the_area_under_the_curve_is_what_was_written_between_the_samples(lives, starts) -> None:
    rows, between = [], 0
    for number, (steps, start) in enumerate(zip(lives, starts, strict=False)):
        time, tokens = start, 7  # written before the first sample: counted, but nobody knows how fast
        rows.append(sample(time, tokens, life=str(number)))
        for seconds, more, running in steps:
            time, tokens = time + seconds, tokens + more
            rows.append(sample(time, tokens, life=str(number), running=running))
        between += tokens - 7
    made = generation(EngineLog(rows))
    stage = made.stages[0]
    assert stage.engines[0].completion_tokens == between + 7 * len(lives)
    note = stage.panels[0].note
    mean = float(note.split(" on average")[0].replace(",", ""))
    assert mean * stage.seconds == pytest.approx(between, rel=0.006, abs=1e-6)
    lines = curves(made, "Tokens written per second")
    assert len(lines) == len(stage.pauses) + 1
    assert all(before[-1][0] < after[0][0] for before, after in pairwise(lines))


@given(st.lists(st.tuples(st.floats(6, 1e6), st.floats(0.01, 1e6)), min_size=1, max_size=30))
def test_ticks_and_bands_lie_on_the_axis_in_order(lengths) -> None:
    stretches, now = [], START
    for pause, seconds in lengths:
        stretches.append((now + pause, now + pause + seconds))
        now += pause + seconds
    timeline = Timeline(stretches)
    frame = timeline.frame()
    places = [place for place, _ in frame.ticks]
    assert places == sorted(set(places))
    assert 2 <= len(places) <= 10
    assert all(-1e-6 <= place <= frame.length * (1 + 1e-9) for place in places)
    assert sum(end - start for start, end, _ in frame.bands) <= 0.1 * timeline.seconds * (1 + 1e-9)
    assert all(0 < start < end < frame.length for start, end, _ in frame.bands)


def test_ticks_are_at_running_times_on_either_side_of_a_pause() -> None:
    frame = Timeline([(START, START + 240), (START + 9_000, START + 9_360)]).frame()
    assert frame.length == 612
    assert frame.bands == [(240, 252, "no engine ran for 2 h 26 min")]
    assert frame.ticks == [(0, "0"), (312, "5 min"), (612, "10 min")]


def test_an_engine_that_ended_has_no_calls_in_flight() -> None:
    rows = [sample(t, 0, running=100) for t in range(51)] + [
        sample(t, 0, engine="student-1", life="b2", running=10) for t in range(101)
    ]
    (line, _) = curves(generation(EngineLog(rows)), "Calls in flight")
    assert [round(y) for x, y in line if abs(x - 50) > 1] == [round(line[0][1])] * 50 + [round(line[-1][1])] * 50
    assert line[0][1] == pytest.approx(11 * line[-1][1], abs=0.1)


def test_a_clock_that_was_set_back_makes_no_negative_rates() -> None:
    rows = [sample(0, 0), sample(60, 600), sample(30, 620), sample(50, 700)]
    made = generation(EngineLog(rows))
    assert made.stages[0].engines[0].completion_tokens == 700
    assert all(y >= 0 for line in curves(made, "Tokens written per second") for _, y in line)


def test_speed_is_over_the_time_at_work_only() -> None:
    rows = [sample(0, 0, running=4), sample(10, 500, running=4), sample(12, 600), sample(500, 600)]
    (engine,) = generation(EngineLog(rows)).stages[0].engines
    assert engine.tokens_per_second == 50


def test_what_an_engine_does_not_tell_is_none_and_the_rest_is_over_its_lives() -> None:
    rows = [
        sample(0, 10, kv_cache_use=0.2, prefix_queries=10, prefix_hits=1, made=1, hits=2, prompt_tokens=3),
        sample(9, 20, kv_cache_use=0.7, prefix_queries=100, prefix_hits=50, made=4, hits=5, prompt_tokens=6),
        sample(20, 30, life="b2", kv_cache_use=0.1, prefix_queries=100, prefix_hits=70, made=7, hits=8),
        sample(0, 5, engine="http-0"),
    ]
    log = EngineLog(rows, [event("died"), event("hedged"), event("boot_failed", engine="student-9")])
    http, student = generation(log).stages[0].engines
    assert (student.lives, student.made, student.hits, student.prompt_tokens, student.completion_tokens) == (
        *(2, 11, 13, 6),
        50,
    )
    assert (student.kv_cache_use, student.prefix_hit_rate, student.faults) == (0.7, 0.6, 1)
    assert (http.kv_cache_use, http.prefix_hit_rate, http.tokens_per_second, http.faults) == (None, None, None, 0)


def test_one_sample_has_counts_and_no_plot(run: Path) -> None:
    (run / "engines.jsonl").write_text(json.dumps(sample(0, 1234)) + "\n")
    text = section(build_report(run).read_text(encoding="utf-8"))
    assert "1,234" in text
    assert "<svg" not in text
    assert "No engine failed" in text


def test_each_stage_has_plots_and_a_row_per_engine(run: Path) -> None:
    text = section(build_report(run).read_text(encoding="utf-8"))
    assert re.findall("<h3>(.*?)</h3>", text) == ["Generate", "Evaluate", "What happened"]
    assert text.count("<figure>") == 6
    names = re.findall(r'<th scope="row">(?:<bdi>)?([\w-]+)', text)
    assert names == ["student-0", "student-1", "student-2", "all", "judge-0", "student-0", "all"]
    assert "with 1 pause of 9 h" in text
    assert "process died <b>2</b>" in text


def test_numbers_of_the_table_are_those_of_the_last_samples(run: Path) -> None:
    last = {}
    for line in (run / "engines.jsonl").read_text().splitlines():
        if line.endswith("}") and (row := json.loads(line))["kind"] == "sample":
            last[row["stage"], row["life"]] = row
    text = section(build_report(run).read_text(encoding="utf-8"))
    for column in ("made", "hits", "prompt_tokens", "completion_tokens"):
        total = sum(row[column] for (stage, _), row in last.items() if stage == "generate")
        assert f'<td class="number">{total:,}</td>' in text.split("<h3>Evaluate")[0]


def test_details_are_text_on_the_page(run: Path, synthetic: SimpleNamespace) -> None:
    with (run / "engines.jsonl").open("a") as stream:
        for text in [*synthetic.hostile[:6], "\ud800 lone"]:
            stream.write(json.dumps(event("quarantined", text, engine=text)) + "\n")
    text = section(build_report(run).read_text(encoding="utf-8"))
    for tag in ("<script", "<img", "<link", "<!--", "onload=alert(2)>"):
        assert tag not in text
    assert "&lt;/script&gt;&lt;script&gt;alert(&#39;owned&#39;)&lt;/script&gt;" in text
    assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f]", text)


def test_the_first_events_are_listed_and_the_others_counted() -> None:
    log = EngineLog([], [event("hedged", str(number)) for number in range(EVENTS_SHOWN + 30)])
    made = generation(log)
    assert [told.detail for told in made.events] == [str(number) for number in range(EVENTS_SHOWN)]
    assert made.kinds == [("call asked twice", EVENTS_SHOWN + 30)]


def test_the_page_says_how_many_events_are_not_listed(run: Path) -> None:
    lines = [json.dumps(event("hedged")) + "\n" for _ in range(EVENTS_SHOWN + 1_030)]
    (run / "engines.jsonl").write_text("".join(lines))
    text = section(build_report(run).read_text(encoding="utf-8"))
    assert "The first 200 are listed, 1,030 further ones are not." in text
    assert text.count("<tr>") == 1 + EVENTS_SHOWN


def test_a_run_whose_engines_never_worked_says_so_and_what_happened(run: Path) -> None:
    (run / "engines.jsonl").write_text(json.dumps(event("boot_failed", "no such file: weights")) + "\n")
    text = section(build_report(run).read_text(encoding="utf-8"))
    assert "No engine worked in this directory" in text
    assert "no such file: weights" in text


def test_a_run_without_the_file_says_so_in_one_sentence(run: Path) -> None:
    (run / "engines.jsonl").unlink()
    text = section(build_report(run).read_text(encoding="utf-8"))
    assert "No engine worked in this directory" in text
    assert "What happened" not in text


def test_boots_are_no_news_and_the_plan_is_told_with_its_stage(run: Path) -> None:
    rows = [sample(0, 1), sample(10, 2), event("booted", "31 s"), event("plan", "student beside judge")]
    (run / "engines.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    text = section(build_report(run).read_text(encoding="utf-8"))
    assert "Plan: <bdi>student beside judge</bdi>" in text
    assert "31 s" not in text
    assert "No engine failed" in text


DAMAGED = [
    '{"kind":"sample","time":17673',
    "[1, 2]",
    "\ufffd",
    "{}",
    json.dumps(sample(float("nan"), 1)),
    json.dumps(sample(1e300, 1)),
    json.dumps(sample(0, -1)),
    json.dumps(sample(0, 1, made="many")),
    json.dumps(sample(0, 1, running=float("inf"))),
    json.dumps(sample(0, 1, kv_cache_use=1.5)),
    json.dumps(sample(0, 1, engine=None)),
    json.dumps({**event("died"), "detail": {"a": 1}}),
]


@pytest.mark.parametrize("line", DAMAGED)
def test_a_damaged_line_is_left_out_and_counted(run: Path, line: str) -> None:
    rows = [json.dumps(sample(0, 5)), line, json.dumps(sample(10, 25))]
    (run / "engines.jsonl").write_text("\n".join(rows) + "\n")
    log = read_run(run).engines
    assert ([row["completion_tokens"] for row in log.samples], log.events, log.damaged) == ([5, 25], [], 1)
    assert "could not be read and are left out: 1." in section(build_report(run).read_text(encoding="utf-8"))
