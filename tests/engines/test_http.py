"""The HTTP engine against a small server of our own on the loopback interface: every way that servers fail."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from shard_dist.config.schema import Backend, ModelConfig
from shard_dist.engines.http import HttpEngine
from shard_dist.engines.protocol import CallFailed, CallRefused
from shard_dist.records import Call, Sampling

CALL = Call(
    "m",
    "f",
    ({"role": "user", "content": "hi"},),
    Sampling(n=2, seed=5),
    {"type": "object", "properties": {}},
)
GOOD = {
    "id": "1",
    "object": "chat.completion",
    "created": 0,
    "model": "m",
    "choices": [
        {
            "index": 0,
            "finish_reason": "stop",
            "message": {"role": "assistant", "content": "a", "reasoning_content": "r"},
        },
        {"index": 1, "finish_reason": "length", "message": {"role": "assistant", "content": None}},
    ],
    "usage": {"prompt_tokens": 3, "completion_tokens": 4, "total_tokens": 7},
}


class Server(ThreadingHTTPServer):
    """Answers with `replies` in turn (status, content type, body), the last one for ever; keeps what it was sent."""

    def __init__(self, replies: list[tuple[int, str, bytes]]) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.replies, self.seen = replies, []

    seen: list[tuple[str, Any]]


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.seen.append((self.headers["Authorization"], body))
        status, kind, reply = self.server.replies[min(len(self.server.seen), len(self.server.replies)) - 1]
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(reply)))
        self.end_headers()
        self.wfile.write(reply)

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture
def server() -> Iterator[Server]:
    server = Server([(200, "application/json", json.dumps(GOOD).encode())])
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


def ask(server: Server, retries: int = 0) -> Any:
    url = f"http://127.0.0.1:{server.server_port}/v1"
    spec = ModelConfig(backend=Backend.http, model="m", base_url=url, max_retries=retries, api_key_env="SHARD_TEST_KEY")

    async def once() -> Any:
        engine = HttpEngine(spec)
        try:
            return await engine.generate(CALL)
        finally:
            await engine.close()

    return asyncio.run(once())


def test_all_samples_their_thinking_and_finish_reasons_are_kept(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SHARD_TEST_KEY", "k")
    completion = ask(server)
    assert completion.texts == ("a", "")
    assert completion.thinking == ("r", "")
    assert completion.finish_reasons == ("stop", "length")
    assert (completion.prompt_tokens, completion.completion_tokens) == (3, 4)
    authorization, body = server.seen[0]
    assert authorization == "Bearer k"
    assert (body["seed"], body["n"], body["response_format"]["type"]) == (5, 2, "json_schema")


def test_a_server_error_is_tried_again(server: Server) -> None:
    server.replies.insert(0, (503, "text/plain", b"busy"))
    assert ask(server, retries=2).texts[0] == "a"
    assert len(server.seen) == 2


@pytest.mark.parametrize("status", [429, 500, 503])
def test_an_error_that_stays_is_a_failed_call(server: Server, status: int) -> None:
    server.replies[:] = [(status, "text/plain", b"no")]
    with pytest.raises(CallFailed, match=str(status)):
        ask(server)


def test_a_request_that_the_server_rejects_is_refused_for_good(server: Server) -> None:
    server.replies[:] = [(400, "application/json", b'{"error": {"message": "too long"}}')]
    with pytest.raises(CallRefused, match="too long"):
        ask(server, retries=3)
    assert len(server.seen) == 1


def test_a_wrong_key_names_the_variable(server: Server) -> None:
    server.replies[:] = [(401, "application/json", b'{"error": {"message": "bad key"}}')]
    with pytest.raises(ValueError, match="SHARD_TEST_KEY"):
        ask(server)


@pytest.mark.parametrize(("kind", "body"), [("text/html", b"<html>hi</html>"), ("application/json", b"{}")])
def test_an_answer_that_is_no_completion_is_a_failed_call(server: Server, kind: str, body: bytes) -> None:
    server.replies[:] = [(200, kind, body)]
    with pytest.raises(CallFailed, match="no chat completion"):
        ask(server)


def test_truncated_json_is_a_failed_call(server: Server) -> None:
    server.replies[:] = [(200, "application/json", b'{"choices": [')]
    with pytest.raises(CallFailed):
        ask(server)
