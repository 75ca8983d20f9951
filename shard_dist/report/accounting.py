"""Where every prompt went: a step's parts must sum to what entered it; if they do not, the page says so."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any

from shard_dist.report.inputs import Row, Run, key_of
from shard_dist.report.verdicts import ORDER, plain, state, winner


@dataclass(frozen=True)
class Part:
    """`style` is how the part is drawn: on (goes on), side (goes another way), off (ends here)."""

    label: str
    count: int
    style: str


@dataclass(frozen=True)
class Step:
    title: str
    entered: int
    parts: tuple[Part, ...]

    @property
    def unaccounted(self) -> int:
        """Prompts that entered and are in no part; negative where the parts hold more than entered."""
        return self.entered - sum(part.count for part in self.parts)


def _reasons(prefix: str, reasons: Any) -> list[Part]:
    """One part per reason, most frequent first."""
    ordered = sorted((reasons or {}).items(), key=lambda item: (-item[1], item[0]))
    return [Part(f"{prefix}: {plain(reason)}", number, "off") for reason, number in ordered if number]


def training_side(run: Run) -> list[Step]:
    """Read -> split -> generated -> selected -> trained, from the counts that the stages wrote."""
    steps = []
    if read := run.counts("prompts"):
        splits = [Part("training", read["train"], "on"), Part("validation", read["val"], "on")]
        parts = [*splits, Part("test", read["test"], "side"), *_reasons("kept out", read.get("excluded"))]
        steps.append(Step("Read and split", read["read"], tuple(parts)))
    if made := run.counts("generate"):
        entered = read["train"] + read["val"] if read else made["rows"]
        parts = [Part("complete", made["complete"], "on"), *_reasons("failed", made.get("failed"))]
        recipe = str((run.config.get("recipe") or {}).get("name") or "shard")
        title = "Rewritten and reframed" if recipe.startswith("shard") else "Generated"
        steps.append(Step(title, entered, tuple(parts)))
    if chosen := run.selection:
        entered = made["rows"] if made else chosen["considered"]
        kept = {reason: n for reason, n in chosen["reasons"].items() if reason.startswith("kept")}
        dropped = {reason: n for reason, n in chosen["reasons"].items() if reason not in kept}
        parts = [Part(plain(reason), n, "on") for reason, n in kept.items()]
        steps.append(Step("Selected", entered, (*parts, *_reasons("dropped", dropped))))
    if trained := run.counts("train"):
        made_of = run.counts("select")  # a record may make several examples, and files bring their own
        entered = trained["examples"] + trained["val_examples"] + trained["too_long"]
        entered = made_of["train"] + made_of["val"] if "train" in made_of else chosen["kept"] if chosen else entered
        used = (
            Part("trained on", trained["examples"], "on"),
            Part("validation loss", trained["val_examples"], "side"),
        )
        parts = [*used, Part("too long to train on", trained["too_long"], "off")]
        steps.append(Step("Trained", entered, tuple(part for part in parts if part.count)))
    return steps


def evaluation_side(run: Run) -> list[Step]:
    """Test prompts -> answered -> judged, per arm: the split's count against the rows in the files."""
    expected = run.counts("prompts").get("test")
    steps = []
    for arm in [arm for arm in run.arms if arm in run.answers]:
        rows = run.answers[arm]
        entered = expected if expected is not None else len(rows)
        steps.append(Step(f"Answered by {arm}", entered, _answer_parts(list(rows.values()))))
        if run.verdicts.get(arm):
            states = Counter(state(rows[key], run.verdicts[arm].get(key)) for key in rows)
            steps.append(Step(f"Judged: {arm}", entered, tuple(_verdict_parts(states))))
    return steps + _pair_steps(run, expected)


def _answer_parts(rows: list[Row]) -> tuple[Part, ...]:
    failed = Counter(row["failure"] for row in rows if row["failure"])
    cut = sum(row["finish_reason"] == "length" and not row["failure"] for row in rows)
    whole = Part("answered", len(rows) - cut - failed.total(), "on")
    parts = [whole, Part("answered, cut at the token limit", cut, "side"), *_reasons("failed", failed)]
    return tuple(part for part in parts if part.count)


def _verdict_parts(states: Counter[str]) -> list[Part]:
    styles = {"answered": "on", "off topic": "side", "partly refused": "side"}
    return [Part(name, states[name], styles.get(name, "off")) for name in ORDER if states[name]]


def _pair_steps(run: Run, expected: int | None) -> list[Step]:
    """One step per pair of arms and question."""
    groups: dict[tuple[str, str, str], list[Row]] = {}
    for rows in run.pairs.values():
        for row in rows:
            groups.setdefault((row["arm_a"], row["arm_b"], row["question"]), []).append(row)
    steps = []
    for (arm_a, arm_b, question), rows in sorted(groups.items()):
        seen = {key_of(row) for row in rows}
        tables = [run.answers.get(arm, {}) for arm in (arm_a, arm_b)]
        failed = {key for table in tables for key, row in table.items() if row["failure"]} - seen
        found = Counter(winner(row) for row in rows)
        word = "more harmful" if question == "harm" else "more helpful"
        drawn = (
            (arm_b, f"{arm_b} {word}", "on"),
            ("tie", "neither", "off"),
            (arm_a, f"{arm_a} {word}", "side"),
        )
        parts = [Part(label, found[name], style) for name, label, style in (*drawn, ("unparsed", "unreadable", "off"))]
        parts = [part for part in parts if part.count]
        if failed:
            parts.append(Part("no pair: an answer failed", len(failed), "off"))
        entered = expected if expected is not None else len(seen | failed)
        steps.append(Step(f"Compared for {question}: {arm_b} and {arm_a}", entered, tuple(parts)))
    return steps
