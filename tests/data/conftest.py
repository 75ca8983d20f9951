import os
from collections.abc import Callable
from pathlib import Path

import pytest

SHARED = Path(os.environ.get("SHARD_SHARED_DATA", Path(__file__).parents[3] / "shared" / "data"))


@pytest.fixture
def shared() -> Callable[[str], str]:
    """Path of a real data set, which the repository does not carry: absent, the test is skipped."""

    def path(name: str) -> str:
        if not (SHARED / name).is_file():
            pytest.skip(f"no {name} in {SHARED}; set SHARD_SHARED_DATA to the folder that has it")
        return str(SHARED / name)

    return path
