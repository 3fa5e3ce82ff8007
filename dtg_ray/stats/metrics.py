"""How well predictions agree with what was measured: a figure per row, so that all permutations are one call.

Every function takes `actual` (..., n) and `predicted` (..., n), whose leading axes broadcast, and returns
(...) float64. NaN in a row makes the figure of that row NaN.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

CONSTANT = 1e-13
"""Deviation relative to the mean up to which a row is a constant with rounding errors."""

Figures = NDArray[np.float64]


def pearson(actual: ArrayLike, predicted: ArrayLike) -> Figures:
    """Pearson correlation of each row; NaN where either side is constant.

    Parameters
    ----------
    actual, predicted : (..., n) float

    Returns
    -------
    (...) float64
        In -1..1.

    Raises
    ------
    ValueError
        When the shapes do not broadcast, the last axes differ, or n is less than 2.
    """
    actual, predicted = _rows(actual, predicted)
    a, a_length = _centred(actual)
    b, b_length = _centred(predicted)
    products = np.einsum("...n,...n->...", a, b)
    length = a_length * b_length
    correlation = np.divide(products, length, out=np.full(products.shape, np.nan), where=length > 0)
    return np.asarray(np.clip(correlation, -1, 1))


def r2(actual: ArrayLike, predicted: ArrayLike) -> Figures:
    """Explained variance of each row, 1 - SS_residual / SS_total; NaN where `actual` is constant.

    Negative when the prediction is worse than the mean of `actual`. Shapes and errors as `pearson`.
    """
    actual, predicted = _rows(actual, predicted)
    total = _centred(actual)[1] ** 2
    residual = ((actual - predicted) ** 2).sum(axis=-1)
    total = np.broadcast_to(total, residual.shape)
    share = np.divide(residual, total, out=np.full(residual.shape, np.nan), where=total > 0)
    return np.asarray(1 - share)


def mae(actual: ArrayLike, predicted: ArrayLike) -> Figures:
    """Mean absolute error of each row, in the units of the target. Shapes and errors as `pearson`."""
    actual, predicted = _rows(actual, predicted)
    return np.asarray(np.abs(actual - predicted).mean(axis=-1))


def mse(actual: ArrayLike, predicted: ArrayLike) -> Figures:
    """Mean squared error of each row, in squared units of the target. Shapes and errors as `pearson`."""
    actual, predicted = _rows(actual, predicted)
    return np.asarray(((actual - predicted) ** 2).mean(axis=-1))


def regression_figures(actual: ArrayLike, predicted: ArrayLike) -> dict[str, Figures]:
    """r, r2, mae and mse of each row. Shapes and errors as `pearson`."""
    return {
        name: figure(actual, predicted) for name, figure in (("r", pearson), ("r2", r2), ("mae", mae), ("mse", mse))
    }


def _rows(actual: ArrayLike, predicted: ArrayLike) -> tuple[Figures, Figures]:
    a, b = np.asarray(actual, dtype=np.float64), np.asarray(predicted, dtype=np.float64)
    got = f"got actual of shape {a.shape} and predicted of shape {b.shape}"
    if a.ndim < 1 or b.ndim < 1 or a.shape[-1] != b.shape[-1] or a.shape[-1] < 2:
        raise ValueError(f"{got}, expected (..., n) with the same n of at least 2")
    try:
        np.broadcast_shapes(a.shape, b.shape)
    except ValueError as error:
        raise ValueError(f"{got}, expected leading axes that broadcast") from error
    return a, b


def _centred(rows: Figures) -> tuple[Figures, Figures]:
    """Rows less their mean, and their length: 0 where nothing but rounding is left."""
    mean = rows.mean(axis=-1, keepdims=True)
    centred = rows - mean
    length = np.linalg.norm(centred, axis=-1)
    flat = length <= CONSTANT * np.sqrt(rows.shape[-1]) * np.abs(mean[..., 0])
    return centred, np.where(flat, 0, length)
