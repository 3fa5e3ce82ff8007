"""How well a predicted map is the subject's own: identification and overlap (Serin et al. 2025, Methods).

Maps are (n, V), a row per subject and a column per voxel; `actual` and `predicted` have the same subjects
in the same order.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Float = NDArray[np.floating]

AUC_TOPS = tuple(percent / 100 for percent in range(5, 55, 5))
"""Shares of voxels kept for the area under the Dice curve."""

TIE = 1e-6
"""Correlations this close are equal: single precision cannot tell them apart."""


def subject_correlation(actual: Float, predicted: Float, block: int = 4096) -> NDArray[np.float64]:
    """Pearson correlation of every subject's actual map with every subject's predicted map.

    Parameters
    ----------
    actual, predicted : (n, V) float
        Products of a block of voxels have their precision (at least float32) and are summed in float64.
    block : int
        Voxels per product; the memory needed is about `24 n block + 12 n n` bytes.

    Returns
    -------
    (n, n) float64
        Row = actual, column = predicted; 0 for a map that is the same in all voxels, as in `connectome`.

    Raises
    ------
    ValueError
        When shapes differ or a map holds NaN or infinite values.
    """
    _check_maps(actual, predicted)
    if block < 1:
        raise ValueError(f"got a block of {block} voxels, expected at least 1")
    n, n_voxels = actual.shape
    means = [maps.mean(axis=1, dtype=np.float64, keepdims=True) for maps in (actual, predicted)]  # (n, 1)
    dtype = np.result_type(actual, predicted, np.float32)
    products, a_squares, b_squares = np.zeros((n, n)), np.zeros(n), np.zeros(n)
    for start in range(0, n_voxels, block):
        voxels = slice(start, start + block)
        a, b = (maps[:, voxels] - mean for maps, mean in zip((actual, predicted), means, strict=True))
        a_squares += np.einsum("nv,nv->n", a, a)
        b_squares += np.einsum("nv,nv->n", b, b)
        products += a.astype(dtype) @ b.astype(dtype).T  # (n, n)
    products *= _inverse_length(a_squares, means[0], n_voxels)[:, None]
    products *= _inverse_length(b_squares, means[1], n_voxels)
    return np.clip(products, -1, 1, out=products)


def diagonality_index(matrix: Float) -> float:
    """Mean of the diagonal less mean of the rest: how much better own maps match than those of others.

    Parameters
    ----------
    matrix : (n, n) float
        Of `subject_correlation`.

    Raises
    ------
    ValueError
        When the matrix is not square, is smaller than 2 x 2, or holds NaN.
    """
    return float(subject_diagonality(matrix).mean())


def subject_diagonality(matrix: Float) -> NDArray[np.float64]:
    """What each subject adds to the diagonality index, which is the mean of these: own match less that of others.

    Parameters and errors as `diagonality_index`.

    Returns
    -------
    (n,) float64
        M_ii - mean_{j != i} M_ij: of a subject's actual map with the own predicted map and with those of others.
    """
    _check_matrix(matrix)
    own = np.diagonal(matrix).astype(np.float64)
    others = (matrix.sum(axis=1, dtype=np.float64) - own) / (len(matrix) - 1)
    return np.asarray(own - others)


def normalized_diagonality_index(matrix: Float) -> float:
    """Diagonality index as a share of the mean diagonal, as in the paper.

    NaN when the mean diagonal is not positive: a share of it means nothing. Parameters and errors as
    `diagonality_index`.
    """
    index = diagonality_index(matrix)
    own = float(np.diagonal(matrix).mean(dtype=np.float64))
    return index / own if own > 0 else float("nan")


def identification_accuracy(matrix: Float) -> float:
    """Share of subjects whose actual map is matched best by their own predicted map, the mean of `identified`.

    Parameters and errors as `diagonality_index`.

    Returns
    -------
    float
        In 0..1.
    """
    return float(identified(matrix).mean())


def identified(matrix: Float) -> NDArray[np.float64]:
    """Whether each subject's actual map is matched best by the own predicted map: 1, or 0.

    Predictions that tie for the best (within 1e-6) share the point, the expected value of drawing one of
    them: a model that predicts the same map for everybody scores chance, 1 / n.

    Parameters
    ----------
    matrix : (n, n) float
        Of `subject_correlation`, row = actual.

    Returns
    -------
    (n,) float64
        In 0..1.

    Raises
    ------
    ValueError
        As `diagonality_index`.
    """
    _check_matrix(matrix)
    best = matrix >= matrix.max(axis=1, keepdims=True) - TIE  # (n, n)
    return np.asarray(np.diagonal(best) / best.sum(axis=1))


def dice(predicted: Float, actual: Float, top: float = 0.25) -> NDArray[np.float64]:
    """Dice overlap of the strongest voxels of each subject's predicted and actual map.

    A map keeps the voxels whose absolute value is above the k-th largest, k = int(top * V): k - 1 voxels,
    fewer when values are equal. Dice = 2 |both| / (|predicted| + |actual|), 0 when neither map keeps a
    voxel.

    Parameters
    ----------
    predicted, actual : (n, V) float
    top : float
        Share of the voxels, between 0 and 1.

    Returns
    -------
    (n,) float64
        In 0..1.

    Raises
    ------
    ValueError
        When shapes differ, a map holds NaN or infinite values, or k is less than 1 or more than V - 1.
    """
    return _dice_curve(predicted, actual, (top,))[:, 0]


def dice_auc(predicted: Float, actual: Float) -> NDArray[np.float64]:
    """Area under `dice` over the top 5, 10, .. 50% of voxels, by the trapezoidal rule with a step of 0.05.

    Parameters, shapes and errors as `dice`; the largest possible value is 0.45.
    """
    return np.asarray(np.trapezoid(_dice_curve(predicted, actual, AUC_TOPS), dx=0.05, axis=1))


def _dice_curve(predicted: Float, actual: Float, tops: tuple[float, ...]) -> NDArray[np.float64]:
    """Dice overlap of each subject at each share of voxels, (n, len(tops))."""
    _check_maps(predicted, actual)
    n, n_voxels = predicted.shape
    ranks = [int(top * n_voxels) for top in tops]
    if min(ranks) < 1 or max(ranks) >= n_voxels:
        raise ValueError(f"got the top {tops} of {n_voxels} voxels, expected to keep from 1 to {n_voxels - 1}")
    curve = np.empty((n, len(tops)))
    for subject in range(n):
        curve[subject] = _overlaps(np.abs(predicted[subject]), np.abs(actual[subject]), ranks)
    return curve


def _overlaps(a: Float, b: Float, ranks: list[int]) -> NDArray[np.float64]:
    """Dice overlap of absolute values (V,) above their k-th largest, for every k in `ranks`, which ascend."""
    first, second = _levels(a, ranks), _levels(b, ranks)
    n_kept = _counts(first, len(ranks)) + _counts(second, len(ranks))
    n_both = _counts(np.maximum(first, second), len(ranks))
    return np.divide(2 * n_both, n_kept, out=np.zeros(len(ranks)), where=n_kept > 0)


def _counts(levels: NDArray[np.uint8], n_ranks: int) -> NDArray[np.int64]:
    """How many voxels are kept at each rank."""
    return np.cumsum(np.bincount(levels, minlength=n_ranks + 1)[:n_ranks])


def _levels(values: Float, ranks: list[int]) -> NDArray[np.uint8]:
    """The first of the ranks at which a voxel is kept, its number, (V,); `len(ranks)` where at none."""
    if values.dtype == np.float16:  # not negative, so ordered as their bits are: counting takes the place of sorting
        bits = values.view(np.uint16)
        from_above = np.cumsum(np.bincount(bits, minlength=1)[::-1])
        limits = len(from_above) - 1 - np.searchsorted(from_above, ranks)
        return _number_above(limits, np.arange(len(from_above)))[bits]
    position = np.subtract(len(values), ranks)
    return _number_above(np.partition(values, position)[position], values)


def _number_above(limits: NDArray[Any], values: NDArray[Any]) -> NDArray[np.uint8]:
    """How many of some limits, which descend, are not below each value."""
    return (len(limits) - np.searchsorted(limits[::-1], values)).astype(np.uint8)


def _inverse_length(squares: NDArray[np.float64], mean: NDArray[np.float64], n_voxels: int) -> NDArray[np.float64]:
    """1 / length of centred maps, (n,); 0 for a map that is constant but for the rounding of its mean."""
    length = np.sqrt(squares)
    flat = length <= 1e-12 * np.sqrt(n_voxels) * np.abs(mean[:, 0])
    return np.where(flat, 0, 1 / np.where(flat, 1, length))


def _check_maps(first: NDArray[Any], second: NDArray[Any]) -> None:
    if first.ndim != 2 or first.shape != second.shape or first.size == 0:
        raise ValueError(f"got maps of shapes {first.shape} and {second.shape}, expected the same (n, V)")
    for maps in (first, second):
        bad = [row for row, values in enumerate(maps) if not np.isfinite(values).all()]
        if bad:
            raise ValueError(f"got NaN or infinite values in the maps of rows {bad[:5]}, expected finite numbers")


def _check_matrix(matrix: NDArray[Any]) -> None:
    if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1] or len(matrix) < 2:
        raise ValueError(f"got a matrix of shape {matrix.shape}, expected (n, n) of at least 2 subjects")
    if not np.isfinite(matrix).all():
        raise ValueError("got NaN or infinite values in the matrix, expected finite correlations")
