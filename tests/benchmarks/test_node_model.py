"""The model of many nodes: bounds that every run keeps, real runs that it predicts, the same bytes each time."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from typing import Any
from xml.etree import ElementTree

import many_nodes
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from node_model import Costs, Generation, Machines, simulate
from node_plot import LINES, plot
from node_training import Trainer, step_parts, training
from schedule import drawn_rows, fewest_finished, lower_bound, rows_in_flight

COSTLESS = Costs(*[0.0] * 11, line=0.0)
REAL = replace(COSTLESS, start=1.0, begin=0.5, talk=4e-4, row=3e-6, notice=2.0, end=0.1, end_per_row=4e-5)
STEP = 0.01
PLAIN = Machines(engines_per_node=1, slots=8, step=STEP)


@pytest.fixture(scope="module")
def committed() -> dict[str, Any]:
    return json.loads((many_nodes.RESULTS / "nodes.json").read_text())


def test_one_slot_decodes_every_token_in_turn() -> None:
    rows = drawn_rows(20, seed=1)
    found = simulate(rows, 1, replace(PLAIN, slots=1), COSTLESS)
    assert found.rows - found.begun == pytest.approx(sum(map(sum, rows)) * STEP)


def test_one_engine_agrees_with_the_simulation_of_schedules() -> None:
    """Another program, written for the order of calls alone; its rows need no talk to begin."""
    rows = drawn_rows(400, seed=2)
    found = simulate(rows, 1, replace(PLAIN, slots=64), COSTLESS)
    expected = rows_in_flight(rows, 64, fewest_finished, window=4 * math.ceil(1.1 * 64)) * STEP
    assert found.rows - found.begun == pytest.approx(expected, rel=0.03)


@settings(deadline=None, max_examples=30)
@given(count=st.integers(1, 60), engines=st.integers(1, 6), slots=st.integers(1, 8), seed=st.integers(0, 99))
def test_no_run_beats_the_lower_bound_and_every_call_is_made_once(
    count: int, engines: int, slots: int, seed: int
) -> None:
    rows = drawn_rows(count, seed)
    run = Generation(rows, engines, replace(PLAIN, slots=slots), REAL)
    found = run.simulate()
    assert found.rows - found.begun >= lower_bound(rows, engines * slots) * STEP * (1 - 1e-9)
    assert [run.ledger[row] for row in range(count)] == [7] * count


@pytest.mark.parametrize("when", [3.0, 20.0])
def test_a_lost_node_costs_time_and_no_finished_call(when: float) -> None:
    rows = drawn_rows(300, seed=3)
    whole = simulate(rows, 3, PLAIN, REAL)
    run = Generation(rows, 3, PLAIN, REAL, lose=when)
    found = run.simulate()
    assert found.rows > whole.rows
    assert all(calls == 7 for calls in run.ledger.values())
    assert len(run.ledger) == 300
    assert found.rerun_calls == 0


def test_rows_that_stand_for_four_take_as_long_as_the_four() -> None:
    one = Machines(4, 64, STEP, step_per_call=1e-4, prefill=0.01, boot=5.0)
    fine = simulate(drawn_rows(8000, seed=4), 2, one, REAL)
    grained = simulate(drawn_rows(2000, seed=4), 2, one, REAL, grain=4.0)
    assert grained.whole == pytest.approx(fine.whole, rel=0.05)


@pytest.mark.parametrize(
    ("machine", "costs", "resource"),
    [
        (replace(PLAIN, boot=500.0), REAL, "boots"),
        (replace(PLAIN, step_per_call=0.1), REAL, "GPUs"),
        (replace(PLAIN, slots=512), replace(REAL, talk=20.0), "row queue"),
        (PLAIN, replace(REAL, end_per_row=2.0), "driver"),
        (replace(PLAIN, slots=512, writes=1.0), REAL, "shared storage"),
        (replace(PLAIN, slots=512), REAL, "longest rows"),
    ],
)
def test_what_was_made_scarce_is_named(machine: Machines, costs: Costs, resource: str) -> None:
    rows = drawn_rows(200, seed=5)
    whole = simulate(rows, 2, machine, costs).whole
    saved = {}
    for name, free in many_nodes.FREE.items():
        fewer, freed, cheaper = free(rows, machine, costs)
        saved[name] = whole - simulate(fewer, 2, freed, cheaper).whole
    assert max(saved, key=lambda name: saved[name]) == resource


def test_more_ranks_than_examples_compute_no_faster() -> None:
    """The longest example of a batch takes as long on a rank of its own."""
    one = Trainer(weights=8e9, layers=32, examples=6400, nodes=8)
    for ranks in (16, 64):
        assert step_parts(replace(one, nodes=ranks))["compute"] == step_parts(one)["compute"]
    assert step_parts(replace(one, nodes=1))["compute"] > step_parts(one)["compute"]
    assert step_parts(replace(one, nodes=16, batch=512))["compute"] > step_parts(one)["compute"]


def test_a_training_takes_its_parts() -> None:
    one = Trainer(weights=8e9, layers=32, examples=64 * 300, nodes=1, start=10.0, overlap=0.0)
    found, parts = training(one), step_parts(one)
    load, checkpoint, export = 16e9 / 5e9, 14 * 8e9 / 5e9, 16e9 / 5e9
    steps = 300 * (parts["compute"] + parts["network"])
    assert found["seconds"] == pytest.approx(10 + load + steps + 3 * checkpoint + export)


def test_real_runs_of_three_nodes_are_predicted(committed: dict[str, Any]) -> None:
    """From one and two nodes; the runs with engines or slots of other numbers and with a lost node too."""
    calibration = committed["calibration"]
    costs = many_nodes.costs_of(calibration, many_nodes.FITTED)
    errors = {
        name: many_nodes.check(run, calibration["lengths"], costs)["error"] for name, run in calibration["pool"].items()
    }
    assert abs(errors["three nodes"]) < 0.1, errors
    assert max(map(abs, errors.values())) < 0.2, errors


@pytest.mark.parametrize(("shape", "count"), [("8B", 2), ("70B", 8)])
def test_the_same_calibration_gives_the_same_bytes_and_the_committed_figures(
    committed: dict[str, Any], shape: str, count: int
) -> None:
    """The figures within 5 %: `make bench-nodes` writes them anew where the queue or the model has changed."""
    costs = many_nodes.costs_of(many_nodes.rounded(committed["calibration"]), many_nodes.FITTED)
    first, again = (many_nodes.rounded(many_nodes.generation_point(shape, 939, count, costs)) for _ in range(2))
    assert json.dumps(first) == json.dumps(again)
    (stored,) = [
        one for one in committed["generation"] if (one["shape"], one["prompts"], one["nodes"]) == (shape, 939, count)
    ]
    assert first["seconds"] == pytest.approx(stored["seconds"], rel=0.05)


def test_the_plot_is_an_image_that_names_every_line_and_its_limit(committed: dict[str, Any]) -> None:
    words = [element.text or "" for element in ElementTree.fromstring(plot(committed)).iter() if element.text]
    for *_, name in LINES:
        assert sum(word.endswith(name) for word in words) == 2
    assert sum("of the time" in word for word in words) == 2 * len(LINES)
