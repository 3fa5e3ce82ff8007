"""How stages run: what was asked for, what a worker needs, progress, and figures for people."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from tqdm import tqdm

from dtg_ray.errors import StudyError, UsageError

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Options:
    """How to run a stage, never what it computes.

    Parameters
    ----------
    address : str, optional
        Ray address of a running cluster; by default RAY_ADDRESS, and without it a Ray of its own.
    inline : bool
        Work in this process, one block after the other, without Ray: for debugging.
    dry_run : bool
        Print the plan and stop.
    retry_failed : bool
        Do blocks with failed subjects again.
    quiet : bool
        No plans and no progress bars.
    json : bool
        Plans as JSON, a line each.
    cpus : int, optional
        How many CPUs a Ray of its own may use; by default all of this process.
    overwrite : bool
        Train anew, and replace the models that are there.
    keep_connectomes : bool
        Store everybody's connectomes, not only those that are trained on.
    allow_failures : int, optional
        Stop a stage when more subjects have failed.
    scheduler : str
        Of Dask: `threads`, `ray`, or the address of a dask.distributed scheduler.
    wait_for_nodes : float
        Minutes to wait for nodes of a cluster that are large enough, where there are none: an autoscaler starts them.
    allow_unauthenticated : bool
        Use a cluster that asks nobody for a token.
    """

    address: str | None = None
    inline: bool = False
    dry_run: bool = False
    retry_failed: bool = False
    quiet: bool = False
    json: bool = False
    cpus: int | None = None
    overwrite: bool = False
    keep_connectomes: bool = False
    allow_failures: int | None = None
    scheduler: str = "threads"
    wait_for_nodes: float = 10
    allow_unauthenticated: bool = False


@dataclass(frozen=True)
class Resources:
    """What one worker needs.

    Parameters
    ----------
    cpus, gpus : float
    memory : int
        Bytes.
    """

    cpus: float = 1
    gpus: float = 0
    memory: int = 0

    @property
    def claimed_cpus(self) -> float:
        """What to ask Ray for: none beside a GPU, so that a node that offers GPUs alone is idle when they are."""
        return 0 if self.gpus else self.cpus

    def claim(self) -> dict[str, float]:
        """What to ask Ray for, by Ray's names."""
        every = {"CPU": self.claimed_cpus, "GPU": self.gpus, "memory": float(self.memory)}
        return {name: amount for name, amount in every.items() if amount}


def progress(iterator: Iterator[dict[str, Any]], total: int, title: str, options: Options) -> Iterator[dict[str, Any]]:
    """Show subjects done and failed while results come in; results have `subjects` and `failed`.

    Raises
    ------
    StudyError
        When more have failed than are allowed.
    """
    failed = 0
    with tqdm(total=total, desc=title, unit="subject", disable=options.quiet, file=sys.stderr, mininterval=0.5) as bar:
        for result in iterator:
            failed += int(result["failed"])
            if failed:
                bar.set_postfix(failed=failed)
            bar.update(int(result["subjects"]))
            if options.allow_failures is not None and failed > options.allow_failures:
                raise StudyError(
                    f"{title}: got {failed} subjects that failed, expected at most {options.allow_failures}",
                    hint="`dtg status` says why; what has a receipt is done",
                )
            yield result


def peak_memory() -> int:
    """Largest resident set of this process so far, bytes."""
    import resource

    scale = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * scale


def gigabytes(n_bytes: float) -> str:
    """Bytes for people."""
    for unit, size in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6)):
        if n_bytes >= size:
            return f"{n_bytes / size:.1f} {unit}"
    return f"{n_bytes / 1e3:.0f} kB"


def duration(seconds: float) -> str:
    """Seconds for people: 0.4 s, 12 s, 3 min 5 s, 2 h 10 min, 12 days."""
    if seconds < 60:
        return f"{seconds:.2g} s" if seconds < 10 else f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes_left = divmod(minutes, 60)
    if hours >= 48:
        return f"{hours / 24:.0f} days"
    return f"{hours} h {minutes_left} min" if hours else f"{minutes} min {rest} s"


def check(options: Options) -> None:
    """Refuse options that contradict each other, or make no sense."""
    if options.scheduler != "threads" and options.inline:
        raise UsageError(f"got --inline and --scheduler {options.scheduler}, expected one of them")
    if options.inline and options.address:
        raise UsageError("got --inline and --address, expected one of them")
    if options.cpus is not None and (options.cpus < 1 or options.inline or options.address):
        raise UsageError("got --cpus, expected at least one, for a Ray of its own: without --inline and --address")
    if options.wait_for_nodes < 0:
        raise UsageError(f"got --wait-for-nodes {options.wait_for_nodes:g}, expected minutes")
    if options.allow_failures is not None and options.allow_failures < 0:
        raise UsageError(f"got --allow-failures {options.allow_failures}, expected a number of subjects")
