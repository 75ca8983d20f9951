"""The sentences claim no more than the numbers carry."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shard_dist.report import text
from shard_dist.report.inputs import Estimate
from shard_dist.report.words import change, contests, measures, title, verdict


def rate(value: float | None, low: float | None = None, high: float | None = None, n: int = 100) -> dict:
    return {"value": value, "low": low, "high": high, "n": n}


def metrics(difference: dict, base: float = 0.8, tuned: float = 0.1) -> dict:
    arms = {
        "base": {"refusal_rate": rate(base, base, base)},
        "tuned": {"refusal_rate": rate(tuned, tuned, tuned)},
    }
    return {"arms": arms, "pairs": {"tuned_vs_base": {"differences": {"refusal_rate": difference}}}}


@pytest.mark.parametrize(
    ("low", "high", "p", "claim"),
    [
        (-0.9, -0.5, 0.001, "lower"),
        (0.1, 0.2, 0.001, "higher"),
        (-0.1, 0.2, 0.001, "no change shown"),  # the interval holds zero
        (-0.9, -0.5, 0.06, "no change shown"),  # the exact test disagrees
        (-0.9, -0.5, None, "no change shown"),  # no test, no claim
        (None, None, 1.0, "not measured"),
    ],
)
def test_a_change_is_claimed_only_where_interval_and_test_agree(low, high, p, claim) -> None:
    value = None if low is None else (low + high) / 2
    assert change(Estimate(value, low, high, 50), p, 0.95) == claim


def test_the_title_says_what_happened_to_refusals_with_both_rates() -> None:
    fell = metrics({**rate(-0.7, -0.8, -0.6), "mcnemar_p": 1e-9})
    found = measures(fell, ["base", "tuned"], 0.95, "m")
    assert title(found) == "Refusals fell from 80.0% to 10.0% of sensitive test prompts"
    assert verdict(found, []) == ["Refusals of sensitive prompts fell: −70.0 points [−80.0, −60.0]."]
    same = metrics({**rate(0.02, -0.1, 0.14), "mcnemar_p": 0.8}, tuned=0.82)
    found = measures(same, ["base", "tuned"], 0.95, "m")
    assert title(found) == "No change in refusals is shown: 80.0% before, 82.0% after"
    assert "anything from −10.0 to +14.0 points" in verdict(found, [])[0]
    assert title([]) == "Not evaluated yet"


@pytest.mark.parametrize(
    ("win", "loss", "p", "claim"),
    [
        (0.7, 0.1, 1e-6, "tuned is judged more harmful more often than base"),
        (0.1, 0.7, 1e-6, "base is judged more harmful more often than tuned"),
        (0.3, 0.2, 0.4, "neither tuned nor base is shown to be more harmful"),
    ],
)
def test_harm_is_told_the_right_way_round(win, loss, p, claim) -> None:
    shares = {
        "tuned_more_harmful": rate(win),
        "base_more_harmful": rate(loss),
        "tie": rate(0.1),
        "unparsed": rate(0.0),
    }
    part = {"pairs": {"tuned_vs_base": {"harm": {**shares, "mcnemar_p": p}}}}
    assert contests(part, 0.95, "m")[0].claim == claim


@given(st.text())
def test_printable_text_can_be_encoded_and_has_no_controls_left(value: str) -> None:
    shown = text.printable(value)
    shown.encode("utf-8")
    assert not any(ord(char) < 32 and char not in "\t\n" for char in shown)
    assert text.printable(shown) == shown


@given(st.text(), st.integers(1, 3000))
def test_an_excerpt_loses_nothing_that_it_does_not_count(value: str, limit: int) -> None:
    head, rest, left_out = text.excerpt(value, limit)
    assert head + rest == value[:limit]
    assert len(head) + len(rest) + left_out == len(value)


@pytest.mark.parametrize(
    ("seconds", "shown"), [(0.84, "0.8 s"), (60, "1 min 0 s"), (372.4, "6 min 12 s"), (9000, "2 h 30 min")]
)
def test_durations_read_like_durations(seconds, shown) -> None:
    assert text.duration(seconds) == shown
