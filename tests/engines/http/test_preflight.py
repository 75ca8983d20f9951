"""The preflight of the HTTP engine: what cannot answer is named before a call is sent."""

from __future__ import annotations

import pytest
from fault_server import JSON, KEY, Reply, Server, preflight, with_engine


def test_the_preflight_sends_no_call(server: Server) -> None:
    preflight(server, max_requests=1)
    assert server.seen == []


LOGIN = b"<html>\x1b[31mPlease log in</html>"


@pytest.mark.parametrize(
    ("reply", "expected"),
    [
        (Reply(200, "text/html", LOGIN), r"content type 'text/html' instead of a list .*\\x1b\[31mPlease log in"),
        (Reply(302, "text/html", LOGIN, {"Location": "http://sso/login"}), r"status 302 to 'http://sso/login'"),
        (Reply(404, "text/html", LOGIN), "status 404, content type 'text/html'"),
        (Reply(200, JSON, b'{"hello": 1}'), "status 200, content type 'application/json'"),
        (Reply(200, JSON, b'"text"'), "instead of a list of models"),
        (Reply(200, JSON, b"x" * 5000), "'x{200}'"),
        (Reply(400, JSON, b"{}"), "status 400"),
        (Reply(503, "text/plain", b"loading"), r"does not serve: status 503: 'loading' \(3 tries\)"),
        (Reply(401, JSON, b'{"error": "very-private-key"}'), r"refused the key in \$SHARD_TEST_KEY: .*<key>"),
        (Reply(403, JSON, b"{}"), r"refused the key in \$SHARD_TEST_KEY"),
        (
            Reply(200, JSON, b'{"data": [{"id": "mm\\u001b"}, {"id": "unlike"}, {}, 5]}'),
            r"has no model 'm'; the nearest of its 2: 'mm\\x1b'",
        ),
        (Reply(200, JSON, b'[{"id": "mx"}]'), "has no model 'm'"),
    ],
)
def test_the_preflight_refuses_what_cannot_answer(server: Server, reply: Reply, expected: str) -> None:
    server.models = reply
    with pytest.raises(ValueError, match=expected) as caught:
        preflight(server)
    assert str(caught.value).startswith(f"base_url http://127.0.0.1:{server.server_port}/v1")
    assert KEY not in str(caught.value)


@pytest.mark.parametrize(
    "body", [b'{"data": [{"id": "m"}, {"id": "x"}]}', b'[{"id": "m"}]', b'{"data": [{"id": "models/m"}]}']
)
def test_the_preflight_accepts_a_server_that_lists_the_model(
    server: Server, body: bytes, recwarn: pytest.WarningsRecorder
) -> None:
    server.models = Reply(200, JSON, body)
    preflight(server)
    assert not recwarn.list


@pytest.mark.parametrize(
    "reply",
    [
        Reply(200, JSON, b'{"data": []}'),
        Reply(200, JSON, b'{"data": [{"id": "x"}], "has_more": true}'),
        Reply(404, JSON, b'{"detail": "Not Found"}'),
        Reply(405, JSON, b"{}"),
        Reply(429, "text/plain", b"later"),
    ],
)
def test_a_server_that_does_not_list_its_models_is_accepted_with_a_warning(server: Server, reply: Reply) -> None:
    server.models = reply
    with pytest.warns(UserWarning, match="list"):
        preflight(server)


def test_a_server_that_is_not_there_is_named(server: Server) -> None:
    with pytest.raises(
        ValueError, match=r"^base_url http://<redacted>@127\.0\.0\.1:1/v1 does not serve: .* is the server"
    ):
        with_engine("http://me:secret@127.0.0.1:1/v1", lambda engine: engine.health())


def test_a_missing_key_is_said_to_be_missing(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SHARD_TEST_KEY")
    server.models = Reply(401, JSON, b"{}")
    with pytest.raises(ValueError, match=r"\$SHARD_TEST_KEY, which is not set"):
        preflight(server)
