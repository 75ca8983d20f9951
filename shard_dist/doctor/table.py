"""The examination for people: a line for each check where the nodes agree, details where something is wrong."""

from __future__ import annotations

from collections.abc import Iterable

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from shard_dist.doctor.finding import Finding, Level, Report

STYLES = {Level.ok: "green", Level.warn: "yellow", Level.fail: "bold red"}
SHOWN = 3  # nodes that are named before they are counted


def show(report: Report) -> RenderableType:
    """Everything that was found, then what to do, the failures first. Nothing in it is markup."""
    table = Table("check", "", "found", box=None, padding=(0, 2, 0, 0))
    for check in dict.fromkeys(finding.check for finding in report.findings):
        findings = [finding for finding in report.findings if finding.check == check]
        for level in (Level.fail, Level.warn, Level.ok):
            alike = _alike(finding for finding in findings if finding.level == level)
            for number, (found, nodes) in enumerate(alike.items()):
                if level == Level.ok and number == SHOWN:
                    table.add_row(
                        check, Text(level, STYLES[level]), Text(f"... and {len(alike) - SHOWN} more like these")
                    )
                    break
                named = who(nodes, len(report.nodes))
                table.add_row(check, Text(level, STYLES[level]), Text(f"{named}{found}"))
    steps = _steps(report)
    counts = {level: sum(finding.level == level for finding in report.findings) for level in Level}
    last = f"{counts[Level.fail]} failed, {counts[Level.warn]} warned, {counts[Level.ok]} well, {report.seconds:.0f} s"
    return Group(table, *([Text("\nwhat to do", "bold"), *steps] if steps else []), Text(f"\n{last}"))


def _alike(findings: Iterable[Finding]) -> dict[str, list[str]]:
    """Text -> the nodes that it was found on."""
    alike: dict[str, list[str]] = {}
    for finding in findings:
        alike.setdefault(finding.found, []).append(finding.node)
    return alike


def who(nodes: list[str], total: int) -> str:
    """The nodes before what was found on them; nothing where it is all of them, or the cluster as a whole."""
    names = [node for node in dict.fromkeys(nodes) if node]
    if not names or len(names) == total:
        return ""
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return f"{', '.join(names[:SHOWN])}{more}: "


def _steps(report: Report) -> list[Text]:
    """Each step once, with the checks that ask for it."""
    steps: dict[str, list[Finding]] = {}
    for level in (Level.fail, Level.warn):
        for finding in report.findings:
            if finding.level == level and finding.todo:
                steps.setdefault(finding.todo, []).append(finding)
    lines = []
    for number, (todo, findings) in enumerate(steps.items(), 1):
        checks = ", ".join(dict.fromkeys(finding.check for finding in findings))
        nodes = who([finding.node for finding in findings], len(report.nodes)).removesuffix(": ")
        lines.append(Text(f"{number:2}. {checks}{f' on {nodes}' if nodes else ''}: {todo}"))
    return lines
