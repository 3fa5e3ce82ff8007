"""A resting-state run, checked: the one way from a file on disk to (T, V) time series on the grid."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dtg_ray.errors import ShapeError, TooShortError, ValueRangeError
from dtg_ray.imaging.connectome import connectome, roi_connectome, roi_timeseries, windows
from dtg_ray.imaging.grid import Grid
from dtg_ray.imaging.series import open_series, read_masked


@dataclass(frozen=True)
class Run:
    """One rest run on the grid.

    Parameters
    ----------
    bold : (T, V) float32
    tr : float
        Seconds per volume, 0 where unknown.
    coverage : float
        Share of the mask inside the image.
    """

    bold: NDArray[np.float32]
    tr: float
    coverage: float

    def quality(self) -> dict[str, float]:
        """Figures for the receipt: volumes, TR in s, coverage, median tSNR, constant voxels in the mask."""
        mean, deviation = self.bold.mean(axis=0), self.bold.std(axis=0)
        # not by the deviation, which keeps rounding errors of the mean
        varying = np.ptp(self.bold, axis=0) > 0
        return {
            "volumes": float(len(self.bold)),
            "tr": self.tr,
            "coverage": self.coverage,
            "constant_voxels": float((~varying).sum()),
            "tsnr": float(np.median(np.abs(mean[varying]) / deviation[varying])),
        }


def read_run(
    path: str,
    grid: Grid,
    *,
    tr: float | None = None,
    minimum_volumes: int = 30,
    minimum_coverage: float = 0.5,
    interpolation: str = "linear",
) -> Run:
    """Read a 4-D rest run and refuse what no connectome can be made of.

    Parameters
    ----------
    path : str
        4-D NIfTI, local or s3://.
    grid : Grid
    tr : float, optional
        Repetition time in s, where the header is wrong.
    minimum_volumes, minimum_coverage, interpolation
        See `dtg_ray.config.ConnectomeConfig`.

    Raises
    ------
    MissingFileError, CorruptFileError, ShapeError, TooShortError, ValueRangeError
        Each naming the file.
    """
    with open_series(path) as series:
        header = series.header
        if len(header.shape) != 4:
            raise ShapeError(f"got an image of shape {header.shape}, expected a 4-D series", path=path)
        if header.n_volumes < minimum_volumes:
            raise TooShortError(f"got {header.n_volumes} volumes, expected at least {minimum_volumes}", path=path)
        bold, coverage = read_masked(series, grid, minimum_coverage=minimum_coverage, interpolation=interpolation)
    _check_values(bold, path)
    return Run(bold, header.tr if tr is None else tr, coverage)


def run_connectomes(
    run: Run, rois: NDArray[np.float32], n_windows: int
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Connectomes of the windows of a run, and its ROI-to-ROI connectome.

    The ROI series come from the whole run and are then cut (as published).

    Parameters
    ----------
    run : Run
    rois : (K, V) float32
    n_windows : int

    Returns
    -------
    connectomes : (W, K, V) float32
    edges : (K (K - 1) / 2,) float32
        Upper triangle.
    """
    series = roi_timeseries(run.bold, rois)  # (T, K)
    parts = windows(len(run.bold), n_windows)
    return np.stack([connectome(run.bold[part], series[part]) for part in parts]), roi_connectome(series)


def _check_values(bold: NDArray[np.float32], path: str) -> None:
    finite = np.isfinite(bold)
    if not finite.all():
        bad = bold.size - int(finite.sum())
        first = int(np.flatnonzero(~finite.all(axis=1))[0])
        raise ValueRangeError(
            f"got {bad} NaN or infinite values inside the mask ({bad / bold.size:.1%}), first in volume {first + 1}, "
            "expected none",
            path=path,
        )
    if (bold == bold[0]).all():
        raise ValueRangeError("got a series that never changes inside the mask, expected a signal", path=path)
