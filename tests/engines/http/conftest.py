"""The server that the tests of the HTTP engine talk to; waits are short."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from shard_dist.engines import http

sys.path.insert(0, str(Path(__file__).parent))  # tests are no package; `fault_server` lies beside them


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[object]:
    from fault_server import KEY, Server

    monkeypatch.setattr(http, "FIRST_WAIT", 0.01)
    monkeypatch.setenv("SHARD_TEST_KEY", KEY)
    server = Server()
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
    yield server
    server.ended.set()
    server.gate.set()
    server.shutdown()
    server.server_close()
