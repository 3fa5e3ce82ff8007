"""Figures for Prometheus, by the metrics of Ray: its agent on each node offers them, no server of ours does.

Prometheus sees them as `ray_` and the name, such as `ray_dtg_subjects_total`. All are counted by the driver, once for
each result that reached it: a worker that dies takes none of them along, and none is counted twice. Counters stay when
the driver has ended; gauges go.
"""

from __future__ import annotations

import logging
import sys
from dataclasses import dataclass
from typing import Any, Literal

log = logging.getLogger(__name__)
BUCKETS = (1, 2, 5, 10, 20, 60, 120, 300, 600, 1200, 3600, 7200)
"""Seconds."""
CONNECTIONS = 2
"""Of a process to Ray, one after the other, that are counted: Ray 2.60 counts all twice in the third, and so on."""


@dataclass(frozen=True)
class Metric:
    """What a figure is.

    Parameters
    ----------
    kind : "Counter", "Gauge" or "Histogram"
    text : str
    labels : tuple of str
    """

    kind: Literal["Counter", "Gauge", "Histogram"]
    text: str
    labels: tuple[str, ...] = ("study", "stage")


CATALOGUE = {
    "dtg_subjects_total": Metric("Counter", "subjects whose receipts were written", ("study", "stage", "status")),
    "dtg_blocks_total": Metric("Counter", "blocks whose receipts were written"),
    "dtg_pending_subjects": Metric("Gauge", "subjects that the stage at work has still to do"),
    "dtg_stage_seconds_total": Metric("Counter", "seconds that a stage was at work"),
    "dtg_block_seconds": Metric("Histogram", "seconds of work on a block; its sum is Ray's estimate from the buckets"),
    "dtg_block_seconds_total": Metric("Counter", "seconds of work on blocks, of all workers"),
    "dtg_gpu_busy_seconds_total": Metric("Counter", "seconds that workers with a GPU were at work"),
    "dtg_gpu_wait_seconds_total": Metric("Counter", "seconds that workers with a GPU waited between two units"),
    "dtg_storage_retries_total": Metric("Counter", "requests to object stores that were made again"),
}
"""All figures by name; those of the dashboard are of them."""


class Board:
    """The figures of one driver: made when they are first told, and only while Ray is there."""

    def __init__(self) -> None:
        self._made: dict[str, Any] = {}
        self._jobs: set[str] = set()
        self._works = True

    def tell(self, name: str, value: float, **labels: str) -> None:
        """Add to a counter, set a gauge, or note a value; no trouble with it ever stops a run."""
        ray = sys.modules.get("ray")
        if not self._works or ray is None or not ray.is_initialized():
            return
        try:
            self._jobs.add(ray.get_runtime_context().get_job_id())
            if len(self._jobs) > CONNECTIONS:
                return
            metric, kind = self._metric(name), CATALOGUE[name].kind
            if kind == "Counter" and value > 0:
                metric.inc(value, labels)
            elif kind == "Gauge":
                metric.set(value, labels)
            elif kind == "Histogram":
                metric.observe(value, labels)
        except Exception as error:  # noqa: BLE001 - whatever it is, it must not cost the run
            log.warning("metrics: %s: there will be none of this run: %s", name, error)
            self._works = False

    def _metric(self, name: str) -> Any:
        if name not in self._made:
            from ray.util import metrics

            known = CATALOGUE[name]
            more = {"boundaries": list(BUCKETS)} if known.kind == "Histogram" else {}
            kind = getattr(metrics, known.kind)
            self._made[name] = kind(name, description=known.text, tag_keys=known.labels, **more)
        return self._made[name]


BOARD = Board()
