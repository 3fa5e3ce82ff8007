"""Task-contrast maps: a 3-D z-map on disk to a vector on the grid."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from dtg_ray.errors import ShapeError, ValueRangeError
from dtg_ray.float16 import LARGEST
from dtg_ray.imaging.grid import Grid
from dtg_ray.imaging.scan import Scan
from dtg_ray.imaging.series import open_series, read_sampled
from dtg_ray.imaging.space import place


def read_contrast(scan: Scan, grid: Grid, *, minimum_coverage: float = 0.5) -> NDArray[np.float32]:
    """Read a contrast map.

    Parameters
    ----------
    scan : Scan
        3-D NIfTI (a 4-D one with one volume will do), with a warp where it is in native space.
    grid : Grid
    minimum_coverage : float
        Share of the mask the image has to cover.

    Returns
    -------
    (V,) float32
        0 outside the field of view, and where the map is NaN, as long as enough is left.

    Raises
    ------
    MissingFileError, CorruptFileError, ShapeError, SpaceError, ValueRangeError
        Each naming the file.
    """
    path = scan.image
    with open_series(path) as series:
        if series.header.n_volumes != 1:
            raise ShapeError(f"got an image of shape {series.header.shape}, expected a 3-D map", path=path)
        sampler = place(series, scan, grid, minimum_coverage=minimum_coverage)
        vector = read_sampled(series, sampler)[0]
    # SPM and others mark what lies outside the brain by NaN
    vector[np.isnan(vector)] = 0 if minimum_coverage <= np.isfinite(vector).mean() else np.nan
    if not np.isfinite(vector).all() or np.abs(vector).max() > LARGEST:
        bad = int((~np.isfinite(vector) | (np.abs(vector) > LARGEST)).sum())
        raise ValueRangeError(f"got {bad} values that are not finite or beyond {LARGEST:g}, expected none", path=path)
    if np.ptp(vector) == 0:
        raise ValueRangeError("got a map that is constant inside the mask, expected a contrast", path=path)
    return vector
