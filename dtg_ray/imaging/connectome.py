"""Voxel-to-ROI connectomes: how each voxel's signal goes with each ROI's (Serin et al. 2025, Methods)."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

Float = NDArray[np.floating]
CACHED = 2**20
"""Numbers of a block of voxels: 4 MB of float32."""


def regression_weights(rois: Float) -> NDArray[np.float64]:
    """What spatial regression on soft ROI maps multiplies each volume with: the pseudoinverse of the demeaned maps.

    Parameters
    ----------
    rois : (K, V) float
        ROI maps by voxels; each is demeaned over voxels.

    Returns
    -------
    (V, K) float64
    """
    maps = rois.astype(np.float64)
    maps -= maps.mean(axis=1, keepdims=True)
    return np.asarray(np.linalg.pinv(maps))


def mean_weights(labels: Float) -> NDArray[np.float64]:
    """What averaging over the regions of a label atlas multiplies each volume with.

    Parameters
    ----------
    labels : (K, V)
        One where a voxel belongs to the region, zero elsewhere.

    Returns
    -------
    (V, K) float64
    """
    return np.asarray((labels / labels.sum(axis=1, keepdims=True, dtype=np.float64)).T)


def extract(bold: Float, weights: Float) -> Float:
    """Time series of ROIs.

    Parameters
    ----------
    bold : (T, V) float
    weights : (V, K) float
        From `regression_weights` or `mean_weights`.

    Returns
    -------
    (T, K) of the dtype of `bold`
        Every column has mean 0 over time.
    """
    series = bold @ weights.astype(bold.dtype, copy=False)  # (T, K)
    # demeaning the product equals the product of the demeaned: no copy of bold is needed
    return np.asarray(series - series.mean(axis=0))


def roi_timeseries(bold: Float, rois: Float) -> Float:
    """Time series of soft ROI maps by spatial regression, the first step of dual regression.

    BOLD is demeaned over time and every ROI map over voxels; then least squares, `bold @ pinv(rois)`
    (Nickerson et al. 2017, doi 10.3389/fnins.2017.00115, equation 1).

    Parameters
    ----------
    bold : (T, V) float
        Volumes by voxels.
    rois : (K, V) float
        ROI maps by voxels.

    Returns
    -------
    (T, K) of the dtype of `bold`
        Every column has mean 0 over time.

    Raises
    ------
    ValueError
        When the voxels do not agree.
    """
    _check_voxels(bold, rois)
    return extract(bold, regression_weights(rois))


def connectome(bold: Float, timeseries: Float) -> NDArray[np.float32]:
    """Pearson correlation of every voxel with every ROI time series.

    Parameters
    ----------
    bold : (T, V) float
        Volumes by voxels.
    timeseries : (T, K) float
        Volumes by ROIs.

    Returns
    -------
    (K, V) float32
        Correlations in -1..1; 0 where the voxel or the ROI is constant.

    Raises
    ------
    ValueError
        When the volumes do not agree or there are fewer than two.
    """
    products = CrossProducts(timeseries.shape[1], bold.shape[1])
    products.add(bold, timeseries)
    return products.correlations()


class CrossProducts:
    """Sums of products of voxels and ROIs over pieces of time, each demeaned: all that their correlation needs.

    Several runs become one connectome without ever being in memory together.

    Parameters
    ----------
    n_rois, n_voxels : int
    """

    def __init__(self, n_rois: int, n_voxels: int) -> None:
        self._products = np.zeros((n_rois, n_voxels), dtype=np.float32)
        self._voxels = np.zeros(n_voxels, dtype=np.float32)
        self._rois = np.zeros(n_rois)

    def add(self, bold: Float, timeseries: Float, squares: Float | None = None) -> None:
        """Add a piece of time.

        Parameters
        ----------
        bold : (T, V) float
        timeseries : (T, K) float
        squares : (V,) float, optional
            Sums of squares over time of `bold`, where it is demeaned already.

        Raises
        ------
        ValueError
            When the volumes do not agree or there are fewer than two.
        """
        if len(bold) != len(timeseries) or len(bold) < 2:
            raise ValueError(
                f"got {len(bold)} volumes of BOLD and {len(timeseries)} of ROI series, "
                "expected the same number, at least 2"
            )
        series = _demeaned(timeseries)  # (T, K)
        self._rois += (series**2).sum(axis=0)
        rows = series.T.astype(np.float32)  # (K, T)
        if squares is not None:
            self._voxels += squares
        for part in voxel_blocks(bold):
            centred = bold[:, part]  # (T, b)
            if squares is None:
                centred, _, added = centre(centred)
                self._voxels[part] += added  # (b,)
            self._products[:, part] += rows @ centred  # (K, b)

    def correlations(self) -> NDArray[np.float32]:
        """Correlations of all that was added, (K, V) float32; it can be called once, since it uses the memory again."""
        for scale, axis in ((self._voxels, 0), (self._rois, 1)):
            length = np.sqrt(scale)
            inverse = np.where(length > 0, 1 / np.where(length > 0, length, 1), 0).astype(np.float32)
            self._products *= np.expand_dims(inverse, axis)
        return np.clip(self._products, -1, 1, out=self._products)


def voxel_blocks(bold: Float) -> Iterator[slice]:
    """Slices of voxels, few enough at a time for a (T, b) block to stay in the cache."""
    width = max(CACHED // len(bold), 64)
    for start in range(0, bold.shape[1], width):
        yield slice(start, start + width)


def demean(bold: NDArray[np.float32]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Demean all voxels over time, in place.

    Parameters
    ----------
    bold : (T, V) float32
        Is written over; exactly 0 where a voxel is constant.

    Returns
    -------
    mean, squares : (V,) float32
        What was taken out, and the sums of squares of what is left.
    """
    mean, squares = (np.empty(bold.shape[1], dtype=np.float32) for _ in range(2))
    for part in voxel_blocks(bold):
        bold[:, part], mean[part], squares[part] = centre(bold[:, part])
    return mean, squares


def centre(bold: Float) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.float32]]:
    """Demean voxels over time.

    Parameters
    ----------
    bold : (T, b) float

    Returns
    -------
    centred : (T, b) float32
        Exactly 0 where a voxel is constant.
    mean : (b,) float32
    squares : (b,) float32
        Sum of squares of the centred; exactly 0 where a voxel is constant, not finite where float32 cannot hold it.
    """
    with np.errstate(over="ignore", invalid="ignore"):  # of values whose squares float32 cannot hold
        mean = bold.mean(axis=0)
        centred = (bold - mean).astype(np.float32, copy=False)
        rest = centred.mean(axis=0)  # what the rounding of a large mean left
        centred -= rest
        squares = np.einsum("tb,tb->b", centred, centred)
        mean = (mean + rest).astype(np.float32)
        # a constant voxel keeps a rounding error of its mean, which is no signal
        flat = np.sqrt(squares) <= 1e-6 * np.sqrt(len(bold)) * np.abs(mean)
    if flat.any():
        centred[:, flat] = squares[flat] = 0
    return centred, mean, squares


def roi_connectome(*timeseries: Float) -> NDArray[np.float32]:
    """ROI-to-ROI connectome: Pearson correlations of all pairs of ROIs.

    Parameters
    ----------
    *timeseries : (T, K) float
        One or several pieces of time, each of which is demeaned.

    Returns
    -------
    (K (K - 1) / 2,) float32
        The upper triangle without the diagonal, row by row, the order of `numpy.triu_indices(K, 1)`.
    """
    series = np.concatenate([_demeaned(piece) for piece in timeseries])  # (T, K)
    length = np.linalg.norm(series, axis=0)
    series = series / np.where(length > 0, length, np.inf)
    correlations = series.T @ series  # (K, K)
    edges = correlations[np.triu_indices(len(correlations), 1)]
    return np.asarray(np.clip(edges, -1, 1), dtype=np.float32)


def _demeaned(timeseries: Float) -> NDArray[np.float64]:
    """Columns of mean 0, (T, K) float64; constant columns become exactly 0."""
    series = timeseries.astype(np.float64)
    mean = series.mean(axis=0)
    series = series - mean
    # a constant column keeps a rounding error of its mean, which is no signal
    flat = np.linalg.norm(series, axis=0) <= 1e-12 * np.sqrt(len(series)) * np.abs(mean)
    return np.asarray(np.where(flat, 0, series))


def _check_voxels(bold: Float, rois: Float) -> None:
    if bold.ndim != 2 or rois.ndim != 2 or bold.shape[1] != rois.shape[1]:
        raise ValueError(f"got BOLD of shape {bold.shape} and ROIs of shape {rois.shape}, expected (T, V) and (K, V)")
