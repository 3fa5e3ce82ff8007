"""Feature sets: where their columns are stored, whose are complete, and how they are read."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dtg_ray import ledger
from dtg_ray.cohort import manifest
from dtg_ray.cohort.manifest import TRAINING
from dtg_ray.config import Source
from dtg_ray.config.prediction import CONNECTOME, MEASURED
from dtg_ray.errors import ConfigError, StudyError, SubjectError
from dtg_ray.imaging.series import open_series
from dtg_ray.imaging.space import read_masked
from dtg_ray.store.arrays import read
from dtg_ray.study import Study

SLAB_BYTES = 3 * 2**30
"""Stored features of all subjects in memory at a time, twice: while one part is used, the next is read."""
COLUMN_BYTES = 512 * 2**20
"""Of them in single precision."""


@dataclass(frozen=True, eq=False)
class Part:
    """Some columns of a feature set.

    Parameters
    ----------
    name : str
        As in study.yaml, with its contrast.
    stage : str
        That makes them.
    store, array : str
        Where they are.
    contrast : int, optional
        Its number on the first axis of the array.
    columns : (p,) int64
        Ascending numbers on the last axis.
    """

    name: str
    stage: str
    store: str
    array: str
    contrast: int | None
    columns: NDArray[np.int64]


def parts(study: Study, feature: str) -> list[Part]:
    """A feature set as columns of arrays; all contrasts of a set of maps are put side by side."""
    config = study.config
    return [part for one in config.sources_of(feature) for part in _of_source(study, one, config.mask_of(feature))]


def _of_source(study: Study, one: Source, mask: str) -> Iterator[Part]:
    store = ledger.array_of(one.stage)
    if one.kind == CONNECTOME:
        edges = study.n_rois * (study.n_rois - 1) // 2
        yield Part(str(one), one.stage, store, "roi_connectome", None, np.arange(edges))
        return
    voxels, contrasts = masked_voxels(study, mask), study.config.contrasts_in(one)
    for contrast in [one.contrast] if one.contrast else contrasts:
        name = str(Source(one.kind, one.model, contrast))
        yield Part(name, one.stage, store, "maps", contrasts.index(contrast), voxels)


def masked_voxels(study: Study, mask: str) -> NDArray[np.int64]:
    """Numbers of the voxels of a mask, ascending.

    Raises
    ------
    ConfigError
        When an image cannot be read, or has no voxel on the grid.
    """
    if mask == "brain":
        return np.arange(study.grid.n_voxels)
    if mask == "grey_matter":
        return np.flatnonzero(study.grey_matter)
    try:
        with open_series(mask) as series:
            volumes = read_masked(series, study.grid, interpolation="nearest")[0]
    except SubjectError as error:
        raise ConfigError(f"prediction: mask {error}", hint="expected grey_matter, brain or a NIfTI image") from error
    voxels = np.flatnonzero(volumes[0] > 0)
    if len(volumes) > 1 or not len(voxels):
        raise ConfigError(
            f"prediction: mask {mask}: got {len(volumes)} volumes with {len(voxels)} voxels, expected one"
        )
    return voxels


def members(book: ledger.Ledger, feature: str) -> list[str]:
    """Whose features are complete, in the order of the cohort; by default only those never trained or validated on."""
    study, cohort = book.study, book.study.cohort
    if study.config.prediction.subjects == "unseen":
        cohort = cohort[~cohort["split"].isin([*TRAINING, manifest.RELATED])]
    for one in study.config.sources_of(feature):
        if column := _measured_in(study, one):
            wanted = {one.contrast} if one.contrast else set(study.config.contrasts_in(one))
            cohort = cohort[np.array([wanted <= set(maps) for maps in cohort[column]], dtype=bool)]
        done = set(book.account(one.stage).subjects("done"))
        cohort = cohort[cohort["subject"].isin(list(done))]
    return list(cohort["subject"])


def _measured_in(study: Study, one: Source) -> str:
    """The column of the cohort with the files of measured maps; empty for features of everybody."""
    if one.kind == MEASURED:
        return "contrasts"
    return "retest" if one.model and study.config.models[one.model].kind == "retest" else ""


@dataclass(frozen=True, eq=False)
class Piece:
    """Columns of a part that are read at once.

    Parameters
    ----------
    part : Part
    columns : (w,) int64
    """

    part: Part
    columns: NDArray[np.int64]


class Features:
    """The features of some subjects, read piece by piece, each piece once.

    Parameters
    ----------
    study : Study
    feature : str
    subjects : sequence of str
        n of them.
    """

    def __init__(self, study: Study, feature: str, subjects: Sequence[str]) -> None:
        self.study = study
        self.subjects = list(subjects)
        self.parts = parts(study, feature)
        self.rows = study.positions(self.subjects)

    @property
    def n_features(self) -> int:
        """Number of columns, p."""
        return sum(len(part.columns) for part in self.parts)

    def pieces(self, columns: int | None = None) -> list[Piece]:
        """All columns, cut where chunks of the arrays end, in the order of the parts.

        Parameters
        ----------
        columns : int, optional
            How many at once, in whole chunks, one at least; by default as many as `SLAB_BYTES` hold.
        """
        return [piece for part in self.parts for piece in self._pieces(part, columns)]

    def _pieces(self, part: Part, columns: int | None) -> Iterator[Piece]:
        array = self.study.storage.open_array(part.store, part.array)
        span = int(self.rows.max() - self.rows.min()) + 1
        chunk = array.chunks[-1]
        columns = SLAB_BYTES // (array.dtype.itemsize * span) if columns is None else columns
        width = max(1, columns // chunk) * chunk
        for start in range(0, array.shape[-1], width):
            first, last = np.searchsorted(part.columns, [start, start + width])
            if first < last:
                yield Piece(part, part.columns[first:last])

    def blocks(
        self, pieces: Sequence[Piece], width: int | None = None
    ) -> Iterator[tuple[Piece, NDArray[np.int64], NDArray[np.float32]]]:
        """Columns in single precision, a few at a time: the piece, numbers of the columns (w,), features (n, w).

        Parameters
        ----------
        pieces : sequence of Piece
        width : int, optional
            Columns at a time; by default as many as `COLUMN_BYTES` hold.

        Raises
        ------
        StudyError
            When somebody's features are not there, although a receipt says that they are.
        """
        width = width or max(1, COLUMN_BYTES // (4 * len(self.rows)))
        rows = _index(self.rows - self.rows.min())
        with ThreadPoolExecutor(1) as ahead:
            for piece, stored in _one_ahead(ahead, self._read, pieces):
                for start in range(0, len(piece.columns), width):
                    columns = piece.columns[start : start + width]
                    X = stored[:, _index(columns - piece.columns[0])][rows].astype(np.float32)  # (n, w)
                    self._check(piece.part, X)
                    yield piece, columns, X

    def _read(self, piece: Piece) -> NDArray[np.float16]:
        """Everything between the first and the last row and column, as it is stored."""
        array = self.study.storage.open_array(piece.part.store, piece.part.array)
        rows = slice(int(self.rows.min()), int(self.rows.max()) + 1)
        columns = slice(int(piece.columns[0]), int(piece.columns[-1]) + 1)
        contrast = piece.part.contrast
        return read(array, (rows, columns) if contrast is None else (contrast, rows, columns))

    def _check(self, part: Part, X: NDArray[np.float32]) -> None:
        """Refuse NaN and infinite values."""
        lost = ~np.isfinite(X.sum(axis=1))
        if lost.any():
            raise StudyError(
                f"{self.subjects[int(np.argmax(lost))]}: got NaN in {part.store} ({part.name}), expected the numbers "
                f"that a receipt of {part.stage} promises ({int(lost.sum())} of {len(lost)} subjects)",
                hint=f"a part of it was lost: delete the receipts of {part.stage} and run that again",
            )

    def matrix(self) -> NDArray[np.float64]:
        """All features of everybody, (n, p): for fewer features than subjects."""
        return np.hstack([X.astype(np.float64) for _, _, X in self.blocks(self.pieces())])


def _index(numbers: NDArray[np.int64]) -> slice | NDArray[np.int64]:
    """Ascending numbers as a slice where none is missing: nothing has to be gathered then."""
    first, last = int(numbers[0]), int(numbers[-1])
    ascending = last - first == len(numbers) - 1 and bool((np.diff(numbers) == 1).all())
    return slice(first, last + 1) if ascending else numbers


def _one_ahead(
    pool: ThreadPoolExecutor, read_one: Callable[[Piece], NDArray[np.float16]], pieces: Sequence[Piece]
) -> Iterator[tuple[Piece, NDArray[np.float16]]]:
    """Pieces with what is stored of them; while one is used, the next is read."""
    coming = [pool.submit(read_one, piece) for piece in pieces[:1]]
    for number, piece in enumerate(pieces):
        stored = coming.pop().result()
        coming = [pool.submit(read_one, later) for later in pieces[number + 1 : number + 2]]
        yield piece, stored
