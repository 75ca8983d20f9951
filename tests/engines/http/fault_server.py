"""A small server of our own on the loopback interface that fails in every way that servers fail."""

from __future__ import annotations

import asyncio
import json
import sys
import threading
from collections.abc import Awaitable, Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from shard_dist.config.schema import Backend, ModelConfig
from shard_dist.engines.http import HttpEngine
from shard_dist.records import Call, Completion, Sampling

KEY = "very-private-key"
JSON = "application/json"
GOOD = {
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


def call(number: int = 0, n: int = 2) -> Call:
    messages = ({"role": "user", "content": f"hi {number}"},)
    return Call("m", "f", messages, Sampling(n=n, seed=5), {"type": "object", "properties": {}})


class Reply:
    """What the server says. `cut`: the connection ends there; `drip`: a byte each 50 ms, for ever."""

    def __init__(
        self,
        status: int,
        kind: str,
        body: bytes,
        headers: dict[str, str] | None = None,
        cut: int = 0,
        drip: bool = False,
    ) -> None:
        self.status, self.kind, self.body = status, kind, body
        self.headers, self.cut, self.drip = headers or {}, cut, drip


FINE = Reply(200, JSON, json.dumps(GOOD).encode())


class Server(ThreadingHTTPServer):
    """Answers POSTs by `replies` in turn, the last one for ever, and GETs by `models`; keeps what it was sent."""

    request_queue_size = 128
    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.replies, self.models = [FINE], Reply(200, JSON, b'{"data": [{"id": "m"}]}')
        self.seen: list[tuple[str, Any]] = []
        self.lock = threading.Lock()
        self.free, self.gate = sys.maxsize, threading.Event()  # answers after the first `free` wait for the gate
        self.ended = threading.Event()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/v1"

    def reply(self, number: int) -> Reply:
        return self.replies[min(number, len(self.replies) - 1)]


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        self.say(self.server.models)

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with self.server.lock:
            self.server.seen.append((self.headers["Authorization"], body))
            reply = self.server.reply(len(self.server.seen) - 1)
        if len(self.server.seen) > self.server.free:
            self.server.gate.wait()
        self.say(reply)

    def say(self, reply: Reply) -> None:
        self.send_response(reply.status)
        headers = {"Content-Type": reply.kind, "Content-Length": str(len(reply.body)), **reply.headers}
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(reply.body[: reply.cut or None])
        if reply.cut:
            self.close_connection = True
        while reply.drip and not self.server.ended.wait(0.05):
            try:
                self.wfile.write(b" ")
                self.wfile.flush()
            except OSError:  # the client has gone
                return

    def log_message(self, *args: object) -> None:
        pass


def with_engine(url: str, use: Callable[[HttpEngine], Awaitable[Any]], **settings: Any) -> Any:
    fixed: dict[str, Any] = {"max_retries": 0, "max_deaths": 1000, "timeout": 20, **settings}
    spec = ModelConfig(backend=Backend.http, model="m", base_url=url, api_key_env="SHARD_TEST_KEY", **fixed)

    async def run() -> Any:
        engine = HttpEngine(spec)
        try:
            return await use(engine)
        finally:
            await engine.close()

    return asyncio.run(run())


def ask(server: Server, **settings: Any) -> Completion:
    return with_engine(server.url, lambda engine: engine.generate(call()), **settings)


def ask_many(server: Server, count: int, **settings: Any) -> tuple[list[Any], HttpEngine]:
    async def use(engine: HttpEngine) -> tuple[list[Any], HttpEngine]:
        calls = (engine.generate(call(number)) for number in range(count))
        return await asyncio.gather(*calls, return_exceptions=True), engine

    return with_engine(server.url, use, **settings)


def preflight(server: Server, **settings: Any) -> None:
    with_engine(server.url, lambda engine: engine.health(), **settings)
