"""A Ray cluster of one node as people start it, `ray start --head`, with a token and a port for Prometheus."""

from __future__ import annotations

import contextlib
import os
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
SECONDS_TO_START = 90


@dataclass(frozen=True)
class Head:
    """Where things are.

    Parameters
    ----------
    address : str
        As `--address` takes it.
    metrics : str
        URL that Prometheus reads.
    folder : Path
        Of Ray's session, with its logs.
    """

    address: str
    metrics: str
    folder: Path

    def scrape(self) -> str:
        """All figures as they are now; nothing while the agent is not there yet."""
        try:
            return str(urllib.request.urlopen(self.metrics, timeout=5).read().decode())
        except OSError:
            return ""


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextlib.contextmanager
def ray_head(log: Path, *, gpus: int = 0) -> Iterator[Head]:
    """Start it, wait until it answers, and end it."""
    folder = Path(tempfile.mkdtemp(prefix="ray_", dir="/tmp"))  # sockets want short paths
    port, dashboard, metrics = free_port(), free_port(), free_port()
    command = [
        *(sys.executable, "-c", "import sys; from ray.scripts.scripts import main; sys.exit(main())", "start"),
        *("--head", "--block", f"--temp-dir={folder}", f"--port={port}", "--dashboard-host=127.0.0.1"),
        *(f"--dashboard-port={dashboard}", f"--metrics-export-port={metrics}"),
        *(f"--dashboard-agent-listen-port={free_port()}", f"--ray-client-server-port={free_port()}"),
        *("--num-cpus=2", f"--num-gpus={gpus}", "--object-store-memory=300000000", "--disable-usage-stats"),
        *("--min-worker-port=0", "--max-worker-port=0"),
    ]
    head = Head(f"127.0.0.1:{port}", f"http://127.0.0.1:{metrics}/metrics", folder)
    with log.open("wb") as output:
        process = subprocess.Popen(command, stdout=output, stderr=output, cwd=REPOSITORY)
    try:
        _wait(process, head, dashboard, log)
        yield head
    finally:
        process.terminate()
        try:
            process.wait(timeout=40)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        shutil.rmtree(folder, ignore_errors=True)


def _wait(process: subprocess.Popen[bytes], head: Head, dashboard: int, log: Path) -> None:
    token = Path(os.environ["RAY_AUTH_TOKEN_PATH"]).read_text()
    request = urllib.request.Request(
        f"http://127.0.0.1:{dashboard}/api/jobs/", headers={"Authorization": f"Bearer {token}"}
    )
    deadline = time.monotonic() + SECONDS_TO_START
    while True:
        with contextlib.suppress(OSError):
            if urllib.request.urlopen(request, timeout=5).status == 200 and "ray_" in head.scrape():
                return
        assert process.poll() is None, log.read_text()
        assert time.monotonic() < deadline, log.read_text()
        time.sleep(0.5)
