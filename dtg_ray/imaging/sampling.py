"""From the voxels of an image straight to the masked voxels of the grid, by one operator that is made once."""

from __future__ import annotations

import functools
import itertools
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from dtg_ray.imaging.grid import Grid

ON_VOXEL = 1e-3
"""Closer than this (in voxels) to a voxel's centre is on it."""


@dataclass(frozen=True, eq=False)
class Sampler:
    """A linear map from the raw voxels of an image to the V masked voxels of a grid.

    Parameters
    ----------
    index : (V,) int64
        For grids whose voxels are voxels of the image: which one, in Fortran order of its box.
    matrix : (V, X*Y*Z) sparse float32, or None
        Otherwise: the weights of the voxels around each point.
    inside : (V,) bool
        Which masked voxels lie in the image. The others get 0.
    """

    index: NDArray[np.int64]
    matrix: sparse.csr_array | None
    inside: NDArray[np.bool_]

    @classmethod
    def affine(
        cls, shape: tuple[int, ...], affine: NDArray[np.float64], grid: Grid, interpolation: str = "linear"
    ) -> Sampler:
        """Sample an image with an affine at the grid's voxel centres.

        Images on the grid's lattice (cropped, padded, or with flipped axes) are only indexed, never interpolated.

        Parameters
        ----------
        shape : (X, Y, Z)
            Box of the image.
        affine : (4, 4) float64
            Its voxels to mm.
        grid : Grid
        interpolation : "linear" or "nearest"

        Raises
        ------
        ValueError
            For another interpolation.
        """
        to_voxels = np.linalg.inv(affine) @ grid.affine
        voxels = np.argwhere(grid.mask) @ to_voxels[:3, :3].T + to_voxels[:3, 3]  # (V, 3)
        return cls.at(voxels, shape, interpolation)

    @classmethod
    def at(cls, voxels: NDArray[np.float64], shape: tuple[int, ...], interpolation: str = "linear") -> Sampler:
        """Sample an image at any places.

        Parameters
        ----------
        voxels : (V, 3) float64
            Where each masked voxel of the grid lies, in voxels of the image; NaN where nowhere.
        shape : (X, Y, Z)
            Box of the image. Its outermost voxels reach half a voxel beyond their centres.
        interpolation : "linear" or "nearest"

        Raises
        ------
        ValueError
            For another interpolation.
        """
        if interpolation not in {"linear", "nearest"}:
            raise ValueError(f"got interpolation {interpolation!r}, expected 'linear' or 'nearest'")
        box = np.asarray(shape[:3])
        inside = np.asarray(((voxels >= -0.5) & (voxels <= box - 0.5)).all(axis=1))
        within = np.clip(np.where(inside[:, None], voxels, 0), 0, box - 1)  # (V, 3)
        nearest = np.clip(np.rint(within), 0, box - 1).astype(np.int64)
        index = _fortran_index(nearest, box)
        on_lattice = np.abs(voxels - nearest)[inside].max(initial=0) < ON_VOXEL
        if interpolation == "nearest" or on_lattice:
            return cls(index, None, inside)
        return cls(index, _trilinear(within, inside, box), inside)

    def masked(self, mask: NDArray[np.generic]) -> Sampler:
        """The same without what a mask of the image leaves out: neither values nor NaN from there come in.

        A point is inside where its nearest voxel is; the voxels of the mask around it share the weight of the others.

        Parameters
        ----------
        mask : (X*Y*Z,)
            In Fortran order; zero and NaN are outside.
        """
        brain = np.nan_to_num(mask) != 0
        inside = self.inside & brain[self.index]
        if self.matrix is None:
            return replace(self, inside=inside)
        matrix = self.matrix.tocoo()
        kept = brain[matrix.col] & inside[matrix.row]
        rows, columns, weights = matrix.row[kept], matrix.col[kept], matrix.data[kept]
        total = np.bincount(rows, weights, minlength=len(inside))  # never 0: the nearest voxel has an eighth or more
        entries = ((weights / total[rows]).astype(np.float32), (rows, columns))
        return replace(self, matrix=sparse.csr_array(entries, shape=matrix.shape), inside=inside)

    @functools.cached_property
    def outside(self) -> NDArray[np.int64]:
        """Which masked voxels get 0, (n,) int64."""
        return np.flatnonzero(~self.inside)

    @property
    def coverage(self) -> float:
        """Share of the masked voxels that lie in the image, 0..1."""
        return float(self.inside.mean())

    def __call__(self, volume: NDArray[np.generic], out: NDArray[np.float32]) -> NDArray[np.float32]:
        """Sample one raw volume: flat (X*Y*Z,) in Fortran order -> (V,) float32, into `out`."""
        if self.matrix is None:
            out[:] = volume[self.index]
            out[self.outside] = 0
        else:
            out[:] = self.matrix @ volume.astype(np.float32)
        return out


def _fortran_index(voxels: NDArray[np.int64], box: NDArray[np.int64]) -> NDArray[np.int64]:
    """(N, 3) voxels -> (N,) positions in the box as NIfTI stores it."""
    return np.asarray(voxels[:, 0] + box[0] * (voxels[:, 1] + box[1] * voxels[:, 2]))


def _trilinear(voxels: NDArray[np.float64], inside: NDArray[np.bool_], box: NDArray[np.int64]) -> sparse.csr_array:
    """Weights of the eight voxels around each point, (V, X*Y*Z) float32; empty rows outside."""
    low = np.floor(voxels).astype(np.int64)
    fraction = voxels - low  # (V, 3) in 0..1, 0 on the last voxel of an axis, so that none beyond it is used
    rows, columns, weights = [], [], []
    for corner in itertools.product((0, 1), repeat=3):
        weight = np.where(corner, fraction, 1 - fraction).prod(axis=1)
        used = np.flatnonzero(inside & (weight > 1e-7))
        rows.append(used)
        columns.append(_fortran_index(low[used] + corner, box))
        weights.append(weight[used].astype(np.float32))
    entries = (np.concatenate(weights), (np.concatenate(rows), np.concatenate(columns)))
    return sparse.csr_array(entries, shape=(len(voxels), int(box.prod())))
