"""A minute of the soak: two roles, faults of every kind every few seconds, the results of a run without any."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [pytest.mark.ray, pytest.mark.e2e]


def test_a_minute_of_faults_changes_no_result_and_leaves_nothing_behind(root: Path, tmp_path: Path) -> None:
    outcome = tmp_path / "soak.json"
    command = [sys.executable, "tests/soak/generation.py", "--minutes=0.5", "--rows=4000", "--seed=7"]
    done = subprocess.run(
        [*command, f"--json={outcome}"], cwd=root, capture_output=True, text=True, check=False, timeout=400
    )
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads(outcome.read_text())
    assert sum(found["faults_from_outside"].values()) > 3
    # The three poison rows of every round, and no other.
    assert all(each["events"]["quarantined"] >= 3 and each["events"]["died"] >= 9 for each in found["rounds"])
