"""The common space of a study: a box of voxels, its affine, and the brain mask whose voxels make up every vector."""

from __future__ import annotations

import functools
import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from nibabel.nifti1 import Nifti1Image

MNI_BOX_MM = (150.0, 184.0, 154.0)
"""Distance between the first and the last voxel centre of the 2 mm box of DeepTaskGen (76 x 93 x 78), in mm."""
MNI_ORIGIN_MM = (76.0, -108.0, -72.0)


@dataclass(frozen=True, eq=False)
class Grid:
    """A box of voxels with an affine and a mask.

    A *volume* has the shape of the box; a *vector* holds the masked voxels only, in C order of the box.

    Parameters
    ----------
    affine : (4, 4) float64
        Voxel indices to mm (RAS+ world coordinates).
    mask : (X, Y, Z) bool
        The voxels of the brain.
    """

    affine: NDArray[np.float64]
    mask: NDArray[np.bool_]

    def __post_init__(self) -> None:
        """Check shapes and freeze the arrays."""
        if self.mask.ndim != 3 or self.affine.shape != (4, 4):
            raise ValueError(
                f"got a mask of shape {self.mask.shape} and an affine of shape {self.affine.shape}, "
                "expected three dimensions and (4, 4)"
            )
        object.__setattr__(self, "affine", np.array(self.affine, dtype=np.float64))
        object.__setattr__(self, "mask", np.array(self.mask, dtype=bool))
        if not self.mask.any():
            raise ValueError("got a mask without a single voxel, expected at least one")
        self.affine.flags.writeable = self.mask.flags.writeable = False

    @classmethod
    def mni152(cls, resolution: float = 2) -> Grid:
        """The MNI152 grid of DeepTaskGen: at 2 mm a box of 76x93x78 with 235,375 voxels in the mask.

        The mask is nilearn's MNI152 brain mask (ICBM 152 2009a, template > 0.2) resampled by nearest neighbour;
        other resolutions keep the first voxel centre at (76, -108, -72) mm.

        Parameters
        ----------
        resolution : float
            Edge of a voxel in mm.
        """
        affine = np.diag([-resolution, resolution, resolution, 1.0])
        affine[:3, 3] = MNI_ORIGIN_MM
        return cls(affine, _template_mask("brain", float(resolution)))

    @classmethod
    def from_mask(cls, image: Nifti1Image) -> Grid:
        """The grid of a mask image: its box, its affine, its voxels that are neither zero nor NaN."""
        return cls(np.asarray(image.affine), np.nan_to_num(np.asanyarray(image.dataobj)) != 0)

    @property
    def shape(self) -> tuple[int, int, int]:
        """Shape of the box."""
        x, y, z = self.mask.shape
        return x, y, z

    @property
    def n_voxels(self) -> int:
        """Number of voxels in the mask, the length of every vector."""
        return int(self.flat_index.size)

    @functools.cached_property
    def flat_index(self) -> NDArray[np.int64]:
        """Position in the raveled box of each masked voxel, (V,) int64."""
        return np.flatnonzero(self.mask)

    @functools.cached_property
    def coordinates(self) -> NDArray[np.float32]:
        """Centre of each masked voxel, (V, 3) float32, mm."""
        voxels = np.argwhere(self.mask)
        return np.asarray(voxels @ self.affine[:3, :3].T + self.affine[:3, 3], dtype=np.float32)

    @functools.cached_property
    def fingerprint(self) -> str:
        """Hash of affine, shape and mask: two grids with the same fingerprint hold the same vectors."""
        digest = hashlib.sha256(np.asarray(self.shape, dtype="<i8").tobytes())
        digest.update(np.round(self.affine, 6).astype("<f8").tobytes())
        digest.update(np.packbits(self.mask).tobytes())
        return digest.hexdigest()[:16]

    def vectorize(self, volume: NDArray[Any]) -> NDArray[Any]:
        """Masked voxels of a volume: (..., X, Y, Z) -> (..., V), dtype kept.

        Raises
        ------
        ValueError
            When the last three axes are not the box.
        """
        if volume.shape[-3:] != self.shape:
            raise ValueError(f"got a volume of shape {volume.shape}, expected (..., {self.shape})")
        return volume.reshape(*volume.shape[:-3], -1)[..., self.flat_index]

    def volume(self, vector: NDArray[Any], fill: float = 0) -> NDArray[Any]:
        """Put masked voxels back into the box: (..., V) -> (..., X, Y, Z), `fill` outside the mask, dtype kept.

        Raises
        ------
        ValueError
            When the last axis is not the number of masked voxels.
        """
        if vector.shape[-1:] != (self.n_voxels,):
            raise ValueError(f"got vectors of shape {vector.shape}, expected (..., {self.n_voxels})")
        box = np.full((*vector.shape[:-1], int(np.prod(self.shape))), fill, dtype=vector.dtype)
        box[..., self.flat_index] = vector
        return box.reshape(*vector.shape[:-1], *self.shape)

    def image(self, vector: NDArray[Any]) -> Nifti1Image:
        """A vector as a NIfTI image on this grid: (V,) -> float32 Nifti1Image."""
        import nibabel as nib

        return nib.Nifti1Image(self.volume(np.asarray(vector, dtype=np.float32)), self.affine)

    def grey_matter(self) -> NDArray[np.bool_]:
        """Which masked voxels are grey matter, (V,) bool.

        nilearn's MNI152 grey-matter mask (template > 0.2, closed), read at the centre of each voxel by nearest
        neighbour. Only meaningful for grids in MNI space.
        """
        template, affine = _template("grey_matter")
        return _nearest(template, affine, self.coordinates)


@functools.lru_cache(maxsize=2)
def _template(kind: str) -> tuple[NDArray[np.bool_], NDArray[np.float64]]:
    """A 1 mm MNI152 mask shipped with nilearn, with its affine."""
    from nilearn.datasets import load_mni152_brain_mask, load_mni152_gm_mask

    image = load_mni152_brain_mask(resolution=1) if kind == "brain" else load_mni152_gm_mask(resolution=1)
    return np.asanyarray(image.dataobj) != 0, np.asarray(image.affine)


@functools.lru_cache(maxsize=8)
def _template_mask(kind: str, resolution: float) -> NDArray[np.bool_]:
    """The template mask on the MNI box of a resolution, (X, Y, Z) bool."""
    shape = [int(length / resolution + 1e-6) + 1 for length in MNI_BOX_MM]
    voxels = np.indices(shape).reshape(3, -1).T
    coordinates = voxels * [-resolution, resolution, resolution] + MNI_ORIGIN_MM
    template, affine = _template(kind)
    return _nearest(template, affine, coordinates).reshape(shape)


def _nearest(volume: NDArray[np.bool_], affine: NDArray[np.float64], coordinates: NDArray[Any]) -> NDArray[np.bool_]:
    """Values of a volume at the voxels nearest to (N, 3) coordinates in mm; False outside."""
    inverse = np.linalg.inv(affine)
    voxels = np.rint(coordinates @ inverse[:3, :3].T + inverse[:3, 3]).astype(np.int64)
    inside = ((voxels >= 0) & (voxels < volume.shape)).all(axis=1)
    values = np.zeros(len(voxels), dtype=bool)
    values[inside] = volume[tuple(voxels[inside].T)]
    return values
