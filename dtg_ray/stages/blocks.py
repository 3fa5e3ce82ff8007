"""What all block stages share: a block is scheduled once, written by one worker, and committed by its receipt."""

from __future__ import annotations

import logging
import socket
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd

from dtg_ray import ledger
from dtg_ray.errors import ExcludedError, StorageError, SubjectError
from dtg_ray.imaging.streams import archive_of
from dtg_ray.stages.plan import Plan
from dtg_ray.stages.runtime import Options, Resources, map_units, peak_memory, progress, session
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
    owed : mapping of unit to fingerprint
    """

    def __init__(self, uri: str, stage: str, owed: Mapping[str, str]) -> None:
        self.study = Study(uri)
        self.receipts = Receipts(self.study.storage, stage)
        self.owed = owed

    @abstractmethod
    def work(self, block: int, kept: Mapping[str, Row]) -> list[Row]:
        """Write everything of a block and say what happened to each of its subjects.

        `kept` are those who are done already, whose rows and data stay as they are.
        """

    def __call__(self, unit: str) -> dict[str, Any]:
        """Do one block; its receipt is deleted first and written last."""
        kept = self.receipts.done(unit, self.owed[unit])
        attempt = self.receipts.withdraw(unit)
        rows = self.work(ledger.block_number(unit), kept)
        self.receipts.write(unit, rows, fingerprint=self.owed[unit], attempt=attempt, host=socket.gethostname())
        return {"unit": unit, "subjects": len(rows), "failed": sum(row.status == "failed" for row in rows)}


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
    stage: str,
    worker: type[BlockWorker],
    plan: Callable[[Study, list[str]], Plan],
    prepare: Callable[[Study], object],
    options: Options,
) -> pd.DataFrame:
    """Run a block stage: print the plan, do what is owed, return the rows of all its receipts.

    Parameters
    ----------
    study : Study
    stage : str
    worker : type of BlockWorker
    plan : callable
        Study and pending units -> Plan.
    prepare : callable
        Makes the arrays; called only when there is something to do.
    options : Options
    """
    account = ledger.account(study, stage)
    pending = [unit for unit in account.pending(retry_failed=options.retry_failed) if account.owed[unit]]
    todo = plan(study, pending)
    if not pending and account.pending():
        todo = replace(todo, waiting=todo.waiting or "the stage before")
    todo.show(options)
    if options.dry_run or not pending:
        return account.rows
    prepare(study)
    owed = {unit: account.owed[unit] for unit in pending}
    sizes = study.cohort["block"].value_counts()
    total = int(sum(sizes[ledger.block_number(unit)] for unit in pending))
    resources = Resources(todo.cpus, todo.gpus, todo.memory)
    with session(options):
        results = map_units(worker, (study.uri, stage, owed), pending, resources, options)
        for _ in progress(results, total, stage, options):
            pass
    return ledger.account(study, stage).rows


def nan_rows(shape: tuple[int, ...]) -> np.ndarray[Any, np.dtype[np.float16]]:
    """Float16 rows of a block before anything is known."""
    return np.full(shape, np.nan, dtype=np.float16)
