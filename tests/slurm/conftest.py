"""A real SLURM, and the undisturbed run that its jobs are compared with."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from slurm.controller import NoSlurmError, Slurm, slurm
from stages.conftest import arrays, finished, shared, tools  # noqa: F401 (fixtures)

REPOSITORY = Path(__file__).parents[2]


@pytest.fixture(scope="session")
def cluster() -> Iterator[Slurm]:
    """Two nodes of 4 CPUs and a GPU that is only counted, on this machine."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "COV"))}
    try:
        with slurm({**kept, "PYTHONPATH": str(REPOSITORY), "DTG_ENV": sys.prefix}) as running:
            yield running
    except NoSlurmError as reason:
        pytest.skip(f"no SLURM here: {reason}")
