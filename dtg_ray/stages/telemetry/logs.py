"""Logs: words for people or, with DTG_LOG=json, an object a line with the study, stage, block and attempt at work.

Ray's own JSON logs know neither our blocks nor UTC, and nothing at all where a stage runs without Ray.
"""

from __future__ import annotations

import json
import logging
import os
import sys
from collections.abc import Mapping
from contextvars import ContextVar, Token
from datetime import UTC, datetime
from types import MappingProxyType
from typing import Any

from dtg_ray.errors import UsageError
from dtg_ray.remote import without_credentials

Names = Mapping[str, Any]
FORMATS = ("text", "json")
HOOK = f"{__name__}.write_json"
"""Called by each worker of Ray as it starts."""
_at_work: ContextVar[Names] = ContextVar("at_work", default=MappingProxyType({}))


def at_work(**names: object) -> Token[Names]:
    """Say what the lines to come are about, beside what is known already; None takes a name back."""
    known = {**_at_work.get(), **names}
    return _at_work.set({name: value for name, value in known.items() if value is not None})


def back_to(token: Token[Names]) -> None:
    """Say what was said before."""
    _at_work.reset(token)


def set_up() -> None:
    """Decide how this process logs: warnings in words or, with DTG_LOG=json, what goes well, too.

    Raises
    ------
    UsageError
        When DTG_LOG is neither.
    """
    chosen = os.environ.get("DTG_LOG") or "text"
    if chosen not in FORMATS:
        raise UsageError(f"DTG_LOG: got {chosen!r}, expected one of {', '.join(FORMATS)}")
    if chosen == "json":
        write_json()
    else:
        logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s")


def write_json() -> None:
    """Log lines of JSON to stderr, which for a worker of Ray is its file `worker-*.err` among the logs of its node."""
    handler = logging.StreamHandler()
    handler.setFormatter(JSONLines())
    logging.basicConfig(level=logging.WARNING, handlers=[handler], force=True)
    logging.getLogger("dtg_ray").setLevel(logging.INFO)
    logging.captureWarnings(capture=True)


def options_of_ray() -> dict[str, Any]:
    """What `ray.init` is told for all workers of this job to log as this process does."""
    is_json = os.environ.get("DTG_LOG") == "json"
    return {"runtime_env": {"worker_process_setup_hook": HOOK}} if is_json else {}


class JSONLines(logging.Formatter):
    """A record as one line of JSON, without credentials."""

    def format(self, record: logging.LogRecord) -> str:
        """Time (UTC), level, logger, message, what is at work, figures of an event, and who says it."""
        line: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname,
            "logger": record.name,
            "message": without_credentials(record.getMessage()),
            **_at_work.get(),
            **getattr(record, "figures", {}),
            **_place(),
            "pid": record.process,
        }
        if record.exc_info:
            line["exception"] = without_credentials(self.formatException(record.exc_info))
        return json.dumps(line, default=str, ensure_ascii=False)


def _place() -> dict[str, str]:
    """Where in Ray this process is; nothing outside of it."""
    ray = sys.modules.get("ray")
    if ray is None or not hasattr(ray, "is_initialized") or not ray.is_initialized():
        return {}
    context = ray.get_runtime_context()
    place = {"job": context.get_job_id(), "node": context.get_node_id()}
    if context.worker.mode == ray.WORKER_MODE and (actor := context.get_actor_id()):
        place["actor"] = actor
    return place
