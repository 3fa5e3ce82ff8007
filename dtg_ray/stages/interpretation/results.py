"""From parts to results: arrays of a target, its line per ROI, the table of a model, images of single ROIs."""

from __future__ import annotations

import socket
import time
from collections.abc import Sequence

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from dtg_ray.errors import MissingFileError, StudyError
from dtg_ray.imaging.export import ALIGNED, MNI, map_image
from dtg_ray.ledger import target_unit
from dtg_ray.stages.interpretation.parts import INTEGRATED, Job, Part, folder_of, read_array
from dtg_ray.stages.interpretation.targets import Target
from dtg_ray.stages.layout import space
from dtg_ray.stages.runtime import peak_memory
from dtg_ray.store.arrays import ArraySpec, prepare, read, write
from dtg_ray.store.receipts import Receipts, Row
from dtg_ray.store.tables import read_table, write_table
from dtg_ray.study import Study

Float = NDArray[np.float64]
ARRAYS = {"attribution": "mean over subjects", "absolute": "mean over subjects of the absolute value"}

AGAIN = "the same command makes what was lost again"


def result_name(stage: str, target: Target) -> str:
    """Where the results of a target are, but for the ending: `.zarr`, `.parquet`."""
    return f"interpretation/{stage.removeprefix('interpret/')}/{target.unit}"


def table_name(model: str) -> str:
    """Where the table of a model is: all its targets and methods."""
    return f"interpretation/{model}.parquet"


def finish(study: Study, job: Job, target: Target, fingerprint: str) -> None:
    """Add up the parts of a target, write its results, commit them by its receipt, and remove the parts.

    Raises
    ------
    StudyError
        When a part was lost.
    """
    receipts = Receipts(study.storage, job.stage)
    today = {target.unit: fingerprint}
    if not receipts.holding(target.unit, today):
        try:
            _finish(study, job, target, fingerprint)
        except StudyError:
            if not receipts.holding(target.unit, today):
                raise  # else another driver was faster, and has removed the parts
    clear(study, job.stage, target)


def _finish(study: Study, job: Job, target: Target, fingerprint: str) -> None:
    receipts, begin = Receipts(study.storage, job.stage), time.perf_counter()
    parts = sorted((part for part in job.parts.values() if part.target == target), key=lambda part: part.number)
    count, error = sum(len(part.subjects) for part in parts), _completeness_error(receipts, job, parts)
    means = _means(study, job, parts)
    attempt = receipts.withdraw(
        target.unit
    )  # not before all parts were read: another driver may just have removed them
    _write_arrays(study, job, target, means, count)
    table = roi_table(study, job, target, means).assign(subjects=count, completeness_error=error)
    write_table(study.storage, f"{result_name(job.stage, target)}.parquet", table)
    _write_table(study, job)
    row = Row(target.unit, "done", fingerprint, seconds=time.perf_counter() - begin, peak_memory=peak_memory())
    receipts.write(target.unit, [row], attempt=attempt, host=socket.gethostname())


def clear(study: Study, stage: str, target: Target) -> None:
    """Remove the parts of a target, and before them their receipts."""
    receipts = Receipts(study.storage, stage)
    for unit in receipts.units():
        if unit.startswith(f"{target.unit}+"):
            study.storage.delete(receipts.name(unit))
    for name in study.storage.names(folder_of(stage, target)):
        study.storage.delete(name)


def _means(study: Study, job: Job, parts: Sequence[Part]) -> Float:
    """Means over all subjects, (2, K, V): of attributions, and of their absolute values; parts in their order."""
    total = np.zeros((len(ARRAYS), study.n_rois, study.grid.n_voxels))
    for part in parts:
        try:
            total += read_array(study.storage, f"{folder_of(job.stage, part.target)}/{part.number:05d}.npy")
        except MissingFileError as error:
            Receipts(study.storage, job.stage).withdraw(part.unit)
            raise StudyError(
                f"{error}: the attributions of {len(part.subjects)} subjects were lost after their receipt was written",
                hint=AGAIN,
            ) from error
    return total / sum(len(part.subjects) for part in parts)


def _write_arrays(study: Study, job: Job, target: Target, means: Float, count: int) -> None:
    strings, places = np.dtypes.StringDType(), study.grid.coordinates
    shape = (1, *means.shape[1:])
    group = prepare(
        study.storage,
        f"{result_name(job.stage, target)}.zarr",
        {
            name: ArraySpec(shape, (1, 1, shape[2]), ("target", "roi", "voxel"), "float32", {"long_name": text})
            for name, text in ARRAYS.items()
        },
        {
            "target": ("target", np.array([target.name], dtype=strings)),
            "roi": ("roi", np.array(study.roi_set.names, dtype=strings)),
            **{axis: ("voxel", places[:, number]) for number, axis in enumerate("xyz")},
        },
        {
            **space(study),
            "kind": target.kind,
            "model": job.model,
            "weights": job.weights,
            "subjects": count,
            "method": job.method.identity(),
        },
    )
    for name, values in zip(ARRAYS, means, strict=True):
        write(group[name], 0, values.astype(np.float32))


def roi_table(study: Study, job: Job, target: Target, means: Float) -> pd.DataFrame:
    """A row per ROI, the most important first.

    Parameters
    ----------
    study : Study
    job : Job
    target : Target
    means : (2, K, V) float64
        Of attributions, and of their absolute values.

    Returns
    -------
    DataFrame
        method, kind, target, rank, roi, importance (share of the absolute attribution), signed (sum of the attribution
        over voxels), x, y, z (mm, of the voxel with the largest absolute attribution), weights (hash of the model's).
    """
    signed, absolute = means[0].sum(axis=1), means[1].sum(axis=1)  # (K,)
    order = np.argsort(-absolute, kind="stable")
    peaks = study.grid.coordinates[means[1].argmax(axis=1)]  # (K, 3)
    return pd.DataFrame(
        {
            "method": job.method.name,
            "kind": target.kind,
            "target": target.name,
            "rank": np.arange(1, len(order) + 1),
            "roi": np.array(study.roi_set.names)[order],
            "importance": (absolute / (absolute.sum() or 1))[order],
            "signed": signed[order],
            **{axis: peaks[order, number] for number, axis in enumerate("xyz")},
            "weights": job.weights,
        }
    )


def _completeness_error(receipts: Receipts, job: Job, parts: Sequence[Part]) -> float:
    """By how much sums of attributions miss what they should be, in all, as a share of that; NaN for SmoothGrad."""
    if job.method.name != INTEGRATED:
        return float("nan")
    figures = receipts.read([part.unit for part in parts])["qc"]  # in the order of the parts
    if len(figures) < len(parts):
        raise StudyError(f"{job.stage}: got {len(figures)} receipts of parts, expected {len(parts)}", hint=AGAIN)
    if len(figures) < len(parts):
        raise StudyError("parts of the attributions were lost", hint="the same command makes them again")
    missed, wanted = (sum(one[key] for one in figures) for key in ("error", "difference"))
    return float(missed / wanted) if wanted else float(missed)


def _write_table(study: Study, job: Job) -> None:
    """All targets and methods of a model, as it is now, in one table."""
    names = [name for name in study.storage.names(f"interpretation/{job.model}") if name.endswith(".parquet")]
    tables = [read_table(study.storage, name) for name in names]
    today = [table for table in tables if (table["weights"] == job.weights).all()]
    write_table(study.storage, table_name(job.model), pd.concat(today, ignore_index=True))


def write_images(study: Study, stage: str, target: Target, most: int) -> list[str]:
    """Write the mean attribution of the most important ROIs as NIfTI images; returns their names."""
    name, written = result_name(stage, target), []
    table = read_table(study.storage, f"{name}.parquet").head(most)
    array = study.storage.open_array(f"{name}.zarr", "attribution") if most else None
    code = MNI if study.config.grid.mask is None else ALIGNED
    for roi in table["roi"]:
        vector = read(array, (0, study.roi_set.names.index(roi)))
        text = f"attribution of {target.name} through {roi}"
        image = map_image(study.grid, vector, code=code, description=text, intent="estimate")
        written.append(f"{name}_roi-{target_unit(roi)}.nii.gz")
        study.storage.write(written[-1], image)
    return written
