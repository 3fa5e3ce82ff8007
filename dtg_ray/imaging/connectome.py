"""Voxel-to-ROI connectomes: how each voxel's signal goes with each ROI's (Serin et al. 2025, Methods)."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Float = NDArray[np.floating]


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
    maps = rois.astype(np.float64)
    maps = maps - maps.mean(axis=1, keepdims=True)
    weights = np.linalg.pinv(maps)  # (V, K)
    series = bold @ weights.astype(bold.dtype)  # (T, K)
    # demeaning the product equals the product of the demeaned: no copy of bold is needed
    return np.asarray(series - series.mean(axis=0))


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
    if len(bold) != len(timeseries) or len(bold) < 2:
        raise ValueError(
            f"got {len(bold)} volumes of BOLD and {len(timeseries)} of ROI series, expected the same number, at least 2"
        )
    mean = bold.mean(axis=0, dtype=np.float64).astype(bold.dtype)  # (V,)
    centred = bold - mean  # (T, V)
    deviation = np.sqrt(np.einsum("tv,tv->v", centred, centred))  # (V,)
    # a constant voxel keeps a rounding error of its mean, which is no signal
    flat = deviation <= 1e-6 * np.sqrt(len(bold)) * np.maximum(np.abs(mean), np.finfo(np.float32).tiny)
    products = _standardize(timeseries).T.astype(bold.dtype) @ centred  # (K, V)
    scale = np.where(flat, 0, 1 / np.where(flat, 1, deviation))  # (V,)
    return np.asarray(np.clip(products * scale, -1, 1), dtype=np.float32)


def roi_connectome(timeseries: Float) -> NDArray[np.float32]:
    """ROI-to-ROI connectome: Pearson correlations of all pairs of ROIs.

    Parameters
    ----------
    timeseries : (T, K) float

    Returns
    -------
    (K (K - 1) / 2,) float32
        The upper triangle without the diagonal, row by row, the order of `numpy.triu_indices(K, 1)`.
    """
    standardized = _standardize(timeseries)  # (T, K)
    correlations = standardized.T @ standardized  # (K, K)
    edges = correlations[np.triu_indices(len(correlations), 1)]
    return np.asarray(np.clip(edges, -1, 1), dtype=np.float32)


def windows(n_volumes: int, n_windows: int) -> list[slice]:
    """Cut a run into consecutive windows of equal length; volumes that are left over at the end are not used.

    Raises
    ------
    ValueError
        When a window would have fewer than two volumes.
    """
    length = n_volumes // n_windows
    if length < 2:
        raise ValueError(f"got {n_volumes} volumes for {n_windows} windows, expected at least two volumes in each")
    return [slice(start * length, (start + 1) * length) for start in range(n_windows)]


def _standardize(timeseries: Float) -> NDArray[np.float64]:
    """Columns of mean 0 and length 1, (T, K) float64; constant columns become 0."""
    series = timeseries.astype(np.float64)
    mean = series.mean(axis=0)
    series = series - mean
    length = np.linalg.norm(series, axis=0)
    # a constant column keeps a rounding error of its mean, which is no signal
    flat = length <= 1e-12 * np.sqrt(len(series)) * np.abs(mean)
    return np.asarray(series / np.where(flat, np.inf, length))


def _check_voxels(bold: Float, rois: Float) -> None:
    if bold.ndim != 2 or rois.ndim != 2 or bold.shape[1] != rois.shape[1]:
        raise ValueError(f"got BOLD of shape {bold.shape} and ROIs of shape {rois.shape}, expected (T, V) and (K, V)")
