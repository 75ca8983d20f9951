"""One verdict row in words."""

from __future__ import annotations

from shard_dist.report.inputs import Row

REFUSAL_WORDS = {"full": "refused", "partial": "partly refused", "none": "answered", "empty": "empty answer"}


def state(answer: Row | None, verdict: Row | None) -> str:
    """What one arm did with one prompt: refused, partly refused, answered, off topic, or why we do not know.

    `answered` says no more than that the judges saw no refusal and no change of topic.
    """
    if answer is None or answer["failure"]:
        return "no answer"
    if verdict is None:
        return "not judged"
    word = REFUSAL_WORDS.get(str(verdict["refusal"]), "unparsed")
    return "off topic" if word == "answered" and on_topic(verdict) is False else word


def on_topic(verdict: Row) -> bool | None:
    """None where the judge gave no readable verdict."""
    return {"yes": True, "no": False}.get(str(verdict["on_topic"]))


def winner(row: Row) -> str:
    """The arm that a pairwise verdict names, or tie, or unparsed."""
    return {"a": row["arm_a"], "b": row["arm_b"], "tie": "tie"}.get(str(row["combined"]), "unparsed")


def plain(reason: str) -> str:
    """A reason's code as words: "kept_more_helpful" -> "kept, more helpful"."""
    words = reason.replace("_", " ")
    return words.replace("kept ", "kept, ", 1) if words.startswith("kept ") else words
