"""What is written for any target: errors that name a key, no secrets, values that stay values."""

from __future__ import annotations

import shlex
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from shard_dist.submit import targets

TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=40)
HOSTILE = [
    "'; touch /tmp/x #",
    "$(id)",
    "`id`",
    "a\nb: c",
    "{{ 7 * 7 }}",
    "# x",
    "- a",
    "*x",
    '"',
    "\\",
    "\u2028x",
    "\x85",
]


@pytest.mark.parametrize(
    ("target", "setting", "named"),
    [
        ("slurm", "cluster.nodes.count=0", "cluster.nodes.count"),
        ("slurm", "cluster.storage.path=''", "cluster.storage.path"),
        ("slurm", "cluster.launch.slurm.time=soon", "cluster.launch.slurm.time"),
        ("slurm", 'cluster.launch.slurm.options=["--qos=x\\nrm -rf /"]', "cluster.launch.slurm.options"),
        ("slurm", 'cluster.launch.slurm.partition="x\\nrm -rf /"', "--partition"),
        ("slurm", "cluster.launch.environment={'A;B': x}", "cluster.launch.environment"),
        ("kuberay", "cluster.launch.image=''", "cluster.launch.image"),
        ("kuberay", "cluster.launch.kuberay.claim=''", "cluster.launch.kuberay.claim"),
        ("kuberay", "cluster.nodes.memory_gib=0", "cluster.nodes.memory_gib"),
        ("kuberay", "run.dir=runs/demo", "run.dir"),
        ("kuberay", "run.dir=/shared/../runs", "run.dir"),
        ("kuberay-cluster", "cluster.launch.setup=[module load cuda]", "cluster.launch.setup"),
        ("ray-launcher", "cluster.nodes.cpus=0", "cluster.nodes.cpus"),
    ],
)
def test_what_is_lacking_or_cannot_be_is_an_error_that_names_its_key(
    written: Callable[..., str], target: str, setting: str, named: str
) -> None:
    with pytest.raises(ValueError, match=named):
        written(target, setting)


def test_an_unknown_target_is_told_the_known_ones(written: Callable[..., str]) -> None:
    with pytest.raises(ValueError, match="kuberay-cluster"):
        written("lsf")


def test_without_a_clone_the_error_says_so(
    written: Callable[..., str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(targets, "ROOT", tmp_path)
    with pytest.raises(ValueError, match="clone"):
        written("slurm")


@pytest.mark.parametrize("target", targets.TARGETS)
@pytest.mark.parametrize(
    "secret", ["environment={HF_TOKEN: abc}", "setup=[export X=hf_abcdefghij]", "provider={type: x, password: abc}"]
)
def test_no_file_is_written_with_a_secret(written: Callable[..., str], target: str, secret: str) -> None:
    with pytest.raises(ValueError, match="secret"):
        written(target, f"cluster.launch.{secret}")


def test_the_run_hears_what_the_description_says_to_a_driver_and_joins_the_cluster_it_is_on(
    written: Callable[..., str],
) -> None:
    stated = ("cluster.boots_at_once=16", "cluster.address=elsewhere:6379")
    job = yaml.safe_load(written("kuberay", *stated, overrides=("a=b",)))["spec"]
    assert shlex.split(job["entrypoint"])[-3:] == ["a=b", "cluster.boots_at_once=16", "cluster.address=''"]


def test_pods_see_configurations_of_the_clone_and_of_the_storage_only(
    written: Callable[..., str], tmp_path: Path
) -> None:
    assert "run /shared/my.yaml" in written("kuberay", config=Path("/shared/my.yaml"))
    assert "run configs/demo.yaml" in written("kuberay")
    with pytest.raises(ValueError, match="image"):
        written("kuberay", config=tmp_path / "my.yaml")


@given(TEXT)
def test_a_word_stays_one_word_for_the_shell(text: str) -> None:
    assert shlex.split(targets._word(text)) == [text]


SCALARS = TEXT | st.integers() | st.booleans() | st.none()


@settings(max_examples=50)
@given(st.recursive(SCALARS, lambda inner: st.lists(inner) | st.dictionaries(TEXT, inner), max_leaves=10))
def test_a_value_stays_itself_in_one_line_of_yaml_however_deep(value: object) -> None:
    line = targets._scalar(value)
    assert "\n" not in line
    assert yaml.safe_load(f"a:\n  - b: {line}\n    c: 1") == {"a": [{"b": value, "c": 1}]}


def test_hostile_overrides_and_environments_reach_the_run_whole(written: Callable[..., str]) -> None:
    """By the shell's own reading of the entrypoint, and of the launcher's command."""
    overrides = tuple(f"run.name={text!r}" for text in HOSTILE)
    entrypoint = yaml.safe_load(written("kuberay", overrides=overrides))["spec"]["entrypoint"]
    printed = subprocess.run(
        ["bash", "-c", f"python() {{ printf '%s\\0' \"$@\"; }}; {entrypoint}"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout.split("\0")
    assert printed[:-1] == ["-m", "shard_dist", "run", "configs/demo.yaml", *overrides]


def test_hostile_settings_stay_values_in_manifests(written: Callable[..., str]) -> None:
    environment = {f"X{number}": text for number, text in enumerate(HOSTILE)}
    image, secret = "\n".join(HOSTILE), " ".join(HOSTILE)
    launch = {"environment": environment, "image": image, "kuberay": {"secret": secret}}
    manifest = yaml.safe_load(written("kuberay", f"cluster.launch={targets._scalar(launch)}"))
    worker = manifest["spec"]["rayClusterSpec"]["workerGroupSpecs"][0]["template"]["spec"]["containers"][0]
    assert worker["image"] == image
    assert worker["envFrom"] == [{"secretRef": {"name": secret}}]
    assert {item["name"]: item["value"] for item in worker["env"]}.items() >= environment.items()


@pytest.mark.parametrize(
    ("name", "expected"), [("Demo_8B.v2", "shard-demo-8b-v2"), ("日本", "shard"), ("x" * 99, "shard-" + "x" * 40)]
)
def test_names_are_what_kubernetes_allows(written: Callable[..., str], name: str, expected: str) -> None:
    assert yaml.safe_load(written("kuberay", f"run.name={name}"))["metadata"]["name"] == expected


@pytest.mark.parametrize(
    ("time", "seconds"),
    [("90", 5400), ("90:30", 5430), ("2:00:05", 7205), ("1-12", 129600), ("1-12:30", 131400), ("1-0:0:1", 86401)],
)
def test_slurms_forms_of_a_time_limit(time: str, seconds: int) -> None:
    assert targets._seconds(time) == seconds
