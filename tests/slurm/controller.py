"""A real SLURM of two nodes on this machine, on loopback, in a folder of its own, for as long as tests want it."""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "scontrol", "squeue", "scancel", "sinfo")
SBATCH = Path(__file__).parents[2] / "cluster" / "slurm" / "dtg.sbatch"
CONFIGURATION = """\
ClusterName=dtg
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
CommunicationParameters=NoCtldInAddrAny,NoInAddrAny
SlurmUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge/socket,cred_expire=5
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
SchedulerParameters=sched_interval=1,bf_interval=1
SlurmdParameters=config_overrides
GresTypes=gpu
ReturnToService=2
KillWait=20
NodeName=n[1-2] NodeHostname={host} NodeAddr=127.0.0.1 Port=[{ports[1]}-{ports[2]}] CPUs=4 RealMemory=16000 Gres=gpu:1
PartitionName=all Nodes=ALL Default=YES State=UP
"""


class NoSlurmError(Exception):
    """Why there is none here."""


@dataclass(frozen=True)
class Slurm:
    """The running SLURM and what its jobs are told.

    Parameters
    ----------
    folder : Path
        Its own folder; `jobs/` and `tmp/` in it are those of dtg.sbatch.
    environment : dict
        Of its commands and jobs.
    """

    folder: Path
    environment: dict[str, str]

    def call(self, *command: str) -> str:
        """Run one of SLURM's commands."""
        done = subprocess.run(
            command, env=self.environment, cwd=self.folder, capture_output=True, text=True, timeout=60, check=False
        )
        assert done.returncode == 0, f"{command}: {done.stderr}"
        return done.stdout.strip()

    def submit(self, options: Sequence[str], *stage: str) -> str:
        """Have `sbatch` queue dtg.sbatch with a stage; returns the job's number."""
        return self.call("sbatch", "--parsable", "--time=20", *options, str(SBATCH), *stage)

    def field(self, job: str, name: str) -> str:
        """What SLURM says of a job, such as JobState or ExitCode."""
        found = re.search(rf"\b{name}=(\S+)", self.call("scontrol", "show", "job", job))
        assert found, name
        return found[1]

    def log(self, job: str) -> str:
        """What the job printed."""
        path = self.folder / f"dtg-{job}.log"
        return path.read_text() if path.exists() else ""

    def wait(self, job: str, *states: str, seconds: float = 400) -> str:
        """Wait until a job is in one of these states; fail when it ends otherwise."""
        deadline = time.monotonic() + seconds
        while (state := self.field(job, "JobState")) not in states:
            assert state in {"PENDING", "RUNNING", "COMPLETING"}, f"{state}: {self.log(job)}"
            assert time.monotonic() < deadline, f"{state}: {self.log(job)}"
            time.sleep(0.3)
        return state

    def wait_for_text(self, job: str, text: str, seconds: float = 120) -> None:
        """Wait until a job has said something."""
        deadline = time.monotonic() + seconds
        while text not in self.log(job):
            assert time.monotonic() < deadline, f"no {text!r}: {self.log(job)}"
            time.sleep(0.2)

    def left(self, job: str) -> list[str]:
        """Processes and local folders of a job."""
        folders = [path.name for path in (self.folder / "tmp").glob(f"dtg-{job}-*")]
        processes = []
        for command in Path("/proc").glob("[0-9]*/cmdline"):
            with contextlib.suppress(OSError):
                processes.append(command.read_bytes().replace(b"\0", b" ").decode(errors="replace"))
        inside = str(self.folder / "tmp" / f"dtg-{job}-")
        return folders + [process for process in processes if inside in process]


@contextlib.contextmanager
def slurm(environment: dict[str, str]) -> Iterator[Slurm]:
    """Start munged, slurmctld and two slurmd, and end them by their ids.

    Raises
    ------
    NoSlurmError
        Where one of them is not installed, or does not come up.
    """
    if missing := [name for name in PROGRAMS if not shutil.which(name)]:
        raise NoSlurmError(f"not installed: {', '.join(missing)} (Debian: slurm-wlm, munge)")
    if os.geteuid() != 0:
        raise NoSlurmError("SLURM's daemons want to be root")
    folder = Path(tempfile.mkdtemp(prefix="slurm_", dir="/tmp"))  # sockets want short paths
    with contextlib.ExitStack() as stack:
        stack.callback(shutil.rmtree, folder, ignore_errors=True)
        own = _prepare(folder, environment)
        running = Slurm(folder, own)
        daemons = [["munged", "--foreground", "--force", *_munge(folder)], ["slurmctld", "-D", "-c"]]
        daemons += [["slurmd", "-D", "-N", name] for name in ("n1", "n2")]
        for number, command in enumerate(daemons):
            stack.enter_context(_daemon(command, own, folder / f"daemon-{number}.log"))
            time.sleep(0.5)
        _wait_until_idle(running)
        stack.callback(_cancel_all, running)
        yield running


def _prepare(folder: Path, environment: dict[str, str]) -> dict[str, str]:
    """Folders, key and configuration; returns the environment of SLURM's commands."""
    for name in ("munge", "state", "spool-n1", "spool-n2", "jobs", "tmp"):
        (folder / name).mkdir()
    key = folder / "munge.key"
    key.touch(mode=0o400)
    key.write_bytes(secrets.token_bytes(1024))
    ports = _neighbouring_ports()
    configuration = folder / "slurm.conf"
    configuration.write_text(CONFIGURATION.format(folder=folder, host=socket.gethostname().split(".")[0], ports=ports))
    (folder / "gres.conf").write_text("NodeName=n[1-2] Name=gpu File=/dev/null\n")  # a GPU to count, not to use
    own = {**environment, "SLURM_CONF": str(configuration)}
    return {**own, "DTG_JOBS": str(folder / "jobs"), "DTG_TMP": str(folder / "tmp")}


def _munge(folder: Path) -> list[str]:
    files = {"socket": "munge/socket", "key-file": "munge.key", "pid-file": "munged.pid", "log-file": "munged.log"}
    return [f"--{option}={folder}/{name}" for option, name in {**files, "seed-file": "munge.seed"}.items()]


def _neighbouring_ports() -> tuple[int, int, int]:
    """Three free ports; the last two are neighbours, as the nodes' have to be."""
    for _ in range(100):
        with socket.socket() as first, socket.socket() as second, socket.socket() as third:
            first.bind(("127.0.0.1", 0))
            second.bind(("127.0.0.1", 0))
            with contextlib.suppress(OSError, OverflowError):
                third.bind(("127.0.0.1", second.getsockname()[1] + 1))
                return first.getsockname()[1], second.getsockname()[1], third.getsockname()[1]
    raise NoSlurmError("no free ports")


@contextlib.contextmanager
def _daemon(command: list[str], environment: dict[str, str], log: Path) -> Iterator[None]:
    with log.open("wb") as output:
        process = subprocess.Popen(command, env=environment, stdout=output, stderr=output)
    try:
        yield
    finally:
        process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _wait_until_idle(running: Slurm) -> None:
    deadline = time.monotonic() + 30
    said = ""
    while time.monotonic() < deadline:
        with contextlib.suppress(AssertionError):
            said = running.call("sinfo", "--noheader", "--Node", "--format=%T")
        if said.split() == ["idle", "idle"]:
            return
        time.sleep(0.3)
    logs = "\n".join(path.read_text()[-1000:] for path in sorted(running.folder.glob("daemon-*.log")))
    raise NoSlurmError(f"its nodes did not come up ({said or 'no answer'}): {logs}")


def _cancel_all(running: Slurm) -> None:
    """End all its jobs before its daemons end."""
    with contextlib.suppress(AssertionError, subprocess.TimeoutExpired):
        running.call("scancel", "--user=root")
        deadline = time.monotonic() + 40
        while running.call("squeue", "--noheader") and time.monotonic() < deadline:
            time.sleep(0.3)
