"""A disk that is full: what is written then is whole or not there, and is told."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
from pathlib import Path

import pandas as pd
import pytest

from dtg_ray.cli import main


class Disk:
    """A small disk, and what takes room on it."""

    def __init__(self, root: Path) -> None:
        self.root, self.filler = root, root / "filler"

    def fill(self) -> None:
        """Take all room."""
        with self.filler.open("ab", buffering=0) as file:
            for size in (2**20, 2**12):
                with contextlib.suppress(OSError):
                    while file.write(bytes(size)):
                        pass

    def give(self, room: int) -> None:
        """Give back some of it."""
        os.truncate(self.filler, max(self.filler.stat().st_size - room, 0))

    def remount(self, how: str) -> None:
        subprocess.run(["mount", "-o", f"remount,{how}", str(self.root)], check=True, capture_output=True)


def on(disk: Disk, root: Path) -> Path:
    """A study moved to a disk."""
    shutil.copytree(root, disk.root / "study")
    return disk.root / "study"


def until_done(disk: Disk, capsys: pytest.CaptureFixture[str], *arguments: object, step: int) -> list[str]:
    """Run a command on a full disk, with a little more room each time, until it is through; what it said before."""
    disk.fill()
    said: list[str] = []
    for _ in range(100):
        code = main([str(argument) for argument in arguments])
        error = capsys.readouterr().err
        assert "Traceback" not in error
        if code == 0:
            return said
        assert code == 1
        assert "could not be written: No space left on device" in error, error
        assert "free some space" in error
        said.append(error)
        disk.give(step)
    raise AssertionError("there was never enough room")


def whole_files(root: Path) -> None:
    """Every receipt and table that is there can be read."""
    for path in root.rglob("*.parquet"):
        pd.read_parquet(path)
    assert not list(root.rglob("*.partial"))
