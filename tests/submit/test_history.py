"""Which cluster is meant, and what is kept about submissions."""

from __future__ import annotations

from pathlib import Path

import pytest

from shard_dist.submit.history import FILE, address_of, remember


@pytest.fixture(autouse=True)
def _nothing_is_known(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS"):
        monkeypatch.delenv(name, raising=False)


def test_an_address_is_the_given_one_then_the_environments_then_the_last(monkeypatch: pytest.MonkeyPatch) -> None:
    remember("one", "http://a:1", "run", "/shared/run")
    remember("two", "http://b:2", "run", "/shared/run")
    assert address_of("") == "http://b:2"
    assert address_of("", "one") == "http://a:1"
    assert address_of("", "unknown") == "http://b:2"
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")  # a cluster's address, not a dashboard's
    assert address_of("") == "http://b:2"
    monkeypatch.setenv("RAY_ADDRESS", "http://c:3")
    assert address_of("") == "http://c:3"
    monkeypatch.setenv("RAY_API_SERVER_ADDRESS", "https://d")
    assert address_of("") == "https://d"
    assert address_of("http://e:8265/") == "http://e:8265"


def test_no_address_at_all_says_where_to_put_one() -> None:
    with pytest.raises(ValueError, match=r"--address: name the cluster's dashboard"):
        address_of("")


@pytest.mark.parametrize("address", ["ray://host:10001", "auto", "host:8265", "http://"])
def test_what_is_no_address_is_refused(address: str) -> None:
    with pytest.raises(ValueError, match=r"write http://HOST:8265"):
        address_of(address)


def test_passwords_are_not_taken_and_not_repeated() -> None:
    with pytest.raises(ValueError, match="no user or password in an address") as error:
        address_of("https://me:hidden@host:8265")
    assert "hidden" not in str(error.value)


def test_the_file_has_no_token(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_AUTH_TOKEN", "f00d" * 16)
    remember("one", "http://a:1", "run", "/shared/run")
    assert "f00d" not in FILE.read_text()
