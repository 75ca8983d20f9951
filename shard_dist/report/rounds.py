"""Rounds of self-distillation: what the judge of selection saw of each model against the one before it."""

from __future__ import annotations

from shard_dist.report.inputs import Estimate, Row, Run
from shard_dist.report.tables import Cell, Figure, Table

ROUND_COLUMNS = (
    ("round", "Round"),
    ("net", "Net wins over the round before"),
    ("won", "More helpful"),
    ("lost", "Less helpful"),
    ("more_harmful", "More harmful"),
    ("less_harmful", "Less harmful"),
    ("n", "Prompts"),
    ("kept", "Model"),
)


def round_rows(seen: list[Row], kept: int | None) -> list[list[Cell]]:
    """What the judge of selection saw of each round on the validation prompts, the first compared with the student."""
    rows: list[list[Cell]] = []
    for number, one in enumerate(seen, start=1):
        helped, harmed = one["helpfulness"], one["harm"]
        counts = [helped.get("b", 0), helped.get("a", 0), harmed.get("b", 0), harmed.get("a", 0), one["n"]]
        net = Figure(Estimate(one["net"]), "points")
        rows.append([number, net, *counts, "kept" if number == kept else ""])
    return rows


def rounds_table(run: Run) -> Table:
    """Without rows where the run has no rounds."""
    rows = round_rows(run.rounds.get("seen") or [], run.rounds.get("kept"))
    return Table("rounds", "Rounds", ROUND_COLUMNS, rows)
