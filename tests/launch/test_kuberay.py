"""The manifests have fields that KubeRay 1.6 and core/v1 know and no others, and say what a cluster relies on."""

from __future__ import annotations

import copy
import importlib.metadata
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

# Names and types of the fields that we use, after the references of ray.io/v1 and core/v1; any other name fails.
SCHEMA = json.loads((Path(__file__).parent / "kuberay.schema.json").read_text())
EVERYTHING = (
    "cluster.launch.environment={NCCL_DEBUG: INFO}",
    "cluster.launch.kuberay={secret: tokens, service_account: runner, node_selector: {gpu: h100}, namespace: team}",
)
KINDS = ("kuberay", "kuberay-cluster")


def read(text: str) -> dict[str, Any]:
    manifest = yaml.safe_load(text)
    jsonschema.Draft202012Validator(SCHEMA).validate(manifest)
    return manifest


def cluster(manifest: dict[str, Any]) -> dict[str, Any]:
    return manifest["spec"].get("rayClusterSpec", manifest["spec"])


@pytest.mark.parametrize("target", KINDS)
@pytest.mark.parametrize("settings", [(), EVERYTHING, ("cluster.nodes.gpus=0", "cluster.nodes.memory_gib=8")])
def test_manifests_have_the_fields_of_their_kinds_and_no_others(
    written: Callable[..., str], target: str, settings: tuple[str, ...]
) -> None:
    assert read(written(target, *settings))["kind"] == {"kuberay": "RayJob", "kuberay-cluster": "RayCluster"}[target]


def paths(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Of every key of a mapping, however deep."""
    if isinstance(value, list):
        return [found for index, item in enumerate(value) for found in paths(item, (*path, index))]
    if not isinstance(value, dict):
        return []
    return [found for key, item in value.items() for found in [(*path, key), *paths(item, (*path, key))]]


FREE = ("rayStartParams", "nodeSelector", "requests", "limits")


def test_a_misspelt_field_is_refused_wherever_it_stands(written: Callable[..., str]) -> None:
    """Each key of the manifest in turn, but for those of maps whose keys are one's own."""
    manifest = read(written("kuberay", *EVERYTHING))
    validator = jsonschema.Draft202012Validator(SCHEMA)
    tried = [path for path in paths(manifest) if not {*path[:-1]} & {*FREE}]
    assert len(tried) > 100
    for path in tried:
        broken = copy.deepcopy(manifest)
        place = broken
        for step in path[:-1]:
            place = place[step]
        place[f"{path[-1]}s"] = place.pop(path[-1])
        assert not validator.is_valid(broken), path


@pytest.mark.parametrize("target", KINDS)
def test_a_worker_pod_is_a_whole_node_and_the_head_takes_no_gpu(written: Callable[..., str], target: str) -> None:
    spec = cluster(read(written(target)))
    (group,) = spec["workerGroupSpecs"]
    assert (group["replicas"], group["minReplicas"], group["maxReplicas"], group["groupName"]) == (3, 3, 3, "gpu")
    (worker,) = group["template"]["spec"]["containers"]
    whole = {"cpu": 96, "memory": "1500Gi", "nvidia.com/gpu": 8}
    assert worker["resources"] == {"requests": whole, "limits": whole}
    (head,) = spec["headGroupSpec"]["template"]["spec"]["containers"]
    assert head["resources"]["limits"] == {"cpu": 4, "memory": "16Gi"}
    assert spec["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"
    mounts = {mount["name"]: mount["mountPath"] for mount in worker["volumeMounts"]}
    volumes = {volume["name"]: volume for volume in group["template"]["spec"]["volumes"]}
    assert mounts == {"storage": "/shared", "shared-memory": "/dev/shm"}
    assert volumes["storage"]["persistentVolumeClaim"] == {"claimName": "shared"}
    assert volumes["shared-memory"]["emptyDir"] == {"medium": "Memory", "sizeLimit": "750Gi"}


@pytest.mark.parametrize("target", KINDS)
def test_nobody_without_the_token_and_nobody_as_root(written: Callable[..., str], target: str) -> None:
    spec = cluster(read(written(target, *EVERYTHING)))
    assert spec["authOptions"] == {"mode": "token"}
    # KubeRay turns authOptions down below Ray 2.52.
    assert spec["rayVersion"] == importlib.metadata.version("ray")
    assert spec["headGroupSpec"]["serviceType"] == "ClusterIP"
    assert not spec["headGroupSpec"]["enableIngress"]
    for group in (spec["headGroupSpec"], *spec["workerGroupSpecs"]):
        pod = group["template"]["spec"]
        assert pod["securityContext"]["runAsNonRoot"]
        assert not pod["automountServiceAccountToken"]
        assert pod["serviceAccountName"] == "runner"
        (container,) = pod["containers"]
        assert container["securityContext"] == {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}
        assert container["envFrom"] == [{"secretRef": {"name": "tokens"}}]
        assert not [item for item in container["env"] if "TOKEN" in item["name"]]


def test_a_job_cleans_up_after_itself_and_a_cluster_has_none(written: Callable[..., str]) -> None:
    job = read(written("kuberay", "cluster.launch.python=/opt/venv/bin/python", overrides=("train.epochs=2",)))["spec"]
    assert job["shutdownAfterJobFinishes"]
    assert job["submissionMode"] == "K8sJobMode"
    assert job["entrypoint"] == "/opt/venv/bin/python -m shard_dist run configs/demo.yaml train.epochs=2"
    assert "suspend" not in job
    assert "entrypoint" not in read(written("kuberay-cluster"))["spec"]


def test_only_workers_follow_the_node_selector_and_cpu_clusters_ask_for_no_gpus(written: Callable[..., str]) -> None:
    spec = cluster(read(written("kuberay", *EVERYTHING)))
    assert spec["workerGroupSpecs"][0]["template"]["spec"]["nodeSelector"] == {"gpu": "h100"}
    assert "nodeSelector" not in spec["headGroupSpec"]["template"]["spec"]
    small = written("kuberay", "cluster.nodes={gpus: 0, cpus: 2, memory_gib: 8}")
    assert "nvidia" not in small
    assert cluster(read(small))["workerGroupSpecs"][0]["groupName"] == "cpu"
    (head,) = cluster(read(small))["headGroupSpec"]["template"]["spec"]["containers"]
    assert head["resources"]["limits"] == {"cpu": 2, "memory": "8Gi"}


def test_an_evicted_pod_has_time_to_drain_its_ray_node(written: Callable[..., str]) -> None:
    spec = cluster(read(written("kuberay")))
    pods = [group["template"]["spec"] for group in (spec["headGroupSpec"], *spec["workerGroupSpecs"])]
    variables = [{item["name"]: item["value"] for item in pod["containers"][0]["env"]} for pod in pods]
    assert [values["RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S"] for values in variables] == ["0", "120"]
    assert all(pod["terminationGracePeriodSeconds"] > 120 for pod in pods)
