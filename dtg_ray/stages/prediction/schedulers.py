"""Where the tasks of Dask run: in threads of this process, on Ray, or on a dask.distributed cluster."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from dtg_ray.errors import StudyError, UsageError
from dtg_ray.stages.cluster import largest_node, require_room, room, session
from dtg_ray.stages.prediction.size import machine_memory
from dtg_ray.stages.runtime import Options, Resources, gigabytes

THREADS, RAY = "threads", "ray"


@dataclass(frozen=True)
class Scheduler:
    """How tasks are computed.

    Parameters
    ----------
    arguments : dict
        Of `dask.compute`.
    places : int
        How many tasks fit at a time.
    """

    arguments: dict[str, Any]
    places: int


@contextlib.contextmanager
def scheduler(options: Options, needs: Resources, hint: str) -> Iterator[Scheduler]:
    """The scheduler that was asked for.

    Parameters
    ----------
    options : Options
    needs : Resources
        Of one task.
    hint : str
        What to do where memory does not suffice.

    Raises
    ------
    StudyError
        When not even one task fits this machine, or the cluster.
    UsageError
        When the address of a dask.distributed cluster does not answer, or that library is not installed.
    """
    if options.scheduler == THREADS:
        places = _places(needs, hint)
        yield Scheduler({"scheduler": "threads", "num_workers": places}, places)
    elif options.scheduler == RAY:
        with session(options):
            from ray.util.dask import ray_dask_get

            require_room([replace(needs, cpus=1)], options, hint)
            cpus = min(needs.cpus, largest_node(needs.memory))  # nodes may be smaller than the machine of the driver
            needs = replace(needs, cpus=cpus)
            places = room(needs)
            remote = {"num_cpus": needs.cpus, "memory": needs.memory, "max_retries": 3}
            yield Scheduler({"scheduler": ray_dask_get, "ray_remote_args": remote}, places)
    else:
        with _client(options.scheduler) as client:
            places = len(client.scheduler_info(n_workers=-1)["workers"])
            yield Scheduler({"scheduler": client}, max(1, places))


def _places(needs: Resources, hint: str) -> int:
    """How many tasks fit this machine at a time.

    Raises
    ------
    StudyError
        When none does.
    """
    there = machine_memory()
    if needs.memory > there:
        raise StudyError(
            f"got a machine with {gigabytes(there)} of memory, a feature set needs {gigabytes(needs.memory)}", hint=hint
        )
    return max(1, min(int(len(os.sched_getaffinity(0)) // needs.cpus), there // max(needs.memory, 1)))


@contextlib.contextmanager
def _client(address: str) -> Iterator[Any]:
    try:
        from distributed import Client
    except ImportError as error:
        raise UsageError(f"got --scheduler {address}, expected dask.distributed to be installed") from error
    try:
        client = Client(address, timeout="30s", set_as_default=False)
    except (OSError, ValueError) as error:
        raise UsageError(
            f"got --scheduler {address}, expected threads, ray or the address of a dask.distributed scheduler ({error})"
        ) from error
    with client:
        yield client
