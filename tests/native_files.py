"""Images in native space with FNIRT warps to them."""

import nibabel as nib
import numpy as np
from fsl.data.image import Image
from fsl.transform.affine import invert, transform

from cohort_files import GRID

NATIVE = (11, 13, 9)


def native_image(path, flip=False, seed=0, shape=NATIVE):
    """A native image at an angle, over the middle of the grid; `flip` stores it with a positive determinant."""
    affine = np.array([[-14.0, 1, 0, 70], [0.5, 15, 2, -105], [0, -1, 14, -40], [0, 0, 0, 1]])
    data = np.random.default_rng(seed).normal(size=shape).astype(np.float32)
    if flip:
        data, affine = (
            data[::-1],
            affine @ np.array([[-1, 0, 0, shape[0] - 1], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]]),
        )
    image = nib.Nifti1Image(data, affine)
    image.header.set_sform(affine, code=1)
    image.to_filename(path)
    return str(path)


def displacement(path, native, absolute=False, intent=2006, placed=True):
    """A smooth warp field from the grid's box to a native image, in FSL coordinates."""
    reference = Image(nib.Nifti1Image(np.zeros(GRID.shape, np.uint8), GRID.affine))
    source = Image(native)
    voxels = np.indices(GRID.shape).reshape(3, -1).T.astype(float)
    bent = transform(voxels, GRID.affine) + 15 * np.sin(voxels / 3)  # mm
    places = transform(transform(bent, invert(source.voxToWorldMat)), source.getAffine("voxel", "fsl"))
    if not absolute:
        places -= transform(voxels, reference.getAffine("voxel", "fsl"))
    return write_field(path, places.reshape(*GRID.shape, 3), GRID.affine if placed else None, intent)


def write_field(path, values, affine, intent=2006):
    """A warp field of 2 mm or, where it has an affine, of the voxel size of that; returns its path as text."""
    image = nib.Nifti1Image(values.astype(np.float32), affine)  # without an affine nibabel sets neither sform nor qform
    image.header["intent_code"] = intent
    image.header.set_zooms((2, 2, 2, 1) if affine is None else (*nib.affines.voxel_sizes(affine), 1))
    image.to_filename(path)
    header = nib.load(path).header
    assert bool(header["sform_code"] or header["qform_code"]) == (affine is not None)
    return str(path)
