"""The sentences of a sweep's page: computed from its tests, and never more than they allow."""

from __future__ import annotations

from dataclasses import dataclass

from shard_dist.evaluation.claims import SUBJECTS
from shard_dist.report.measures import QUESTIONS
from shard_dist.report.sweep_inputs import SHOWN, TAUGHT, Sweep, Test, Variant
from shard_dist.report.text import count, interval, p_value, points
from shard_dist.report.words import model_notes

MOST = 3  # claims that an answer spells out
UNHARMFUL = "No test shows it to be more harmful; that is no proof that it is not."


@dataclass(frozen=True)
class Answer:
    """Of one student: `verdict` in a few words, `why` in a sentence or two."""

    student: str
    verdict: str
    why: str


def question(sweep: Sweep) -> str:
    """What the sweep was run for, as far as its arms tell."""
    kinds = [{variant.by for variant in sweep.of(student)} for student in sweep.students]
    taught = any("self" in each and each & TAUGHT for each in kinds)
    return "Self or teacher?" if taught else "Which arm is better?"


def answers(sweep: Sweep) -> list[Answer]:
    return [answer(sweep, student) for student in sweep.students]


def answer(sweep: Sweep, student: str) -> Answer:
    """A variant is the answer where it is shown to be more helpful than every other one and more harmful than none."""
    variants = sweep.of(student)
    names = {variant.name: variant.label for variant in variants}
    tests = [test for test in sweep.between(set(names)) if test.claim]
    shown = [test for test in tests if test.claim in SHOWN]
    if not tests:
        who = ", ".join(names.values()) or "no arm"
        return Answer(student, "Nothing to compare", f"Evaluated: {who}; no two arms were held against each other.")
    for name, label in names.items():
        if _ahead(name, names, shown):
            mine = [test for test in shown if name in (test.a, test.b) and test.metric == "helpfulness"]
            told = " ".join(_claim(test.seen_from(name), names) for test in mine[:MOST])
            return Answer(student, label, f"{told} {UNHARMFUL}")
    everyone = _listed(list(names.values()))
    if not shown:
        told = f"None of {len(tests)} tests between {everyone} shows one; that is no proof that they are equal."
        return Answer(student, "No difference can be claimed", told)
    first = _unbeaten(names, shown)
    some = 1 < len(first) < len(names)
    verdict = f"No winner between {_listed(first)}" if some else "No winner can be claimed"
    return Answer(student, verdict, _undecided(variants, tests, shown))


def _unbeaten(names: dict[str, str], shown: list[Test]) -> list[str]:
    """Labels of those than which no other is shown to be more helpful."""
    beaten = {_positive(test).a for test in shown if test.metric == "helpfulness"}
    return [label for name, label in names.items() if name not in beaten]


def _undecided(variants: list[Variant], tests: list[Test], shown: list[Test]) -> str:
    """Who is not shown to be beaten, and the claims that bear on the question most."""
    names = {variant.name: variant.label for variant in variants}
    seen = [_positive(test) for test in sorted(shown, key=lambda test: test.metric not in QUESTIONS)]
    parts = [f"{len(shown)} of {len(tests)} tests show a difference."]
    if len(names) > 2:
        first = _unbeaten(names, shown)
        parts.append(f"No arm is shown to be more helpful than {_listed(first)}." if first else "")
        taught = {variant.name for variant in variants if variant.by in TAUGHT}
        alone = {variant.name for variant in variants if variant.by == "self"}
        seen = [test for test in seen if {test.a, test.b} & taught and {test.a, test.b} & alone] or seen
    parts += [_claim(test, names) for test in seen[:MOST]]
    if len(seen) > MOST:
        parts.append("More under What may be claimed.")
    return " ".join(filter(None, parts))


def _ahead(name: str, names: dict[str, str], shown: list[Test]) -> bool:
    mine = [test.seen_from(name) for test in shown if name in (test.a, test.b)]
    won = {test.a for test in mine if test.metric == "helpfulness" and test.claim == "higher"}
    harmful = {("harm", "higher"), ("safe_rate", "lower")} & {(test.metric, test.claim) for test in mine}
    return won == set(names) - {name} and not harmful


def _positive(test: Test) -> Test:
    """Told of the arm that has more."""
    return test if test.claim == "higher" else test.seen_from(test.a)


def _claim(test: Test, names: dict[str, str]) -> str:
    a, b, difference = names[test.a], names[test.b], test.difference
    size = f"{points(difference.value)} points {interval(difference.low, difference.high)}"
    p = f"p {'' if (test.p or 0) < 0.001 else '= '}{p_value(test.p)} after Holm" if test.p is not None else ""
    if test.metric in QUESTIONS:
        return f"{b} is judged {QUESTIONS[test.metric][1]} than {a}, net {size}, {p}."
    subject = SUBJECTS[test.metric][0]
    return f"{subject[0].upper()}{subject[1:]}: {test.claim} with {b} than with {a}, {size}, {p}."


def _listed(words: list[str]) -> str:
    return f"{', '.join(words[:-1])} and {words[-1]}" if len(words) > 1 else "".join(words)


def caveats(sweep: Sweep) -> list[str]:
    """What a reader must know before believing a number, most weighty first."""
    found = sweep.found
    notes = list(dict.fromkeys(note for student in sweep.students.values() for note in model_notes(student)))
    judges = found.get("judges") or {}
    if judges.get("evaluate") == "rule judge":
        notes.append("The judge is a rule judge: deterministic word rules for the demo, no model and no person.")
    if judges.get("same"):
        notes.append("The judge that chose training examples also evaluates: every arm was trained towards its taste.")
    if lost := [arm for arm, row in sweep.arms.items() if not _compared(sweep, arm)]:
        more = f" and {len(lost) - 6} more" if len(lost) > 6 else ""
        notes.append(f"Not compared, of {len(sweep.arms)} arms: {', '.join(lost[:6])}{more}. See What is missing.")
    notes += _seeds(sweep)
    small = [student["prompts"] for student in sweep.students.values() if student.get("prompts")]
    if small and min(small) < 100:
        notes.append(f"The test set has {count(min(small))} prompts only: differences of some points cannot be shown.")
    return [*notes, *(found.get("claims") or [])[len(found.get("family") or []) :]]


def _seeds(sweep: Sweep) -> list[str]:
    measured = [variant for variant in sweep.variants.values() if variant.arms]
    if not measured:
        return []
    numbers = sorted({len(variant.arms) for variant in measured})
    notes = []
    if numbers[0] == 1:
        notes.append("An arm with one seed says nothing of what another training run of it would give.")
    elif numbers[0] < 5:
        notes.append(
            f"{numbers[0]} seeds say little about how much training runs differ; intervals span at least their spread."
        )
    if len(numbers) > 1:
        notes.append("Arms have different numbers of seeds; two arms are compared over the seeds that both have.")
    return notes


def _compared(sweep: Sweep, arm: str) -> bool:
    return any(arm in variant.arms for variant in sweep.variants.values())


def missing(sweep: Sweep) -> list[tuple[str, str, str]]:
    """(arm, what happened, why) of every arm that is not compared."""
    rows = []
    for arm, row in sweep.arms.items():
        if _compared(sweep, arm):
            continue
        if row.get("state") == "failed":
            rows.append((arm, f"failed in {row.get('stage') or 'an unknown stage'}", row.get("error") or "no message"))
        elif row.get("left_out"):
            rows.append((arm, "left out", row["left_out"]))
        else:
            rows.append((arm, "not evaluated", "its evaluation has not finished"))
    return rows
