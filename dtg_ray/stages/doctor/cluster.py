"""Checks of Ray: whether it can be reached and is protected, and what every node says of itself."""

from __future__ import annotations

import contextlib
import functools
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from dtg_ray.errors import StudyError
from dtg_ray.stages.cluster import session
from dtg_ray.stages.doctor import machine, storage
from dtg_ray.stages.doctor.findings import FAIL, OK, WARN, Finding, checked, failed, shortened
from dtg_ray.stages.runtime import Options, gigabytes
from dtg_ray.store.files import Storage

SECONDS = 120
"""How long a node may take to answer."""
UNEXPECTED = 2
"""Ray's reason of a node's death that is nobody's wish."""
PATIENCE = 40
"""Seconds in which a cluster takes somebody in."""
JOIN = """
import sys, ray
try:
    ray.init(sys.argv[1], log_to_driver=False, logging_level="ERROR")
except BaseException as error:
    print(type(error).__name__, error)
    sys.exit(1)
"""
"""Tried in a process of its own: Ray waits for minutes where something else than Ray answers, and may end who waits."""
LOOPBACK = ("127.", "::1", "localhost")


@contextlib.contextmanager
def attached(options: Options) -> Iterator[list[Finding]]:
    """Ray for the time of the block: a finding, that it is there or why it is not."""
    name, address = "Ray", options.address or os.environ.get("RAY_ADDRESS", "")
    with contextlib.ExitStack() as stack:
        try:
            if address:
                _knock(address)
                _try(address)
            stack.enter_context(session(options))
        except Exception as error:  # noqa: BLE001 - the doctor tells, whatever it is
            yield [failed(name, error, _why_not(address, error))]
            return
        yield [Finding(name, OK, f"attached to {address}" if address else "a Ray of its own starts on this machine")]


def _knock(address: str) -> None:
    """Whether anybody listens at an address."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if host and port.isdecimal():
        try:
            socket.create_connection((host, int(port)), timeout=10).close()
        except OSError as error:
            raise StudyError(f"got no connection to {address}: {error.strerror or error}") from error


def _try(address: str) -> None:
    """Whether it is Ray that listens there, and takes us in."""
    environment = {"RAY_USAGE_STATS_ENABLED": "0", **os.environ}
    command = [sys.executable, "-c", JOIN, address]
    try:
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=PATIENCE, check=False)
    except subprocess.TimeoutExpired as error:
        raise ConnectionError(f"got no answer of Ray from {address} in {PATIENCE} s") from error
    if done.returncode:
        said = (done.stdout.strip() or f"ended by {done.returncode}").splitlines()[0]
        raise ConnectionError(f"got no Ray at {address} that takes us in: {said}")


def _why_not(address: str, error: Exception) -> str:
    """What to do about a Ray that is not there."""
    if isinstance(error, StudyError):
        return "is the cluster up (`ray status`), the address right, the port open for this machine?"
    if "ersion" in str(error):
        return "the same Python and ray on this machine as on the cluster"
    if isinstance(error, ConnectionError):
        return "RAY_AUTH_MODE=token, and in RAY_AUTH_TOKEN_PATH the token of that cluster; or no cluster is there"
    return f"`ray status --address {address}`" if address else "free memory and disk; see `disk` and `shared memory`"


def examine(place: Storage | None, address: str) -> tuple[list[Finding], dict[str, list[Finding]]]:
    """Every check of the nodes of the Ray that this process is attached to.

    Parameters
    ----------
    place : Storage, optional
        Of the study.
    address : str
        As it was asked for; none for a Ray of its own.

    Returns
    -------
    list of Finding
        Of all nodes together.
    dict of str to list of Finding
        Of each node, by its address.
    """
    import ray

    alive = [node for node in ray.nodes() if node["Alive"]]
    dead = [node for node in ray.nodes() if not node["Alive"] and node.get("DeathReason") == UNEXPECTED]
    findings = checked("nodes", functools.partial(nodes, alive, len(dead)))
    mark: Any = storage.marked(place) if place else contextlib.nullcontext(("", b""))
    with mark as (name, content):
        told = ask_all(alive, place, name, content)
    answered = {where: one for where, one in told.items() if "versions" in one}
    findings += checked("same versions", functools.partial(same_versions, answered))
    findings += checked("clocks of nodes", functools.partial(clocks, answered))
    findings += checked("token", functools.partial(token, answered, address))
    return findings, {where: one["findings"] for where, one in told.items()}


def nodes(alive: Sequence[Mapping[str, Any]], dead: int) -> Finding:
    """What there is."""
    have = [node["Resources"] for node in alive]
    cpus, gpus = (sum(node.get(kind, 0) for node in have) for kind in ("CPU", "GPU"))
    memory, store = (sum(node.get(kind, 0) for node in have) for kind in ("memory", "object_store_memory"))
    words = f"{len(alive)} alive: {cpus:g} CPU, {gpus:g} GPU, {gigabytes(memory)}, object store {gigabytes(store)}"
    if dead:
        return Finding("nodes", WARN, f"{words}; {dead} have died", "`ray list nodes` says why")
    return Finding("nodes", OK, words)


def ask_all(
    alive: Sequence[Mapping[str, Any]], place: Storage | None, mark: str, content: bytes
) -> dict[str, dict[str, Any]]:
    """What every node says of itself, by its address; findings alone where it cannot be asked."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    def on(node: Mapping[str, Any], task: Any, *arguments: Any) -> Any:
        here = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
        return ray.remote(num_cpus=0, max_retries=0, scheduling_strategy=here)(task).remote(*arguments)

    asked = [(node, on(node, examination, node["Resources"], place, mark, content)) for node in alive]
    told = {}
    for node, answer in asked:
        where = str(node["NodeManagerAddress"])
        where = where if where not in told else f"{where}-{node['NodeID'][:6]}"
        try:
            told[where] = ray.get(answer, timeout=SECONDS)
            begin = time.time()  # its worker is up now, and answers at once
            there = ray.get(on(node, now), timeout=SECONDS)
            told[where] |= {"clock": ((begin + time.time()) / 2 - there, (time.time() - begin) / 2)}
        except Exception as error:  # noqa: BLE001 - the doctor tells, whatever it is
            advice = "the same image on all nodes; the logs of that node"
            told.setdefault(where, {})["findings"] = [failed("answers", _cause(error), advice)]
    return told


def _cause(error: Exception) -> Exception:
    """What a task of Ray died of."""
    cause = getattr(error, "cause", None)
    return cause if isinstance(cause, Exception) else error


def examination(node: Mapping[str, float], place: Storage | None, mark: str, content: bytes) -> dict[str, Any]:
    """What this node says of itself; run there, by Ray."""
    import ray
    from ray._private.authentication.authentication_utils import is_token_auth_enabled

    session_folder = ray._private.worker.global_worker.node.get_session_dir_path()  # noqa: SLF001 - it has no other name
    findings = machine.examine(node, {"disk of Ray": session_folder})
    if place:
        findings += storage.examine(place, mark, content)
    return {"findings": findings, "versions": machine.versions(), "token": bool(is_token_auth_enabled())}


def now() -> float:
    """The clock of this node."""
    return time.time()


def same_versions(told: Mapping[str, Mapping[str, Any]]) -> Finding:
    """Whether all nodes have what the driver has."""
    here, wrong = machine.versions(), []
    for where, one in told.items():
        there = one["versions"]
        other = [f"{name} {there[name]}" for name in here if _public(there.get(name, "none")) != _public(here[name])]
        if other:
            wrong.append(f"{where}: {', '.join(other)}")
    if wrong:
        expected = ", ".join(f"{name} {version}" for name, version in here.items())
        advice = "the same image on all nodes as here, or `--working-dir .` for code that has just been changed"
        return Finding("same versions", FAIL, f"{shortened(wrong, '; ')}; here {expected}", advice)
    return Finding("same versions", OK, f"on every node and here; code {here[machine.PACKAGE]}")


def _public(version: str) -> str:
    """A version without what tells builds apart: torch has one with CUDA and one without."""
    return version.split("+", maxsplit=1)[0]


def clocks(told: Mapping[str, Mapping[str, Any]]) -> Finding:
    """The clock that is farthest from the driver's."""
    if not told:
        raise StudyError("no node has answered")
    where = max(told, key=lambda one: abs(told[one]["clock"][0]) - told[one]["clock"][1])
    offset, uncertain = told[where]["clock"]
    finding = storage.clock("clocks of nodes", -offset, uncertain)
    return finding if finding.state == OK else replace(finding, found=f"{where}: {finding.found}")


def token(told: Mapping[str, Mapping[str, Any]], address: str) -> Finding:
    """Whether whoever reaches a port of the cluster may run anything there."""
    without = [where for where, one in told.items() if not one["token"]]
    if not without:
        return Finding("token", OK, "asked for by every node")
    advice = "RAY_AUTH_MODE=token and one RAY_AUTH_TOKEN_PATH on every node, before Ray is started"
    is_alone = not address or (address.startswith(LOOPBACK) and len(told) == 1)
    return Finding("token", WARN if is_alone else FAIL, f"asked for by none of {shortened(without)}", advice)
