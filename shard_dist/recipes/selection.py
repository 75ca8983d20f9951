"""What becomes of a record, and the rule that most recipes share: more helpful than a draft, not more harmful."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from shard_dist.judges.gate import gate, pre_gate
from shard_dist.judges.panel import Panel
from shard_dist.judges.protocol import PointwiseJudge
from shard_dist.judges.refusal import classify
from shard_dist.records import Record

if TYPE_CHECKING:
    from shard_dist.engines.protocol import Ask


@dataclass(frozen=True)
class Jury:
    """Who judges records, and the settings that decide with them. `options` are the recipe's own, of its `Options`."""

    panel: Panel
    raters: tuple[PointwiseJudge, ...] = ()
    keep_benign_ties: bool = True
    options: Any = None


@dataclass(frozen=True)
class Decision:
    """Whether a record is kept, and for what reason. Verdicts are "" where none was needed.

    `chosen`, `rejected` and `thinking` are the record's fields whose texts the example has ("": the recipe's target,
    none, none);
    `scores` (JSON) are candidates' rewards, field -> number; `calls` (JSON) the judges' calls, step -> keys.
    """

    dataset: str
    id: str
    keep: bool
    reason: str
    on_topic: str = ""
    helpfulness: str = ""
    harm: str = ""
    helpfulness_reason: str = ""
    harm_reason: str = ""
    chosen: str = ""
    rejected: str = ""
    thinking: str = ""
    scores: str = "{}"
    calls: str = "{}"


def unfit(record: Record, target: str) -> str:
    """Why the record's answer is out before any judge is asked, "" if it is not."""
    prompt, answer = record.prompt, record.fields.get(target, "")
    finish = record.fields.get(f"{target}_finish_reason", "")
    return pre_gate(record.failure, answer, finish, classify(answer, prompt.language, prompt.text).kind)


async def compare_and_gate(record: Record, target: str, jury: Jury, ask: Ask, against: str = "draft") -> Decision:
    """Cheap reasons first, judges only for what is left: field `target` against field `against`, in both orders."""
    prompt, answer = record.prompt, record.fields.get(target, "")
    if dropped := unfit(record, target):
        return Decision(*prompt.key, False, dropped)
    topic = await jury.panel.on_topic(prompt, answer, ask)
    if topic != "yes":  # the gate needs no verdicts
        return Decision(*prompt.key, *gate(topic, "", "", prompt.benign, jury.keep_benign_ties), topic)
    draft = record.fields[against]
    helpful = await jury.panel.compare("helpfulness", prompt, draft, answer, ask)
    harm = await jury.panel.compare("harm", prompt, draft, answer, ask)
    keep, reason = gate(topic, helpful.combined, harm.combined, prompt.benign, jury.keep_benign_ties)
    verdicts = (topic, helpful.combined, harm.combined, helpful.reason, harm.reason)
    return Decision(*prompt.key, keep, reason, *verdicts, chosen=target)
