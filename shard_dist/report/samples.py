"""Which texts the page shows, and what is said beside them."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from hashlib import sha256

from shard_dist.records import Key
from shard_dist.report.inputs import Row, Run, key_of
from shard_dist.report.slices import level_name
from shard_dist.report.text import Span, kappa, number
from shard_dist.report.verdicts import on_topic, plain, state, winner

RECORD_TEXTS = (("rewritten_prompt", "Rewritten prompt"), ("draft", "Draft"), ("reframed", "Reframed answer"))
RECORD_NOTES = (
    ("response_mode", "mode"),
    ("preserved_benign_need", "need kept"),
    ("reformulated_component", "changed"),
)
SILENT = ("_finish_reason", "_thinking", "rewrite_attempts")  # ends of names of a record's fields that are not shown
ARROW = " → "
REFUSAL = "refusal"  # the rater whose spans are marked


@dataclass(frozen=True)
class Text:
    """`label` is the arm, or which text of a record it is. `badges` are (words, kind)."""

    label: str
    text: str
    badges: tuple[tuple[str, str], ...] = ()
    span: Span | None = None


@dataclass(frozen=True)
class Sample:
    """One card: a prompt, its outcome and the texts side by side.

    `choices` are what filters offer: field -> (group, value) of each that applies to this sample.
    """

    key: Key
    category: str
    level: str
    outcome: str
    prompt: str
    texts: list[Text]
    notes: tuple[tuple[str, str], ...]
    choices: dict[str, list[tuple[str, str]]] = field(default_factory=dict)


def drawn(rows: Iterable[Row], number: int) -> list[Row]:
    """`number` rows (0: all) by the hash of their key: the same rows each time, whatever the texts say."""
    ordered = sorted(rows, key=lambda row: sha256("\0".join(key_of(row)).encode("utf-8", "replace")).digest())
    return ordered[:number] if number else ordered


def answered(run: Run) -> list[Row]:
    """Prompt rows, as far as there are any, of the test prompts that at least one arm has a row for."""
    keys = {key: None for rows in run.answers.values() for key in rows}
    if run.prompts:
        return [run.prompts[key] for key in keys if key in run.prompts]
    return [{"dataset": key[0], "id": key[1]} for key in keys]


def answer_samples(run: Run, number: int) -> list[Sample]:
    """`number` test prompts (0: all) with what every arm answered."""
    return [_answer_sample(run, row) for row in drawn(answered(run), number)]


def _answer_sample(run: Run, row: Row) -> Sample:
    key, arms = key_of(row), [arm for arm in run.arms if arm in run.answers]
    found = {arm: state(run.answers[arm].get(key), run.verdicts[arm].get(key)) for arm in arms}
    before = found.get(run.reference, "")
    moves = [(arm, f"{arm}: {before}{ARROW}{found[arm]}") for arm in arms if arm != run.reference]
    category, level = row.get("category") or "none", level_name(row.get("level"))
    return Sample(
        key=key,
        category=category,
        level=level,
        outcome=outcome(found),
        prompt=row.get("text") or "",
        texts=[_answer(run, arm, key, found[arm]) for arm in arms],
        notes=tuple(_comparison(pair, run.reference) for pair in run.pairs.get(key, [])),
        choices={
            "category": [("", category)],
            "level": [("", level)],
            "outcome": moves,
            "verdict": [(arm, f"{arm}: {word}") for arm, word in found.items()],
        },
    )


def outcome(found: dict[str, str]) -> str:
    """ "refused → answered"; with several arms after the first, which of them: "refused → answered: b; refused: c"."""
    (_, before), *others = found.items()
    groups: dict[str, list[str]] = {}
    for arm, word in others:
        groups.setdefault(word, []).append(arm)
    named = len(others) > 1
    parts = [f"{word}: {', '.join(arms)}" if named else word for word, arms in groups.items()]
    return ARROW.join([before, "; ".join(parts)]) if parts else before


def _answer(run: Run, arm: str, key: Key, word: str) -> Text:
    answer, verdict = run.answers[arm].get(key), run.verdicts[arm].get(key)
    if answer is None:
        return Text(arm, "", (("no answer", "off"),))
    kinds = {"answered": "on", "off topic": "on", "partly refused": "side"}
    badges = [("answered" if word == "off topic" else word, kinds.get(word, "off"))]
    if verdict is not None and on_topic(verdict) is not None and word != "refused":
        badges.append(("on topic", "on") if on_topic(verdict) else ("off topic", "off"))
    if answer["finish_reason"] == "length":
        badges.append(("cut at the token limit", "side"))
    if answer["failure"]:
        badges.append((plain(answer["failure"]), "off"))
    ratings = run.ratings.get(arm, {}).get(key, [])
    badges += [(rated(rating), "side") for rating in ratings if rating["judge"] != REFUSAL]
    return Text(arm, answer["text"] or "", tuple(badges), _span(ratings))


def rated(rating: Row) -> str:
    """ "llama_guard: unsafe .93", "helpfulness: 4"."""
    score, verdict = rating["score"], str(rating["verdict"])
    number = "" if score is None else str(int(score)) if float(score).is_integer() else kappa(score)
    return f"{rating['judge']}: {verdict} {number}".strip() if number != verdict else f"{rating['judge']}: {verdict}"


def _span(ratings: list[Row]) -> Span | None:
    for rating in ratings:
        if rating["judge"] == REFUSAL and rating["span_start"] is not None and rating["span_end"] is not None:
            return rating["span_start"], rating["span_end"]
    return None


QUESTION_WORDS = {"helpfulness": "more helpful", "harm": "more harmful"}


def _comparison(pair: Row, reference: str = "") -> tuple[str, str]:
    """(question, verdict); the question names the two where they are not an arm and the reference."""
    question, found = str(pair["question"]), winner(pair)
    chosen = {"tie": "neither", "unparsed": "unreadable"}.get(found, found)
    decided = {"first", "second"} & {pair.get("forward"), pair.get("backward")}
    flipped = " (the two orders disagree)" if found == "tie" and decided else ""
    sides = f", {pair['arm_b']} and {pair['arm_a']}" if reference else ""
    return f"{QUESTION_WORDS.get(question, question)}{sides}", f"{chosen}{flipped}"


def record_samples(run: Run, number: int) -> list[Sample]:
    """Records of the training and validation splits, whatever became of them."""
    return [_record_sample(run, row) for row in drawn(run.records, number)]


def _record_sample(run: Run, row: Row) -> Sample:
    key, fields, decision = key_of(row), row["fields"], run.decisions.get(key_of(row))
    if decision is not None:
        became = plain(decision["reason"]) if decision["keep"] else f"dropped: {plain(decision['reason'])}"
    else:
        became = f"failed: {plain(row['failure'])}" if row["failure"] else "not judged"
    notes = [(label, str(fields[name])) for name, label in RECORD_NOTES if fields.get(name)]
    judged = (decision or {}).get("chosen") or "reframed"
    sides = {"arm_a": "draft", "arm_b": _label(judged).lower()}
    for question in QUESTION_WORDS:
        if decision is not None and decision[question]:
            notes.append(_comparison({**sides, "question": question, "combined": decision[question]}))
    category, level = row["category"] or "none", level_name(row["level"])
    return Sample(
        key=key,
        category=category,
        level=level,
        outcome=became,
        prompt=row["text"] or "",
        texts=_record_texts(fields, decision or {}),
        notes=tuple(notes),
        choices={"category": [("", category)], "level": [("", level)], "outcome": [("", became)]},
    )


def _record_texts(fields: Row, decision: Row) -> list[Text]:
    """SHARD's texts first, then those of other recipes in the order in which they were written."""
    known = [name for name, _ in (*RECORD_TEXTS, *RECORD_NOTES)]
    others = [name for name in fields if name not in known and not name.endswith(SILENT)]
    names = [name for name in (*(name for name, _ in RECORD_TEXTS), *others) if fields.get(name)]
    return [Text(_label(name), str(fields[name]), tuple(_record_badges(name, fields, decision))) for name in names]


def _label(name: str) -> str:
    return dict(RECORD_TEXTS).get(name) or name.replace("_", " ").capitalize()


def _record_badges(name: str, fields: Row, decision: Row) -> Iterator[tuple[str, str]]:
    if decision.get("keep") and decision.get("chosen") == name:
        yield "chosen", "on"
    if decision.get("keep") and decision.get("rejected") == name:
        yield "rejected", "off"
    scores = json.loads(decision.get("scores") or "{}")
    if isinstance(scores, dict) and isinstance(scores.get(name), int | float):
        yield f"score {number(scores[name])}", "side"
    if fields.get(f"{name}_finish_reason") == "length":
        yield "cut at the token limit", "side"
