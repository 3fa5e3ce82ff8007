"""What a stage is about to do, in subjects, bytes and memory, printed before it does it."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict, dataclass

from dtg_ray.stages.runtime import Options, Resources, gigabytes


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
    memory : int
        Of one worker, bytes.
    cpus, gpus : float
        Of one worker.
    waiting : str
        What has to be done first, where nothing can be done yet.
    """

    stage: str
    units: int
    pending: int
    subjects: int
    bytes_in: int = 0
    bytes_out: int = 0
    memory: int = 0
    cpus: float = 1
    gpus: float = 0
    waiting: str = ""

    def show(self, options: Options) -> None:
        """One line: for people on stderr, with --dry-run on stdout; with --json for programs on stdout."""
        out = sys.stdout if options.dry_run or options.json else sys.stderr
        if not options.quiet or options.dry_run or options.json:
            print(self.to_json() if options.json else self.line(), file=out, flush=True)

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

    def to_json(self) -> str:
        """The plan for programs."""
        return json.dumps(asdict(self))


def resources_of(plan: Plan) -> Resources:
    """What one worker of a plan needs."""
    return Resources(plan.cpus, plan.gpus, plan.memory)
