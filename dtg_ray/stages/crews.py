"""Crews of workers that do blocks one after the other: Ray Data's pools of actors, or this process."""

from __future__ import annotations

import functools
import logging
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from threadpoolctl import threadpool_limits

from dtg_ray.errors import DTGError, StudyError
from dtg_ray.stages.cluster import require_room, room
from dtg_ray.stages.runtime import Options, Resources

log = logging.getLogger(__name__)


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
    for crew, pool in zip(crews, _pools(crews, len(units), options), strict=True):
        dataset = dataset.map_batches(
            _Adapter,
            fn_constructor_args=(crew.worker, crew.arguments),
            batch_size=1,
            compute=pool,
            num_cpus=crew.resources.claimed_cpus,
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


def _silence() -> None:
    """Keep Ray's libraries, which set their own log levels when imported, out of the progress bars."""
    for name in ("ray.data", "ray.train", "ray.tune"):
        logging.getLogger(name).setLevel(logging.ERROR)


def _pools(crews: Sequence[Crew], n_units: int, options: Options) -> list[Any]:
    """A pool of actors for each crew: as many as there is room for now, and more when nodes come."""
    import ray.data

    require_room([crew.resources for crew in crews], options)
    places = [room(crew.resources) for crew in crews]
    pools = []
    for number, crew in enumerate(crews):
        others = sum(other.resources.claimed_cpus for other in crews if other is not crew)
        start = max(min(places[number] - math.ceil(others / max(crew.resources.claimed_cpus, 1)), n_units), 1)
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
