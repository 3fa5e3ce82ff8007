"""Print manifests for `kubectl apply -f -`: what a namespace needs, a cluster, or the job of any stage.

    python cluster/kuberay/manifests.py access --role arn:aws:iam::123456789012:role/dtg-data
    python cluster/kuberay/manifests.py cluster --registry registry.example.org
    python cluster/kuberay/manifests.py job --registry registry.example.org -- synthesize s3://my-bucket/ukb --quiet

They are made of access.yaml, raycluster.yaml and rayjob.yaml, which say what is in them.
"""

from __future__ import annotations

import argparse
import shlex
import sys
from pathlib import Path
from typing import Any

import yaml

HERE = Path(__file__).parent


def main(arguments: list[str] | None = None) -> int:
    """Print what was asked for."""
    options = parser().parse_args(arguments)
    if options.what == "access":
        print(fill((HERE / "access.yaml").read_text(), {"ROLE_ARN": options.role}), end="")
        return 0
    images = {"IMAGE_CPU": f"{options.registry}/dtg:cpu", "IMAGE_CUDA": f"{options.registry}/dtg:cuda"}
    manifest = cluster(images, options.cpu_nodes, options.gpu_nodes)
    if options.what == "job":
        manifest = job(images, manifest["spec"], options.stage)
    print(yaml.dump(manifest, Dumper=Plain, sort_keys=False), end="")
    return 0


def parser() -> argparse.ArgumentParser:
    """What can be asked for."""
    top = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    kinds = top.add_subparsers(dest="what", required=True)
    access = kinds.add_parser("access", help="namespace, accounts, network policy: once")
    access.add_argument("--role", required=True, help="that may use the data (IRSA), with cluster/aws/iam/data.json")
    for name, text in (("cluster", "a cluster for `dtg submit`"), ("job", "a stage on a cluster of its own")):
        kind = kinds.add_parser(name, help=text)
        kind.add_argument("--registry", required=True, help="that has dtg:cpu and dtg:cuda")
        kind.add_argument("--cpu-nodes", type=int, default=20, help="at most (default: 20)")
        kind.add_argument("--gpu-nodes", type=int, default=8, help="at most (default: 8)")
        if name == "job":
            kind.add_argument("stage", nargs="+", metavar="-- STAGE STUDY [OPTIONS]", help="as of `dtg`")
    return top


def cluster(images: dict[str, str], cpu_nodes: int, gpu_nodes: int) -> dict[str, Any]:
    """The RayCluster, with so many workers of each kind at most."""
    manifest: dict[str, Any] = yaml.safe_load(fill((HERE / "raycluster.yaml").read_text(), images))
    for group in manifest["spec"]["workerGroupSpecs"]:
        group["maxReplicas"] = {"cpu": cpu_nodes, "gpu": gpu_nodes}[group["groupName"]]
    return manifest


def job(images: dict[str, str], plan: dict[str, Any], stage: list[str]) -> dict[str, Any]:
    """The RayJob of a stage on a cluster of that plan."""
    manifest: dict[str, Any] = yaml.safe_load(fill((HERE / "rayjob.yaml").read_text(), images))
    manifest["metadata"]["name"] = f"dtg-{stage[0]}"
    manifest["spec"] |= {"entrypoint": shlex.join(["dtg", *stage]), "rayClusterSpec": plan}
    return manifest


def fill(text: str, values: dict[str, str]) -> str:
    """Put values into their places."""
    for name, value in values.items():
        text = text.replace(name, value)
    return text


class Plain(yaml.SafeDumper):
    """YAML without anchors: everything is written where it holds."""

    def ignore_aliases(self, _data: object) -> bool:
        """Repeat what is shared."""
        return True


if __name__ == "__main__":
    sys.exit(main())
