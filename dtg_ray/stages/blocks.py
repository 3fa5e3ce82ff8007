"""What all block stages share: a block is scheduled once, written by one worker, and committed by its receipt."""

from __future__ import annotations

import logging
import socket
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import zarr
from numpy.typing import NDArray

from dtg_ray import ledger
from dtg_ray.errors import ExcludedError, StorageError, StudyError, SubjectError
from dtg_ray.imaging.streams import archive_of
from dtg_ray.stages.cluster import session
from dtg_ray.stages.crews import Crew, map_units
from dtg_ray.stages.plan import Plan
from dtg_ray.stages.runtime import Options, peak_memory, progress
from dtg_ray.stages.telemetry import watch
from dtg_ray.store.arrays import read, where
from dtg_ray.store.files import filesystem
from dtg_ray.store.receipts import Receipts, Row
from dtg_ray.study import Study

log = logging.getLogger(__name__)


class BlockWorker(ABC):
    """Does the blocks of one stage, one after the other. Lives in an actor; opens everything lazily there.

    Parameters
    ----------
    uri : str
        The study's.
    stage : str
        As in `dtg_ray.ledger`.
    retry : bool
        Do again those who failed, too.
    """

    def __init__(self, uri: str, stage: str, *, retry: bool = False) -> None:
        self.study, self.retry = Study(uri), retry
        self.receipts = Receipts(self.study.storage, stage)

    @abstractmethod
    def today(self, block: int) -> dict[str, str | None]:
        """Fingerprints of the subjects of a block."""

    @abstractmethod
    def work(self, block: int, kept: Mapping[str, Row]) -> list[Row]:
        """Write everything of a block and say what happened to each of its subjects.

        `kept` are those who are done already, whose rows and data stay as they are.
        """

    def __call__(self, unit: str) -> dict[str, Any]:
        """Do one block, unless somebody else has; its receipt is taken back first and written last."""
        block = ledger.block_number(unit)
        today = self.today(block)
        holding = self.receipts.holding(unit, today)
        rows = list(holding.values())
        if self.retry or not self.is_settled(block, holding):
            kept = self.kept(holding)
            attempt = withdraw(self.receipts, unit, kept.values())
            rows = self.work(block, kept)
            commit(self.receipts, unit, rows, today, attempt, kept)
            take_back(self.receipts, unit, self.undone(block, rows))
        return {"unit": unit, "subjects": len(rows), "failed": sum(row.status == "failed" for row in rows)}

    def undone(self, block: int, rows: Sequence[Row]) -> list[str]:  # noqa: ARG002 - where nothing can be undone
        """Of a block that was just committed those subjects whose results somebody else has undone at the same time."""
        return []

    def is_settled(self, block: int, holding: Mapping[str, Row]) -> bool:
        """Whether the rows of a block that hold leave nothing to do: another driver was there first."""
        return len(holding) == len(self.today(block))

    def kept(self, holding: dict[str, Row]) -> dict[str, Row]:
        """Of the rows that hold today those that stay as they are when their block is done again."""
        return {subject: row for subject, row in holding.items() if row.status == "done"}


def withdraw(receipts: Receipts, unit: str, kept: Iterable[Row]) -> int:
    """Take back the receipt of a block that is about to be done, but for some rows; the number of this attempt."""
    attempt = receipts.withdraw(unit, kept, socket.gethostname())
    watch.begun(receipts.stage, unit, attempt)
    return attempt


def commit(
    receipts: Receipts,
    unit: str,
    rows: list[Row],
    today: Mapping[str, str | None],
    attempt: int,
    kept: Collection[str] = (),
) -> None:
    """Write the receipt of a block, in the order of its subjects: from here on its work counts as done.

    `kept` are the subjects whose rows are as they were.
    """
    order = {subject: number for number, subject in enumerate(today)}
    rows = sorted(rows, key=lambda row: order[row.subject])
    for row in rows:
        row.fingerprint = today[row.subject] or ""
    receipts.write(unit, rows, attempt=attempt, host=socket.gethostname())
    watch.committed(receipts.stage, unit, attempt, rows, kept)


def take_back(receipts: Receipts, unit: str, subjects: Sequence[str]) -> None:
    """Let a receipt say nothing of subjects whose results another driver has undone: the next run makes them again.

    Two drivers write a block's chunks whole. That does no harm where both have the same results; where one of them saw
    somebody fail, or had others to do, what it wrote is not what the other one's receipt says.
    """
    if subjects:
        log.warning("%s of %s: another run wrote it at the same time; %d are owed", unit, receipts.stage, len(subjects))
        receipts.erase(unit, subjects)


@contextmanager
def recorded(row: Row, path: str = "") -> Iterator[None]:
    """Turn what goes wrong with one subject's data into its row; the others go on.

    Only the reading and computing of one subject belongs inside: an error while writing results is not the
    subject's fault and stops the stage. Neither is a store that does not answer, wherever it is.
    """
    begin = time.perf_counter()
    try:
        yield
        row.status = "done"
    except StorageError:
        raise
    except Exception as error:
        row.status = "excluded" if isinstance(error, ExcludedError) else "failed"
        row.error_type = type(error).__name__
        where = error if isinstance(error, SubjectError) else SubjectError(f"{error}", path=path)
        where.subject = row.subject
        row.message = str(where)
        if not isinstance(error, SubjectError):
            log.exception("%s: unexpected error", row.subject)
    row.seconds = time.perf_counter() - begin
    row.peak_memory = peak_memory()


def describe_input(row: Row, uri: str) -> None:
    """Note which file was read: its URI, size and tag."""
    row.uri = uri
    try:
        info = filesystem(archive_of(uri)).info(archive_of(uri))
    except OSError:
        return
    row.size = int(info.get("size") or 0)
    row.etag = str(info.get("ETag") or info.get("mtime") or "").strip('"')


def run_blocks(
    study: Study,
    plan: Plan,
    pending: Sequence[str],
    stages: Sequence[str],
    crews: Sequence[Crew],
    prepare: Callable[[bool], object],
    options: Options,
) -> bool:
    """Do the blocks that are pending, after their plan was shown; whether there was anything to do.

    Parameters
    ----------
    study : Study
    plan : Plan
    pending : sequence of str
        Units.
    stages : sequence of str
        Whose receipts are written.
    crews : sequence of Crew
        One does all of a block's work, or several one after the other; see `map_units`.
    prepare : callable
        Makes the arrays, or with True only checks those that are there; called when there is something to do.
    options : Options
    """
    if not pending or plan.waiting:
        return False
    prepare(options.dry_run)
    if options.dry_run:
        return False
    index_receipts(study, stages)  # of a run that was killed
    with session(options), watch.stage(study.uri, plan.stage.split(",")[0], plan.subjects) as watched:
        results = map_units(watched.crews(crews), pending, options)
        for result in progress(results, plan.subjects, plan.stage, options):
            watched.took(result)
    index_receipts(study, stages)
    return True


def index_receipts(study: Study, stages: Sequence[str]) -> None:
    """Make reading the receipts of some stages fast; a study does without where that cannot be."""
    for stage in stages:
        try:
            Receipts(study.storage, stage).index()
        except StudyError as error:
            log.warning("%s: receipts will be read one by one: %s", stage, error)


def kept_rows(array: zarr.Array, axis: int, rows: slice, kept: Mapping[str, int]) -> NDArray[Any]:
    """The rows of a block before its work: NaN, but for those that are kept.

    Parameters
    ----------
    array : zarr.Array
    axis : int
        Of subjects.
    rows : slice
        Of the block.
    kept : mapping of subject to int
        Their rows, counted from the first of the block.

    Raises
    ------
    StudyError
        When a row that is kept holds nothing: its chunk was lost, and it must not be written as if that were a result.
    DamagedError
        When a chunk cannot be read.
    """
    shape = list(array.shape)
    shape[axis] = rows.stop - rows.start
    values: NDArray[Any] = np.full(shape, np.nan, dtype=array.dtype)
    if not kept:
        return values
    places = list(kept.values())
    before = np.moveaxis(read(array, (*[slice(None)] * axis, rows)), axis, 0)[places]
    for subject, row in zip(kept, before, strict=True):
        if np.isnan(row).all():
            raise StudyError(
                f"{subject}: got nothing in {where(array)}, expected what its receipt says is done: a chunk was lost",
                hint="delete the receipt of its block, and the same command makes it again",
            )
    np.moveaxis(values, axis, 0)[places] = before
    return values
