"""The page's sentences, computed from the numbers and never saying more than they do."""

from __future__ import annotations

from pathlib import PurePath

from shard_dist.report.accounting import Step
from shard_dist.report.inputs import STAGES, Row, Run
from shard_dist.report.measures import METRICS, QUESTIONS, Contest, Measure
from shard_dist.report.text import count, interval, percent, points

SMALL = 30  # prompts; below this an interval spans a third of the scale
CLAIMED = ("lower", "higher")


def title(found: list[Measure]) -> str:
    """The headline: what happened to refusals."""
    refusal = next((measure for measure in found if measure.name == "refusal_rate"), None)
    if refusal is None:
        return "Not evaluated yet"
    shares = dict(refusal.arms)
    changes = [change for change in refusal.changes if change.claim in (*CLAIMED, "no change shown")]
    if not changes:
        return "A change in refusals was not measured"
    reference = next(arm for arm in shares if arm not in {change.arm for change in refusal.changes})
    if len(changes) > 1:
        counts = {claim: sum(change.claim == claim for change in changes) for claim in CLAIMED}
        told = [f"{claim} in {number} of {len(changes)} arms" for claim, number in counts.items() if number]
        return f"Refusals against {reference}: {', '.join(told) or 'no change shown in any arm'}"
    before, after = percent(shares[reference].value), percent(shares[changes[0].arm].value)
    if changes[0].claim == "no change shown":
        return f"No change in refusals is shown: {before} before, {after} after"
    verb = "fell" if changes[0].claim == "lower" else "rose"
    return f"Refusals {verb} from {before} to {after} of sensitive test prompts"


def verdict(found: list[Measure], compared: list[Contest]) -> list[str]:
    """What may be said where metrics.json makes no claims itself: a sentence per headline measure and per question,
    with intervals."""
    sentences = []
    for measure in [measure for measure in found if measure.metric.headline]:
        for change in measure.changes:
            subject, low, high = measure.metric.subject, change.difference.low, change.difference.high
            if change.claim in CLAIMED:
                verb = "fell" if change.claim == "lower" else "rose"
                by = f"{points(change.difference.value)} points {interval(low, high)}"
                sentences.append(f"{subject.capitalize()} {verb} in {change.arm}: {by}.")
            elif change.claim == "no change shown" and low == high == 0:
                number = count(change.difference.n)
                sentences.append(f"No change is shown in {subject} in {change.arm}: no prompt of {number} differs.")
            elif change.claim == "no change shown":
                sentences.append(
                    f"No change is shown in {subject} in {change.arm}; anything from {points(low)} to {points(high)}"
                    " points is compatible with these answers."
                )
    return sentences + [_comparison(contest) for contest in compared if contest.claim]


def claimed(run: Run) -> list[str]:
    """The claims of metrics.json that belong under the title: those of headline measures and of comparisons with the
    reference, what is shown first. [] where it makes none."""
    family, claims = _split(run)
    headline = {name for name, metric in METRICS.items() if metric.headline} | set(QUESTIONS)
    told = [
        (test.get("claim") in CLAIMED, claim)
        for claim, test in zip(claims, family, strict=False)
        if test["metric"] in headline and str(test["pair"]).endswith(f"_vs_{run.reference}")
    ]
    if not told:
        return []
    shown = sum(test.get("claim") in CLAIMED for test in family)
    summary = f"Of {len(family)} tests of differences, {shown} show one after correction for all of them."
    return [summary, *(claim for show, claim in told if show), *(claim for show, claim in told if not show)]


def _split(run: Run) -> tuple[list[Row], list[str]]:
    """The family and the claims, which are a sentence for each of its tests and then warnings about judges."""
    return run.metrics.get("family") or [], [str(claim) for claim in run.metrics.get("claims") or []]


def _comparison(contest: Contest) -> str:
    (a, ours), (b, theirs) = contest.parts[0], contest.parts[2]
    sides = f"{a} in {percent(ours.value)} {interval(ours.low, ours.high)}"
    sides += f", {b} in {percent(theirs.value)} {interval(theirs.low, theirs.high)} of comparisons"
    return f"{contest.claim[0].upper()}{contest.claim[1:]}: {sides}."


def caveats(run: Run, found: list[Measure], compared: list[Contest], steps: list[Step]) -> list[str]:
    """What a reader must know before believing a number, most weighty first."""
    notes = [*model_notes((run.config.get("models") or {}).get("student") or {}), *_judge_notes(run, compared)]
    small = sorted({rate.n for m in found if m.metric.headline for _, rate in m.arms if 0 < rate.n < SMALL})
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


def model_notes(student: Row) -> list[str]:
    """Of a student that is no real model. `student` are its settings."""
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
    families = (run.metrics.get("checks") or {}).get("families") or []
    notes += filter(None, [families.get("warning")] if isinstance(families, dict) else families)
    for contest in compared:
        unreadable = contest.parts[3][1].value
        if unreadable:
            a, b = contest.pair
            notes.append(f"{percent(unreadable)} of the {contest.question} verdicts on {a} and {b} could not be read.")
    family, claims = _split(run)
    return [*notes, *(claims[len(family) :] if claims else _unmeasured(judges))]


def _unmeasured(judges: Row) -> list[str]:
    """Which judges nobody has held against people."""
    raters = {name: (rater or {}).get("agreement") for name, rater in (judges.get("raters") or {}).items()}
    if not any(raters.values()):
        return ["Agreement of these judges with people was not measured in this run."]
    names = [name for name, agreement in raters.items() if not agreement]
    if judges.get("evaluate"):
        names.append(f"{judges['evaluate']} (comparisons and topic)")
    return [f"Agreement with people was not measured for: {', '.join(names)}."] if names else []
