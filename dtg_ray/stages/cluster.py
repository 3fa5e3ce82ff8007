"""The Ray that stages run on: one of their own, or a cluster that is there. The only place that starts or finds one."""

from __future__ import annotations

import atexit
import contextlib
import ipaddress
import logging
import os
import secrets
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from dtg_ray.errors import StudyError
from dtg_ray.stages.runtime import Options, Resources, gigabytes
from dtg_ray.stages.telemetry import logs, watch

EMBEDDED_OBJECT_STORE = 256 * 2**20
"""Only small tables travel through the object store; arrays go from a worker straight to the study."""
ALONE = {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0", "RAY_API_SERVER_ADDRESS": "http://127.0.0.1:0"}
"""What a Ray of our own is told. The first is called after the systems where "0" is the default."""
SMALLER = "use larger nodes, smaller blocks (cohort.block_size) or a coarser grid"


@contextlib.contextmanager
def session(options: Options) -> Iterator[None]:
    """Ray for the time of the block: the cluster it is in, or one of its own. Nested sessions share one Ray.

    Raises
    ------
    StudyError
        When a cluster lets everybody in.
    """
    if options.inline or _is_running():
        yield
        return
    address = address_of(options)
    _set_environment()
    with _greeting_hidden(), contextlib.nullcontext() if address else _alone():
        import ray

        own: dict[str, Any] = {
            "address": "local",  # without it Ray joins any cluster it finds on this machine
            "num_cpus": options.cpus or len(os.sched_getaffinity(0)),
            "object_store_memory": EMBEDDED_OBJECT_STORE,
            "include_dashboard": False,
        }
        chosen = {"address": address} if address else own
        ray.init(**chosen, **logs.options_of_ray(), log_to_driver=False, logging_level=logging.ERROR)
    try:
        if address and not options.allow_unauthenticated:
            _refuse_unprotected()
        yield
    finally:
        watch.tick()
        ray.shutdown()


def address_of(options: Options) -> str | None:
    """Of the cluster that was asked for, as Ray's own tools do it; none for a Ray of our own."""
    return options.address or os.environ.get("RAY_ADDRESS")


@contextlib.contextmanager
def _alone() -> Iterator[None]:
    """Have the Ray that is started meanwhile, and nothing else that this process starts, keep to itself.

    It listens on loopback alone. It has no dashboard, and whoever asks for one is refused at once: Ray Train would
    look for it for 12 s when a training is over, or ask that of another cluster.
    """
    before = {name: os.environ.pop(name, None) for name in ALONE}
    os.environ.update(ALONE)
    try:
        yield
    finally:
        for name, value in before.items():
            del os.environ[name]
            if value is not None:
                os.environ[name] = value


@contextlib.contextmanager
def _greeting_hidden() -> Iterator[None]:
    """Drop the line that Ray's C++ side prints about its log level; exceptions come through as ever."""
    sys.stderr.flush()
    saved, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 2)
        yield
    finally:
        os.dup2(saved, 2)
        os.close(saved)
        os.close(nowhere)


def _is_running() -> bool:
    """Whether this process is already connected to a Ray."""
    return "ray" in sys.modules and bool(sys.modules["ray"].is_initialized())


def _set_environment() -> None:
    """Set what Ray reads once, when it is imported.

    A Ray of our own is protected by a token that only this user can read, unless one is already set up.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # participants' data: nothing is sent anywhere
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.2")
    os.environ.setdefault("RAY_worker_niceness", "0")  # Ray's own 15 leaves a core that is shared to all the others
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")  # its C++ side reports harmless things as errors
    if "RAY_AUTH_MODE" in os.environ or "ray" in sys.modules:
        return
    folder = tempfile.mkdtemp(prefix="dtg_ray_")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    token = Path(folder) / "token"
    token.touch(mode=0o600)
    token.write_text(secrets.token_hex(32))
    os.environ.update(RAY_AUTH_MODE="token", RAY_AUTH_TOKEN_PATH=str(token))


def _refuse_unprotected() -> None:
    """Refuse a cluster that other machines can reach and that asks nobody for a token.

    Raises
    ------
    StudyError
    """
    import ray

    address = ray.get_runtime_context().gcs_address
    hosts = {node["NodeManagerAddress"] for node in ray.nodes() if node["Alive"]}
    if all(_is_loopback(host) for host in hosts) or not lets_in(address):
        return
    raise StudyError(
        f"got a Ray cluster at {address} that lets everybody in, expected one that asks for a token: "
        "whoever reaches it can read participants' data",
        hint="start all of its nodes with RAY_AUTH_MODE=token; --allow-unauthenticated where its network is closed",
    )


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:  # a name
        return host == "localhost"


def lets_in(address: str) -> bool:
    """Whether Ray's control service (GCS) at HOST:PORT answers somebody who has no token and no certificate."""
    import grpc

    with grpc.insecure_channel(address) as channel:
        ask = channel.unary_unary("/ray.rpc.NodeInfoGcsService/CheckAlive")
        try:
            ask(b"", timeout=30)
        except grpc.RpcError as error:
            closed = (grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.PERMISSION_DENIED, grpc.StatusCode.UNAVAILABLE)
            return error.code() not in closed  # unavailable: it speaks TLS alone
    return True


def room(resources: Resources) -> int:
    """How many workers fit the nodes that are there now, were they idle."""
    return sum(_fitting(node, resources) for node in _nodes())


def largest_node(memory: int) -> float:
    """The most CPUs that a node has of those with so much memory."""
    return max((node.get("CPU", 0) for node in _nodes() if node.get("memory", 0) >= memory), default=0)


def _nodes() -> list[dict[str, float]]:
    """What each node has."""
    import ray

    return [node["Resources"] for node in ray.nodes() if node["Alive"]]


def _fitting(node: dict[str, float], resources: Resources) -> int:
    return min(int(node.get(name, 0) / amount) for name, amount in resources.claim().items())


def require_room(workers: Sequence[Resources], options: Options, hint: str = SMALLER) -> None:
    """Make sure that there are nodes on which each of some workers fits, waiting for them where that may help.

    Raises
    ------
    StudyError
        When one fits nowhere: it would wait for ever.
    """
    homeless = [worker for worker in workers if shortage(worker)]
    if homeless and not gather(homeless, options):
        raise StudyError(shortage(homeless[0]), hint=hint)


def shortage(worker: Resources) -> str:
    """What is wrong with the nodes for a worker that fits none of them; nothing where it fits one."""
    if room(worker):
        return ""
    have = ", ".join(_describe(node.get("CPU", 0), node.get("GPU", 0), node.get("memory", 0)) for node in _nodes())
    return f"got nodes of {have}; a worker needs {_describe(worker.claimed_cpus, worker.gpus, worker.memory)}"


def gather(workers: Sequence[Resources], options: Options) -> bool:
    """Wait for nodes on which some workers fit at the same time, and let the cluster's autoscaler know of them.

    Parameters
    ----------
    workers : sequence of Resources
    options : Options
        `wait_for_nodes`: how long, minutes. A Ray of our own has no nodes to wait for.

    Returns
    -------
    bool
        Whether they have come.
    """
    from ray.util.placement_group import placement_group, remove_placement_group

    if not options.wait_for_nodes or not address_of(options):
        return False
    wanted = ", ".join(dict.fromkeys(_describe(one.claimed_cpus, one.gpus, one.memory) for one in workers))
    tqdm.write(f"waiting for nodes with {wanted}, up to {options.wait_for_nodes:g} min", file=sys.stderr)
    group = placement_group([worker.claim() for worker in workers])
    deadline = time.monotonic() + 60 * options.wait_for_nodes
    try:
        while time.monotonic() < deadline:
            if group.wait(timeout_seconds=2):
                return True
    finally:
        remove_placement_group(group)
    return False


def _describe(cpus: float, gpus: float, memory: float) -> str:
    return f"{cpus:g} CPU, {gpus:g} GPU, {gigabytes(memory)} of memory"
