"""What travels to the cluster, and what does not."""

from __future__ import annotations

import json
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

import shard_dist
from shard_dist.rundir import git_state
from shard_dist.submit import package as module
from shard_dist.submit.package import collect
from shard_dist.submit.request import Request, load


@pytest.fixture
def _only_files(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without our code, which takes half a second to compress."""
    monkeypatch.setattr(module, "PACKAGES", ())


def names(request: Request) -> set[str]:
    return {name for name in request.package.files if not name.startswith(("shard_dist/", "shard_kernels/"))}


def test_configuration_its_includes_and_what_it_names_travel(ask: Callable[..., Request]) -> None:
    """The seed model is weights, which stay at home unless they are named: here they are."""
    assert names(ask()) == {"configs/base.yaml", "configs/mine.yaml", "prompts.csv", "seed/model.safetensors"}


def test_our_code_travels_as_it_is_imported_here(ask: Callable[..., Request]) -> None:
    files = ask().package.files
    assert files["shard_dist/__main__.py"].parent == Path(shard_dist.__file__).parent
    assert {"shard_kernels/loss.py", "shard_dist/prompts/principles.yaml"} <= set(files)
    assert not [name for name in files if "__pycache__" in name]


@pytest.mark.parametrize("repository", [False, True])
def test_what_git_ignores_and_what_is_ours_alone_stays(
    here: Path, ask: Callable[..., Request], *, repository: bool
) -> None:
    """The same in a checkout and in a plain copy of one; what the configuration names travels nevertheless."""
    before = names(ask())
    (here / ".gitignore").write_text("*.log\nprompts.csv\nmade/\n")
    (here / "notes").mkdir()
    (here / "notes" / ".gitignore").write_text("deep\n")
    for stays in ("a.log", "notes/deep", "made/x", "runs/demo/x", ".venv/x", ".env", "big.safetensors", "x/a_cache/x"):
        (here / stays).parent.mkdir(parents=True, exist_ok=True)
        (here / stays).write_text("x")
    if repository:
        subprocess.run(["git", "init", "--quiet"], cwd=here, check=True)
    assert names(ask()) == before | {".gitignore", "notes/.gitignore"}


@pytest.mark.usefixtures("_only_files")
def test_the_same_files_are_the_same_archive(here: Path, ask: Callable[..., Request], tmp_path: Path) -> None:
    """Ray names a package by its bytes: what did not change is not sent again."""
    for place in ("a.zip", "b.zip"):
        ask().package.write(tmp_path / place)
        (here / "prompts.csv").touch()
    assert (tmp_path / "a.zip").read_bytes() == (tmp_path / "b.zip").read_bytes()


def test_the_archive_runs_without_an_installation(ask: Callable[..., Request], tmp_path: Path) -> None:
    """Unpacked elsewhere, `python -m shard_dist` is the archive's, kernels included, and knows its commit."""
    ask().package.write(tmp_path / "a.zip")
    with zipfile.ZipFile(tmp_path / "a.zip") as archive:
        archive.extractall(tmp_path / "there")
    program = (
        "import importlib.util as u, json, shard_dist, shard_dist.rundir as r;"
        "print(json.dumps([shard_dist.__file__, u.find_spec('shard_kernels').origin, r.git_state()]))"
    )
    there = tmp_path / "there"
    said = subprocess.run([sys.executable, "-c", program], cwd=there, capture_output=True, text=True, check=True).stdout
    ours = [str(there / name / "__init__.py") for name in ("shard_dist", "shard_kernels")]
    assert json.loads(said) == [*ours, git_state()]


@pytest.mark.usefixtures("_only_files")
def test_too_much_is_refused_with_the_largest_files(
    here: Path, ask: Callable[..., Request], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "LIMIT", ask().package.bytes + 1000)
    ask()
    (here / "big.csv").write_bytes(bytes(3 * 2**20))
    with pytest.raises(ValueError, match=r"MiB would travel.*big\.csv \(3 MiB\).*\.gitignore.*cluster\.storage\.path"):
        ask()


def test_files_outside_of_the_directory_are_refused(here: Path, ask: Callable[..., Request]) -> None:
    (here.parent / "outside.csv").write_text("id,text\n")
    with pytest.raises(ValueError, match=r"outside\.csv does not lie in .*submit from one above both"):
        ask("data.sources[0].path=../outside.csv")


def test_the_configuration_lies_in_the_directory(here: Path) -> None:
    file = here / "configs" / "mine.yaml"
    with pytest.raises(ValueError, match=r"mine\.yaml does not lie in"):
        collect(here / "seed", file, load(file, [], None))


def test_an_absolute_include_is_refused(here: Path, ask: Callable[..., Request]) -> None:
    own = here / "configs" / "mine.yaml"
    values = yaml.safe_load(own.read_text())
    own.write_text(yaml.safe_dump({**values, "include": [str(here / "configs" / "base.yaml")]}))
    with pytest.raises(ValueError, match=r"include .*write it relative"):
        ask()


def test_another_copy_of_the_code_is_refused(here: Path, ask: Callable[..., Request]) -> None:
    (here / "shard_dist").mkdir()
    with pytest.raises(ValueError, match=r"shard_dist is another copy of the code"):
        ask()
