"""What travels to the cluster: the directory that a person stands in, and our own code as it is imported here."""

from __future__ import annotations

import json
import os
import subprocess
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from fnmatch import fnmatch
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from shard_dist.config.load import as_dict, read_values
from shard_dist.config.schema import Config
from shard_dist.rundir import git_state

# The job API takes uploads of 100 MiB (DASHBOARD_CLIENT_MAX_SIZE in Ray 2.60; one byte more is HTTP 413).
LIMIT = 100 * 2**20
# Parts of a path that stay at home unless the configuration names what lies there.
STAYS = (
    *(".git", ".venv", "venv", "runs", "build", "wandb", "checkpoints", "*.egg-info", "*.safetensors"),
    *("__pycache__", "*.pyc", ".cache", "*_cache", ".hypothesis", ".env", ".env.*", ".netrc"),
)
PACKAGES = ("shard_dist", "shard_kernels")
COMMIT = "shard_dist/commit.json"  # what `git_state` says of code that is no checkout any more
LONGEST = 1000  # characters of a path; a longer setting is none, and asking the file system for it is an error
NO_FILES = ("run", "cluster", "tracking")  # sections without names of files that are read


@dataclass(frozen=True)
class Package:
    """Names in the archive, and where the files lie."""

    files: dict[str, Path]

    @property
    def bytes(self) -> int:
        return sum(path.stat().st_size for path in self.files.values())

    def write(self, archive: Path) -> None:
        """A ZIP with the same bytes for the same files, so that the cluster keeps one copy of them."""
        with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as stream:
            for name, path in sorted(self.files.items()):
                stream.writestr(_entry(name), path.read_bytes())
            stream.writestr(_entry(COMMIT), json.dumps(git_state()))


def collect(directory: Path, config_file: Path, config: Config) -> Package:
    """What a job with this configuration needs of `directory` and of our code.

    Raises ValueError for a file that the configuration reads and that lies elsewhere, for another copy of our code in
    the directory, and for more than the cluster takes.
    """
    directory = Path(os.path.abspath(directory))
    needed = [Path(os.path.abspath(path)) for path in (*included(config_file), *named(directory, config))]
    for path in needed:
        if not path.is_relative_to(directory):
            raise ValueError(
                f"{path} does not lie in {directory}, the directory that travels to the cluster: submit from one "
                "above both, or copy it"
            )
    files = dict(_code(directory))
    for path in (*_listed(directory), *(inner for place in needed for inner in _whole(place))):
        files.setdefault(str(path.relative_to(directory)), path)
    package = Package(files)
    _refuse_too_large(package, directory)
    return package


def included(path: Path) -> list[Path]:
    """A configuration and all that it includes. Raises ValueError for an absolute name: it means nothing elsewhere."""
    found = [path]
    for name in read_values(path).get("include", []):
        if Path(name).is_absolute():
            raise ValueError(
                f"{path}: include {name}: on the cluster this path is another; write it relative to the file"
            )
        found += included(path.parent / name)
    return found


def named(directory: Path, config: Config) -> list[Path]:
    """Files and directories here that the configuration names by a relative path: they travel, ignored or not."""
    paths = [directory / word for word in words_of(config) if not Path(word).is_absolute()]
    return sorted(path for path in paths if path.exists() and not path.samefile(directory))


def words_of(config: Config) -> set[str]:
    """Every setting that may be the name of a file or a directory."""
    tree = as_dict(config)
    words = {word for section in tree.keys() - set(NO_FILES) for word in _words(tree[section])}
    return {word for word in words if word and len(word) < LONGEST and "\0" not in word}


def _words(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list):
        for item in value:
            yield from _words(item)
    elif isinstance(value, str):
        yield value


def _code(directory: Path) -> Iterator[tuple[str, Path]]:
    """Our packages as they are imported here, at the top of the archive, which is on every process's path."""
    for name in PACKAGES:
        spec = find_spec(name)
        assert spec, f"{name} runs here"
        assert spec.origin
        place = Path(spec.origin).parent
        if (directory / name).is_dir() and (directory / name).resolve() != place.resolve():
            raise ValueError(
                f"{directory / name} is another copy of the code than the one that runs here ({place}), and the "
                "cluster would run that one: call the command that is installed from this directory"
            )
        for path in _whole(place):
            yield f"{name}/{path.relative_to(place)}", path


def _listed(directory: Path) -> list[Path]:
    """Files of the directory, less what git would ignore (where there is a git) and what always stays."""
    with TemporaryDirectory() as empty:
        subprocess.run(["git", "init", "--quiet", "--bare", empty], capture_output=True, check=False)
        # As its own repository sees it; where it is in none, as an empty one does.
        for where in ([], [f"--git-dir={empty}", f"--work-tree={directory}"]):
            words = ["git", *where, "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
            listed = subprocess.run(words, cwd=directory, capture_output=True, check=False)
            if listed.returncode == 0:
                names = (directory / name for name in os.fsdecode(listed.stdout).split("\0") if name)
                return [path for place in names for path in _whole(place, directory)]
    return list(_whole(directory, directory))


def _whole(place: Path, directory: Path | None = None) -> Iterator[Path]:
    """A file, or those below a directory; with `directory` less what always stays, told by the path from there on."""
    if directory and any(_stays(part) for part in place.relative_to(directory).parts):
        return
    if not place.is_dir():
        yield from [place] * place.is_file()
        return
    for folder, folders, files in os.walk(place):
        folders[:] = sorted(name for name in folders if name != "__pycache__" and not (directory and _stays(name)))
        for name in sorted(files):
            if not (directory and _stays(name)):
                yield Path(folder, name)


def _stays(name: str) -> bool:
    return any(fnmatch(name, pattern) for pattern in STAYS)


def _refuse_too_large(package: Package, directory: Path) -> None:
    if package.bytes <= LIMIT:
        return
    sizes = sorted(((path.stat().st_size, name) for name, path in package.files.items()), reverse=True)
    largest = ", ".join(f"{name} ({size / 2**20:.0f} MiB)" for size, name in sizes[:3])
    raise ValueError(
        f"{directory}: {package.bytes / 2**20:.0f} MiB would travel to the cluster, whose job API takes "
        f"{LIMIT / 2**20:.0f}; the largest: {largest}. Name them in .gitignore, or put what the run reads under "
        "cluster.storage.path and write that path in the configuration"
    )


def _entry(name: str) -> zipfile.ZipInfo:
    entry = zipfile.ZipInfo(name)  # dated 1980
    entry.compress_type = zipfile.ZIP_DEFLATED
    entry.external_attr = 0o644 << 16
    return entry
