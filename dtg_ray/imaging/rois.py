"""ROI maps on the grid: soft maps such as group-ICA components, from one 4-D image or several 3-D ones."""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from dtg_ray.errors import ConfigError, SubjectError
from dtg_ray.imaging.grid import Grid
from dtg_ray.imaging.series import open_series, read_masked


def load_rois(paths: Sequence[str], grid: Grid) -> NDArray[np.float32]:
    """Soft ROI maps, sampled at the grid's masked voxels by linear interpolation.

    Parameters
    ----------
    paths : sequence of str
        One 4-D image or several 3-D images, in the order wanted.
    grid : Grid

    Returns
    -------
    (K, V) float32

    Raises
    ------
    ConfigError
        When an image cannot be read, does not overlap the grid, or a map is constant or not finite there.
    """
    maps = []
    for path in paths:
        try:
            with open_series(path) as series:
                vectors, _ = read_masked(series, grid)
        except SubjectError as error:
            raise ConfigError(f"ROI maps: {error}", hint="give --rois a 4-D NIfTI image or 3-D ones") from error
        maps.append(vectors)
    if not maps:
        raise ConfigError("got no ROI maps, expected at least two", hint="give --rois a 4-D NIfTI image or 3-D ones")
    rois = np.concatenate(maps)
    if len(rois) < 2:
        raise ConfigError(f"got {len(rois)} ROI map in {', '.join(paths)}, expected at least two")
    useless = np.flatnonzero(~np.isfinite(rois).all(axis=1) | (np.ptp(rois, axis=1) == 0))
    if useless.size:
        raise ConfigError(f"ROI maps {(useless + 1).tolist()} of {len(rois)} are constant or not finite on the grid")
    return rois


def natural_order(paths: Sequence[str]) -> list[str]:
    """Sort names so that component2 comes before component10."""
    return sorted(paths, key=lambda path: [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", path)])
