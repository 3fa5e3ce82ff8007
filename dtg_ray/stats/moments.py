"""Mean and spread of many maps that are never in memory together."""

from __future__ import annotations

import functools
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, eq=False)
class Moments:
    """What has to be known of some maps to add others to them.

    Parameters
    ----------
    count : int
        Number of maps, n.
    mean : (V,) float64
        Of each voxel; 0 where there is no map.
    squares : (V,) float64
        Sum of squared distances from the mean.
    """

    count: int
    mean: NDArray[np.float64]
    squares: NDArray[np.float64]

    @property
    def deviation(self) -> NDArray[np.float64]:
        """Standard deviation of each voxel, (V,), with n - 1; NaN for fewer than two maps."""
        if self.count < 2:
            return np.full_like(self.squares, np.nan)
        deviation: NDArray[np.float64] = np.sqrt(self.squares / (self.count - 1))
        return deviation


def moments(maps: NDArray[Any]) -> Moments:
    """Moments of the rows of (n, V) maps of any float type; rows of NaN alone are nobody's and are left out."""
    rows = np.asarray(maps, dtype=np.float64)
    rows = rows[~np.isnan(rows).all(axis=1)]
    mean = rows.mean(axis=0) if len(rows) else np.zeros(rows.shape[1])
    return Moments(len(rows), mean, np.square(rows - mean).sum(axis=0))


def merge(first: Moments, second: Moments) -> Moments:
    """Moments of two sets of maps together.

    Chan, Golub and LeVeque (1983), The American Statistician 37:242, eq. 2.1: with d the difference of the means,
    M2 = M2_a + M2_b + d^2 n_a n_b / n, in which nothing large is subtracted.

    Raises
    ------
    ValueError
        When the maps have other voxels.
    """
    if first.mean.shape != second.mean.shape:
        raise ValueError(f"got maps of {second.mean.shape} voxels, expected {first.mean.shape}")
    count = first.count + second.count
    if not count:
        return first
    share = second.count / count
    difference = second.mean - first.mean
    squares = first.squares + second.squares + np.square(difference) * (first.count * share)
    return Moments(count, first.mean + difference * share, squares)


def pooled(parts: Iterable[NDArray[Any]], n_voxels: int) -> Moments:
    """Moments of all rows of some (n, V) arrays, one array after the other: the order decides the last bits."""
    nothing = Moments(0, np.zeros(n_voxels), np.zeros(n_voxels))
    return functools.reduce(merge, map(moments, parts), nothing)
