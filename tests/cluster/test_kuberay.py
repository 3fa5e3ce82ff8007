"""cluster/kuberay: what manifests.py prints is what KubeRay's own schemas take, with no field they do not know."""

from __future__ import annotations

import copy
import functools
import subprocess
import sys
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from dtg_ray.arguments import STAGE_VERBS

KUBERAY = Path(__file__).parents[2] / "cluster" / "kuberay"
SCHEMAS = Path(__file__).parents[2].parent / "shared" / "reference" / "kuberay_crd"
needs_schemas = pytest.mark.skipif(not SCHEMAS.is_dir(), reason="KubeRay's schemas are not next to this checkout")
REGISTRY = "--registry=registry.example.org"


def manifests(*arguments: str) -> list[dict[str, Any]]:
    """What manifests.py prints."""
    command = [sys.executable, str(KUBERAY / "manifests.py"), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return list(yaml.safe_load_all(done.stdout))


@functools.cache
def schema_of(kind: str) -> dict[str, Any]:
    """The schema of ray.io/v1, as strict as the API server: fields it does not know are errors."""
    definition = yaml.load((SCHEMAS / f"ray.io_{kind.lower()}s.yaml").read_text(), Loader=yaml.CSafeLoader)
    version = next(version for version in definition["spec"]["versions"] if version["name"] == "v1")
    schema: dict[str, Any] = version["schema"]["openAPIV3Schema"]
    schema["properties"]["metadata"] = {"type": "object"}
    return close(schema)


def close(schema: Any) -> Any:
    if isinstance(schema, dict):
        if "properties" in schema and not schema.get("x-kubernetes-preserve-unknown-fields"):
            schema.setdefault("additionalProperties", False)
        for value in schema.values():
            close(value)
    elif isinstance(schema, list):
        for value in schema:
            close(value)
    return schema


@needs_schemas
def test_the_cluster_is_what_kuberay_takes() -> None:
    (cluster,) = manifests("cluster", REGISTRY)
    jsonschema.validate(cluster, schema_of("RayCluster"))


@needs_schemas
@pytest.mark.parametrize("stage", STAGE_VERBS)
def test_the_job_of_each_stage_is_what_kuberay_takes(stage: str) -> None:
    (job,) = manifests("job", REGISTRY, "--", stage, "s3://bucket/a study", "--quiet")
    jsonschema.validate(job, schema_of("RayJob"))
    assert job["spec"]["entrypoint"] == f"dtg {stage} 's3://bucket/a study' --quiet"
    assert job["spec"]["rayClusterSpec"] == manifests("cluster", REGISTRY)[0]["spec"]


@needs_schemas
@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("spec", "authOption"), {"mode": "token"}),
        (("spec", "authOptions", "mode"), "tokens"),
        (("spec", "headGroupSpec", "template", "spec", "containers", 0, "env", 0, "val"), "x"),
        (("spec", "workerGroupSpecs", 1, "maxReplicas"), "8"),
    ],
)
def test_a_slip_in_a_manifest_would_be_seen(path: tuple[Any, ...], value: Any) -> None:
    broken = copy.deepcopy(manifests("cluster", REGISTRY)[0])
    place: Any = broken
    for step in path[:-1]:
        place = place[step]
    place[path[-1]] = value
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(broken, schema_of("RayCluster"))


def pods(manifest: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The pods of a job and its cluster, by what they are."""
    plan = manifest["spec"]["rayClusterSpec"]
    found = {group["groupName"]: group["template"] for group in plan["workerGroupSpecs"]}
    return {"head": plan["headGroupSpec"]["template"], "submitter": manifest["spec"]["submitterPodTemplate"], **found}


def test_no_pod_is_root_or_can_become_it() -> None:
    (job,) = manifests("job", REGISTRY, "--", "run", "s3://bucket/study")
    for name, pod in pods(job).items():
        spec = pod["spec"]
        assert spec["securityContext"]["runAsNonRoot"], name
        assert spec["securityContext"]["seccompProfile"]["type"] == "RuntimeDefault", name
        for container in spec["containers"]:
            assert container["securityContext"]["allowPrivilegeEscalation"] is False, name
            assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}, name
    autoscaler = job["spec"]["rayClusterSpec"]["autoscalerOptions"]["securityContext"]
    assert autoscaler["capabilities"] == {"drop": ["ALL"]}


def test_workers_scale_from_none_and_one_kind_alone_asks_for_gpus() -> None:
    (cluster,) = manifests("cluster", REGISTRY, "--cpu-nodes=3", "--gpu-nodes=2")
    assert cluster["spec"]["enableInTreeAutoscaling"]
    groups = {group["groupName"]: group for group in cluster["spec"]["workerGroupSpecs"]}
    assert {name: (group["minReplicas"], group["maxReplicas"]) for name, group in groups.items()} == {
        "cpu": (0, 3),
        "gpu": (0, 2),
    }
    wanted = {name: group["template"]["spec"]["containers"][0] for name, group in groups.items()}
    assert "nvidia.com/gpu" not in wanted["cpu"]["resources"]["limits"]
    assert wanted["gpu"]["resources"]["limits"]["nvidia.com/gpu"] == "1"
    assert wanted["gpu"]["image"].endswith(":cuda")


def test_the_network_policy_holds_for_every_pod_and_lets_in_the_cluster_and_the_operator_alone() -> None:
    access = {item["kind"]: item for item in manifests("access", "--role=arn:aws:iam::1:role/data")}
    policy = access["NetworkPolicy"]["spec"]
    label = policy["podSelector"]["matchLabels"]
    (job,) = manifests("job", REGISTRY, "--", "run", "s3://bucket/study")
    for name, pod in pods(job).items():
        assert label.items() <= pod["metadata"]["labels"].items(), name
    inside, operator, figures = policy["ingress"]
    assert figures["ports"] == [{"protocol": "TCP", "port": 8080}]
    assert inside == {"from": [{"podSelector": {"matchLabels": label}}]}
    assert operator["ports"] == [{"protocol": "TCP", "port": 8265}]
    assert operator["from"][0]["podSelector"]["matchLabels"] == {"app.kubernetes.io/name": "kuberay-operator"}
    assert policy["egress"][0]["to"][0]["ipBlock"]["except"] == ["169.254.169.254/32"]
    assert access["Namespace"]["metadata"]["labels"]["pod-security.kubernetes.io/enforce"] == "restricted"
