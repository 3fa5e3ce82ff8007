"""Checks of one machine: packages, GPU, disks, shared memory, open files."""

from __future__ import annotations

import functools
import hashlib
import json
import os
import platform
import resource
import shutil
import subprocess
import sys
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path

from dtg_ray.stages.doctor.findings import FAIL, OK, WARN, Finding, checked
from dtg_ray.stages.runtime import gigabytes

PACKAGE = "dtg_ray"
LEAST_ROOM, SOME_ROOM = 2**30, 20 * 2**30
"""Bytes on a disk: without the first nothing works for long, with less than the second people should know."""
SPILLS_UNTIL = 0.95
"""Share of a disk up to which Ray writes objects to it that memory does not hold."""
FILES_PER_CPU, FEW_CPUS = 64, 16
TORCH = """
import json, torch
seen = range(torch.cuda.device_count() if torch.cuda.is_available() else 0)
devices = [[torch.cuda.get_device_name(number), *torch.cuda.mem_get_info(number)] for number in seen]
print(json.dumps({"build": torch.version.cuda, "devices": devices}))
"""
"""Asked in a process of its own: Ray hides GPUs from tasks that ask for none, and a broken driver may kill who asks."""


def examine(node: Mapping[str, float], folders: Mapping[str, str]) -> list[Finding]:
    """Every check of this machine.

    Parameters
    ----------
    node : mapping of str to float
        What Ray says that it has; nothing where it is not part of a cluster.
    folders : mapping of str to str
        Local folders that are written to, by what they are.
    """
    return [
        *checked("packages", packages, "install as the README says, with constraints.txt"),
        *checked("GPU", functools.partial(gpu, int(node.get("GPU", 0)))),
        *(found for what, path in folders.items() for found in checked(what, functools.partial(disk, what, path))),
        *checked("shared memory", functools.partial(shared_memory, int(node.get("object_store_memory", 0)))),
        *checked("open files", open_files),
    ]


def packages() -> Finding:
    """Python and every package that the metadata of this one asks for."""
    from packaging.requirements import Requirement
    from packaging.specifiers import SpecifierSet

    name, python = "packages", platform.python_version()
    try:
        supported = metadata.metadata(PACKAGE)["Requires-Python"]
    except metadata.PackageNotFoundError:
        found = f"Python {python}; {PACKAGE} runs without being installed"
        return Finding(name, WARN, found, "pip install --constraint constraints.txt")
    wrong = []
    if python not in SpecifierSet(supported):
        wrong.append(f"Python {python}, expected {supported}")
    wanted = [Requirement(text) for text in metadata.requires(PACKAGE) or []]
    for one in wanted:
        if one.marker is None or one.marker.evaluate({"extra": ""}):
            wrong += _wrong(one.name, str(one.specifier))
    if wrong:
        return Finding(name, FAIL, "; ".join(wrong), "pip install --constraint constraints.txt, on every machine")
    shown = ", ".join(f"{one} {metadata.version(one)}" for one in ("ray", "torch", "zarr"))
    return Finding(name, OK, f"Python {python}, {shown}")


def _wrong(package: str, wanted: str) -> list[str]:
    from packaging.specifiers import SpecifierSet

    try:
        there = metadata.version(package)
    except metadata.PackageNotFoundError:
        return [f"no {package}, expected {wanted or 'any'}"]
    return [] if SpecifierSet(wanted).contains(there, prereleases=True) else [f"{package} {there}, expected {wanted}"]


def versions() -> dict[str, str]:
    """What has to be the same on all machines of a cluster."""
    names = ("ray", "torch", "zarr", "numpy")
    code = hashlib.sha256()
    root = Path(__file__).parents[2]
    for path in sorted(root.rglob("*.py")):
        code.update(path.relative_to(root).as_posix().encode() + path.read_bytes())
    found = {name: metadata.version(name) for name in names}
    return {"Python": platform.python_version(), PACKAGE: code.hexdigest()[:12], **found}


def gpu(declared: int) -> Finding | None:
    """Whether torch sees the GPUs that Ray hands out, or those of a machine outside of Ray."""
    name = "GPU"
    if not declared and not list(Path("/dev").glob("nvidia[0-9]*")):
        return Finding(name, OK, "none: networks work on the CPU")
    environment = {key: value for key, value in os.environ.items() if key != "CUDA_VISIBLE_DEVICES"}
    done = subprocess.run(
        [sys.executable, "-c", TORCH], env=environment, capture_output=True, text=True, timeout=120, check=False
    )
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
        return Finding(name, FAIL, f"torch cannot ask for GPUs: {reason}", "look at nvidia-smi; reinstall the driver")
    seen = json.loads(done.stdout.splitlines()[-1])
    devices = [f"{model}, {gigabytes(free)} of {gigabytes(whole)} free" for model, free, whole in seen["devices"]]
    if len(devices) >= max(declared, 1):
        return Finding(name, OK, f"{'; '.join(devices)}; CUDA {seen['build']}, {_driver()}")
    build = f"a torch for CUDA {seen['build']}" if seen["build"] else "a torch without CUDA"
    found = f"got {len(devices)} GPUs of torch, expected {max(declared, 1)}; {build}, {_driver()}"
    advice = "install the driver; use the CUDA image" if not seen["build"] else "look at nvidia-smi: driver and torch"
    return Finding(name, FAIL if declared else WARN, found, advice)


def _driver() -> str:
    try:
        line = Path("/proc/driver/nvidia/version").read_text().splitlines()[0]
    except OSError:
        return "no NVIDIA driver"
    return "driver " + next((word for word in line.split() if word[:1].isdigit()), "of unknown version")


def disk(name: str, path: str) -> Finding:
    """Room on the disk of a folder, which need not be there yet."""
    usage = shutil.disk_usage(existing(Path(path)))
    found = f"{path}: {gigabytes(usage.free)} of {gigabytes(usage.total)} free"
    if usage.free < LEAST_ROOM:
        return Finding(name, FAIL, found, "free some space, or choose another place")
    if usage.used > SPILLS_UNTIL * usage.total:
        advice = f"Ray spills nothing to a disk that is {SPILLS_UNTIL:.0%} full: free some space"
        return Finding(name, FAIL, found, advice)
    if usage.free < SOME_ROOM:
        return Finding(name, WARN, found, "`--dry-run` says what a stage writes")
    return Finding(name, OK, found)


def existing(path: Path) -> Path:
    """The folder, or the nearest one above it that is there."""
    return next(one for one in (path, *path.parents) if one.exists())


def shared_memory(object_store: int) -> Finding | None:
    """Whether /dev/shm holds Ray's object store and what torch's readers pass on."""
    name, place = "shared memory", Path("/dev/shm")  # noqa: S108 - it is what is looked at
    if not place.exists():
        return None
    usage = shutil.disk_usage(place)
    found = f"{gigabytes(usage.total)}, of which Ray uses up to {gigabytes(object_store)}"
    if usage.total < max(object_store, 2**28):
        advice = "docker run --shm-size, an emptyDir of medium Memory at /dev/shm, or a smaller --object-store-memory"
        return Finding(name, WARN, found, advice)
    return Finding(name, OK, found if object_store else gigabytes(usage.total))


def open_files() -> Finding:
    """Whether as many files and connections may be open as the workers of this machine open."""
    name, least = "open files", FILES_PER_CPU * max(os.cpu_count() or 1, FEW_CPUS)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    limit = least if soft == resource.RLIM_INFINITY else soft
    if limit < least:
        return Finding(name, WARN, f"{soft} at most, expected {least}", f"ulimit -n {least} (the hard limit is {hard})")
    return Finding(name, OK, f"{soft} at most")
