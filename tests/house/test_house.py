"""The house keeps its shape: floors, heavy libraries in their rooms, sizes."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "shard_dist"
KERNELS = ROOT / "kernels"

# Lowest first; an import goes down or stays level. The longest matching name decides.
FLOORS = [
    ("records", "artefacts", "markdown"),
    ("config", "prompts", "cluster"),
    ("ledger",),
    ("engines", "data", "judges", "retrieval", "shard_kernels"),
    ("recipes", "training", "evaluation", "report", "rundir", "progress", "tracking", "demo"),
    ("stages",),
    ("pipeline", "export", "score", "bench", "sweep", "plan", "submit", "doctor"),
    ("cli", "__main__"),
]
# Libraries that need a cluster, a GPU or a compiler to be of use, and the only modules that may import them.
ROOMS = {
    "ray": {
        *("cluster", "engines.actor", "engines.fleet", "engines.pool", "engines.remote", "training.supervise"),
        *("submit.client", "doctor.cluster"),
    },
    "vllm": {"engines.vllm_actor"},
    "deepspeed": {"training.zero", "training.sequence"},
}
MODULES = sorted(PACKAGE.rglob("*.py"))


def name(path: Path) -> str:
    return ".".join(path.relative_to(PACKAGE).with_suffix("").parts)


def imports(path: Path, typing_only: bool = False) -> Iterator[str]:
    """Every module that `path` imports, at its top or inside functions; those for type checkers only if asked."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    skipped: set[ast.AST] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING" and not typing_only:
            skipped.update(ast.walk(node))
    for node in ast.walk(tree):
        if node in skipped:
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            yield str(node.module)


def floor(module: str) -> int:
    found = [number for number, names in enumerate(FLOORS) if module.split(".", maxsplit=1)[0] in names]
    assert len(found) == 1, f"{module} is on no floor: add it to FLOORS and to ARCHITECTURE.md"
    return found[0]


@pytest.mark.parametrize("path", MODULES, ids=name)
def test_imports_go_down_the_floors(path: Path) -> None:
    here = name(path)
    if here == "__init__":
        return
    for module in imports(path):
        if module.startswith(("shard_dist.", "shard_kernels")):
            inner = module.removeprefix("shard_dist.")
            assert floor(inner) <= floor(here), f"{here} imports {inner}, which is above it"


@pytest.mark.parametrize("path", MODULES, ids=name)
def test_heavy_libraries_stay_in_their_rooms(path: Path) -> None:
    for module in imports(path, typing_only=True):
        library = module.split(".")[0]
        assert name(path) in ROOMS.get(library, {name(path)}), f"{name(path)} imports {library}"


def test_the_kernels_stand_on_their_own() -> None:
    """They can be used without shard_dist."""
    for path in sorted(KERNELS.rglob("*.py")):
        assert not [module for module in imports(path) if module.split(".")[0] in {"shard_dist", *ROOMS}], path


@pytest.mark.parametrize(
    "path", [path for top in (PACKAGE, KERNELS, ROOT / "tests") for path in top.rglob("*.py")], ids=str
)
def test_files_and_functions_stay_small(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert text.count("\n") < 400, f"{path} has {text.count(chr(10))} lines"
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            length = (node.end_lineno or node.lineno) - node.lineno + 1
            assert length <= 40, f"{path}: {node.name} has {length} lines"


def test_top_level_folders_are_no_packages() -> None:
    """A `kernels` package of ours would shadow the one that transformers looks for, and break it."""
    for folder in ("kernels", "launch", "configs", "docker", "tests"):
        assert not (ROOT / folder / "__init__.py").exists()


def test_nothing_is_called_utils() -> None:
    assert not [path for path in ROOT.rglob("*.py") if path.stem in ("utils", "helpers") and ".venv" not in path.parts]
