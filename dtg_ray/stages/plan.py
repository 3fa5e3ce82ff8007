"""What a stage is about to do, in subjects, bytes, memory, time and requests, printed before it does it."""

from __future__ import annotations

import json
import os
import sys
from dataclasses import asdict, dataclass

from dtg_ray.stages.runtime import Options, Resources, duration, gigabytes

CHANGES = {
    "reads": "--keep-connectomes: what is stored is not made again for the next model",
    "writes": "synthesis.contrasts, connectomes.windows; synthesis.slab and cohort.block_size: fewer, larger objects",
    "memory": "cohort.block_size, connectomes.windows, grid.resolution",
    "time": "--cpus, more nodes, synthesis.gpus_per_actor, synthesis.precision",
    "requests": "cohort.block_size, synthesis.slab, --keep-connectomes",
}
"""What changes a figure, before a study is begun."""


@dataclass(frozen=True)
class Plan:
    """The plan of a stage.

    Parameters
    ----------
    stage : str
    units, pending : int
        Blocks (or models) in all and to do.
    subjects : int
        To do.
    bytes_in, bytes_out : int
        To read and, before compression, to write.
    objects : int
        Files or objects to write.
    memory : int
        Of one worker, bytes.
    cpus, gpus : float
        Of one worker.
    seconds : float, optional
        Of one worker for all of it.
    measured_on : int
        Subjects of this study by whose receipts the time is estimated; 0: by the project's own benchmarks.
    requests : int
        To object stores, of images and of the study.
    waiting : str
        What has to be done first, where nothing can be done yet.
    advice : str
        What to change, where this machine cannot do it as it is.
    """

    stage: str
    units: int
    pending: int
    subjects: int
    bytes_in: int = 0
    bytes_out: int = 0
    objects: int = 0
    memory: int = 0
    cpus: float = 1
    gpus: float = 0
    seconds: float | None = None
    measured_on: int = 0
    requests: int = 0
    waiting: str = ""
    advice: str = ""

    def show(self, options: Options) -> None:
        """One line on stderr; with --dry-run with details on stdout; with --json for programs on stdout."""
        out = sys.stdout if options.dry_run or options.json else sys.stderr
        text = "\n".join([self.line(), *self.details()]) if options.dry_run else self.line()
        if not options.quiet or options.dry_run or options.json:
            print(self.to_json() if options.json else text, file=out, flush=True)

    def line(self) -> str:
        """The plan in words."""
        if self.waiting:
            return f"{self.stage}: waits for {self.waiting}"
        if not self.pending:
            return f"{self.stage}: nothing to do, {self.units} of {self.units} done"
        return (
            f"{self.stage}: {self.pending} of {self.units} to do, {self.subjects} subjects, "
            f"{gigabytes(self.bytes_in)} in, {gigabytes(self.bytes_out)} out before compression, "
            f"{gigabytes(self.memory)} and {self.cpus:g} CPU per worker"
        )

    def details(self) -> list[str]:
        """What is expected, a line each; nothing where there is nothing to do or to say."""
        advice = [f"    {self.advice}"] if self.advice else []
        if self.waiting or not self.pending or self.seconds is None:
            return advice
        figures = {
            "reads": gigabytes(self.bytes_in),
            "writes": f"{self.objects:,} objects, {gigabytes(self.bytes_out)} before compression" * bool(self.objects),
            "memory": f"{gigabytes(self.memory)} per worker",
            "time": self._time(),
            "requests": f"about {self.requests:,} to object stores" * bool(self.requests),
        }
        return [f"    {name:<9}{text}" for name, text in figures.items() if text] + advice

    def _time(self) -> str:
        here = max(int(len(os.sched_getaffinity(0)) / self.cpus), 1) if self.cpus else 1
        source = f"measured on {self.measured_on} subjects" if self.measured_on else "a guess by our benchmarks"
        return f"{duration(self.seconds or 0)} of a worker, {here} fit here ({source})"

    def to_json(self) -> str:
        """The plan for programs."""
        return json.dumps(asdict(self))


def how_to_change() -> list[str]:
    """What to turn, in words."""
    return [
        "what changes it (settings of study.yaml; grid, windows, contrasts and block_size before the first run):",
        *(f"    {key:<9}{text}" for key, text in CHANGES.items()),
    ]


def resources_of(plan: Plan) -> Resources:
    """What one worker of a plan needs."""
    return Resources(plan.cpus, plan.gpus, plan.memory)
