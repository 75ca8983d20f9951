"""Which texts the page shows, and what is said beside them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from hashlib import sha256
from typing import Any

from shard_dist.records import Key
from shard_dist.report.inputs import Row, Run, key_of
from shard_dist.report.text import escaped
from shard_dist.report.verdicts import on_topic, plain, state, winner

RECORD_TEXTS = (("rewritten_prompt", "Rewritten prompt"), ("draft", "Draft"), ("reframed", "Reframed answer"))
RECORD_NOTES = (
    ("response_mode", "mode"),
    ("preserved_benign_need", "need kept"),
    ("reformulated_component", "changed"),
)
ARROW = " → "
LIMITS = (20_000, 8_000, 4_000, 2_000, 1_000, 500, 250)  # characters of one text that are shown
BUDGET = 1_500_000  # bytes of all shown texts after escaping: a page of 300 samples stays below 3 MB


@dataclass(frozen=True)
class Text:
    """`arm` is empty for the texts of a record. `badges` are (words, kind)."""

    label: str
    text: str
    badges: list[tuple[str, str]]
    arm: str = ""


@dataclass(frozen=True)
class Sample:
    """One card: a prompt, its outcome (what the filter offers) and the texts side by side."""

    key: Key
    category: str
    level: str
    outcome: str
    prompt: str
    texts: list[Text]
    notes: list[tuple[str, str]]


def level_name(level: Any) -> str:
    """Names of LinguaSafe's levels as the page shows them; metrics.json has them as strings."""
    if level is None or str(level) in ("", "None", "null", "unknown"):
        return "unknown"
    return "0 (benign)" if str(level) in ("0", "benign") else str(level)


def drawn(rows: Iterable[Row], number: int) -> list[Row]:
    """`number` rows (0: all) by the hash of their key: the same rows each time, whatever the texts say."""
    ordered = sorted(rows, key=lambda row: sha256("\0".join(key_of(row)).encode("utf-8", "replace")).digest())
    return ordered[:number] if number else ordered


def answer_samples(run: Run, number: int) -> list[Sample]:
    """Test prompts that at least one arm has a row for."""
    keys = {key for rows in run.answers.values() for key in rows}
    if run.prompts:
        rows = [run.prompts[key] for key in keys if key in run.prompts]
    else:
        rows = [{"dataset": key[0], "id": key[1]} for key in keys]
    return [_answer_sample(run, row) for row in drawn(rows, number)]


def _answer_sample(run: Run, row: Row) -> Sample:
    key, arms = key_of(row), [arm for arm in run.arms if arm in run.answers]
    states = {arm: state(run.answers[arm].get(key), run.verdicts[arm].get(key)) for arm in arms}
    texts = [_answer(arm, run.answers[arm].get(key), run.verdicts[arm].get(key), states[arm]) for arm in arms]
    ends = [arm for arm in ("base", "tuned") if arm in states] or arms[:1]
    return Sample(
        key=key,
        category=row.get("category") or "none",
        level=level_name(row.get("level")),
        outcome=ARROW.join(states[arm] for arm in ends),
        prompt=row.get("text") or "",
        texts=texts,
        notes=[_comparison(pair) for pair in run.pairs.get(key, [])],
    )


def _answer(arm: str, answer: Row | None, verdict: Row | None, word: str) -> Text:
    if answer is None:
        return Text(arm, "", [("no answer", "off")], arm)
    kinds = {"answered": "on", "off topic": "on", "partly refused": "side"}
    badges = [("answered" if word == "off topic" else word, kinds.get(word, "off"))]
    if verdict is not None and on_topic(verdict) is not None and word != "refused":
        badges.append(("on topic", "on") if on_topic(verdict) else ("off topic", "off"))
    if answer["finish_reason"] == "length":
        badges.append(("cut at the token limit", "side"))
    if answer["failure"]:
        badges.append((plain(answer["failure"]), "off"))
    return Text(arm, answer["text"] or "", badges, arm)


QUESTION_WORDS = {"helpfulness": "more helpful", "harm": "more harmful"}


def _comparison(pair: Row) -> tuple[str, str]:
    question, found = str(pair["question"]), winner(pair)
    chosen = {"tie": "neither", "unparsed": "unreadable"}.get(found, found)
    decided = {"first", "second"} & {pair.get("forward"), pair.get("backward")}
    flipped = " (the two orders disagree)" if found == "tie" and decided else ""
    return QUESTION_WORDS.get(question, question), f"{chosen}{flipped}"


def record_samples(run: Run, number: int) -> list[Sample]:
    """Records of the training and validation splits, whatever became of them."""
    return [_record_sample(run, row) for row in drawn(run.records, number)]


def _record_sample(run: Run, row: Row) -> Sample:
    key, fields, decision = key_of(row), row["fields"], run.decisions.get(key_of(row))
    if decision is not None:
        outcome = plain(decision["reason"]) if decision["keep"] else f"dropped: {plain(decision['reason'])}"
    else:
        outcome = f"failed: {plain(row['failure'])}" if row["failure"] else "not judged"
    texts = [Text(label, str(fields[name]), []) for name, label in RECORD_TEXTS if fields.get(name)]
    notes = [(label, str(fields[name])) for name, label in RECORD_NOTES if fields.get(name)]
    sides = {"arm_a": "draft", "arm_b": "reframed answer"}
    for question in QUESTION_WORDS:
        if decision is not None and decision[question]:
            notes.append(_comparison({**sides, "question": question, "combined": decision[question]}))
    return Sample(
        key=key,
        category=row["category"] or "none",
        level=level_name(row["level"]),
        outcome=outcome,
        prompt=row["text"] or "",
        texts=texts,
        notes=notes,
    )


def text_limit(samples: list[Sample]) -> int:
    """The largest of LIMITS at which all texts together stay within the page's budget, else the smallest."""
    texts = [text for sample in samples for text in (sample.prompt, *(part.text for part in sample.texts))]
    return next((limit for limit in LIMITS if _fits(texts, limit)), LIMITS[-1])


def _fits(texts: list[str], limit: int) -> bool:
    left = BUDGET
    for text in texts:
        left -= len(escaped(text[:limit]).encode())
        if left < 0:
            return False
    return True


def choices(samples: list[Sample], field: str) -> list[tuple[str, int]]:
    """What a filter offers: each value of `field` with the number of samples that have it."""
    values = [getattr(sample, field) for sample in samples]
    return [(value, values.count(value)) for value in sorted(set(values))]
