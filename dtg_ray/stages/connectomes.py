"""`dtg connectomes`: every subject's voxel-to-ROI and ROI-to-ROI connectome, from the files to Zarr."""

from __future__ import annotations

import functools
import logging
from collections.abc import Container, Iterator, Mapping, Sequence

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from dtg_ray import ledger
from dtg_ray.config import CleaningConfig, StudyConfig
from dtg_ray.errors import DamagedError, ExcludedError, SubjectError
from dtg_ray.imaging.cleaning import NUMBERS_AT_ONCE, Cleaning
from dtg_ray.imaging.quality import Rules, broken_rule
from dtg_ray.imaging.rest import Recipe, Workspace, subject_connectomes
from dtg_ray.imaging.scan import Scan
from dtg_ray.imaging.series import read_header
from dtg_ray.stages import estimates
from dtg_ray.stages.blocks import BlockWorker, commit, describe_input, recorded, run_blocks, take_back, withdraw
from dtg_ray.stages.crews import Crew
from dtg_ray.stages.layout import coordinates, make_or_check
from dtg_ray.stages.maps import SubjectReader, recorded_windows, unstored
from dtg_ray.stages.plan import Plan, resources_of
from dtg_ray.stages.runtime import Options
from dtg_ray.store.arrays import ArraySpec, read, write, write_rows
from dtg_ray.store.receipts import Row
from dtg_ray.study import Study

Windows = NDArray[np.float16]
Edges = NDArray[np.float32]
log = logging.getLogger(__name__)
STAGE = "connectomes"
NAME = ledger.array_of(STAGE)
VOLUMES_GUESS = 500
"""Volumes of a run that cannot be looked at."""
HEADERS_LOOKED_AT = 8
"""Subjects whose headers tell how long runs are."""


def run(study: Study, options: Options, splits: Sequence[str] | None = None) -> pd.DataFrame:
    """Compute and store the connectomes owed, of everybody or some splits; returns the rows of all receipts."""
    book = ledger.Ledger(study)
    account = book.account(STAGE)
    again = account.troubled if options.retry_failed else set()
    pending = sorted({*unstored(study, account, splits), *again})
    todo = plan(book, pending, splits)
    todo.show(options)
    worker = functools.partial(ConnectomeWorker, retry=options.retry_failed)
    crew = Crew(worker, (study.uri, splits), resources_of(todo))
    changed = run_blocks(study, todo, pending, [STAGE], [crew], functools.partial(make_arrays, study), options)
    return (ledger.account(study, STAGE) if changed else account).rows


def make_arrays(study: Study, dry: bool = False) -> None:
    """Make connectomes.zarr, or check the one that is there; a dry one only checks it."""
    n_rows, n_rois, n_voxels = study.n_rows, study.n_rois, study.grid.n_voxels
    edges = n_rois * (n_rois - 1) // 2
    specs = {
        "connectome": ArraySpec(
            (n_rows, study.config.connectomes.windows, n_rois, n_voxels),
            (1, 1, n_rois, n_voxels),
            ("subject", "window", "roi", "voxel"),
            attributes={"long_name": "Pearson correlation of voxel and ROI", "units": "1"},
        ),
        "roi_connectome": ArraySpec(
            (n_rows, edges),
            (study.config.cohort.block_size, edges),
            ("subject", "edge"),
            "float32",
            {"long_name": "Pearson correlation of ROIs, upper triangle row by row", "units": "1"},
        ),
    }
    make_or_check(study, NAME, specs, coordinates(study), dry)


def plan(book: ledger.Ledger, pending: list[str], splits: Sequence[str] | None = None) -> Plan:
    """Bytes, and the memory of a worker."""
    study = book.study
    rows = study.cohort[study.cohort["block"].isin([ledger.block_number(unit) for unit in pending])]
    rows = rows if splits is None else rows[rows["split"].isin(splits)]
    config = study.config
    objects = len(rows) * config.connectomes.windows + 2 * len(pending)
    each, measured_on = seconds_per_subject(book, rows)
    return Plan(
        stage=STAGE,
        units=len(study.blocks()),
        pending=len(pending),
        subjects=len(rows),
        bytes_in=bytes_of_runs(rows),
        bytes_out=len(rows) * config.connectomes.windows * study.n_rois * study.grid.n_voxels * 2,
        objects=objects,
        memory=memory_of_a_subject(study, rows) + 300 * 2**20,
        seconds=len(rows) * each,
        measured_on=measured_on,
        requests=estimates.requests(study.uri, objects, len(pending)) + estimates.image_requests(rows),
    )


def seconds_per_subject(book: ledger.Ledger, rows: pd.DataFrame) -> tuple[float, int]:
    """How long a connectome takes, and on how many subjects of this study that was measured."""
    each, count = estimates.measured(book.account(STAGE))
    if count:
        return each, count
    volumes = _volumes(rows, book.study.config) if len(rows) else 0
    return volumes * book.study.grid.n_voxels * estimates.SECONDS_PER_VOXEL_AND_VOLUME, 0


def bytes_of_runs(rows: pd.DataFrame) -> int:
    """Of the rest runs of some of the cohort, as they are stored."""
    return int(rows["rest_bytes"].clip(lower=0).sum())


def memory_of_a_subject(study: Study, rows: pd.DataFrame) -> int:
    """Bytes for making a connectome: one run on the grid, ROIs and their weights, and the windows."""
    n_voxels, config = study.grid.n_voxels, study.config
    connectome = study.n_rois * n_voxels
    cleaning = 8 * NUMBERS_AT_ONCE * 8 if to_cleaning(config.cleaning).wanted else 0
    run = _volumes(rows, config) * n_voxels * 4
    return run + connectome * (4 * 4 + 2 * config.connectomes.windows) + cleaning


def _volumes(rows: pd.DataFrame, config: StudyConfig) -> int:
    """Volumes of the longest of some runs, by their headers."""
    known = [2 * config.connectomes.minimum_volumes]
    for runs in rows["rest"].iloc[:: max(len(rows) // HEADERS_LOOKED_AT, 1)][:HEADERS_LOOKED_AT]:
        for scan in runs:
            try:
                known.append(read_header(scan.image).n_volumes)
            except (SubjectError, OSError):
                known.append(VOLUMES_GUESS)
    return max(known)


def to_recipe(config: StudyConfig) -> Recipe:
    """How rest runs are read, as study.yaml says it."""
    settings = config.connectomes.model_dump(exclude={"maximum_gigabytes"})
    maximum = int(config.connectomes.maximum_gigabytes * 2**30)
    return Recipe(**settings, maximum_bytes=maximum, cleaning=to_cleaning(config.cleaning))


def to_cleaning(config: CleaningConfig) -> Cleaning:
    """What is taken out of rest runs, as study.yaml says it."""
    return Cleaning(**config.model_dump())


class ConnectomeWorker(BlockWorker):
    """One block of connectomes, stored, or handed on to whoever makes maps of them.

    Parameters
    ----------
    uri : str
        The study's.
    splits : sequence of str, optional
        Whose connectomes are stored; by default everybody's.
    retry : bool
        Do again those who failed, too.
    """

    def __init__(self, uri: str, splits: Sequence[str] | None = None, *, retry: bool = False) -> None:
        super().__init__(uri, STAGE, retry=retry)
        self._today: dict[int, dict[str, str | None]] = {}
        cohort = self.study.cohort
        self.wanted = set(cohort.index if splits is None else cohort.index[cohort["split"].isin(splits)])
        self.reader = SubjectReader(self.study)

    @functools.cached_property
    def arrays(self) -> tuple:
        """The two arrays, open for writing."""
        names = ("connectome", "roi_connectome")
        return tuple(self.study.storage.open_array(NAME, name, writable=True) for name in names)

    @functools.cached_property
    def recipe(self) -> Recipe:
        """How runs are read."""
        return to_recipe(self.study.config)

    @functools.cached_property
    def rules(self) -> Rules:
        """Who is excluded."""
        return Rules(**self.study.config.quality.model_dump())

    @functools.cached_property
    def workspace(self) -> Workspace:
        """Memory that all subjects of this worker share, one after the other."""
        return Workspace()

    def today(self, block: int) -> dict[str, str | None]:
        """Fingerprints of the subjects of a block."""
        if block not in self._today:
            found = ledger.connectome_fingerprints(self.study, block)[ledger.block_unit(block)]
            self._today = {block: found}  # the last one alone: a block is asked about again and again, then never more
        return self._today[block]

    def holding(self, block: int) -> dict[str, Row]:
        """The rows of a block's receipt that hold today."""
        return self.receipts.holding(ledger.block_unit(block), self.today(block))

    def kept(self, holding: dict[str, Row]) -> dict[str, Row]:
        """Of those who are wanted the ones whose connectomes are stored; all others as they are."""
        kept = {
            subject: row
            for subject, row in holding.items()
            if subject not in self.wanted or (row.status == "done" and row.qc["stored"])
        }
        blocks = {int(self.study.cohort["block"][subject]) for subject in kept}
        for block in blocks:  # the one that they are all of
            kept = self._having_edges(block, kept, self._edges(block))
        return kept

    def is_settled(self, block: int, holding: Mapping[str, Row]) -> bool:
        """Whether all of a block who are wanted are stored, or cannot be."""
        wanted = self.wanted & self.today(block).keys()
        rows = [holding[subject] for subject in wanted & holding.keys()]
        return len(rows) == len(wanted) and all(row.status != "done" or row.qc["stored"] for row in rows)

    def work(self, block: int, kept: Mapping[str, Row]) -> list[Row]:
        """Write the connectomes of a block; a failed or excluded subject's rows stay, or become again, NaN."""
        members, rows = self.study.block(block), self.study.rows(block)
        made: dict[int, tuple[Row, Edges]] = {}
        for subject, position, runs in zip(members["subject"], members["row"], members["rest"], strict=True):
            if subject in self.wanted and subject not in kept:
                row, values, edges = self.compute(subject, runs)
                self.store(position, row, values)
                made[position - rows.start] = row, edges
        return self._finish(block, made)

    def _finish(self, block: int, made: Mapping[int, tuple[Row, Edges]]) -> list[Row]:
        """Write the ROI-to-ROI connectomes; returns the rows of the receipt, with those of others that hold by now."""
        values = self._edges(block)
        new = {row.subject: row for row, _ in made.values()}
        others = {subject: row for subject, row in self.holding(block).items() if subject not in new}
        for position, (_, one) in made.items():
            values[position] = one
        write_rows(self.arrays[1], 0, self.study.rows(block), values)
        self._written = values
        return [*self._having_edges(block, others, values).values(), *new.values()]

    def _edges(self, block: int) -> NDArray[np.float32]:
        """The ROI-to-ROI connectomes of a block as they are; NaN where there are none, or none that can be read."""
        rows, edges = self.study.rows(block), self.arrays[1]
        try:
            return read(edges, rows)
        except DamagedError as error:
            log.warning("%s", error)
            return np.full((rows.stop - rows.start, edges.shape[1]), np.nan, dtype=edges.dtype)

    def _having_edges(self, block: int, rows: Mapping[str, Row], values: NDArray[np.float32]) -> dict[str, Row]:
        """Rows of a receipt without those whose ROI-to-ROI connectomes were lost."""
        places = self.study.positions(list(rows)) - self.study.rows(block).start
        lost = np.isnan(values[places]).all(axis=1) & (values.shape[1] > 0)
        pairs = zip(lost, rows.items(), strict=True)
        return {subject: row for gone, (subject, row) in pairs if not gone or row.status != "done"}

    def undone(self, block: int, rows: Sequence[Row]) -> list[str]:
        """Whose ROI-to-ROI connectomes are not what was just written here."""
        done = [row.subject for row in rows if row.status == "done"]
        places = self.study.positions(done) - self.study.rows(block).start
        there, written = self._edges(block)[places], self._written[places]
        same = ((there == written) | (np.isnan(there) & np.isnan(written))).all(axis=1)
        return [subject for subject, is_same in zip(done, same, strict=True) if not is_same]

    def stream(
        self, block: int, holding: Mapping[str, Row], needed: Container[str], *, keep: bool, retry: bool
    ) -> Iterator[tuple[Row, Windows | None]]:
        """The connectomes of a block, one subject after the other, from the study or made on the way.

        When all were taken, the receipt of the block is written, if it says anything new.

        Parameters
        ----------
        block : int
        holding : mapping of subject to Row
            What the receipt says that holds, see `holding`.
        needed : container of str
            Whose connectomes are wanted; of the others only whether there is one.
        keep : bool
            Store what is made.
        retry : bool
            Try again those who failed or broke a rule before.

        Yields
        ------
        Row
            What happened, now or before.
        windows : (W, K, V) float16 or None
            None for those without a connectome, and those not needed.
        """
        members, rows = self.study.block(block), self.study.rows(block)
        made: dict[int, tuple[Row, Edges]] = {}
        for subject, position, runs in zip(members["subject"], members["row"], members["rest"], strict=True):
            before = holding.get(subject)
            if before is not None and not self._is_made_again(before, subject in needed, keep=keep, retry=retry):
                wanted = before.status == "done" and subject in needed
                yield before, self.reader.stored_windows(subject, int(before.qc["windows"])) if wanted else None
                continue
            row, values, edges = self.compute(subject, runs)
            if before is not None and before.status == "done" and row.status != "done":
                log.warning(
                    "%s: it has been read before; maps that need it again are owed until it can be", row.message
                )
            elif keep or before is None or before.status != row.status:
                if keep:
                    if not made:  # rows that do not hold today must not stand beside what is written now
                        withdraw(self.receipts, ledger.block_unit(block), holding.values())
                    self.store(position, row, values)
                made[position - rows.start] = row, edges
            yield row, recorded_windows(values) if row.status == "done" else None
        self._commit(block, made)

    @staticmethod
    def _is_made_again(row: Row, needed: bool, *, keep: bool, retry: bool) -> bool:
        if row.status != "done":
            return retry and bool(row.error_type)
        return not row.qc["stored"] and (needed or keep)

    def _commit(self, block: int, made: Mapping[int, tuple[Row, Edges]]) -> None:
        """Write what is new of a block: taken back first, written last, as ever.

        What another driver has written meanwhile is as good, or better where it stored what was only made here.
        """
        unit, now = ledger.block_unit(block), self.holding(block)
        made = {place: one for place, one in made.items() if not _is_as_good(now.get(one[0].subject), one[0])}
        if not made:
            return
        new = {row.subject for row, _ in made.values()}
        kept = [row for subject, row in now.items() if subject not in new]
        attempt = withdraw(self.receipts, unit, kept)
        rows = self._finish(block, made)
        commit(self.receipts, unit, rows, self.today(block), attempt, {row.subject for row in kept})
        take_back(self.receipts, unit, self.undone(block, rows))

    def store(self, position: int, row: Row, values: Windows) -> None:
        """Write the windows of one subject, NaN where there are none."""
        write(self.arrays[0], position, values)
        row.qc["stored"] = float(row.status == "done")

    def compute(self, subject: str, runs: Sequence[Scan]) -> tuple[Row, Windows, Edges]:
        """What happened, the windows (W, K, V) of one subject, and its ROI-to-ROI connectome (E,); NaN if not done."""
        row = Row(subject, "failed")
        values = np.full(self.arrays[0].shape[1:], np.nan, dtype=np.float16)
        edges = np.full(self.arrays[1].shape[1], np.nan, dtype=np.float32)
        grid, weights = self.study.grid, self.study.roi_set.weights  # no fault of a subject, if they cannot be read
        with recorded(row, runs[0].image):
            describe_input(row, runs[0].image)
            edges, row.qc = subject_connectomes(runs, grid, weights, self.recipe, values, self.workspace)
            row.qc["stored"] = 0.0
            if broken := broken_rule(row.qc, self.rules):
                raise ExcludedError(f"quality.{broken}", path=runs[0].image)
        if row.status != "done":
            values[:], edges = np.nan, np.full_like(edges, np.nan)
        return row, values, edges


def _is_as_good(there: Row | None, made: Row) -> bool:
    """Whether a row of a receipt says all that a row made meanwhile would."""
    if there is None or (there.status, there.message) != (made.status, made.message):
        return False
    return there.qc.get("stored", 0) >= made.qc.get("stored", 0)
