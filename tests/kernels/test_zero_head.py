"""The loss head under ZeRO-3 on two gloo ranks against one process without it."""

from __future__ import annotations

import json
from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.zero
SCENARIOS = [
    f"tied={tied} gas={gas} empty={empty}" for tied, gas, empty in product((False, True), (1, 2), (False, True))
]


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory, launch: Callable[..., Any]) -> dict[str, Any]:
    """All scenarios in one pair of processes."""
    result = tmp_path_factory.mktemp("zero") / "result.json"
    script = Path(__file__).with_name("zero_rank.py")
    done = launch(script, result).wait()
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(result.read_text())


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_p12_losses_and_weights_equal_one_process(measured: dict[str, Any], scenario: str) -> None:
    """Tied or not, accumulated or not, uneven supervised tokens, a rank without any: one normaliser for the step.

    Three SGD steps at rate 0.1 in fp32. A wrong factor on any rank or micro-batch would move weights by 1e-3 and more.
    """
    assert measured["scenarios"][scenario]["loss_error"] < 5e-6
    assert measured["scenarios"][scenario]["weight_error"] < 1e-6


def test_p4_the_heads_weight_is_not_resident_while_the_body_runs(measured: dict[str, Any]) -> None:
    """Reading lm_head.weight from outside the head keeps it from the second step on; a forward of its own does not."""
    assert not any(measured["scenarios"]["tied=False gas=2 empty=False"]["resident"])
    assert any(measured["kinds"]["attribute"]["resident"]), "the probe sees a resident weight where there is one"


def test_p5_no_more_gathers_than_a_plain_head_needs(measured: dict[str, Any]) -> None:
    fused = measured["scenarios"]["tied=False gas=2 empty=False"]["gathers"]
    assert fused == measured["kinds"]["eager"]["gathers"]
    assert fused[0] > 0


def test_p4_a_weight_that_is_not_gathered_is_named(measured: dict[str, Any]) -> None:
    assert "weight has shape [0]" in measured["message"]
    assert "LossHead" in measured["message"]
