"""What is told of addresses where there is no cluster, or not for us; Ray's own client does the asking."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from shard_dist.submit.client import connect


@contextmanager
def server(status: int, body: str, kind: str = "application/json") -> Iterator[str]:
    """One that always says the same."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status)
            self.send_header("Content-Type", kind)
            self.end_headers()
            self.wfile.write(body.encode())

        def log_message(self, *_: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as made:
        thread = threading.Thread(target=made.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield f"http://127.0.0.1:{made.server_port}"
        finally:
            made.shutdown()
            thread.join()


VERSION = '{"version": "4", "ray_version": "2.60.0", "ray_commit": "x", "session_name": "s"}'


@pytest.mark.parametrize(
    ("status", "body", "message"),
    [
        (401, "Unauthorized: Missing authentication token", "wants a token: set RAY_AUTH_MODE=token"),
        (403, "Forbidden: Invalid authentication token", "wants another token than the one here: set RAY_AUTH_MODE"),
        (200, "<!doctype html><html>", "is no Ray dashboard"),
        (200, '{"something": "else"}', "is no Ray dashboard"),
        (404, "nothing here", "is no Ray dashboard"),
        (502, "bad gateway", "is no Ray dashboard"),
    ],
)
def test_another_server_is_named_for_what_it_is(status: int, body: str, message: str) -> None:
    with server(status, body) as address, pytest.raises(ValueError, match=message) as error:
        connect(address)
    assert address in str(error.value)


def test_an_address_where_nobody_is(monkeypatch: pytest.MonkeyPatch) -> None:
    with server(200, VERSION) as address:
        pass
    with pytest.raises(ValueError, match=r"no answer from .*refused.*port 8265.*ssh -L"):
        connect(address)


def test_tls_where_there_is_none() -> None:
    with server(200, VERSION) as address, pytest.raises(ValueError, match=r"no trusted TLS.*REQUESTS_CA_BUNDLE"):
        connect(address.replace("http://", "https://"))


def test_the_given_address_wins_over_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray's own client would go where RAY_ADDRESS points, whatever it is told."""
    monkeypatch.setenv("RAY_ADDRESS", "http://127.0.0.1:1")
    with server(200, VERSION) as address:
        assert connect(address).address == address


def test_a_refusal_is_an_error_and_a_gateway_a_dead_line() -> None:
    with server(200, VERSION) as address:
        jobs = connect(address)
    with server(404, "Job x does not exist") as jobs.client._address, pytest.raises(ValueError, match="Job x does not"):
        jobs.job("x")
    with server(503, "no backend") as jobs.client._address, pytest.raises(ConnectionError, match="HTTP 503"):
        jobs.job("x")
    with pytest.raises(ConnectionError, match="refused"):
        jobs.job("x")
