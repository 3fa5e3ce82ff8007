"""Maps as files others can read: names as BIDS derivatives have them, and NIfTI images as bytes.

BIDS has no statistical maps yet. The names are those of FitLins and nilearn (entities contrast and stat, suffix
statmap), with desc, which BIDS puts last.
"""

from __future__ import annotations

import gzip
import hashlib
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from dtg_ray.imaging.grid import Grid
from dtg_ray.imaging.scan import Scan

if TYPE_CHECKING:
    from nibabel.nifti1 import Nifti1Image

ENTITIES = ("sub", "task", "space", "contrast", "stat", "desc")
"""In the order of BIDS, with contrast and stat where FitLins has them."""
FSL_SPACE = "MNI152NLin6Asym"
"""What TemplateFlow calls the MNI152 of FSL, into which UK Biobank and HCP are registered."""
GZIP_LEVEL = 1
"""A fifth of the time of level 6 for 5% more bytes: most of a float32 that was a float16 is zeros."""
DESCRIPTION_BYTES = 79
MNI, ALIGNED = 4, 2
"""NIfTI codes of spaces: MNI152, and alignment to something else."""
Key = TypeVar("Key", bound=Hashable)


def image_name(entities: Mapping[str, str], suffix: str = "statmap") -> str:
    """Path of an image in its dataset: that of a person below `sub-X/func/`, that of a group below `group/`.

    Entities without a value are left out.

    >>> image_name({"sub": "01", "task": "MOTOR", "contrast": "LH", "stat": "z", "desc": "synthetic"})
    'sub-01/func/sub-01_task-MOTOR_contrast-LH_stat-z_desc-synthetic_statmap.nii.gz'
    """
    parts = [f"{key}-{entities[key]}" for key in ENTITIES if entities.get(key)]
    folder = f"sub-{entities['sub']}/func" if entities.get("sub") else "group"
    return f"{folder}/{'_'.join([*parts, suffix])}.nii.gz"


def sidecar_name(image: str) -> str:
    """The JSON file of an image."""
    return f"{image.removesuffix('.nii.gz')}.json"


def subject_labels(subjects: Sequence[str]) -> dict[str, str]:
    """A label for `sub-` by subject, all different: `sub-0001` is 0001, 1000001 stays, `P_7` is P7."""
    cleaned = {subject: _alphanumeric(subject.removeprefix("sub-"), "+") for subject in subjects}
    return _told_apart(cleaned, str.lower, lambda label, mark: label + mark)


def contrast_labels(contrasts: Sequence[str]) -> dict[str, tuple[str, str]]:
    """Labels for `task-` and `contrast-` by contrast, no two pairs alike.

    What stands before the first underscore is the task; a name without one has none. In the contrast `-` becomes x,
    and whatever is no letter or digit is dropped. Where two names would then be one, or nothing is left, a few
    digits of the name's hash tell them apart.

    >>> contrast_labels(["EMOTION_FACES-SHAPES", "WM_2BK_BODY", "FACES"])
    {'EMOTION_FACES-SHAPES': ('EMOTION', 'FACESxSHAPES'), 'WM_2BK_BODY': ('WM', '2BKBODY'), 'FACES': ('', 'FACES')}
    """
    cleaned = {name: _task_and_contrast(name) for name in contrasts}
    return _told_apart(cleaned, lambda pair: "_".join(pair).lower(), lambda pair, mark: (pair[0], pair[1] + mark))


def _task_and_contrast(name: str) -> tuple[str, str]:
    before, _, after = name.partition("_")
    task, contrast = _alphanumeric(before), _alphanumeric(after.replace("-", "x"))
    return (task, contrast) if task and contrast else ("", _alphanumeric(name.replace("-", "x")))


def _alphanumeric(text: str, also: str = "") -> str:
    """ASCII letters and digits of a text, accents dropped: BIDS labels hold nothing else."""
    plain = unicodedata.normalize("NFKD", text)
    return "".join(one for one in plain if (one.isascii() and one.isalnum()) or one in also)


def _told_apart(
    labels: Mapping[str, Key], identity: Callable[[Key], str], marked: Callable[[Key, str], Key]
) -> dict[str, Key]:
    """The labels by name, with a mark of the name where several look alike, also to a disk that ignores case."""
    alike = Counter(identity(label) for label in labels.values())
    marks = {name: hashlib.sha256(name.encode()).hexdigest()[:6] for name in labels}
    unique = {name: identity(label).strip("_") and alike[identity(label)] == 1 for name, label in labels.items()}
    return {name: label if unique[name] else marked(label, marks[name]) for name, label in labels.items()}


def space_of(scans: Iterable[Scan]) -> str:
    """The space that some images lie in, as their names say; empty where one does not say it, or they differ.

    A grid only says where voxels lie, not to what the brains in it were registered: that is up to the images.
    """
    spaces = {_space(scan) for scan in scans}
    return spaces.pop() if len(spaces) == 1 else ""


def _space(scan: Scan) -> str:
    if scan.warp:
        return FSL_SPACE if "example_func2standard" in scan.warp else ""  # as FEAT and UK Biobank call it
    if "/MNINonLinear/" in scan.image:
        return FSL_SPACE
    found = re.search(r"[_/]space-([a-zA-Z0-9+]+)_", scan.image)
    return found[1] if found else ""


def map_image(
    grid: Grid, vector: NDArray[Any], *, code: int = MNI, description: str = "", intent: str = "z score"
) -> bytes:
    """A map (V,) as a packed NIfTI file, float32 and 0 outside the mask; the same map gives the same bytes.

    Parameters
    ----------
    grid : Grid
    vector : (V,) float
        float16 and float32 come out exactly.
    code : int
        Of the space, for sform and qform: `MNI` or `ALIGNED`.
    description : str
        For the header, cut to 79 bytes.
    intent : str
        What the values are, as nibabel calls it: "z score", or "estimate" for a mean or an SD.

    Raises
    ------
    ValueError
        When the vector has another number of voxels.
    """
    image = grid.image(vector)
    image.header.set_intent(intent)
    image.header["descrip"] = description.encode("ascii", "replace")[:DESCRIPTION_BYTES]
    return _packed(image, grid, code)


def mask_image(grid: Grid, code: int = MNI) -> bytes:
    """The mask of a grid as a packed NIfTI file of zeros and ones."""
    import nibabel as nib

    return _packed(nib.Nifti1Image(grid.mask.astype(np.uint8), grid.affine), grid, code)


def _packed(image: Nifti1Image, grid: Grid, code: int) -> bytes:
    """Say where the voxels lie, and pack the image without a time."""
    image.header.set_xyzt_units("mm")
    image.set_sform(grid.affine, code)
    image.set_qform(grid.affine, code)
    if not np.allclose(image.get_qform(), grid.affine, atol=1e-4):  # a quaternion cannot say shears
        image.set_qform(None)
    return gzip.compress(image.to_bytes(), GZIP_LEVEL, mtime=0)
