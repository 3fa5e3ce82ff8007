"""A real Ray head, protected by the token of the tests, to which jobs are submitted."""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

REPOSITORY = Path(__file__).parents[1]
RAY = (sys.executable, "-c", "import sys; from ray.scripts.scripts import main; sys.exit(main())")
"""Ray's command line, without looking for its script."""
STOPS_WITHIN = 40


def free_port() -> int:
    """A port below those that the system gives to outgoing connections, which could take it before Ray does."""
    while True:
        port = random.randint(15_000, 32_000)
        with contextlib.suppress(OSError), socket.socket() as probe:
            probe.bind(("0.0.0.0", port))  # noqa: S104 - Ray's ports are on all interfaces
            return port


@dataclass(frozen=True)
class Head:
    """Where things are.

    Parameters
    ----------
    address : str
        As `--address` of a stage takes it.
    dashboard : str
        URL to which jobs are submitted.
    metrics : str
        URL that Prometheus reads.
    folder : Path
        Of Ray's session, with its logs.
    """

    address: str
    dashboard: str
    metrics: str
    folder: Path

    def scrape(self) -> str:
        """All figures as they are now; nothing while the agent is not there yet."""
        try:
            return str(urllib.request.urlopen(self.metrics, timeout=5).read().decode())
        except OSError:
            return ""


@contextlib.contextmanager
def ray_head(log: Path, *, gpus: int = 0) -> Iterator[Head]:
    """`ray start --head` with token authentication: wait until it answers, and end it.

    It has a folder of its own, by which Ray's jobs find their cluster: in that of all they may find a neighbour's.
    """
    folder = Path(tempfile.mkdtemp(prefix="ray_", dir="/tmp"))  # sockets want short paths
    port, dashboard, metrics = free_port(), free_port(), free_port()
    command = [
        *(*RAY, "start", "--head", "--block", f"--temp-dir={folder}", f"--port={port}"),
        *("--dashboard-host=127.0.0.1", f"--dashboard-port={dashboard}", f"--metrics-export-port={metrics}"),
        *(f"--dashboard-agent-listen-port={free_port()}", f"--ray-client-server-port={free_port()}"),
        *("--num-cpus=2", f"--num-gpus={gpus}", "--object-store-memory=300000000", "--disable-usage-stats"),
        *("--min-worker-port=0", "--max-worker-port=0"),
    ]
    head = Head(f"127.0.0.1:{port}", f"http://127.0.0.1:{dashboard}", f"http://127.0.0.1:{metrics}/metrics", folder)
    # a cluster's image has its Python on the path
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    with log.open("wb") as output:
        process = subprocess.Popen(command, stdout=output, stderr=output, cwd=REPOSITORY, env=environment)
    try:
        _wait_until_up(head, process, log)
        yield head
    finally:
        process.terminate()
        try:
            process.wait(timeout=STOPS_WITHIN)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        shutil.rmtree(folder, ignore_errors=True)


def answer(address: str, token: str | None) -> int:
    """HTTP status of the jobs API."""
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    try:
        request = urllib.request.Request(f"{address}/api/jobs/", headers=headers)
        return int(urllib.request.urlopen(request, timeout=5).status)
    except urllib.error.HTTPError as error:
        return error.code
    except OSError:
        return 0


def _wait_until_up(head: Head, process: subprocess.Popen[bytes], log: Path) -> None:
    token = Path(os.environ["RAY_AUTH_TOKEN_PATH"]).read_text()
    deadline = time.monotonic() + 90
    while answer(head.dashboard, token) != 200 or "ray_" not in head.scrape():
        assert process.poll() is None, log.read_text()
        assert time.monotonic() < deadline, log.read_text()
        time.sleep(0.3)
