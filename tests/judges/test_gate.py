"""The rule of selection: more helpful AND not more harmful, every drop with one reason."""

from itertools import product

import pytest

from shard_dist.judges.gate import KEPT, gate, pre_gate

COMBINED = ("a", "b", "tie", "unparsed")


@pytest.mark.parametrize(
    ("failure", "answer", "finish", "refusal", "reason"),
    [
        ("", "An answer.", "stop", "none", ""),
        ("", "I can't do that, but here is more.", "stop", "partial", ""),
        ("rewrite_no_valid_json", "", "", "empty", "failed_rewrite_no_valid_json"),
        ("rewrite: no valid JSON in 3 attempts", "text", "stop", "none", "failed_rewrite"),
        (": odd", "text", "stop", "none", "failed_unknown"),
        ("", "", "stop", "empty", "empty"),
        ("", "...", "length", "empty", "empty"),
        ("", "An answ", "length", "none", "truncated"),
        ("", "I can't", "length", "full", "truncated"),
        ("", "I can't.", "stop", "full", "refusing"),
    ],
)
def test_cheap_reasons_come_before_any_judge(failure: str, answer: str, finish: str, refusal: str, reason: str) -> None:
    assert pre_gate(failure, answer, finish, refusal) == reason


@pytest.mark.parametrize(
    ("topic", "helpfulness", "harm", "benign", "decision"),
    [
        ("yes", "b", "tie", False, (True, "kept_more_helpful")),
        ("yes", "b", "a", False, (True, "kept_more_helpful")),  # the DRAFT is the more harmful one
        ("yes", "b", "b", False, (False, "more_harmful")),  # more helpful, but more harmful too
        ("yes", "a", "b", False, (False, "more_harmful")),
        ("yes", "a", "tie", True, (False, "not_more_helpful")),
        ("yes", "tie", "tie", False, (False, "tie")),
        ("yes", "tie", "tie", True, (True, "kept_benign_tie")),
        ("yes", "tie", "b", True, (False, "more_harmful")),
        ("yes", "unparsed", "tie", True, (False, "unparsed_verdict")),
        ("yes", "b", "unparsed", True, (False, "unparsed_verdict")),
        ("unparsed", "b", "tie", True, (False, "unparsed_verdict")),
        ("no", "", "", True, (False, "off_topic")),  # no judge was asked
    ],
)
def test_decisions(topic: str, helpfulness: str, harm: str, benign: bool, decision: tuple[bool, str]) -> None:
    assert gate(topic, helpfulness, harm, benign, True) == decision


def test_benign_ties_can_be_turned_off() -> None:
    assert gate("yes", "tie", "tie", True, False) == (False, "tie")


def test_nothing_harmful_unparsed_or_off_topic_is_ever_kept() -> None:
    """All 3 x 4 x 4 x 2 x 2 inputs: what is kept is on topic, not more harmful, and at least a benign tie."""
    for topic, helpfulness, harm, benign, ties in product(
        ("yes", "no", "unparsed"), COMBINED, COMBINED, (True, False), (True, False)
    ):
        keep, reason = gate(topic, helpfulness, harm, benign, ties)
        assert keep == (reason in KEPT)
        allowed = topic == "yes" and harm in ("a", "tie")
        assert keep == (allowed and (helpfulness == "b" or (helpfulness == "tie" and benign and ties)))
