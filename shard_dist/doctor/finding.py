"""What a check says about one node, and everything that was found."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from enum import StrEnum
from typing import Any

from shard_dist.config.load import SECRET_VALUE

LONGEST = 600  # characters of a text that came from a command or another machine


class Level(StrEnum):
    ok = "ok"
    warn = "warn"
    fail = "fail"


@dataclass(frozen=True)
class Finding:
    """`check` by its name, `node` ("" for the cluster as a whole), what was found and what to do about it.

    Texts are made one line of printable characters: parts of them come from commands, errors and file names.
    """

    check: str
    node: str
    level: Level
    found: str
    todo: str = ""

    def __post_init__(self) -> None:
        for name in ("node", "found", "todo"):
            object.__setattr__(self, name, one_line(getattr(self, name)))


@dataclass(frozen=True)
class Report:
    """What was found on `nodes`, in so many seconds; on `silent` ones nothing could be run."""

    nodes: list[str]
    findings: list[Finding]
    seconds: float
    silent: list[str] = field(default_factory=list)

    @property
    def failed(self) -> bool:
        return any(finding.level == Level.fail for finding in self.findings)

    def json(self) -> dict[str, Any]:
        findings = [asdict(finding) for finding in self.findings]
        named = {"nodes": self.nodes, "silent": self.silent}
        return {"ok": not self.failed, **named, "seconds": round(self.seconds, 1), "findings": findings}


def one_line(text: str) -> str:
    """One line of printable characters, without what looks like a token."""
    line = " ".join("".join(char if char.isprintable() else " " for char in text).split())
    line = SECRET_VALUE.sub("<redacted>", line)
    return line if len(line) <= LONGEST else f"{line[:LONGEST]} ..."
