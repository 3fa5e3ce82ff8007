"""A Ray cluster of several machines: network namespaces with addresses of their own, joined by a bridge."""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[1]
RAY = (sys.executable, "-c", "import sys; from ray.scripts.scripts import main; sys.exit(main())")
GCS, DASHBOARD = 6379, 8265
ROUTE = "route add default dev eth0"
"""It leads nowhere; by it a machine finds its own address."""


@dataclass
class Machine:
    """A network namespace with one address, beside loopback.

    Parameters
    ----------
    name : str
        Of the namespace.
    address : str
    folder : Path
        For Ray's files.
    environment : mapping
        Of everything that is started there.
    """

    name: str
    address: str
    folder: Path
    environment: Mapping[str, str]
    running: list[subprocess.Popen[bytes]] = field(default_factory=list)

    def command(self, *arguments: str) -> list[str]:
        return ["ip", "netns", "exec", self.name, *arguments]

    def run(self, *arguments: str, **more: str) -> subprocess.CompletedProcess[str]:
        """Run a command there, with more variables in its environment, and wait for it."""
        command = self.command(*arguments)
        return subprocess.run(
            command, capture_output=True, text=True, check=False, timeout=400, env={**self.environment, **more}
        )

    def start_ray(self, *arguments: str) -> None:
        """Start a node of Ray."""
        everywhere = (
            f"--node-ip-address={self.address}",
            f"--temp-dir={self.folder}",
            "--object-store-memory=200000000",
            "--min-worker-port=0",
            "--max-worker-port=0",
            "--disable-usage-stats",
        )
        log = (self.folder.parent / f"{self.name}.log").open("ab")
        command = self.command(*RAY, "start", "--block", *everywhere, *arguments)
        self.running.append(subprocess.Popen(command, stdout=log, stderr=log, cwd=REPOSITORY, env=self.environment))
        log.close()

    def pids(self) -> list[int]:
        """Of everything that runs there."""
        return [int(pid) for pid in subprocess.check_output(["ip", "netns", "pids", self.name], text=True).split()]

    def kill(self) -> None:
        """Switch it off."""
        deadline = time.monotonic() + 30
        while pids := self.pids():
            assert time.monotonic() < deadline, f"{self.name}: {pids} live on"
            for pid in pids:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, 9)
            time.sleep(0.1)
        for process in self.running:
            process.wait()
        self.running.clear()

    def ports(self) -> list[int]:
        """TCP ports on which something listens that others can reach."""
        listing = subprocess.check_output(self.command("ss", "-ltnH"), text=True)
        places = [line.split()[3].rsplit(":", 1) for line in listing.splitlines()]
        return sorted({int(port) for host, port in places if "127.0.0.1" not in host})


@contextlib.contextmanager
def machines(names: int, environment: Mapping[str, str]) -> Iterator[list[Machine]]:
    """Some machines on one network; skips the test where namespaces cannot be made."""
    tag = secrets.token_hex(3)
    folder = Path(tempfile.mkdtemp(prefix="nodes_", dir="/tmp"))  # sockets want short paths
    bridge = f"dtg{tag}"
    made: list[Machine] = []
    try:
        _ip("link", "add", bridge, "type", "bridge")
        _ip("link", "set", bridge, "up")
        for number in range(1, names + 1):
            home = folder / f"n{number}"
            home.mkdir()
            machine = Machine(f"{bridge}n{number}", f"10.77.77.{number}", home, environment)
            _ip("netns", "add", machine.name)
            made.append(machine)
            cable = f"{bridge}c{number}"
            _ip("link", "add", cable, "type", "veth", "peer", "name", "eth0", "netns", machine.name)
            _ip("link", "set", cable, "master", bridge, "up")
            for step in (
                f"addr add {machine.address}/24 dev eth0",
                "link set eth0 up",
                "link set lo up",
                "route add default dev eth0",
            ):
                _ip("-n", machine.name, *step.split())
        yield made
    finally:
        for machine in made:
            machine.kill()
            _ip("netns", "delete", machine.name)
        _ip("link", "delete", bridge)
        shutil.rmtree(folder, ignore_errors=True)


def _ip(*arguments: str) -> None:
    done = subprocess.run(["ip", *arguments], capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"needs network namespaces: ip {' '.join(arguments)} said {done.stderr.strip()}")
