"""One undisturbed run of everything on a small cohort, shared by all tests of stages."""

from __future__ import annotations

import fcntl
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import yaml

from dtg_ray.cohort.simulate import simulate
from small_disk import Disk
from stage_tools import COHORT, SETTINGS, Arrays, Tools, lasting

Shared = Callable[[str, Callable[[Path], None]], Path]


@pytest.fixture(scope="session")
def shared(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Shared:
    """Call it with a name and a function that fills an empty folder: one worker of pytest-xdist does it for all."""
    base = tmp_path_factory.getbasetemp()
    common = base.parent if hasattr(request.config, "workerinput") else base

    def make(name: str, fill: Callable[[Path], None]) -> Path:
        with (common / f"{name}.made").open("a+") as made:
            fcntl.flock(made, fcntl.LOCK_EX)
            made.seek(0)
            if path := made.read():
                return Path(path)
            folder = tmp_path_factory.mktemp(name)
            fill(folder)
            made.write(str(folder))
            return folder

    return make


@pytest.fixture(scope="session")
def tools(shared: Shared) -> Tools:
    """Images of a small cohort; not to be changed."""

    def fill(folder: Path) -> None:
        simulate(folder / "data", **COHORT)
        (folder / "settings.yaml").write_text(yaml.safe_dump(SETTINGS))

    folder = shared("cohort", fill)
    return Tools(folder / "data", next((folder / "data").glob("tpl-*_probseg.nii.gz")), folder / "settings.yaml")


@pytest.fixture(scope="session")
def finished(tools: Tools, shared: Shared) -> Path:
    """A study after one undisturbed `dtg run`; not to be changed."""

    def fill(folder: Path) -> None:
        tools.init(str(folder / "study"))
        tools.process("run", str(folder / "study"), "--quiet", "--keep-connectomes")

    return shared("finished", fill) / "study"


@pytest.fixture
def arrays() -> Arrays:
    """All that must not depend on what happened on the way: Zarr arrays, weights, histories and result tables."""

    def read(root: Path) -> dict[str, bytes]:
        kept = (".zarr/", "models/", "evaluation/", "prediction/")
        files = (path for path in root.rglob("*") if path.is_file() and not path.name.endswith(".partial"))
        names = {path.relative_to(root).as_posix(): path for path in files}
        return {
            name: lasting(name, path.read_bytes())
            for name, path in sorted(names.items())
            if any(part in name for part in kept) and not name.startswith(("train/", "receipts/"))
        }

    return read


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    """A disk of 64 MiB, where mounting is allowed."""
    root = tmp_path / "disk"
    root.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=64m", "none", str(root)], capture_output=True, text=True, check=False
    )
    if mounted.returncode:
        pytest.skip(f"needs a file system of its own, mount said: {mounted.stderr.strip()}")
    try:
        yield Disk(root)
    finally:
        subprocess.run(["umount", "--lazy", str(root)], check=True)
