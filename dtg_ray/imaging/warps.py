"""FNIRT warps: where each voxel of the grid lies in a native image.

All of FSL's transforms live in FSL's coordinates: voxel indices times voxel sizes, x flipped where the affine has a
positive determinant. A warp leads from the reference (the study's space) to the source (the native image):

    displacement field  source = reference + field(reference)   (or field(reference) alone where it is absolute)
    coefficient file    source = premat^-1 reference + splines(reference)
    extra premat        source = premat^-1 (what the warp says), as FSL's `applywarp --premat`

fslpy reads the files and evaluates the splines.
"""

from __future__ import annotations

from typing import Any

import nibabel as nib
import numpy as np
from nibabel.affines import apply_affine
from nibabel.spatialimages import SpatialImage
from numpy.typing import NDArray

from dtg_ray.errors import CorruptFileError, SpaceError, TableError
from dtg_ray.imaging.grid import Grid
from dtg_ray.imaging.sampling import Sampler
from dtg_ray.imaging.scan import Scan
from dtg_ray.imaging.series import Header, read_image
from dtg_ray.imaging.streams import read_all

DISPLACEMENTS, COEFFICIENTS = 2006, (2007, 2008, 2009)
"""NIfTI intent codes of FNIRT: displacement field; cubic spline, cosine and quadratic spline coefficients."""
MNI_2MM_BOX, MNI_2MM_AFFINE = (91, 109, 91), np.array([[-2.0, 0, 0, 90], [0, 2, 0, -126], [0, 0, 2, -72], [0, 0, 0, 1]])
"""FSL's MNI152_T1_2mm, for which warps to standard space are made."""


def source_voxels(scan: Scan, header: Header, grid: Grid) -> NDArray[np.float64]:
    """Where each masked voxel of the grid lies in a native image.

    Parameters
    ----------
    scan : Scan
        With a `warp`, and perhaps `premat` and `reference`.
    header : Header
        Of the native image.
    grid : Grid
        In the space of the warp's reference.

    Returns
    -------
    (V, 3) float64
        In voxels of the image; NaN outside the warp's field of view.

    Raises
    ------
    MissingFileError, CorruptFileError, SpaceError, TableError
        Each naming the file.
    """
    source = _blank(header.shape, header.affine)
    source.header["pixdim"][1:4] = header.zooms
    field, to_voxels = _absolute_field(scan, source)
    sampler = Sampler.affine(field.shape, to_voxels, grid)
    places = np.empty((grid.n_voxels, 3), dtype=np.float64)
    part = np.empty(grid.n_voxels, dtype=np.float32)
    for axis in range(3):
        places[:, axis] = sampler(np.asarray(field[..., axis], dtype=np.float32).ravel(order="F"), out=part)
    places[sampler.outside] = np.nan
    if scan.premat:
        places = apply_affine(np.linalg.inv(read_matrix(scan.premat)), places)
    return np.asarray(apply_affine(np.linalg.inv(fsl_coordinates(header)), places))


def fsl_coordinates(header: Header) -> NDArray[np.float64]:
    """(4, 4): voxels of an image to its FSL coordinates, mm."""
    matrix = np.diag([*header.zooms, 1.0])
    if np.linalg.det(header.affine[:3, :3]) > 0:
        matrix[0, 0], matrix[0, 3] = -header.zooms[0], header.zooms[0] * (header.shape[0] - 1)
    return matrix


def read_matrix(uri: str) -> NDArray[np.float64]:
    """A FLIRT matrix, (4, 4), from its text file.

    Raises
    ------
    TableError
        When it is not four rows of four numbers, or cannot be inverted.
    """
    try:
        matrix = np.array([[float(word) for word in line.split()] for line in _lines(uri)])
    except ValueError as error:
        raise TableError(
            f"got a matrix that is none ({error}), expected four rows of four numbers", path=uri
        ) from error
    if matrix.shape != (4, 4) or not np.isfinite(matrix).all() or abs(np.linalg.det(matrix)) < 1e-9:
        raise TableError(f"got a matrix of shape {matrix.shape}, expected one of 4 x 4 that can be inverted", path=uri)
    return matrix


def _lines(uri: str) -> list[str]:
    text = read_all(uri, 2**20).decode(errors="replace")
    return [line for line in text.splitlines() if line.strip()]


def _absolute_field(scan: Scan, source: SpatialImage) -> tuple[NDArray[np.floating], NDArray[np.float64]]:
    """The FSL coordinates in the source of every voxel of the warp's reference, (X, Y, Z, 3), and its affine."""
    from fsl.data.image import Nifti
    from fsl.transform import nonlinear
    from fsl.transform.fnirt import readFnirt

    image = read_image(scan.warp)
    if len(image.shape) != 4 or image.shape[3] != 3:
        raise SpaceError(f"got a warp of shape {image.shape}, expected (X, Y, Z, 3)", path=scan.warp)
    reference = _reference(scan, image)
    try:
        known = int(image.header["intent_code"]) in {DISPLACEMENTS, *COEFFICIENTS}
        intent = None if known else DISPLACEMENTS  # as FSL takes a field that does not say what it is
        field = readFnirt(image, Nifti(source.header), Nifti(reference.header), intent=intent)
        if isinstance(field, nonlinear.CoefficientField):
            field = field.asDeformationField(defType="absolute")
        values = field.data if field.absolute else nonlinear.convertDeformationType(field, "absolute")
    except (ValueError, NotImplementedError) as error:
        raise CorruptFileError(f"got a warp that cannot be used ({error}), expected FNIRT's", path=scan.warp) from error
    if not np.isfinite(values).all():
        raise CorruptFileError("got a warp with NaN or infinite values, expected none", path=scan.warp)
    return values, np.asarray(field.voxToWorldMat)


def _reference(scan: Scan, warp: SpatialImage) -> Any:
    """The image a warp was made for: the one given, the one its header describes, or MNI152 at 2 mm."""
    if scan.reference:
        return read_image(scan.reference)
    header = warp.header
    if int(header["intent_code"]) in COEFFICIENTS:  # their header tells box and voxel size of the reference
        box = tuple(round(float(header[f"qoffset_{axis}"])) for axis in "xyz")
        zooms = [float(header[f"intent_p{number}"]) for number in (1, 2, 3)]
    else:
        box, zooms = warp.shape[:3], list(header["pixdim"][1:4])
        if int(header["sform_code"]) or int(header["qform_code"]):
            return _blank(box, warp.affine)
    if box != MNI_2MM_BOX or not np.allclose(zooms, 2):
        raise SpaceError(
            f"got a warp for a reference of {box} voxels that its header does not place in mm, expected the reference "
            f"beside it, or MNI152 at 2 mm with {MNI_2MM_BOX}",
            path=scan.warp,
        )
    return _blank(MNI_2MM_BOX, MNI_2MM_AFFINE)


def _blank(shape: tuple[int, ...], affine: NDArray[np.float64]) -> nib.Nifti1Image:
    """An image of which only the header matters; it takes no memory."""
    return nib.Nifti1Image(np.broadcast_to(np.uint8(0), shape[:3]), affine)
