"""ROIs on the grid: soft maps such as group-ICA components, or the regions of a label atlas."""

from __future__ import annotations

import functools
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from dtg_ray.errors import ConfigError, SubjectError
from dtg_ray.imaging.connectome import mean_weights, regression_weights
from dtg_ray.imaging.grid import Grid
from dtg_ray.imaging.series import open_series, read_image
from dtg_ray.imaging.space import read_masked

Kind = Literal["maps", "labels"]
HINT = "give --rois a 4-D NIfTI image or 3-D ones of soft maps, or a 3-D label atlas"


@dataclass(frozen=True, eq=False)
class Rois:
    """ROIs on the grid.

    Parameters
    ----------
    maps : (K, V) float32
        Soft maps, or one where a voxel belongs to a region and zero elsewhere.
    names : tuple of str
    kind : "maps" or "labels"
        How their time series are made: by spatial regression, or as means.
    """

    maps: NDArray[np.float32]
    names: tuple[str, ...]
    kind: Kind

    @functools.cached_property
    def weights(self) -> NDArray[np.float32]:
        """What a volume is multiplied with to give the ROIs' values, (V, K) float32."""
        weights = regression_weights(self.maps) if self.kind == "maps" else mean_weights(self.maps)
        return weights.astype(np.float32)


def load_rois(paths: Sequence[str], grid: Grid, kind: Literal["auto", "maps", "labels"] = "auto") -> Rois:
    """ROIs at the grid's masked voxels: soft maps by linear interpolation, label atlases by nearest neighbour.

    Parameters
    ----------
    paths : sequence of str
        Soft maps: one 4-D image or several 3-D images, in the order wanted. A label atlas: one 3-D image.
    grid : Grid
    kind : "auto", "maps" or "labels"
        auto: one 3-D image that holds nothing but whole numbers is a label atlas.

    Raises
    ------
    ConfigError
        When an image cannot be read or does not overlap the grid, a map is constant or not finite there, a label has
        no voxel there, or there are fewer than two.
    """
    if not paths:
        raise ConfigError("got no ROI maps, expected at least two", hint=HINT)
    found = [_read(path, grid, "nearest" if kind == "labels" else "linear") for path in paths]
    single = len(found) == 1 and len(found[0]) == 1
    if kind == "labels" or (kind == "auto" and single and _is_atlas(paths[0], grid)):
        if not single:
            raise ConfigError(f"got {sum(map(len, found))} volumes of labels, expected one", hint=HINT)
        return _from_labels(_read(paths[0], grid, "nearest")[0], paths[0])
    rois = np.concatenate(found)
    if len(rois) < 2:
        raise ConfigError(f"got {len(rois)} ROI map in {', '.join(paths)}, expected at least two")
    useless = np.flatnonzero(~np.isfinite(rois).all(axis=1) | (np.ptp(rois, axis=1) == 0))
    if useless.size:
        raise ConfigError(f"ROI maps {(useless + 1).tolist()} of {len(rois)} are constant or not finite on the grid")
    return Rois(rois, _names(paths, len(rois)), "maps")


def _read(path: str, grid: Grid, interpolation: str) -> NDArray[np.float32]:
    """All volumes of an image, (n, V)."""
    try:
        with open_series(path) as series:
            return read_masked(series, grid, interpolation=interpolation)[0]
    except SubjectError as error:
        raise ConfigError(f"ROI maps: {error}", hint=HINT) from error


def _is_atlas(path: str, grid: Grid) -> bool:
    """Whether a 3-D image holds at least two different whole numbers above zero, and nothing else."""
    values = _read(path, grid, "nearest")[0]
    whole = np.isfinite(values).all() and (values == np.rint(values)).all() and (values >= 0).all()
    return bool(whole and len(np.unique(values[values > 0])) > 1)


def _from_labels(values: NDArray[np.float32], path: str) -> Rois:
    labels = np.unique(values[values > 0])
    if not np.isfinite(values).all() or len(labels) < 2 or (labels != np.rint(labels)).any():
        message = f"{path}: got {len(labels)} labels on the grid, expected at least two whole numbers"
        raise ConfigError(message, hint=HINT)
    in_file = np.unique(np.nan_to_num(np.asanyarray(read_image(path).dataobj)))
    if lost := sorted({int(label) for label in in_file if label > 0} - {int(label) for label in labels}):
        raise ConfigError(f"{path}: labels {lost} have no voxel on the grid", hint="a finer --resolution keeps them")
    maps = (values == labels[:, None]).astype(np.float32)
    return Rois(maps, tuple(f"label-{int(label)}" for label in labels), "labels")


def _names(paths: Sequence[str], count: int) -> tuple[str, ...]:
    """File names where there is a file per map, numbers otherwise."""
    if len(paths) == count:
        return tuple(re.sub(r"\.nii(\.gz|\.zst)?$", "", PurePosixPath(path).name) for path in paths)
    return tuple(f"roi-{number:03d}" for number in range(1, count + 1))


def natural_order(paths: Sequence[str]) -> list[str]:
    """Sort names so that component2 comes before component10."""
    return sorted(paths, key=natural_key)


def natural_key(path: str) -> list[int | str]:
    """Numbers in a name count as numbers."""
    return [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", path)]
