"""Task-contrast maps: a 3-D z-map on disk to a vector on the grid."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from dtg_ray.errors import ShapeError, ValueRangeError
from dtg_ray.imaging.grid import Grid
from dtg_ray.imaging.series import open_series, read_masked

LARGEST = float(np.finfo(np.float16).max)


def read_contrast(path: str, grid: Grid, *, minimum_coverage: float = 0.5) -> NDArray[np.float32]:
    """Read a contrast map.

    Parameters
    ----------
    path : str
        3-D NIfTI (a 4-D one with one volume will do), local or s3://.
    grid : Grid
    minimum_coverage : float
        Share of the mask the image has to cover.

    Returns
    -------
    (V,) float32
        0 outside the field of view.

    Raises
    ------
    MissingFileError, CorruptFileError, ShapeError, ValueRangeError
        Each naming the file.
    """
    with open_series(path) as series:
        if series.header.n_volumes != 1:
            raise ShapeError(f"got an image of shape {series.header.shape}, expected a 3-D map", path=path)
        vectors, _ = read_masked(series, grid, minimum_coverage=minimum_coverage)
    vector = vectors[0]
    if not np.isfinite(vector).all() or np.abs(vector).max() > LARGEST:
        bad = int((~np.isfinite(vector) | (np.abs(vector) > LARGEST)).sum())
        raise ValueRangeError(f"got {bad} values that are not finite or beyond {LARGEST:g}, expected none", path=path)
    if np.ptp(vector) == 0:
        raise ValueRangeError("got a map that is constant inside the mask, expected a contrast", path=path)
    return vector
