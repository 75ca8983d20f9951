"""`shard-dist doctor` as a person meets it."""

from __future__ import annotations

import json

import pytest
import typer
from typer.testing import CliRunner

from shard_dist.cli.doctor import doctor
from shard_dist.doctor import examine
from shard_dist.doctor.asked import Asked
from shard_dist.doctor.finding import Finding, Level, Report

app = typer.Typer()
app.command()(doctor)


@pytest.mark.parametrize("level", list(Level))
def test_the_exit_code_is_1_where_something_failed(level: Level, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Asked] = []

    def fake(asked: Asked) -> Report:
        seen.append(asked)
        return Report(["here"], [Finding("GPUs", "here", level, "[red]none[/]", "buy some")], 2.0)

    monkeypatch.setattr(examine, "examine", fake)
    words = ["cluster.nodes.gpus=8", "--address", "h:6379"]
    plain, as_json = CliRunner().invoke(app, words), CliRunner().invoke(app, [*words, "--json"])
    assert plain.exit_code == as_json.exit_code == (1 if level == Level.fail else 0)
    assert "[red]none[/]" in plain.output
    assert ("buy some" in plain.output) == (level != Level.ok)
    assert json.loads(as_json.output)["ok"] == (level != Level.fail)
    assert (seen[0].cluster.nodes.gpus, seen[0].cluster.address) == (8, "h:6379")


def test_help_names_what_it_takes() -> None:
    text = CliRunner().invoke(app, ["--help"], env={"COLUMNS": "200"}).output
    assert all(word in text for word in ("CONFIG.yaml", "--cluster", "--address", "--json"))
