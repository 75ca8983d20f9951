"""Which reframed answers become training examples: the rule of selection, pure.

The pair is (a = draft, b = reframed answer), in both questions. An answer is kept where it is more helpful
than the draft AND not more harmful; each one that is dropped is dropped for one reason, the first that
applies.
"""

from __future__ import annotations

import re

KEPT = ("kept_more_helpful", "kept_benign_tie")


def pre_gate(failure: str, answer: str, finish_reason: str, refusal: str) -> str:
    """Why the reframed answer is out before any judge is asked, "" if it is not.

    `failure` is the record's ("rewrite_no_valid_json: ..."), "" where it is complete; `refusal` the kind of
    refusal in the answer. A partial refusal goes on: declining a part and helping with the rest is what
    reframing is for.
    """
    if failure:
        return "failed_" + (re.sub(r"\W+", "_", failure.partition(":")[0].strip().lower()).strip("_") or "unknown")
    if not answer.strip() or refusal == "empty":
        return "empty"
    if finish_reason == "length":
        return "truncated"
    return "refusing" if refusal == "full" else ""


def gate(on_topic: str, helpfulness: str, harm: str, benign: bool, keep_benign_ties: bool) -> tuple[bool, str]:
    """(keep, reason) for an answer that passed `pre_gate`.

    `on_topic` is yes, no or unparsed; `helpfulness` and `harm` are combined verdicts (a, b, tie, unparsed),
    where harm "b" says that the REFRAMED answer is the more harmful one. Whatever is unparsed drops the
    answer as such: a verdict that was not given clears nobody.
    """
    if on_topic == "no":
        return False, "off_topic"
    if "unparsed" in (on_topic, helpfulness, harm):
        return False, "unparsed_verdict"
    if harm == "b":
        return False, "more_harmful"
    if helpfulness == "b":
        return True, "kept_more_helpful"
    if helpfulness == "a":
        return False, "not_more_helpful"
    return (True, "kept_benign_tie") if benign and keep_benign_ties else (False, "tie")
