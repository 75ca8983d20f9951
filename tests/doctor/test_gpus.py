"""nvidia-smi's words, true and hostile, and what is made of them."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shard_dist.doctor.finding import Level
from shard_dist.doctor.gpus import Gpu, judge, nvidia, parse
from shard_dist.doctor.machines import Node

# As nvidia-smi prints --query-gpu=index,uuid,memory.total,memory.used,driver_version,ecc...,name without units.
TWO = """0, GPU-11, 81559, 4, 550.54.15, 0, NVIDIA H100 80GB HBM3
1, GPU-22, 81559, 40960, 550.54.15, 3, NVIDIA H100 80GB HBM3
"""
HELD = "GPU-22, 4242, /usr/bin/python, with a comma, 40900\n"


def smi(folder: Path, script: str) -> None:
    path = folder / "nvidia-smi"
    path.write_text(f"#!/bin/sh\n{script}\n", encoding="utf-8")
    path.chmod(0o755)


def test_gpus_are_read_from_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    smi(
        tmp_path,
        f"""case "$1" in
--query-gpu*) printf '%s' '{TWO}';;
--query-compute*) printf '%s' '{HELD}';;
*) echo '| NVIDIA-SMI 550.54.15   Driver Version: 550.54.15   CUDA Version: 12.4 |';;
esac""",
    )
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    gpus, runs, complaint = nvidia()
    assert (len(gpus), runs, complaint) == (2, "12.4", "")
    held = ("/usr/bin/python,with a comma (pid 4242, 40900 MiB)",)
    assert gpus[1] == Gpu(1, "NVIDIA H100 80GB HBM3", 81559, 40960, "550.54.15", 3, held)


def test_no_command_is_no_fault_and_a_broken_one_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert nvidia() == ([], "", "")
    assert [finding.level for finding in judge(Node("a"), [], "", 0)] == [Level.ok]
    smi(tmp_path, "echo 'Failed to initialize NVML: Driver/library version mismatch'; exit 18")
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    _, _, complaint = nvidia()
    assert "Driver/library version mismatch" in complaint
    assert [finding.level for finding in judge(Node("a"), [], complaint, 0)] == [Level.fail]


def test_what_is_wrong_with_a_gpu_is_told() -> None:
    found = judge(Node("a", resources={"GPU": 4}), parse(TWO, HELD), "", stated_gib=141)
    said = " | ".join(finding.found for finding in found)
    assert "Ray hands out 4 GPUs, nvidia-smi shows 2" in said
    assert "GPU 0 (NVIDIA H100 80GB HBM3) has 79.6 GiB; cluster.nodes.gpu_memory_gib is 141" in said
    assert "GPU 1: 3 memory errors" in said
    assert "GPU 1: 40.0 GiB of 79.6 in use by /usr/bin/python" in said


def test_the_stated_memory_may_be_rounded() -> None:
    """79.6 GiB are stated as 79.6, or as the 80 of the name; a GPU of half the size is another."""
    gpus = parse(TWO.replace(" 3,", " 0,").replace("40960", "4"), "")
    assert [finding.level for finding in judge(Node("a"), gpus, "", 80)] == [Level.ok]


@settings(max_examples=40)
@given(st.text(), st.text())
def test_no_output_breaks_the_reader(gpus: str, processes: str) -> None:
    for gpu in parse(gpus, processes):
        assert gpu.memory_mib >= 0


@given(st.text(alphabet=st.characters(blacklist_characters=",\n\r\x0b\x0c\x1c\x1d\x1e\x85\u2028\u2029"), min_size=1))
def test_no_name_reaches_the_terminal_as_a_command(name: str) -> None:
    found = judge(Node("a"), parse(f"0, GPU-1, 81559, 4, 550, 9, {name}\x1b]0;owned\x07\n", ""), "", 100)
    assert found
    assert all(finding.found.isprintable() for finding in found)
