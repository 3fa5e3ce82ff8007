"""How stages run: inline, on a Ray of their own, or on a cluster. The only place that starts or finds Ray."""

from __future__ import annotations

import atexit
import contextlib
import functools
import logging
import math
import os
import secrets
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from threadpoolctl import threadpool_limits
from tqdm import tqdm

from dtg_ray.errors import DTGError, StudyError, UsageError
from dtg_ray.stages.telemetry import logs, watch

log = logging.getLogger(__name__)
EMBEDDED_OBJECT_STORE = 256 * 2**20
"""Only small tables travel through the object store; arrays go from a worker straight to the study."""


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


@contextlib.contextmanager
def session(options: Options) -> Iterator[None]:
    """Ray for the time of the block: the cluster it is in, or one of its own. Nested sessions share one Ray."""
    if options.inline or _is_running():
        yield
        return
    with contextlib.ExitStack() as stack:
        _set_environment()
        import ray

        address = options.address or os.environ.get("RAY_ADDRESS")
        own: dict[str, Any] = {
            "address": "local",  # without it Ray joins any cluster it finds on this machine
            "num_cpus": options.cpus or len(os.sched_getaffinity(0)),
            "object_store_memory": EMBEDDED_OBJECT_STORE,
            "include_dashboard": False,
        }
        with _greeting_hidden():
            chosen = {"address": address} if address else own
            ray.init(**chosen, **logs.options_of_ray(), log_to_driver=False, logging_level=logging.ERROR)
        stack.callback(ray.shutdown)
        stack.callback(watch.tick)
        yield


@contextlib.contextmanager
def _greeting_hidden() -> Iterator[None]:
    """Drop the line that Ray's C++ side prints about its log level; exceptions come through as ever."""
    sys.stderr.flush()
    saved, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 2)
        yield
    finally:
        os.dup2(saved, 2)
        os.close(saved)
        os.close(nowhere)


def _is_running() -> bool:
    """Whether this process is already connected to a Ray."""
    return "ray" in sys.modules and bool(sys.modules["ray"].is_initialized())


def _set_environment() -> None:
    """Set what Ray reads once, when it is imported.

    An embedded Ray is protected by a token that only this user can read, unless one is already set up.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # participants' data: nothing is sent anywhere
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.2")
    os.environ.setdefault("RAY_worker_niceness", "0")  # Ray's own 15 leaves a core that is shared to all the others
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")  # its C++ side reports harmless things as errors
    if "RAY_AUTH_MODE" in os.environ or "ray" in sys.modules:
        return
    folder = tempfile.mkdtemp(prefix="dtg_ray_")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    token = Path(folder) / "token"
    token.touch(mode=0o600)
    token.write_text(secrets.token_hex(32))
    os.environ.update(RAY_AUTH_MODE="token", RAY_AUTH_TOKEN_PATH=str(token))


def _silence() -> None:
    """Keep Ray's libraries, which set their own log levels when imported, out of the progress bars."""
    for name in ("ray.data", "ray.train", "ray.tune"):
        logging.getLogger(name).setLevel(logging.ERROR)


@dataclass(frozen=True)
class Crew:
    """Workers of one kind.

    Parameters
    ----------
    worker : class
        Made once per actor. An instance is called with a unit's name, or with what the crew before made of it, and
        returns a flat dict with the name as `unit`.
    arguments : tuple
        Of its constructor; picklable and small.
    resources : Resources
        Of one actor.
    """

    worker: Callable[..., Any]
    arguments: tuple[Any, ...]
    resources: Resources


def map_units(crews: Sequence[Crew], units: Sequence[str], options: Options) -> Iterator[dict[str, Any]]:
    """Have every unit done by one crew after the other, each on as many actors as there is room for.

    Parameters
    ----------
    crews : sequence of Crew
    units : sequence of str
    options : Options

    Yields
    ------
    dict
        What the last crew returned, in the order in which units end.

    Raises
    ------
    StudyError
        When not even one actor of each crew fits the machine or cluster, or one fails for a reason that is no
        subject's.
    """
    if options.inline:
        workers = [crew.worker(*crew.arguments) for crew in crews]
        for unit in units:
            result: Any = unit
            for crew, worker in zip(crews, workers, strict=True):
                with threadpool_limits(max(int(crew.resources.cpus), 1)):  # as in an actor: the same bits
                    result = worker(result)
            yield result
        return
    import ray.data

    _silence()
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.target_max_block_size = None  # what one crew makes of a unit reaches the next one whole
    dataset = ray.data.from_items([{"unit": unit} for unit in units], override_num_blocks=len(units))
    for crew, pool in zip(crews, _pools(crews, len(units)), strict=True):
        dataset = dataset.map_batches(
            _Adapter,
            fn_constructor_args=(crew.worker, crew.arguments),
            batch_size=1,
            compute=pool,
            num_cpus=crew.resources.cpus,
            num_gpus=crew.resources.gpus or None,
            memory=crew.resources.memory or None,
        )
    for result in dataset.iter_rows():
        if result.get("error"):
            raise StudyError(
                f"{result['unit']}: {result['error']}",
                hint="what has a receipt is done; once the cause is gone, the same command goes on from there",
            )
        yield result


def _pools(crews: Sequence[Crew], n_units: int) -> list[Any]:
    """A pool of actors for each crew: as many as there is room for now, and more when nodes come."""
    import ray.data

    places = [room(crew.resources) for crew in crews]
    pools = []
    for number, crew in enumerate(crews):
        others = sum(other.resources.cpus for other in crews if other is not crew)
        start = max(min(places[number] - math.ceil(others / max(crew.resources.cpus, 1)), n_units), 1)
        pools.append(ray.data.ActorPoolStrategy(min_size=1, max_size=max(n_units, 1), initial_size=start))
    return pools


class _Adapter:
    """The thin layer between Ray Data's batches and a worker that knows nothing of them."""

    def __init__(self, worker: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
        self.make = functools.partial(worker, *arguments)

    @functools.cached_property
    def worker(self) -> Any:
        """Made with its first unit, for its errors to be told as those of a unit."""
        return self.make()

    def __call__(self, batch: Mapping[str, Any]) -> dict[str, list[Any]]:
        """Do one unit. What stops it is told as a result: Ray would bury the reason in its own exceptions."""
        given = {key: values[0] for key, values in batch.items()}
        unit = str(given["unit"])
        if "error" in given:
            return {"unit": [unit], "error": [given["error"]]}
        try:
            result = self.worker(unit if len(given) == 1 else given)
        except Exception as error:
            log.exception("%s", unit)
            reason = str(error) if isinstance(error, DTGError) else f"{type(error).__name__}: {error}"
            result = {"unit": unit, "error": reason}
        return {key: [value] for key, value in result.items()}


def room(resources: Resources) -> int:
    """How many workers fit the cluster; a worker that fits nowhere would wait for ever, so that is an error."""
    import ray

    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    per_node = [
        min(
            int(node.get("CPU", 0) / resources.cpus) if resources.cpus else 10**6,
            int(node.get("GPU", 0) / resources.gpus) if resources.gpus else 10**6,
            int(node.get("memory", 0) / resources.memory) if resources.memory else 10**6,
        )
        for node in nodes
    ]
    if not sum(per_node):
        have = ", ".join(
            f"{node.get('CPU', 0):g} CPU, {node.get('GPU', 0):g} GPU, {gigabytes(node.get('memory', 0))}"
            for node in nodes
        )
        raise StudyError(
            f"got nodes of {have}; a worker needs {resources.cpus:g} CPU, {resources.gpus:g} GPU and "
            f"{gigabytes(resources.memory)} of memory",
            hint="use larger nodes, smaller blocks (cohort.block_size) or a coarser grid",
        )
    return sum(per_node)


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
    if options.allow_failures is not None and options.allow_failures < 0:
        raise UsageError(f"got --allow-failures {options.allow_failures}, expected a number of subjects")
