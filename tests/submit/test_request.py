"""What is submitted: words, environment, places; and what is refused before anything is sent."""

from __future__ import annotations

import shlex
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from shard_dist.config.load import load_config
from shard_dist.submit.request import Request

Ask = Callable[..., Request]


def settings(request: Request) -> dict[str, str]:
    return dict(word.split("=", 1) for word in request.words[2:])


def test_the_driver_runs_the_named_interpreter_on_the_same_configuration(ask: Ask, here: Path) -> None:
    made = ask("train.epochs=2", "run.name=a b")
    words = shlex.split(made.entrypoint("/opt/my python"))
    assert words[:5] == ["/opt/my python", "-m", "shard_dist", "run", "configs/mine.yaml"]
    there = load_config(words[4], words[5:])
    assert (there.train.epochs, there.run.name, there.run.dir) == (2, "a b", "/shared/runs/a b")
    assert there.cluster.address == ""
    assert made.job.startswith("a-b-")


@given(text=st.text(alphabet="a'\"$;`\\ \n|&", max_size=12))
def test_no_setting_becomes_a_command(text: str) -> None:
    made = Request("j", None, ("run", "c.yaml", f"run.name={text}"), None)  # type: ignore[arg-type]
    assert shlex.split(made.entrypoint("python")) == ["python", "-m", "shard_dist", "run", "c.yaml", f"run.name={text}"]


def test_results_go_to_the_storage_that_every_node_sees(ask: Ask) -> None:
    made = ask("run.dir=mine", "run.ledger=ours")
    assert (made.directory, settings(made)["run.dir"], settings(made)["run.ledger"]) == (
        "/shared/mine",
        "/shared/mine",
        "/shared/ours",
    )
    kept = ask("run.dir=/elsewhere/x", "run.ledger=s3://bucket/ledger", storage="")
    assert settings(kept)["run.dir"] == "/elsewhere/x"
    assert settings(kept)["run.ledger"] == "s3://bucket/ledger"


@pytest.mark.parametrize("storage", ["", "relative"])
def test_without_storage_a_relative_directory_is_refused(ask: Ask, storage: str) -> None:
    with pytest.raises(ValueError, match=r"run\.dir=runs/mine would be lost.*cluster\.storage\.path"):
        ask(storage=storage)


def test_a_description_of_the_cluster_comes_over_the_file_and_under_the_words(ask: Ask, here: Path) -> None:
    file = here / "cluster.yaml"
    launch = {"python": "/opt/python", "environment": {"NCCL_DEBUG": "WARN"}}
    cluster = {"storage": {"path": "/theirs"}, "launch": launch, "wait_for_nodes": 60, "address": "10.0.0.1:6379"}
    file.write_text(yaml.safe_dump({"cluster": cluster}))
    made = ask(cluster=file, storage="")
    assert made.directory == "/theirs/runs/mine"
    assert settings(made)["cluster.wait_for_nodes"] == "60.0"
    assert settings(made)["cluster.address"] == "''"
    assert made.environment(Path("a.zip")) == {
        "working_dir": "a.zip",
        "env_vars": {"NCCL_DEBUG": "WARN"},
        "py_executable": "/opt/python",
    }
    assert ask(cluster=file, storage="/mine").directory == "/mine/runs/mine"


@pytest.mark.parametrize(
    "word",
    [
        "cluster.launch.environment={HF_TOKEN: abc}",
        "cluster.launch.environment={WHERE: 'https://me:pass@host/x'}",
        "models.student.env={OPENAI_API_KEY: abc}",
        "data.sources[0].name=hf_abcdefgh12345678",
    ],
)
def test_secrets_do_not_travel(ask: Ask, word: str) -> None:
    with pytest.raises(ValueError, match=r"looks like a secret.*Secrets belong") as error:
        ask(word)
    assert word.partition("=")[0].partition("[")[0] in str(error.value)
    assert not {"abc}", "pass@", "hf_abc"} & set(str(error.value).split())


def test_the_name_of_a_kubernetes_secret_is_none(ask: Ask) -> None:
    ask("cluster.launch.kuberay.secret=my-secret")


def test_a_file_that_lies_on_the_cluster_alone_is_left_to_the_driver(ask: Ask) -> None:
    """It cannot be looked at from here; a relative one must be here."""
    assert "data.sources[0].path=/shared/p.csv" in ask("data.sources[0].path=/shared/p.csv").words
    with pytest.raises(ValueError, match="no file 'p"):
        ask("data.sources[0].path=p.csv")
