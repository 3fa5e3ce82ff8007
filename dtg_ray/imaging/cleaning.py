"""Preparation of runs that are not clean yet (fMRIPrep): confounds, filters, detrending, scrubbing, all by nilearn.

UK Biobank and HCP arrive cleaned; for them nothing of this is switched on.
"""

from __future__ import annotations

import contextlib
import io
import tempfile
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from dtg_ray.errors import MissingFileError, TableError, TooShortError, ValueRangeError
from dtg_ray.imaging.streams import read_all

LARGEST_TABLE = 256 * 2**20
"""Bytes of a confounds table."""
NUMBERS_AT_ONCE = 16 * 2**20
"""Voxels are cleaned in parts of this many numbers: nilearn makes several float64 copies."""


@dataclass(frozen=True)
class Cleaning:
    """What is taken out of a run.

    Parameters
    ----------
    strategy : tuple of str
        Groups of fMRIPrep's confounds, as `nilearn.interfaces.fmriprep.load_confounds` names them: motion, wm_csf,
        global_signal, compcor, high_pass, scrub ...
    options : dict
        Further arguments of `load_confounds`, such as `motion: basic` or `fd_threshold: 0.2`.
    columns : tuple of str
        Columns of the confounds table by name, for tables that are not fMRIPrep's.
    low_pass, high_pass : float, optional
        Cut-off frequencies of a Butterworth filter, Hz.
    detrend : bool
        Take out a linear trend.
    """

    strategy: tuple[str, ...] = ()
    options: Mapping[str, Any] = field(default_factory=dict)
    columns: tuple[str, ...] = ()
    low_pass: float | None = None
    high_pass: float | None = None
    detrend: bool = False

    @property
    def wanted(self) -> bool:
        """Whether there is anything to do."""
        return bool(self.needs_confounds or self.low_pass or self.high_pass or self.detrend)

    @property
    def needs_confounds(self) -> bool:
        """Whether a table of confounds has to be there."""
        return bool(self.strategy or self.columns)


@dataclass(frozen=True)
class Confounds:
    """Confounds of one run.

    Parameters
    ----------
    regressors : (T, C) float64
    kept : (n,) int64
        Volumes that are left by scrubbing and steady-state rules.
    """

    regressors: NDArray[np.float64]
    kept: NDArray[np.int64]


def load(path: str, image: str, n_volumes: int, cleaning: Cleaning) -> Confounds:
    """Read the confounds of a run.

    Parameters
    ----------
    path : str
        The table (TSV), with its JSON beside it where `strategy` has compcor. Empty where there is none.
    image : str
        The run, for the error.
    n_volumes : int
    cleaning : Cleaning

    Raises
    ------
    MissingFileError
        When confounds are asked for and there is no table.
    TableError
        When the table lacks columns, has another number of rows, or holds values that are no numbers.
    """
    if not cleaning.needs_confounds:
        return Confounds(np.empty((n_volumes, 0)), np.arange(n_volumes))
    if not path:
        raise MissingFileError("got no table of confounds, expected one for `cleaning`", path=image)
    table = read_table(path)
    if len(table) != n_volumes:
        raise TableError(f"got {len(table)} rows of confounds, expected {n_volumes} volumes", path=path)
    parts, kept = [_columns(table, cleaning.columns, path)], np.arange(n_volumes)
    if cleaning.strategy:
        values, sample_mask = _by_strategy(path, cleaning)
        parts.append(values.to_numpy(dtype=np.float64))
        kept = kept if sample_mask is None else np.asarray(sample_mask, dtype=np.int64)
    confounds = np.concatenate(parts, axis=1)
    if not np.isfinite(confounds[kept]).all():
        raise TableError("got confounds that are not finite, expected numbers", path=path)
    return Confounds(confounds, kept)


def clean(
    bold: NDArray[np.float32], confounds: Confounds, tr: float, cleaning: Cleaning, path: str
) -> NDArray[np.float32]:
    """Clean a run, part by part of its voxels.

    Parameters
    ----------
    bold : (T, V) float32
        Is written over.
    confounds : Confounds
    tr : float
        Repetition time in s, 0 where unknown.
    cleaning : Cleaning
    path : str
        The run, for the error.

    Returns
    -------
    (n, V) float32
        The volumes that are left; a view of `bold`.

    Raises
    ------
    ValueRangeError
        When a frequency needs a repetition time that is not known, or is beyond what it can hold.
    TooShortError
        When there are too few volumes for the filter.
    """
    _check_band(cleaning, tr, path)
    try:
        return _clean(bold, confounds, tr, cleaning)
    except ValueError as error:
        raise TooShortError(f"got {len(bold)} volumes that nilearn cannot clean: {error}", path=path) from error


def _check_band(cleaning: Cleaning, tr: float, path: str) -> None:
    """Frequencies need a repetition time, and lie below half its inverse."""
    highest = max(cleaning.low_pass or 0, cleaning.high_pass or 0)
    if highest and tr <= 0:
        raise ValueRangeError("got a header without a repetition time, expected one: give `tr`", path=path)
    if highest and highest >= 0.5 / tr:
        raise ValueRangeError(
            f"got a cut-off of {highest:g} Hz for a repetition time of {tr:g} s, expected less than {0.5 / tr:.3g} Hz",
            path=path,
        )


def _clean(bold: NDArray[np.float32], confounds: Confounds, tr: float, cleaning: Cleaning) -> NDArray[np.float32]:
    from nilearn.signal import clean as nilearn_clean

    width = max(NUMBERS_AT_ONCE // len(bold), 1)
    count = len(confounds.kept)
    for start in range(0, bold.shape[1], width):
        part = slice(start, start + width)
        bold[:count, part] = nilearn_clean(
            bold[:, part].astype(np.float64),
            detrend=cleaning.detrend,
            standardize=None,
            sample_mask=confounds.kept if count < len(bold) else None,
            confounds=confounds.regressors if confounds.regressors.size else None,
            filter="butterworth" if cleaning.low_pass or cleaning.high_pass else False,
            low_pass=cleaning.low_pass,
            high_pass=cleaning.high_pass,
            t_r=tr or None,
        )
    return bold[:count]


def read_table(path: str) -> pd.DataFrame:
    """A table of confounds.

    Raises
    ------
    TableError
        When it is none.
    """
    try:
        return pd.read_csv(io.BytesIO(read_all(path, LARGEST_TABLE)), sep="\t", na_values=["n/a"])
    except (ValueError, pd.errors.ParserError) as error:
        raise TableError(f"got a file that is no table ({error}), expected tab-separated columns", path=path) from error


def read_motion(confounds: str, motion: str) -> float:
    """Mean displacement between volumes, mm; NaN where nothing tells it, or the file that should is not there or empty.

    Parameters
    ----------
    confounds : str
        fMRIPrep's table; its column `framewise_displacement` is averaged.
    motion : str
        Text file with one mean, or a value per volume.

    Raises
    ------
    TableError
        When the file holds anything but numbers.
    """
    with contextlib.suppress(MissingFileError):
        if motion:
            return _mean_of_numbers(motion)
        if confounds and "framewise_displacement" in (table := read_table(confounds)):
            return float(pd.to_numeric(table["framewise_displacement"], errors="coerce").mean())
    return float("nan")


def _mean_of_numbers(path: str) -> float:
    words = read_all(path, LARGEST_TABLE).decode(errors="replace").split()
    try:
        return sum(map(float, words)) / len(words) if words else float("nan")
    except ValueError as error:
        raise TableError(f"got a file of displacements with {error}, expected numbers", path=path) from error


def _columns(table: pd.DataFrame, names: tuple[str, ...], path: str) -> NDArray[np.float64]:
    """Columns by name; a missing first value, as derivatives have it, becomes their mean."""
    if absent := [name for name in names if name not in table]:
        raise TableError(f"got no columns {absent}, expected them in the confounds", path=path)
    chosen = table[list(names)].apply(pd.to_numeric, errors="coerce")
    return np.asarray(chosen.fillna(chosen.mean()), dtype=np.float64)


def _by_strategy(path: str, cleaning: Cleaning) -> tuple[pd.DataFrame, NDArray[np.int64] | None]:
    """What nilearn finds in fMRIPrep's table; it looks for it on disk beside an image, so it gets a copy there."""
    from nilearn.interfaces.fmriprep import load_confounds

    name = PurePosixPath(path).name
    with tempfile.TemporaryDirectory(prefix="dtg_ray_") as folder:
        copy = Path(folder) / name
        copy.write_bytes(read_all(path, LARGEST_TABLE))
        sidecar = path.removesuffix(".tsv") + ".json"
        with contextlib.suppress(MissingFileError):  # only some strategies need it, and nilearn says so
            (Path(folder) / PurePosixPath(sidecar).name).write_bytes(read_all(sidecar, LARGEST_TABLE))
        image = Path(folder) / f"{name.split('_desc-')[0]}_space-MNI152NLin2009cAsym_desc-preproc_bold.nii.gz"
        image.touch()
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                values, kept = load_confounds(str(image), strategy=list(cleaning.strategy), **cleaning.options)
        except Exception as error:
            raise TableError(f"got confounds that nilearn cannot use: {error}", path=path) from error
    return values, kept
