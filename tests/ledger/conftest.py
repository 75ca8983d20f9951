"""Makes `calls` importable by the tests beside it, and keeps the mirrors of remote ledgers in the test's own folder."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))


@pytest.fixture(autouse=True)
def _mirrors_of_our_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "mirrors"))
    (tmp_path / "mirrors").mkdir()
