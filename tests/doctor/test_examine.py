"""What is asked for, the examination as a whole, and what a person sees."""

from __future__ import annotations

import io
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from shard_dist.doctor import examine as whole
from shard_dist.doctor.asked import Asked, read
from shard_dist.doctor.finding import Finding, Level, Report
from shard_dist.doctor.machines import Here, NoAnswer, Node
from shard_dist.doctor.table import show


def shown(report: Report) -> str:
    stream = io.StringIO()
    Console(file=stream, width=160, force_terminal=False).print(show(report))
    return stream.getvalue()


def test_without_a_configuration_it_is_this_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    assert read(()) == Asked(storage=str(tmp_path))
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    assert read(()).cluster.address == "10.0.0.1:6379"
    assert read((), address="auto").cluster.address == "auto"


def test_the_clusters_file_wins_over_the_configuration_and_settings_over_both(root: Path, tmp_path: Path) -> None:
    file = tmp_path / "cluster.yaml"
    file.write_text("cluster: {address: 'h:1', nodes: {count: 4, gpus: 8}, storage: {path: /data}}", encoding="utf-8")
    config = tmp_path / "config.yaml"
    config.write_text(f"include: [{root}/configs/demo.yaml]\ncluster: {{nodes: {{count: 2}}}}", encoding="utf-8")
    asked = read((str(config), "cluster.nodes.gpus=4", f"run.dir={tmp_path}/runs/x"), file)
    assert (asked.cluster.nodes.count, asked.cluster.nodes.gpus, asked.cluster.address) == (4, 4, "h:1")
    assert (asked.storage, asked.needs_vllm) == ("/data", True)
    assert read((str(config), f"run.dir={tmp_path}/runs/x")).storage == f"{tmp_path}/runs"
    assert read(("cluster.nodes.gpus=2",), file).cluster.nodes.gpus == 2


def test_settings_without_effect_are_refused() -> None:
    with pytest.raises(ValueError, match="only settings of cluster have an effect"):
        read(("train.epochs=2",))


def test_a_check_that_breaks_does_not_silence_the_others(
    scripted: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(machines: Any, asked: Asked) -> list[Finding]:
        raise RuntimeError("first line\nthe \x1b[31mlast")

    monkeypatch.setattr(whole, "TOGETHER", (broken, whole.nodes))
    monkeypatch.setattr(whole, "ALONE", ())
    silent = [Node("c", problem="No module named 'torch'")]
    found = whole.findings_of(scripted({}, silent=silent), Asked())
    assert [(finding.check, finding.level) for finding in found] == [("broken", Level.fail), ("nodes", Level.fail)]
    assert found[0].found == "the check itself broke: RuntimeError: the [31mlast"
    assert "No module named 'torch'" in found[1].found


def test_no_answer_is_waited_for_without_end() -> None:
    machines = Here()
    name = machines.nodes[0].name
    assert machines.ask(time.sleep, {name: (60,)}, 0.05)[name] == NoAnswer("no answer within 0.05 s")
    assert isinstance(machines.ask(int, {name: ("x",)}, 5)[name], NoAnswer)


def test_nodes_that_agree_share_a_line_and_steps_are_told_once() -> None:
    names = [f"n{number}" for number in range(64)]
    good = [Finding("GPUs", name, Level.ok, "8 x H100") for name in names[:59]]
    bad = [Finding("GPUs", name, Level.fail, "7 x H100", "reboot it") for name in names[59:]]
    odd = [Finding("memory", name, Level.ok, f"{number} GiB") for number, name in enumerate(names)]
    text = shown(Report(names, [*good, *bad, *odd], 3.0))
    assert text.count("8 x H100") == 1
    assert "n59, n60, n61 and 2 more: 7 x H100" in text
    assert text.count("reboot it") == 1
    assert "... and 61 more like these" in text
    assert "5 failed, 0 warned, 123 well" in text


def test_hostile_words_are_shown_as_they_are() -> None:
    """Markup of the terminal library, escape sequences, line breaks, and what looks like a token."""
    found = "[bold]x[/] [link=file:///etc/passwd]y[/link] \x1b]0;title\x07 \u202e reversed\nhf_" + "a" * 30
    finding = Finding("GPUs", "no\nde[/]", Level.fail, found, "do [red]this[/]\x00")
    text = shown(Report(["no de[/]"], [finding], 1.0))
    assert "[bold]x[/] [link=file:///etc/passwd]y[/link]" in text
    assert "do [red]this[/]" in text
    assert "<redacted>" in text
    assert not {"\x1b", "\x07", "\x00", "\u202e"} & set(text)
    assert len(Finding("a", "b", Level.ok, "x" * 10_000).found) < 700


def test_json_has_everything() -> None:
    report = Report(["a"], [Finding("clocks", "a", Level.warn, "3 s", "chrony")], 1.234)
    plain = json.loads(json.dumps(report.json()))
    assert (plain["ok"], plain["seconds"], plain["nodes"]) == (True, 1.2, ["a"])
    assert plain["findings"] == [{"check": "clocks", "node": "a", "level": "warn", "found": "3 s", "todo": "chrony"}]
