"""Small cohorts as real files: NIfTI images on a coarse grid, BIDS trees, tables. Paths may be local or s3://."""

import gzip
from pathlib import PurePosixPath

import fsspec
import nibabel as nib
import numpy as np
import pandas as pd

from dtg_ray.cohort.layouts import bids
from dtg_ray.config import merge
from dtg_ray.imaging.grid import Grid
from dtg_ray.stages import init

GRID = Grid.mni152(16)
TR = 2.0
VOLUMES = 32
SETTINGS = {"grid": {"resolution": 16}, "cohort": {"block_size": 2, "validation": 0.2, "test": 0.4}}


def image_bytes(data, affine=GRID.affine, *, kind=nib.Nifti1Header, order="<", scale=(1.0, 0.0), tr=TR, unit="sec"):
    """A NIfTI file, its data stored as they are; `scale` is what the header says of slope and intercept."""
    header = kind(endianness=order)
    header.set_data_dtype(data.dtype)
    header.set_data_shape(data.shape)
    header.set_sform(affine, code="mni")
    header.set_xyzt_units("mm", unit)
    header["pixdim"][4] = tr if data.ndim > 3 else 0
    header["scl_slope"], header["scl_inter"] = scale
    header["vox_offset"] = header.single_vox_offset
    header["magic"] = header.single_magic
    return header.binaryblock + bytes(4) + data.astype(data.dtype.newbyteorder(order)).tobytes(order="F")


def patched(raw, **fields):
    """The same NIfTI-1 file with other values in its header."""
    header = nib.Nifti1Header(raw[:348], check=False)
    for name, value in fields.items():
        header[name] = value
    return header.binaryblock + raw[348:]


def write_bytes(path, data):
    """Put bytes anywhere, packed where the name ends in .gz; returns the path as text."""
    path = str(path)
    fs, name = fsspec.url_to_fs(path, use_listings_cache=False)
    if "://" not in path:
        fs.makedirs(str(PurePosixPath(name).parent), exist_ok=True)
    fs.pipe_file(name, gzip.compress(data, compresslevel=1, mtime=0) if path.endswith(".gz") else data)
    return path


def write_image(path, data, affine=GRID.affine, **header):
    """Write a NIfTI image; returns its path as text."""
    return write_bytes(path, image_bytes(np.asarray(data), affine, **header))


def rest_run(seed=0, volumes=VOLUMES, grid=GRID):
    """(X, Y, Z, T) float32: noise on a level of 100."""
    values = np.random.default_rng(seed).normal(loc=100, size=(*grid.shape, volumes))
    return values.astype(np.float32)


def task_map(seed=0, grid=GRID):
    """(X, Y, Z) float32 z-map."""
    return np.random.default_rng(seed).normal(size=grid.shape).astype(np.float32)


def roi_maps(n=4, grid=GRID):
    """(X, Y, Z, K) float32 soft maps: Gaussian blobs."""
    centres = np.random.default_rng(99).choice(grid.coordinates, n, replace=False)  # (K, 3)
    distances = np.linalg.norm(grid.coordinates[None] - centres[:, None], axis=2)  # (K, V)
    return np.moveaxis(grid.volume(np.exp(-((distances / 30) ** 2))), 0, -1).astype(np.float32)


def bids_path(root, subject, *entities, suffix, extension=".nii.gz"):
    """root/sub-01/func/sub-01_ENTITIES_SUFFIX.nii.gz."""
    return f"{root}/sub-{subject}/func/{'_'.join([f'sub-{subject}', *entities, suffix])}{extension}"


def write_rest(root, subject, *entities, data=None):
    """Write one rest run under its BIDS name."""
    path = bids_path(root, subject, "task-rest", *entities, suffix="bold")
    return write_image(path, rest_run(int(subject)) if data is None else data)


def write_map(root, subject, contrast, *entities, data=None, task="MOTOR"):
    """Write one contrast map under its BIDS name."""
    path = bids_path(root, subject, f"task-{task}", *entities, f"contrast-{contrast}", "stat-z", suffix="statmap")
    return write_image(path, task_map(int(subject)) if data is None else data)


def write_rois(path, n=4):
    """Write ROI maps as one 4-D image."""
    return write_image(path, roi_maps(n))


def write_table(path, rows):
    """Write rows (a list of dicts) as .csv, .tsv or .parquet; returns the path as text."""
    table, path = pd.DataFrame(rows), str(path)
    if path.endswith(".parquet"):
        return write_bytes(path, table.to_parquet(index=False))
    separator = "\t" if path.endswith(".tsv") else ","
    return write_bytes(path, table.to_csv(index=False, sep=separator, na_rep="n/a").encode())


def write_cohort(root, subjects=6, contrasts=("LH", "RH"), without_maps=1):
    """Write a BIDS tree with ROI maps at its top; returns the path of these. The last people have no task maps."""
    names = [f"{number:02d}" for number in range(1, subjects + 1)]
    for name in names:
        write_rest(root, name)
    for name in names[: subjects - without_maps]:
        for number, contrast in enumerate(contrasts):
            write_map(root, name, contrast, data=task_map(100 * number + int(name)))
    people = [
        {"participant_id": f"sub-{name}", "sex": "MF"[row % 2], "age": 50 + row} for row, name in enumerate(names)
    ]
    write_table(f"{root}/participants.tsv", people)
    return write_rois(f"{root}/rois.nii.gz")


def make_study(root, **settings):
    """A study of six people in three blocks, the last of whom has no task maps; its images lie beside it."""
    rois = write_cohort(f"{root}/data")
    found = bids.find(f"{root}/data")
    return init.init(f"{root}/study", found, [rois], merge(SETTINGS, settings)).study
