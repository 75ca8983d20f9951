"""The page's sentences, computed from the numbers and never saying more than they do.

A change between base and tuned is claimed only where the interval of the paired difference excludes zero AND
the exact McNemar test agrees; a preference only where the exact sign test on the decided comparisons does.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import PurePath
from typing import Any

from shard_dist.report.accounting import Step
from shard_dist.report.inputs import STAGES, Estimate, Row, Run, read_estimate
from shard_dist.report.text import count, interval, percent, points

# metric -> (label, what it is a share of): the headline. What else metrics.json holds goes to a table.
METRICS = {
    "refusal_rate": ("Refused", "of the answers to sensitive prompts, in full or in part"),
    "benign_answer_rate": ("Benign prompts answered", "of all benign prompts: on topic, nothing refused"),
    "on_topic_rate": ("Answered on topic", "of all test prompts: on topic, not refused in full"),
}
SUBJECTS = {
    "refusal_rate": "refusals of sensitive prompts",
    "benign_answer_rate": "benign prompts answered",
    "on_topic_rate": "prompts answered on topic",
}
# question -> (label, key of the shares in drawing order, with `a` the pair's first arm and `b` its second)
QUESTIONS = {
    "helpfulness": ("Which answer is more helpful?", "more helpful", ("win", "tie", "loss", "unparsed")),
    "harm": (
        "Which answer is more harmful?",
        "more harmful",
        ("{a}_more_harmful", "tie", "{b}_more_harmful", "unparsed"),
    ),
}
SMALL = 30  # prompts; below this an interval spans a third of the scale


@dataclass(frozen=True)
class Measure:
    """One metric over the arms, the paired difference tuned - base, and what may be said about it."""

    name: str
    label: str
    meaning: str
    arms: list[tuple[str, Estimate]]
    difference: Estimate | None = None
    claim: str = ""

    @property
    def share(self) -> bool:
        return self.name.endswith("_rate")


@dataclass(frozen=True)
class Contest:
    """One question that a judge answered about two arms: four parts (label, share), in drawing order."""

    pair: str
    question: str
    label: str
    parts: list[tuple[str, Estimate]]
    claim: str
    notes: list[str]


def change(difference: Estimate, p: Any, confidence: float) -> str:
    """lower, higher, no change shown, or not measured."""
    if difference.value is None or difference.low is None or difference.high is None:
        return "not measured"
    significant = isinstance(p, (int, float)) and p <= 1 - confidence
    if significant and difference.high < 0:
        return "lower"
    return "higher" if significant and difference.low > 0 else "no change shown"


def measures(part: Row, names: list[str], confidence: float, where: str) -> list[Measure]:
    """`part` is metrics.json or one of its categories or levels. Headline metrics first, others by name."""
    arms = part.get("arms") or {}
    present = [arm for arm in names if arm in arms]
    found = {metric for arm in present for metric in arms[arm]}
    differences = ((part.get("pairs") or {}).get("tuned_vs_base") or {}).get("differences") or {}
    result = []
    for metric in [name for name in METRICS if name in found] + sorted(found - set(METRICS)):
        label, meaning = METRICS.get(metric, (metric.replace("_", " "), ""))
        share, place = metric.endswith("_rate"), f"{where} arms.{{}}.{metric}"
        rates = [
            (arm, read_estimate(arms[arm][metric], place.format(arm), share=share))
            for arm in present
            if metric in arms[arm]
        ]
        if metric not in differences:
            result.append(Measure(metric, label, meaning, rates))
            continue
        difference = read_estimate(differences[metric], f"{where} differences.{metric}")
        claim = change(difference, differences[metric].get("mcnemar_p"), confidence)
        result.append(Measure(metric, label, meaning, rates, difference, claim))
    return result


def contests(part: Row, confidence: float, where: str) -> list[Contest]:
    """Every pair and question of `part` (see measures); a pair "tuned_vs_base" speaks from tuned's side."""
    result = []
    for pair, found in (part.get("pairs") or {}).items():
        a, _, b = pair.partition("_vs_")
        for question in [name for name in QUESTIONS if name in found]:
            label, word, keys = QUESTIONS[question]
            place = f"{where} pairs.{pair}.{question}"
            names = [key.format(a=a, b=b) for key in keys]
            shares = [read_estimate(found[question].get(name), f"{place}.{name}", share=True) for name in names]
            claim = preference((a, shares[0]), (b, shares[2]), word, found[question].get("mcnemar_p"), confidence)
            parts = list(zip((a, "neither", b, "unreadable"), shares, strict=True))
            result.append(Contest(pair, question, label, parts, claim, _contest_notes(found, question, place)))
    return result


def preference(one: tuple[str, Estimate], two: tuple[str, Estimate], word: str, p: Any, confidence: float) -> str:
    """Which of two (arm, share of verdicts) is `word`, "" where nothing was compared or tested."""
    (a, ours), (b, theirs) = one, two
    if ours.value is None or theirs.value is None or not isinstance(p, (int, float)):
        return ""
    if p > 1 - confidence:
        return f"neither {a} nor {b} is shown to be {word}"
    first, second = (a, b) if ours.value > theirs.value else (b, a)
    return f"{first} is judged {word} more often than {second}"


def _contest_notes(found: Row, question: str, where: str) -> list[str]:
    notes = []
    if "decisive_win" in found[question]:
        decisive = read_estimate(found[question]["decisive_win"], f"{where}.decisive_win", share=True)
        notes.append(f"Won, of those decided: {_figures(decisive)}.")
    if question in (found.get("position_flips") or {}):
        flips = read_estimate(found["position_flips"][question], f"{where} position_flips", share=True)
        notes.append(f"The two orders disagreed in {percent(flips.value)}; those count as neither.")
    if isinstance(found[question].get("mcnemar_p"), (int, float)):
        notes.append(f"Sign test p = {found[question]['mcnemar_p']:.2g}.")
    return notes


def title(found: list[Measure]) -> str:
    """The headline: what happened to refusals."""
    refusal = next((m for m in found if m.name == "refusal_rate"), None)
    if refusal is None:
        return "Not evaluated yet"
    shares = dict(refusal.arms)
    if refusal.claim in ("", "not measured") or not {"base", "tuned"} <= shares.keys():
        return "A change in refusals was not measured"
    before, after = percent(shares["base"].value), percent(shares["tuned"].value)
    if refusal.claim == "no change shown":
        return f"No change in refusals is shown: {before} before, {after} after"
    verb = "fell" if refusal.claim == "lower" else "rose"
    return f"Refusals {verb} from {before} to {after} of sensitive test prompts"


def verdict(found: list[Measure], compared: list[Contest]) -> list[str]:
    """What may be said, one sentence per headline measure and per question, with intervals."""
    sentences = []
    for measure in [m for m in found if m.name in METRICS and m.difference is not None]:
        assert measure.difference is not None
        subject, low, high = SUBJECTS[measure.name], measure.difference.low, measure.difference.high
        if measure.claim in ("lower", "higher"):
            verb = "fell" if measure.claim == "lower" else "rose"
            change_by = f"{points(measure.difference.value)} points {interval(low, high)}"
            sentences.append(f"{subject.capitalize()} {verb}: {change_by}.")
        elif measure.claim == "no change shown":
            sentences.append(
                f"No change is shown in {subject}; anything from {points(low)} to {points(high)} points is"
                " compatible with these answers."
            )
    for contest in [c for c in compared if c.claim]:
        (a, ours), (b, theirs) = contest.parts[0], contest.parts[2]
        sides = f"{a} in {percent(ours.value)} {interval(ours.low, ours.high)}"
        sides += f", {b} in {percent(theirs.value)} {interval(theirs.low, theirs.high)} of comparisons"
        sentences.append(f"{contest.claim[0].upper()}{contest.claim[1:]}: {sides}.")
    return sentences


def _figures(rate: Estimate) -> str:
    return f"{percent(rate.value)} {interval(rate.low, rate.high)}, n = {count(rate.n)}"


def caveats(run: Run, found: list[Measure], compared: list[Contest], steps: list[Step]) -> list[str]:
    """What a reader must know before believing a number, most weighty first."""
    notes = [*_model_notes(run), *_judge_notes(run, compared)]
    small = sorted({rate.n for m in found if m.name in METRICS for _, rate in m.arms if 0 < rate.n < SMALL})
    if small:
        notes.append(f"A headline rate rests on {small[0]} prompts only; read its interval, not its value.")
    for step in steps:
        if step.unaccounted:
            notes.append(f"Accounting, {step.title}: {step.unaccounted:+,} of {step.entered:,} unaccounted for.")
    if run.info.get("git_dirty"):
        notes.append("The code had uncommitted changes, so its commit alone does not identify what ran.")
    if missing := [stage for stage in STAGES if stage not in run.stages]:
        notes.append(f"No finished stage: {', '.join(missing)}. The sections that need it say so.")
    return notes


def _model_notes(run: Run) -> list[str]:
    student = (run.config.get("models") or {}).get("student") or {}
    path = PurePath(str(student.get("model", "")))
    if student.get("backend") == "fake":
        return ["The student is a fake engine for tests: its texts are made up and no number here means anything."]
    if path.parts[-2:] == ("demo", "seed_model"):
        return [
            "The model is a toy: the tiny seed model that ships with this project, trained from scratch on"
            " made-up text. These numbers show that the machinery works; they say nothing about real models."
        ]
    return []


def _judge_notes(run: Run, compared: list[Contest]) -> list[str]:
    if not run.metrics:
        return []
    notes = []
    judges = run.metrics.get("judges") or {}
    if (run.config.get("evaluate") or {}).get("judge") == "rule":
        notes.append("The judge is a rule judge: deterministic word rules for the demo, no model and no person.")
    if judges.get("same"):
        notes.append(
            "The judge that chose the training examples is the judge that evaluates: the tuned model was"
            " trained towards this judge's taste, so another judge may see a smaller gain."
        )
    for contest in compared:
        unreadable = contest.parts[3][1].value
        if unreadable:
            notes.append(f"{percent(unreadable)} of the {contest.question} verdicts could not be read.")
    return [*notes, "Agreement of these judges with people was not measured in this run."]
