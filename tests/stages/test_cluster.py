"""A cluster of three machines with a token, each with a network of its own: every stage is submitted to it.

A node is lost in the middle of one; the results are those of a run on one machine. Whoever has no token is refused.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from dtg_ray import Study
from dtg_ray.errors import StudyError
from ray_nodes import DASHBOARD, GCS, Machine, machines
from stage_tools import Arrays, Tools, wait_for

TESTS = Path(__file__).parents[1]
STRANGER = {"RAY_AUTH_MODE": "disabled", "RAY_AUTH_TOKEN_PATH": os.devnull}
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def cluster() -> Iterator[list[Machine]]:
    """A head and two more nodes."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    with machines(3, {**os.environ, "PATH": path, "RAY_USAGE_STATS_ENABLED": "0"}) as three:
        head = f"--dashboard-host=127.0.0.1 --dashboard-port={DASHBOARD}"
        three[0].start_ray("--head", f"--port={GCS}", *head.split(), "--num-cpus=1")
        for machine in three[1:]:
            join(machine, three[0])
        wait_for_nodes(three[0], 3)
        yield three


def join(machine: Machine, head: Machine) -> None:
    machine.start_ray(f"--address={head.address}:{GCS}", "--num-cpus=1")


def wait_for_nodes(head: Machine, count: int) -> None:
    address = f"{head.address}:{GCS}"
    program = f"import ray; ray.init(address='{address}'); print(sum(node['Alive'] for node in ray.nodes()))"
    deadline = time.monotonic() + 120
    while (said := head.run(sys.executable, "-c", program).stdout.split()) != [str(count)]:
        assert time.monotonic() < deadline, f"expected {count} nodes, got {said}"
        time.sleep(1)


def submission(head: Machine, stage: str, root: Path) -> list[str]:
    address = f"http://127.0.0.1:{DASHBOARD}"
    return head.command(sys.executable, "-m", "dtg_ray.cli", "submit", stage, str(root), "--address", address)


def test_every_stage_gives_the_bytes_of_one_machine_though_a_node_is_lost(
    cluster: list[Machine], tools: Tools, finished: Path, tmp_path: Path, arrays: Arrays
) -> None:
    head, _, lost = cluster
    root = Path(tools.init(str(tmp_path / "study")))
    for stage in ("connectomes", "contrasts", "train", "synthesize", "evaluate", "predict", "report"):
        output = (tmp_path / f"{stage}.log").open("wb")
        job = subprocess.Popen(submission(head, stage, root), stdout=output, stderr=output, env=head.environment)
        if stage == "synthesize":
            wait_for(root, "receipts/synthesize/linear/block-*.parquet")
            lost.kill()
            assert job.poll() is None
        assert job.wait(timeout=400) == 0, (tmp_path / f"{stage}.log").read_text()
        output.close()
    assert (Study(str(root)).status()["pending"] == 0).all()
    assert arrays(root) == arrays(finished)
    join(lost, head)
    wait_for_nodes(head, 3)


@pytest.mark.parametrize(("host", "guest"), [(0, 1), (1, 0), (2, 0)])
def test_no_port_of_any_node_obeys_who_has_no_token(cluster: list[Machine], host: int, guest: int) -> None:
    ports = cluster[host].ports()
    assert len(ports) >= 6
    knocked = cluster[guest].run(
        sys.executable, str(TESTS / "stranger.py"), cluster[host].address, *map(str, ports), **STRANGER
    )
    assert not knocked.returncode, knocked.stderr
    for port, answers in json.loads(knocked.stdout).items():
        assert refuses(answers["grpc"]) or refuses_http(answers["http"]), f"port {port}: {answers}"


def refuses(answers: dict[str, list[str]] | None) -> bool:
    """Whether every method that a port has wants to be told a token."""
    return answers is not None and set(answers) == {"UNAUTHENTICATED"}


def refuses_http(answers: dict[str, tuple[int, str]] | None) -> bool:
    """Whether every page wants a token, or there are figures for Prometheus, and nobody's name in them."""
    if answers is None:
        return False
    figures = all(body.startswith("# HELP") and "sub-00" not in body for _, body in answers.values())
    return figures or {status for status, _ in answers.values()} <= {401, 403}


def attach(machine: Machine, head: Machine, **environment: str) -> subprocess.CompletedProcess[str]:
    program = f"""
from dtg_ray.stages.cluster import session
from dtg_ray.stages.runtime import Options
with session(Options(address="{head.address}:{GCS}")):
    print("in")
"""
    return machine.run(sys.executable, "-c", program, **environment)


def test_who_has_the_token_gets_in_and_who_has_not_does_not(cluster: list[Machine]) -> None:
    head, other, _ = cluster
    assert attach(other, head).stdout == "in\n"
    assert attach(other, head, **STRANGER).stdout == ""


def test_a_cluster_that_lets_everybody_in_is_refused(tmp_path: Path) -> None:
    with machines(1, {**os.environ, **STRANGER}) as (lonely,):
        lonely.start_ray("--head", f"--port={GCS}", "--include-dashboard=false", "--num-cpus=1")
        wait_for_nodes(lonely, 1)
        said = attach(lonely, lonely)
    assert said.stdout == ""
    assert StudyError.__name__ in said.stderr
    assert "lets everybody in" in said.stderr
