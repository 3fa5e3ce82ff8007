"""A Ray cluster on one machine whose autoscaler starts and stops nodes: Ray's own `fake_multinode` provider."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import psutil
from ray.autoscaler._private.fake_multi_node.node_provider import FakeMultiNodeProvider

TESTS = Path(__file__).parent
RAY = (sys.executable, "-c", "import sys; from ray.scripts.scripts import main; sys.exit(main())")
NODE_ID = "RAY_OVERRIDE_NODE_ID_FOR_TESTING"
EMPTY_LISTS = "initialization setup head_setup worker_setup head_start_ray worker_start_ray"


class Provider(FakeMultiNodeProvider):
    """Ray's own, made more like a cloud's: nodes may declare memory, and those that were lost are not listed."""

    def create_node_with_resources_and_labels(self, node_config, tags, count, resources, labels):
        counted = {name: amount for name, amount in resources.items() if name != "memory"}
        super().create_node_with_resources_and_labels(node_config, tags, count, counted, labels)

    def non_terminated_nodes(self, tag_filters):
        with self.lock:
            lost = [name for name, node in self._nodes.items() if "node" in node and node["node"].dead_processes()]
            for name in lost:
                self.terminate_node(name)
        return super().non_terminated_nodes(tag_filters)


@contextlib.contextmanager
def autoscaled(types: Mapping[str, tuple[Mapping[str, float], int]], head_cpus: int = 0) -> Iterator[str]:
    """Address of a cluster that may have so many nodes, each with such resources, of each type; idle ones go soon."""
    folder = Path(tempfile.mkdtemp(prefix="auto_", dir="/tmp"))  # sockets want short paths
    address = f"{_own_ip()}:{_free_port()}"
    (folder / "cluster.json").write_text(json.dumps(_settings(types, address)))
    command = [
        *(*RAY, "start", "--head", "--block", f"--temp-dir={folder}/r", f"--port={address.split(':')[1]}"),
        *(f"--autoscaling-config={folder}/cluster.json", f"--num-cpus={head_cpus}", "--object-store-memory=200000000"),
        *(f"--dashboard-agent-listen-port={_free_port()}", f"--ray-client-server-port={_free_port()}"),
        *("--include-dashboard=false", "--min-worker-port=0", "--max-worker-port=0", "--disable-usage-stats"),
    ]
    settings = {
        "RAY_FAKE_CLUSTER": "1",
        "AUTOSCALER_UPDATE_INTERVAL_S": "1",
        "PYTHONPATH": f"{TESTS.parent}:{TESTS}:{TESTS}/stages",
    }
    log = (folder / "head.log").open("wb")
    head = subprocess.Popen(command, env=os.environ | settings, stdout=log, stderr=log, start_new_session=True)
    try:
        _wait_until_up(head, folder / "head.log")
        yield address
    finally:
        _end(head)
        log.close()
        shutil.rmtree(folder, ignore_errors=True)


def _settings(types: Mapping[str, tuple[Mapping[str, float], int]], address: str) -> dict[str, Any]:
    head = {"resources": {"CPU": 0}, "node_config": {}, "max_workers": 0}
    groups = {
        name: {
            "resources": {"memory": 4e9, "object_store_memory": 200_000_000, **resources},
            "node_config": {},
            "min_workers": 0,
            "max_workers": most,
        }
        for name, (resources, most) in types.items()
    }
    return {
        "cluster_name": "fake_multinode",
        "max_workers": 8,
        "provider": {
            "type": "external",
            "module": "fake_nodes.Provider",
            "gcs_address": address,
            "use_node_id_as_ip": True,
            "disable_node_updaters": True,
            "disable_launch_config_check": True,
        },
        "available_node_types": {"ray.head.default": head, **groups},
        "head_node_type": "ray.head.default",
        "upscaling_speed": 1.0,
        "idle_timeout_minutes": 0.1,
        **{name: {} for name in ("auth", "docker", "file_mounts")},
        **{f"{name}_commands": [] for name in EMPTY_LISTS.split()},
        **{name: [] for name in ("cluster_synced_files", "rsync_exclude", "rsync_filter")},
        "file_mounts_sync_continuously": False,
    }


def _own_ip() -> str:
    from ray._private.services import get_node_ip_address

    return str(get_node_ip_address())


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _wait_until_up(head: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + 90
    while "--block" not in log.read_text():
        assert head.poll() is None, log.read_text()
        assert time.monotonic() < deadline, log.read_text()
        time.sleep(0.3)


def _end(head: subprocess.Popen[bytes]) -> None:
    """The head and all nodes, which are its children's children."""
    everything = psutil.Process(head.pid).children(recursive=True)
    head.kill()
    head.wait()
    for process in everything:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    psutil.wait_procs(everything, timeout=30)


def raylet_of(node: str) -> psutil.Process:
    """The process that is a node: to kill it is to lose the node, as when a spot instance is taken back."""
    for process in psutil.process_iter(["name"]):
        with contextlib.suppress(psutil.Error):
            if process.info["name"] == "raylet" and process.environ().get(NODE_ID) == node:
                return process
    raise AssertionError(f"no raylet of {node}")


class Watch:
    """Which nodes are alive, as it changes, told by the cluster that this process is connected to.

    Parameters
    ----------
    resource : str
        Of the nodes that are counted.
    """

    def __init__(self, resource: str) -> None:
        self.resource = resource
        self.seen: list[tuple[float, list[str]]] = []
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)

    def __enter__(self) -> Watch:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _look(self) -> None:
        import ray

        while not self._over.wait(0.3):
            alive = sorted(
                node["NodeID"] for node in ray.nodes() if node["Alive"] and node["Resources"].get(self.resource)
            )
            if not self.seen or self.seen[-1][1] != alive:
                self.seen.append((time.monotonic(), alive))

    def counts(self) -> list[int]:
        """How many there were, one after the other."""
        return [len(alive) for _, alive in self.seen]
