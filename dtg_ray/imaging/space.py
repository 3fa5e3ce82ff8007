"""From the space of an image to the study's: by its affine, or by a warp; and what lies outside the field of view."""

from __future__ import annotations

import itertools

import numpy as np
from nibabel.affines import apply_affine
from numpy.typing import NDArray

from dtg_ray.errors import GeometryError, SpaceError, TableError
from dtg_ray.imaging.grid import Grid
from dtg_ray.imaging.sampling import Sampler
from dtg_ray.imaging.scan import Scan
from dtg_ray.imaging.series import Header, Series, open_series, read_sampled


def place(
    series: Series, scan: Scan, grid: Grid, *, minimum_coverage: float = 0, interpolation: str = "linear"
) -> Sampler:
    """The operator from an image's raw voxels to the grid's masked voxels.

    Parameters
    ----------
    series : Series
        The open image.
    scan : Scan
        Its `warp` is used where there is one, its affine otherwise; voxels outside its `mask` count as outside.
    grid : Grid
    minimum_coverage : float
        Share of the grid's mask that has to lie inside the image.
    interpolation : "linear" or "nearest"
        Used only where the image's voxels are not those of the grid.

    Raises
    ------
    SpaceError
        When too little of the grid's mask is covered, or the image's mask has other voxels than the image.
    GeometryError
        When neither the header nor a warp says where the image lies.
    MissingFileError, CorruptFileError, TableError
        When warp, mask or matrix cannot be read.
    """
    if scan.lost_companion:
        raise TableError(f"got {scan.lost_companion} without a warp, expected both", path=series.path)
    sampler = _sampler(series, scan, grid, interpolation)
    if scan.mask:
        sampler = sampler.masked(_read_mask(scan.mask, series))
    if sampler.coverage <= max(minimum_coverage, 0) and sampler.coverage < 1:
        raise SpaceError(
            f"got an image of shape {series.header.shape} that covers {sampler.coverage:.0%} of the mask, "
            f"expected more than {max(minimum_coverage, 0):.0%}: another space or field of view?",
            path=series.path,
        )
    return sampler


def read_masked(
    series: Series, grid: Grid, *, minimum_coverage: float = 0, interpolation: str = "linear"
) -> tuple[NDArray[np.float32], float]:
    """All volumes of an image that lies in the study's space, on the grid's masked voxels.

    Parameters
    ----------
    series : Series
    grid : Grid
    minimum_coverage, interpolation
        See `place`.

    Returns
    -------
    vectors : (T, V) float32
        Scaled values; 0 outside the field of view.
    coverage : float
        Share of the mask inside the image.
    """
    sampler = place(series, Scan(series.path), grid, minimum_coverage=minimum_coverage, interpolation=interpolation)
    return read_sampled(series, sampler), sampler.coverage


def _sampler(series: Series, scan: Scan, grid: Grid, interpolation: str) -> Sampler:
    header = series.header
    if scan.warp:
        from dtg_ray.imaging.warps import source_voxels  # fslpy takes a while to import

        return Sampler.at(source_voxels(scan, header, grid), header.shape, interpolation)
    if not header.placed:
        raise GeometryError(
            "got a header with neither sform nor qform, expected one that says where the image lies", path=series.path
        )
    return Sampler.affine(header.shape, header.affine, grid, interpolation)


def _read_mask(path: str, series: Series) -> NDArray[np.generic]:
    """A mask on the voxels of an image, flat in Fortran order."""
    with open_series(path) as mask:
        if mask.header.shape[:3] != series.header.shape[:3] or mask.header.n_volumes != 1:
            raise SpaceError(
                f"got a mask of shape {mask.header.shape}, expected that of {series.path}: {series.header.shape[:3]}",
                path=path,
            )
        if mask.header.placed and series.header.placed and _shift(mask.header, series.header) > 0.5:
            raise SpaceError(f"got a mask that lies elsewhere, or the other way round, than {series.path}", path=path)
        (volume,) = mask.volumes()
    if not np.nan_to_num(volume).any():
        raise SpaceError("got a mask without a single voxel, expected the brain", path=path)
    return volume


def _shift(one: Header, other: Header) -> float:
    """How far apart two images of one shape place their corners, in voxels, at most."""
    corners = np.array(list(itertools.product(*((0, length - 1) for length in one.shape[:3]))))
    apart = apply_affine(np.linalg.inv(other.affine) @ one.affine, corners) - corners
    return float(np.abs(apart).max())
