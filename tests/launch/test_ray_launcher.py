"""The cluster launcher's file against Ray's own schema and its own preparation of the file."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import ray
import yaml

AWS = (
    "cluster.launch.provider={type: aws, region: eu-central-1}",
    "cluster.launch.auth={ssh_user: ubuntu}",
    "cluster.launch.node_config={InstanceType: p5.48xlarge}",
)


def read(text: str) -> dict[str, Any]:
    schema = json.loads((Path(ray.__file__).parent / "autoscaler" / "ray-schema.json").read_text())
    cluster = yaml.safe_load(text)
    jsonschema.Draft7Validator(schema).validate(cluster)
    return cluster


@pytest.mark.parametrize(
    "settings", [(), AWS, ("cluster.nodes.gpus=0", "cluster.launch.image=''"), (*AWS, "cluster.nodes.count=1")]
)
def test_rays_own_schema_accepts_it(written: Callable[..., str], settings: tuple[str, ...]) -> None:
    read(written("ray-launcher", *settings))


def test_rays_own_schema_refuses_a_misspelt_field(written: Callable[..., str]) -> None:
    text = written("ray-launcher").replace("max_workers:", "max_worker:")
    with pytest.raises(jsonschema.ValidationError, match="max_worker"):
        read(text)


def test_ray_prepares_machines_of_ones_own(written: Callable[..., str]) -> None:
    """By the function that `ray up` calls for the provider `local`; it turns down files that name types of nodes."""
    from ray.autoscaler._private.local.config import prepare_local

    prepared, changed = prepare_local(read(written("ray-launcher")))
    assert changed
    assert prepared["available_node_types"]["local.cluster.node"]["min_workers"] == 2


def test_clouds_get_as_many_nodes_as_the_description_says_and_keep_them(written: Callable[..., str]) -> None:
    cluster = read(written("ray-launcher", *AWS))
    head, worker = cluster["available_node_types"]["head"], cluster["available_node_types"]["worker"]
    assert (worker["min_workers"], worker["max_workers"], cluster["max_workers"]) == (2, 2, 2)
    assert head["resources"] == worker["resources"] == {"CPU": 96, "GPU": 8}
    assert worker["node_config"] == {"InstanceType": "p5.48xlarge"}


def test_ray_starts_with_the_token_of_a_file_that_is_copied_and_without_an_open_dashboard(
    written: Callable[..., str],
) -> None:
    settings = ("cluster.launch.setup=[source /venv/bin/activate]", 'cluster.launch.environment={A: "it\'s; x"}')
    cluster = read(written("ray-launcher", *settings))
    assert cluster["file_mounts"] == {"~/.ray/auth_token": "~/.ray/auth_token"}
    commands = [*cluster["head_start_ray_commands"], *cluster["worker_start_ray_commands"]]
    exports = "export RAY_AUTH_MODE=token RAY_USAGE_STATS_ENABLED=0 A='it'\"'\"'s; x'"
    assert all(command.startswith(f"source /venv/bin/activate && {exports} && python ") for command in commands)
    assert "--dashboard-host=127.0.0.1" in commands[1]
