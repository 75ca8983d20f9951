"""From YAML files and `key=value` words to one checked Config; a fault names key, file and nearest spelling."""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence
from dataclasses import fields, is_dataclass
from enum import Enum
from pathlib import Path
from typing import Any, get_args, get_type_hints

import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from shard_dist.artefacts import value_hash
from shard_dist.config.check import check, check_judging
from shard_dist.config.schema import Config

SECRET_NAME = re.compile(r"(api_?key|token|secret|passw|credential)(?!s?_(env|file)$|izer)", re.IGNORECASE)
# Not secrets, though their names contain the words.
PUBLIC_NAMES = {
    "max_tokens",
    "max_num_batched_tokens",
    "mean_tokens",
    "mean_schema_tokens",
    "tokenizer",
    "tokenizer_mode",
    "tokenizer_revision",
}
SECRET_VALUE = re.compile(r"\b(hf_|sk-|ghp_|wandb_v1_)[A-Za-z0-9_-]{8,}|(?<=://)[^/\s:@]+:[^/\s@]+(?=@)")

# How a run is carried out, not what it computes: these may change under a run directory that exists.
FREE_SECTIONS = ("run.name", "run.dir", "run.on_change", "run.ledger", "cluster", "tracking", "report")
FREE_MODEL_FIELDS = (
    "engines",
    "max_engines",
    "window",
    "gpus",
    "cpus",
    "env",
    "boot_timeout",
    "boot_attempts",
    "silent_timeout",
    "max_deaths",
    "timeout",
    "max_retries",
    "max_requests",
    "max_spend",
    "input_price",
    "output_price",
    "api_key_env",
    "fake.latency",
    "fake.slots",
    "fake.boot_seconds",
    "fake.error_rate",
    "fake.death_rate",
    "fake.silence_rate",
    "fake.poison",
)
FREE_TRAIN_FIELDS = (
    "workers",
    "gpus_per_worker",
    "cpus_per_worker",
    "threads",
    "micro_batch_size",
    "balance",
    "gradient_checkpointing",
    "loss_budget_gib",
    "long",
    "checkpoint_every",
    "keep_checkpoints",
    "async_checkpoints",
    "max_failures",
    "guards",
)


def load_config(path: str | Path, overrides: Sequence[str] = (), cluster: Path | None = None) -> Config:
    """The Config of a YAML file, its includes, the description of a `cluster` over it, and overrides; checked.

    `include: [a.yaml]` is read first, relative to the including file; what comes later wins. Raises ValueError.
    """
    config = config_of(read_tree(Path(path), overrides, {}, cluster=cluster), path)
    check(config)
    return config


def load_judging(path: str | Path, overrides: Sequence[str] = ()) -> Config:
    """The same for a file of judges alone, which may lack data.sources and models.student."""
    config = config_of(read_tree(Path(path), overrides, {"data": {"sources": []}}), path)
    check_judging(config)
    return config


def read_tree(
    path: Path, overrides: Sequence[str], base: dict[str, Any], beside: str = "", cluster: Path | None = None
) -> DictConfig:
    """Unchecked, and what must be set may be missing; `base` comes before everything else, `cluster` after the file.

    The key `beside` of the file itself is no setting and is left out.
    """
    tree = OmegaConf.merge(OmegaConf.structured(Config), base)
    assert isinstance(tree, DictConfig)
    tree = include(tree, path, beside)
    tree = include(tree, cluster) if cluster else tree
    for word in overrides:
        tree = override(tree, word)
    if not tree.run.name:
        tree.run.name = path.stem
    if not tree.run.dir:
        tree.run.dir = str(Path("runs") / tree.run.name)
    return tree


def include(tree: DictConfig, path: Path, beside: str = "") -> DictConfig:
    """A file, and everything that it includes, over a tree. The key `beside` of the file itself is left out."""
    for file, values in _files(path, ()):
        own = {key: value for key, value in values.items() if file != path or key != beside}
        tree = _merge(tree, OmegaConf.create(own), str(file))
    return tree


def config_of(tree: DictConfig, path: str | Path) -> Config:
    """Unchecked. Raises ValueError for settings that are missing."""
    missing = sorted(OmegaConf.missing_keys(tree))
    if missing:
        raise ValueError(f"{path}: {', '.join(missing)} must be set")
    try:
        config = OmegaConf.to_object(tree)
    except OmegaConfBaseException as error:
        raise ValueError(f"{path}: {error.full_key}: {_first_line(error)}") from error
    assert isinstance(config, Config)
    return config


def read_values(path: Path, named: str = "") -> dict[str, Any]:
    """The mapping of a YAML file. Raises ValueError where there is none, with `named` behind the path."""
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    except OSError as error:
        raise ValueError(f"cannot read the configuration {path}{named}: {error.strerror}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is no valid YAML: {error}") from error
    if not isinstance(values, dict):
        raise ValueError(f"{path}: a configuration is a mapping of keys, not a {type(values).__name__}")
    return values


def _files(path: Path, above: tuple[Path, ...]) -> list[tuple[Path, dict[str, Any]]]:
    """The file and everything that it includes, included ones first."""
    if path.resolve() in above:
        raise ValueError(f"{path}: includes itself through {above[-1]}")
    values = read_values(path, f" (included by {above[-1]})" if above else "")
    includes = values.pop("include", [])
    if not isinstance(includes, list) or not all(isinstance(name, str) for name in includes):
        raise ValueError(f"{path}: include must be a list of file names")
    files = []
    for name in includes:
        files += _files(path.parent / name, (*above, path.resolve()))
    return [*files, (path, values)]


def _merge(tree: DictConfig, values: Any, file: str) -> DictConfig:
    try:
        merged = OmegaConf.merge(tree, values)
    except OmegaConfBaseException as error:
        raise ValueError(_explain(error, file)) from error
    assert isinstance(merged, DictConfig)
    return merged


def override(tree: DictConfig, word: str) -> DictConfig:
    """One `a.b=value` or `a[0].b=value`; the value is YAML."""
    key, equals, text = word.partition("=")
    if word.startswith(("+", "~", "-")):
        raise ValueError(f"override {word!r}: keys are neither added nor removed; write {word.lstrip('+~-')!r}")
    if not equals or not key.strip():
        raise ValueError(f"override {word!r}: write key=value")
    parts = [int(part) if part.isdigit() else part for part in re.split(r"[.\[\]]+", key.strip().rstrip("]"))]
    try:
        value = OmegaConf.to_container(OmegaConf.from_dotlist([f"value={text}"]))["value"]  # type: ignore[index,call-overload]
    except (yaml.YAMLError, OmegaConfBaseException) as error:
        raise ValueError(f"override {word!r}: the value is no valid YAML: {error}") from error
    return _merge(tree, _nested(OmegaConf.to_container(tree), parts, value, word), f"override {word!r}")


def _nested(current: Any, parts: list[str | int], value: Any, word: str) -> Any:
    """`value` under the path `parts`, as OmegaConf.merge wants it: a list is replaced whole, so it is given whole."""
    if not parts:
        return value
    head, rest = parts[0], parts[1:]
    if isinstance(head, str):
        inner = current.get(head) if isinstance(current, dict) else None
        return {head: _nested(inner, rest, value, word)}
    if not isinstance(current, list) or head >= len(current):
        length = len(current) if isinstance(current, list) else 0
        raise ValueError(f"override {word!r}: no entry {head}; the list has {length}")
    new = _nested(current[head], rest, value, word)
    if isinstance(new, dict) and isinstance(current[head], dict):
        new = OmegaConf.to_container(OmegaConf.merge(current[head], new))
    return [*current[:head], new, *current[head + 1 :]]


def typed(values: dict[str, Any], kind: type, where: str) -> Any:
    """An instance of the dataclass `kind` with `values` over its defaults. Raises ValueError that names `where`."""
    try:
        return OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(kind), values))
    except OmegaConfBaseException as error:
        known = ", ".join(item.name for item in fields(kind))
        raise ValueError(f"{where}.{error.full_key or error.key}: {_first_line(error)}; there are: {known}") from error


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0]


def _explain(error: OmegaConfBaseException, where: str) -> str:
    key = str(error.full_key or error.key)
    message = f"{where}: {key}: {_first_line(error)}"
    if "not in" in message or "not supported" in message or "Key '" in message:
        message = f"{where}: unknown key {key!r}"
        near = _nearest(key)
        message += f"; did you mean {near!r}?" if near else ""
    return message


def _paths(kind: Any, prefix: str) -> list[str]:
    """Every dotted key of a dataclass tree; <name> stands for a key of one's own."""
    found = []
    hints = get_type_hints(kind)
    for item in fields(kind):
        path, hint = f"{prefix}{item.name}", hints[item.name]
        found.append(path)
        inner = hint if is_dataclass(hint) else next((a for a in get_args(hint) if is_dataclass(a)), None)
        if inner is not None:
            joint = "." if inner is hint else ("[0]." if "list" in str(hint) else ".<name>.")
            found += _paths(inner, path + joint)
    return found


def _nearest(key: str) -> str:
    """The known key whose spelling is nearest, looking at the whole path first and then at the last word."""
    known = _paths(Config, "")
    wanted = re.sub(r"^models\.[^.]+", "models.<name>", re.sub(r"\[\d+\]", "[0]", key))
    parent = wanted.rpartition(".")[0]
    siblings = {path.rpartition(".")[2]: path for path in known if path.rpartition(".")[0] == parent}
    close = difflib.get_close_matches(wanted.rpartition(".")[2], siblings, n=1, cutoff=0.6)
    if close:
        near = siblings[close[0]]
    else:
        leaves = {path.rpartition(".")[2]: path for path in reversed(known)}
        close = difflib.get_close_matches(wanted.rpartition(".")[2], leaves, n=1, cutoff=0.75)
        near = leaves[close[0]] if close else ""
    role = re.match(r"models\.([^.]+)", key)
    return near.replace("<name>", role.group(1)) if role else near


def as_dict(config: Config) -> dict[str, Any]:
    """The whole tree as plain values; enumerations by name. OmegaConf takes 120 ms for it, this 0.2."""
    plain: dict[str, Any] = _plain(config)
    return plain


def _plain(value: Any) -> Any:
    if is_dataclass(value):
        return {name: _plain(item) for name, item in vars(value).items()}
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value.name if isinstance(value, Enum) else value


def redacted(value: Any, name: str = "") -> Any:
    """`value` with everything that looks secret replaced: by the key's name, by a token's shape, in an address."""
    if isinstance(value, dict):
        return {key: redacted(item, str(key)) for key, item in value.items()}
    if isinstance(value, list):
        return [redacted(item, name) for item in value]
    if isinstance(value, str) and value and name not in PUBLIC_NAMES:
        return "<redacted>" if SECRET_NAME.search(name) else SECRET_VALUE.sub("<redacted>", value)
    return value


def identity(config: Config) -> dict[str, str]:
    """Dotted key -> hash of its value, for every setting that decides what a run computes."""
    tree = as_dict(config)
    flat: dict[str, str] = {}
    _flatten(tree, "", flat)
    return {key: digest for key, digest in flat.items() if not _free(key)}


def _free(key: str) -> bool:
    if any(key == free or key.startswith(free + ".") for free in FREE_SECTIONS):
        return True
    section, _, rest = key.partition(".")
    name = rest.partition(".")[2] if section == "models" else rest
    free = {"models": FREE_MODEL_FIELDS, "train": FREE_TRAIN_FIELDS}.get(section, ())
    return any(name == field or name.startswith(field + ".") for field in free)


def _flatten(value: Any, path: str, into: dict[str, str]) -> None:
    if isinstance(value, dict) and value:
        for key, item in value.items():
            _flatten(item, f"{path}.{key}" if path else str(key), into)
    else:
        into[path] = value_hash(value)
