"""A small simulated cohort and a way to call `dtg` on it."""

from __future__ import annotations

import contextlib
import io
import json
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from dtg_ray.cli import main

Arrays = Callable[[Path], dict[str, bytes]]

COHORT: dict[str, Any] = {
    "subjects": 24,
    "resolution": 8,
    "volumes": 40,
    "rois": 5,
    "contrasts": 3,
    "seed": 3,
    "missing": 0.2,
}
SETTINGS: dict[str, Any] = {
    "grid": {"resolution": 8},
    "cohort": {"block_size": 4, "validation": 0.2, "test": 0.4},
    "synthesis": {"slab": 1000},
    "models": {
        "group_mean": {"kind": "group_mean"},
        "linear": {"kind": "linear"},
        "unet": {
            "kind": "network",
            "width": 4,
            "train": {"epochs": 8, "batch_size": 4, "checkpoint_minutes": 0, "cpus_per_worker": 1},
        },
    },
    "prediction": {"permutations": 50, "folds": 3},
    "report": {"group_maps": 1},
}


def lasting(name: str, data: bytes) -> bytes:
    """What of a file must not depend on what happened on the way: of a history all but the times."""
    if not name.endswith("history.parquet"):
        return data
    return pd.read_parquet(io.BytesIO(data)).drop(columns=["seconds", "waiting", "ended"]).to_json().encode()


def json_lines(text: str) -> list[dict[str, Any]]:
    """The lines of a log that are JSON."""
    return [json.loads(line) for line in text.splitlines() if line.startswith("{")]


def wait_for(root: Path, pattern: str, count: int = 1) -> None:
    """Wait until files appear; fail when they never do."""
    deadline = time.monotonic() + 240
    while len(list(root.glob(pattern))) < count:
        assert time.monotonic() < deadline, f"no {pattern} below {root}"
        time.sleep(0.01)


def checked(done: subprocess.CompletedProcess[str], code: int | None) -> subprocess.CompletedProcess[str]:
    if code is not None:
        assert done.returncode == code, f"exit code {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done


@dataclass(frozen=True)
class Tools:
    """What tests of stages need: images, their ROI maps, and a way to call `dtg`."""

    data: Path
    rois: Path
    settings: Path

    def dtg(self, *arguments: str, check: int | None = 0) -> subprocess.CompletedProcess[str]:
        """Run `dtg` in this process and check its exit code. With `--inline` where Ray is not what is tested."""
        out, err = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            code = main(arguments)
        return checked(subprocess.CompletedProcess(arguments, code, out.getvalue(), err.getvalue()), check)

    def process(self, *arguments: str, check: int | None = 0) -> subprocess.CompletedProcess[str]:
        """Run `dtg` in a process of its own, with a Ray of its own, and check its exit code."""
        done = subprocess.run(self.command(*arguments), capture_output=True, text=True, timeout=400, check=False)
        return checked(done, check)

    def start(self, *arguments: str) -> subprocess.Popen[bytes]:
        """Start `dtg` and leave it running."""
        return subprocess.Popen(self.command(*arguments), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    @staticmethod
    def command(*arguments: str) -> list[str]:
        return [sys.executable, "-m", "dtg_ray.cli", *arguments]

    def init(self, study: str, *more: str, data: Path | None = None) -> str:
        """Make a study of the cohort and return its root."""
        self.dtg(
            "init",
            study,
            "--bids",
            str(data or self.data),
            "--rois",
            str(self.rois),
            "--config",
            str(self.settings),
            *more,
        )
        return study
