"""Where the public facts of some architectures lie."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture
def models() -> Path:
    """A config.json for each of some models, written down by us: the fields that decide sizes."""
    return Path(__file__).parent / "models"
