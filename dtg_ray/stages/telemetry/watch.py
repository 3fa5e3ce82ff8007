"""Who is at work on what, and for how long: workers note it of each unit, the driver counts and logs it."""

from __future__ import annotations

import functools
import json
import logging
import time
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from dtg_ray.remote import RETRIES, without_credentials
from dtg_ray.stages.telemetry.logs import at_work, back_to
from dtg_ray.stages.telemetry.metrics import BOARD
from dtg_ray.store.receipts import Row

if TYPE_CHECKING:
    from dtg_ray.stages.crews import Crew

log = logging.getLogger(__name__)
COLUMN = "watch"
"""Of a unit's result: what was noted of it, as JSON, for it travels through Ray Data."""
_commits: ContextVar[list[dict[str, Any]] | None] = ContextVar("commits", default=None)


def begun(stage: str, unit: str, attempt: int) -> None:
    """A receipt was taken back: its unit is being done."""
    at_work(attempt=attempt)
    log.info("%s of %s: began attempt %d", unit, stage, attempt, extra={"figures": {"stage": stage, "block": unit}})


def committed(stage: str, unit: str, attempt: int, rows: Sequence[Row], kept: Collection[str] = ()) -> None:
    """A receipt was written, in which some rows are as they were."""
    new = [row for row in rows if row.subject not in kept]
    counts = Counter(row.status for row in new)
    figures = {"subjects": len(new), "failed": counts["failed"], "seconds": round(sum(row.seconds for row in new), 3)}
    log.info(
        "%s of %s: committed, %d subjects, %d failed",
        unit,
        stage,
        len(new),
        counts["failed"],
        extra={"figures": {"stage": stage, "block": unit, "attempt": attempt, **figures}},
    )
    if (commits := _commits.get()) is not None:
        commits.append({"stage": stage, "counts": dict(counts)})


class Watched:
    """A worker whose lines say what it is at, and whose results say how long it took, and waited.

    Parameters
    ----------
    make : callable
        Of the worker.
    names : mapping
        What all its lines say.
    gpus : float
        That it holds.
    *arguments
        Of `make`.
    """

    def __init__(self, make: Any, names: Mapping[str, str], gpus: float, *arguments: Any) -> None:
        self.worker, self.names, self.gpus = make(*arguments), names, gpus
        self._ended: float | None = None

    def __call__(self, given: Any) -> dict[str, Any]:
        """Do one unit. What is said to be at work stays until the next one: an error is told after this one's end."""
        is_first = isinstance(given, str)
        unit, before = (given, {}) if is_first else (str(given["unit"]), json.loads(given[COLUMN]))
        at_work(**self.names, block=unit, attempt=None)
        commits = list(before.get("commits", []))
        _commits.set(commits)
        retries, begin = RETRIES.total(), time.perf_counter()
        result = self.worker(given)
        ended, waited = time.perf_counter(), 0.0 if self._ended is None else begin - self._ended
        self._ended = ended
        noted = {"seconds": ended - begin, "retries": RETRIES.total() - retries}
        if self.gpus:
            noted |= {"busy": self.gpus * (ended - begin), "waited": self.gpus * waited}
        summed = {name: before.get(name, 0) + value for name, value in noted.items()}
        return {**result, COLUMN: json.dumps({**before, **summed, "commits": commits})}


class StageWatch:
    """A stage at work in the driver, until it has ended.

    Parameters
    ----------
    study : str
        URI.
    name : str
        Of the stage.
    subjects : int
        To do, where it counts them.
    """

    def __init__(self, study: str, name: str, subjects: int = 0) -> None:
        self.names = {"study": without_credentials(study), "stage": name}
        self.pending = subjects
        self._counted, self._retries = time.perf_counter(), RETRIES.total()

    def crews(self, crews: Sequence[Crew]) -> list[Crew]:
        """The same crews, watched."""
        return [
            replace(crew, worker=functools.partial(Watched, crew.worker, self.names, crew.resources.gpus))
            for crew in crews
        ]

    def took(self, result: Mapping[str, Any]) -> None:
        """Count a unit that has ended."""
        noted = json.loads(result[COLUMN])
        for commit in noted["commits"]:
            of = {**self.names, "stage": commit["stage"]}
            BOARD.tell("dtg_blocks_total", 1, **of)
            for status, count in commit["counts"].items():
                BOARD.tell("dtg_subjects_total", count, **of, status=status)
        self.pending -= int(result["subjects"])
        BOARD.tell("dtg_pending_subjects", self.pending, **self.names)
        BOARD.tell("dtg_block_seconds", noted["seconds"], **self.names)
        BOARD.tell("dtg_block_seconds_total", noted["seconds"], **self.names)
        BOARD.tell("dtg_storage_retries_total", noted["retries"], **self.names)
        self.gpu(noted.get("busy", 0), noted.get("waited", 0))
        self.tick()

    def gpu(self, busy: float, waited: float) -> None:
        """Count seconds that GPUs were at work and waited."""
        BOARD.tell("dtg_gpu_busy_seconds_total", busy, **self.names)
        BOARD.tell("dtg_gpu_wait_seconds_total", waited, **self.names)

    def tick(self) -> None:
        """Count the time since the last time, and the requests that this process made again."""
        now, retries = time.perf_counter(), RETRIES.total()
        BOARD.tell("dtg_stage_seconds_total", now - self._counted, **self.names)
        BOARD.tell("dtg_storage_retries_total", retries - self._retries, **self.names)
        self._counted, self._retries = now, retries


_stages: list[StageWatch] = []
"""At work in this process, the innermost last."""


@contextmanager
def stage(study: str, name: str, subjects: int = 0) -> Iterator[StageWatch]:
    """Watch a stage from its begin to its end."""
    watched, begin = StageWatch(study, name, subjects), time.perf_counter()
    token = at_work(**watched.names)
    _stages.append(watched)
    if subjects:
        BOARD.tell("dtg_pending_subjects", subjects, **watched.names)
    log.info("%s: began", name)
    how = "stopped"
    try:
        yield watched
        how = "ended"
    finally:
        watched.tick()
        seconds = round(time.perf_counter() - begin, 3)
        log.info("%s: %s", name, how, extra={"figures": {"seconds": seconds}})
        _stages.remove(watched)
        back_to(token)


def tick() -> None:
    """Count the time of whatever is at work: Ray is about to be left."""
    for watched in _stages:
        watched.tick()


def epoch(line: Mapping[str, float], gpus: float) -> None:
    """Count an epoch of a training on so many GPUs, each of which waits as long as that of the first worker."""
    if _stages:
        waited = line["waiting"] * line["seconds"]
        _stages[-1].gpu(gpus * (line["seconds"] - waited), gpus * waited)
        _stages[-1].tick()
