"""Models that are there, that are not, and that want a token."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
from huggingface_hub import constants

from shard_dist.config.schema import Backend, Config, ModelConfig
from shard_dist.doctor.asked import Asked
from shard_dist.doctor.finding import Level
from shard_dist.doctor.machines import Here
from shard_dist.doctor.models import find, judge, models
from shard_dist.doctor.network import listen


@pytest.fixture
def _no_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", lambda *_, **__: None)


def hub(monkeypatch: pytest.MonkeyPatch, answer: Any) -> None:
    def head(*_: Any, **__: Any) -> Any:
        if isinstance(answer, Exception):
            raise answer
        return answer

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub, "get_hf_file_metadata", head)


def test_a_directory_must_have_its_configuration_and_weights(tmp_path: Path) -> None:
    assert find(str(tmp_path), "").problem == "the directory has no config.json and no weights"
    (tmp_path / "config.json").write_text("{}", encoding="utf-8")
    assert find(str(tmp_path), "").problem == "the directory has no weights"
    (tmp_path / "model-00001-of-00002.safetensors").touch()
    assert find(str(tmp_path), "").problem == ""
    assert find(str(tmp_path / "missing"), "").problem == "no such directory"


@pytest.mark.usefixtures("_no_cache")
def test_offline_only_the_cache_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert "HF_HUB_OFFLINE" in find("org/model", "").problem
    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", lambda *_, **__: "/cache/config.json")
    assert find("org/model", "").how == "in the hub's cache"


@pytest.mark.usefixtures("_no_cache")
def test_a_gated_model_wants_a_token_which_is_never_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    token = "hf_" + "x" * 30

    gated = type("GatedRepoError", (Exception,), {})
    monkeypatch.setenv("HF_TOKEN", token)
    hub(monkeypatch, gated(f"401 Client Error for {token}\nAccess to model org/model is restricted {token}"))
    reach = find("org/model", "")
    finding = judge("a", "student", "org/model", reach)
    assert reach.token
    assert finding.level == Level.fail
    assert "does it belong to that account" in finding.todo
    assert token not in finding.found + finding.todo
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr(huggingface_hub, "get_token", lambda: None)
    assert "which this node has not" in judge("a", "student", "org/model", find("org/model", "")).todo


@pytest.mark.usefixtures("_no_cache")
def test_the_hub_is_asked_for_the_head_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    hub(monkeypatch, object())
    assert find("org/model", "main").how == "on the hub"
    hub(monkeypatch, OSError("no route to host"))
    assert "no route" in find("org/model", "").problem


def test_a_server_and_its_key_are_looked_for(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    port = listen("127.0.0.1", "")
    spec = ModelConfig(
        backend=Backend.http, model="m", base_url=f"http://user:secret@127.0.0.1:{port}/v1", api_key_env="A_KEY"
    )
    asked = Asked(config=Config(models={"judge": spec, "fake": ModelConfig(backend=Backend.fake, model="f")}))
    [without] = models(Here(), asked)
    assert (without.level, "A_KEY is not set" in without.found) == (Level.warn, True)
    monkeypatch.setenv("A_KEY", "value-of-the-key")
    [found] = models(Here(), asked)
    assert found.level == Level.ok
    spec.base_url = "http://user:secret@127.0.0.1:1/v1"
    [closed] = models(Here(), asked)
    assert closed.level == Level.fail
    assert not any(word in str((without, found, closed)) for word in ("value-of-the-key", "secret"))


def test_each_model_is_looked_for_on_each_node(tmp_path: Path) -> None:
    asked = Asked(config=Config(models={"student": ModelConfig(model=str(tmp_path))}))
    [finding] = models(Here(), asked)
    assert finding.level == Level.fail
    assert finding.found.startswith(f"models.student: {tmp_path}: the directory has no")
