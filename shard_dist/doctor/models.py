"""Whether every node can read the models that a configuration names, without loading any."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from shard_dist.artefacts import whole_path
from shard_dist.config.schema import Backend, ModelConfig
from shard_dist.doctor.asked import Asked
from shard_dist.doctor.finding import Finding, Level
from shard_dist.doctor.machines import Machines, answered, everywhere, reason
from shard_dist.doctor.network import connect

WEIGHTS = ("*.safetensors", "*.bin")


@dataclass(frozen=True)
class Reach:
    """How a model is there ("" in `problem`), or why it is not; `token`: whether the node has a hub token."""

    how: str
    problem: str = ""
    token: bool = False


def find(model: str, revision: str) -> Reach:
    """A directory of this machine, the hub's cache here, or the hub itself, asked for the head of config.json."""
    if Path(model).is_dir():
        lacking = [] if (Path(model) / "config.json").is_file() else ["config.json"]
        lacking += [] if any(next(Path(model).glob(kind), None) for kind in WEIGHTS) else ["weights"]
        return Reach("a directory", f"the directory has no {' and no '.join(lacking)}" if lacking else "")
    if Path(model).is_absolute() or model.startswith((".", "~")):
        return Reach("", "no such directory")
    from huggingface_hub import constants, get_hf_file_metadata, get_token, hf_hub_url, try_to_load_from_cache

    try:
        if isinstance(try_to_load_from_cache(model, "config.json", revision=revision or None), str):
            return Reach("in the hub's cache")
        if constants.HF_HUB_OFFLINE:
            return Reach("", "not in the hub's cache, and HF_HUB_OFFLINE is set")
        get_hf_file_metadata(hf_hub_url(model, "config.json", revision=revision or None), timeout=10)
    except Exception as error:  # the hub's, the network's, and that of a name that can be no hub id
        return Reach("", f"{type(error).__name__}: {reason(error)}", get_token() is not None)
    return Reach("on the hub", token=get_token() is not None)


def models(machines: Machines, asked: Asked) -> list[Finding]:
    """Every model of the configuration, on every node: an engine may be placed on any."""
    findings = []
    for role, spec in asked.config.models.items() if asked.config else ():
        if spec.backend == Backend.vllm:
            # As a run names them to its engines, whose working directory is another.
            calls = everywhere(machines, whole_path(spec.model), spec.revision)
            found, silent = answered("models", machines.ask(find, calls, 45))
            findings += silent + [judge(name, role, spec.model, reach) for name, reach in found.items()]
        elif spec.backend == Backend.http:
            findings += server(machines, role, spec)
    return findings


def judge(node: str, role: str, model: str, reach: Reach) -> Finding:
    where = f"models.{role}: {model}"
    if not reach.problem:
        return Finding("models", node, Level.ok, f"{where} {reach.how}")
    if Path(model).is_absolute() or "directory" in reach.problem:
        todo = "put the model on the shared storage and name that path"
    elif "Gated" in reach.problem or "401" in reach.problem:
        todo = "accept the licence on the model's page; its token is read from HF_TOKEN" + (
            ", which this node has: does it belong to that account?" if reach.token else ", which this node has not"
        )
    elif "OFFLINE" in reach.problem:
        todo = f"hf download {model} into the cache (HF_HOME) that every node reads"
    else:
        todo = "check the name; without a way to the hub: download it once to the shared storage and name that path"
    return Finding("models", node, Level.fail, f"{where}: {reach.problem}", todo)


def server(machines: Machines, role: str, spec: ModelConfig) -> list[Finding]:
    """A server's port from every node, and whether the environment has the key. Nothing is sent."""
    url = urlsplit(spec.base_url)
    target = (spec.base_url, url.hostname or "", url.port or (443 if url.scheme == "https" else 80), "")
    reached, findings = answered("models", machines.ask(connect, everywhere(machines, [target], 5.0), 20))
    keys, _ = answered("models", machines.ask(has_variable, everywhere(machines, spec.api_key_env), 10))
    for name, answers in reached.items():
        where, problem = f"models.{role}: the server at {url.hostname}", answers[spec.base_url]
        if problem:
            todo = "start the server, or open the way to it from every node (engines' processes ask it themselves)"
            findings.append(Finding("models", name, Level.fail, f"{where}: {problem}", todo))
        elif spec.api_key_env and not keys.get(name, False):
            text, todo = (
                f"{where} answers; {spec.api_key_env} is not set",
                "set it on every node if the server wants it",
            )
            findings.append(Finding("models", name, Level.warn, text, todo))
        else:
            findings.append(Finding("models", name, Level.ok, f"{where} answers"))
    return findings


def has_variable(name: str) -> bool:
    return bool(os.environ.get(name))
