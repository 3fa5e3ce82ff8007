"""Resting-state runs of a subject, from files to connectomes: the one way."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from dtg_ray.errors import ShapeError, TooShortError, ValueRangeError
from dtg_ray.imaging import cleaning as cleaning_
from dtg_ray.imaging.cleaning import Cleaning
from dtg_ray.imaging.connectome import CrossProducts, demean, extract, roi_connectome
from dtg_ray.imaging.grid import Grid
from dtg_ray.imaging.quality import RunQuality, summarize
from dtg_ray.imaging.scan import Scan
from dtg_ray.imaging.series import MAXIMUM_BYTES, check_finite, open_series, read_header, read_sampled
from dtg_ray.imaging.space import place
from dtg_ray.imaging.windows import cut, share_windows


@dataclass(frozen=True)
class Recipe:
    """How rest runs are read and cut.

    Parameters
    ----------
    windows : int
        Windows per subject; the largest number where `window_minutes` is given.
    window_minutes : float, optional
        Duration of a window.
    tr : float, optional
        Repetition time in s, where the headers are wrong.
    minimum_volumes : int
        A run with fewer, or windows with fewer, are refused.
    minimum_coverage : float
        Share of the mask the image has to cover.
    interpolation : "linear" or "nearest"
    maximum_bytes : int
        A run that unpacks to more is refused.
    cleaning : Cleaning
    """

    windows: int = 1
    window_minutes: float | None = None
    tr: float | None = None
    minimum_volumes: int = 30
    minimum_coverage: float = 0.5
    interpolation: str = "linear"
    maximum_bytes: int = MAXIMUM_BYTES
    cleaning: Cleaning = field(default_factory=Cleaning)


@dataclass(frozen=True)
class Run:
    """One rest run on the grid.

    Parameters
    ----------
    bold : (T, V) float32
        Demeaned over time, and cleaned where that was asked for; exactly 0 where a voxel is constant.
    squares : (V,) float32
        Sums of squares of `bold` over time.
    quality : RunQuality
    """

    bold: NDArray[np.float32]
    squares: NDArray[np.float32]
    quality: RunQuality


class Workspace:
    """Memory for one run at a time, used again for the next: touching fresh memory can cost as much as unpacking."""

    def __init__(self) -> None:
        self._numbers = np.empty(0, dtype=np.float32)

    def rows(self, n_rows: int, n_columns: int) -> NDArray[np.float32]:
        """(n_rows, n_columns) float32, not initialised; what was given out before is lost."""
        if self._numbers.size < n_rows * n_columns:
            self._numbers = np.empty(0, dtype=np.float32)  # so that the old memory is free first
            self._numbers = np.empty(n_rows * n_columns, dtype=np.float32)
        return self._numbers[: n_rows * n_columns].reshape(n_rows, n_columns)


def read_run(scan: Scan, grid: Grid, recipe: Recipe, workspace: Workspace | None = None) -> Run:
    """Read a 4-D rest run and refuse what no connectome can be made of.

    Parameters
    ----------
    scan : Scan
    grid : Grid
    recipe : Recipe
    workspace : Workspace, optional
        The run lives there until it is used again.

    Raises
    ------
    MissingFileError, CorruptFileError, ShapeError, SpaceError, TooShortError, ValueRangeError, TableError
        Each naming the file.
    """
    path = scan.image
    with open_series(path, recipe.maximum_bytes) as series:
        header = series.header
        if len(header.shape) != 4:
            raise ShapeError(f"got an image of shape {header.shape}, expected a 4-D series", path=path)
        _check_length(header.n_volumes, recipe, path)
        confounds = cleaning_.load(scan.confounds, path, header.n_volumes, recipe.cleaning)
        _check_length(len(confounds.kept), recipe, path, " left by scrubbing")
        sampler = place(
            series, scan, grid, minimum_coverage=recipe.minimum_coverage, interpolation=recipe.interpolation
        )
        bold = read_sampled(series, sampler, workspace.rows if workspace else None)
    check_finite(bold, path)
    tr = header.tr if recipe.tr is None else recipe.tr
    mean, squares = demean(bold)
    if not (np.isfinite(squares).all() and np.isfinite(mean).all()):
        raise ValueRangeError("got values whose squares are beyond float32, expected a signal", path=path)
    if not squares.any():
        raise ValueRangeError("got a series that never changes inside the mask, expected a signal", path=path)
    varying = squares > 0
    # float64: a weak signal's squares may have no room left in float32 to be divided
    tsnr = float(np.median(np.abs(mean[varying]) / np.sqrt(squares[varying].astype(np.float64) / len(bold))))
    if recipe.cleaning.wanted:
        bold = cleaning_.clean(bold, confounds, tr, recipe.cleaning, path)
        _, squares = demean(bold)
    motion = cleaning_.read_motion(scan.confounds, scan.motion)
    constant = float(1 - varying.mean())
    return Run(bold, squares, RunQuality(header.n_volumes, len(bold), tr, sampler.coverage, constant, tsnr, motion))


def subject_connectomes(
    scans: Sequence[Scan],
    grid: Grid,
    weights: NDArray[np.float32],
    recipe: Recipe,
    out: NDArray[np.float16],
    workspace: Workspace | None = None,
) -> tuple[NDArray[np.float32], dict[str, float]]:
    """Connectomes of the windows of a subject, and the ROI-to-ROI connectome of all of its runs.

    ROI series come from whole runs and are then cut (as published). Runs are read one after the other.

    Parameters
    ----------
    scans : sequence of Scan
        The runs, in order.
    grid : Grid
    weights : (V, K) float32
        From `connectome.regression_weights` or `mean_weights`.
    recipe : Recipe
    out : (W, K, V) float16
        Windows that were recorded are written here; the others are left alone.
    workspace : Workspace, optional

    Returns
    -------
    edges : (K (K - 1) / 2,) float32
        Upper triangle.
    figures : dict of str to float
        Quality, see `quality.summarize`, with the number of windows and mean_abs_r, their mean |r|.

    Raises
    ------
    SubjectError
        As `read_run`; TooShortError also when no window is filled.
    """
    workspace = workspace or Workspace()
    shares = share_windows(_durations(scans, recipe), len(out)) if recipe.window_minutes is None else None
    window, products, all_series, qualities = 0, None, [], []
    for number, scan in enumerate(scans):
        run = read_run(scan, grid, recipe, workspace)
        series = extract(run.bold, weights)  # (T, K)
        for part in _parts(run, scan.image, recipe, shares[number].count if shares else len(out) - window):
            products = products or CrossProducts(weights.shape[1], grid.n_voxels)
            whole = len(run.bold[part]) == len(run.bold)
            products.add(run.bold[part], series[part], run.squares if whole else None)
            if shares is None or shares[number].closes:
                out[window] = products.correlations()
                window, products = window + 1, None
        all_series.append(series)
        qualities.append(run.quality)
    if not window:
        raise TooShortError(f"got no run of {recipe.window_minutes:g} minutes, expected one", path=scans[0].image)
    # ROI by ROI: what fits the cache is summed four times as fast
    absolute = np.mean([np.abs(row.astype(np.float32)).mean() for values in out[:window] for row in values])
    figures = {**summarize(qualities), "windows": float(window), "mean_abs_r": float(absolute)}
    return roi_connectome(*all_series), figures


def _durations(scans: Sequence[Scan], recipe: Recipe) -> list[float]:
    """Duration of every run from its header: in s, or in volumes where a TR is not known."""
    if len(scans) == 1:
        return [1.0]
    headers = [read_header(scan.image, recipe.maximum_bytes) for scan in scans]
    in_seconds = recipe.tr is None and all(header.tr > 0 for header in headers)
    return [header.n_volumes * (header.tr if in_seconds else 1.0) for header in headers]


def _parts(run: Run, path: str, recipe: Recipe, count: int) -> list[slice]:
    """The windows of one run."""
    minutes, length = recipe.window_minutes, None
    if minutes is not None:
        length = round(minutes * 60 / _known(run.quality.tr, path))
    try:
        return cut(len(run.bold), count, length, recipe.minimum_volumes)
    except ValueError as error:
        raise TooShortError(str(error), path=path) from error


def _known(tr: float, path: str) -> float:
    if tr <= 0:
        raise ValueRangeError("got a header without a repetition time, expected one: give `tr`", path=path)
    return tr


def _check_length(n_volumes: int, recipe: Recipe, path: str, when: str = "") -> None:
    if n_volumes < recipe.minimum_volumes:
        raise TooShortError(f"got {n_volumes} volumes{when}, expected at least {recipe.minimum_volumes}", path=path)
