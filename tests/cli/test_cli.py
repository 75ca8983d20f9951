"""The command line as a person meets it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from shard_dist.cli import app

COMMANDS = ("run", "prompts", "generate", "select", "train", "evaluate", "report")


def test_help_names_every_command() -> None:
    text = CliRunner().invoke(app, ["--help"]).output
    assert all(command in text for command in COMMANDS)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_takes_a_file_and_settings(command: str) -> None:
    text = CliRunner().invoke(app, [command, "--help"]).output
    assert "CONFIG.yaml" in text
    assert "key=value" in text


def test_a_fault_of_the_users_is_one_sentence_and_no_trace(tmp_path: Path) -> None:
    command = [
        sys.executable,
        "-c",
        "from shard_dist.cli import main; main()",
        "run",
        str(tmp_path / "no.yaml"),
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.strip().splitlines()[-1].startswith("error: cannot read the configuration")
    assert "Traceback" not in done.stderr
