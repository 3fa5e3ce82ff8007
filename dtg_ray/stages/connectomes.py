"""`dtg connectomes`: every subject's voxel-to-ROI and ROI-to-ROI connectome, from the files to Zarr."""

from __future__ import annotations

import functools
from collections.abc import Mapping

import numpy as np
import pandas as pd

from dtg_ray import ledger
from dtg_ray.imaging.rest import read_run, run_connectomes
from dtg_ray.stages.blocks import BlockWorker, describe_input, nan_rows, recorded, run_blocks
from dtg_ray.stages.plan import Plan
from dtg_ray.stages.runtime import Options
from dtg_ray.store.arrays import ArraySpec, prepare, write_rows
from dtg_ray.store.receipts import Row
from dtg_ray.study import Study

STAGE = "connectomes"
NAME = "connectomes.zarr"
VOLUMES_GUESS = 500
"""Volumes of a run when its size is not known."""


def run(study: Study, options: Options) -> pd.DataFrame:
    """Compute the connectomes that are owed; returns the rows of all receipts."""
    return run_blocks(study, STAGE, ConnectomeWorker, plan, make_arrays, options)


def n_windows(study: Study) -> int:
    """Length of the window axis: windows of the subject with most runs."""
    return study.config.connectomes.windows * max(len(runs) for runs in study.cohort["rest"])


def make_arrays(study: Study) -> None:
    """Make connectomes.zarr, or check the one that is there."""
    n_subjects, n_rois, n_voxels = len(study.cohort), study.n_rois, study.grid.n_voxels
    edges = n_rois * (n_rois - 1) // 2
    rows = min(study.config.cohort.block_size, n_subjects)
    prepare(
        study.storage,
        NAME,
        {
            "connectome": ArraySpec(
                (n_subjects, n_windows(study), n_rois, n_voxels),
                (1, 1, n_rois, n_voxels),
                ("subject", "window", "roi", "voxel"),
                attributes={"long_name": "Pearson correlation of voxel and ROI", "units": "1"},
            ),
            "roi_connectome": ArraySpec(
                (n_subjects, edges),
                (rows, edges),
                ("subject", "edge"),
                "float32",
                {"long_name": "Pearson correlation of ROIs, upper triangle row by row", "units": "1"},
            ),
        },
        coordinates(study),
        space(study),
    )


def space(study: Study) -> dict[str, object]:
    """Where the voxel axis lies, so that an array can be understood without the rest of the study."""
    return {"affine": study.grid.affine.tolist(), "grid_shape": list(study.grid.shape), "voxel_order": "C, mask only"}


def coordinates(study: Study) -> dict[str, tuple[str, np.ndarray]]:
    """Names of the subjects and positions of the voxels (mm), shared by all arrays of a study."""
    places = study.grid.coordinates
    return {
        "subject": ("subject", study.cohort["subject"].to_numpy().astype(np.dtypes.StringDType())),
        **{axis: ("voxel", places[:, number]) for number, axis in enumerate("xyz")},
    }


def plan(study: Study, pending: list[str]) -> Plan:
    """Bytes, and the memory of a worker: the series, a demeaned copy, and one connectome in two precisions."""
    rows = study.cohort[study.cohort["block"].isin([ledger.block_number(unit) for unit in pending])]
    n_voxels, n_rois = study.grid.n_voxels, study.n_rois
    volumes = max(VOLUMES_GUESS, 2 * study.config.connectomes.minimum_volumes)
    connectome = n_windows(study) * n_rois * n_voxels
    return Plan(
        stage=STAGE,
        units=len(study.blocks()),
        pending=len(pending),
        subjects=len(rows),
        bytes_in=int(rows["rest_bytes"].clip(lower=0).sum()),
        bytes_out=len(rows) * connectome * 2,
        memory=2 * volumes * n_voxels * 4 + connectome * (4 + 4 + 2) + 300 * 2**20,
    )


class ConnectomeWorker(BlockWorker):
    """One block of connectomes."""

    @functools.cached_property
    def arrays(self) -> tuple:
        """The two arrays, open for writing."""
        import zarr

        group = zarr.open_group(self.study.storage.zarr_store(NAME), mode="r+", zarr_format=3)
        return group["connectome"], group["roi_connectome"]

    def work(self, block: int, kept: Mapping[str, Row]) -> list[Row]:
        """Write the connectomes of a block; a failed subject's rows stay, or become again, NaN."""
        members, rows = self.study.block(block), self.study.rows(block)
        connectomes, edges = self.arrays
        block_edges = np.full((len(members), edges.shape[1]), np.nan, dtype=np.float32)
        receipts = []
        for position, (subject, runs) in enumerate(zip(members["subject"], members["rest"], strict=True)):
            if subject in kept:
                block_edges[position] = edges[rows.start + position]
                receipts.append(kept[subject])
                continue
            receipt = Row(subject, "failed")
            values = nan_rows(connectomes.shape[1:])
            with recorded(receipt):
                describe_input(receipt, runs[0])
                self.compute(list(runs), values, block_edges[position], receipt)
            if receipt.status == "failed":
                values[:] = np.nan
                block_edges[position] = np.nan
            connectomes[rows.start + position] = values
            receipts.append(receipt)
        write_rows(edges, 0, rows, block_edges)
        return receipts

    def compute(self, runs: list[str], values: np.ndarray, edges: np.ndarray, receipt: Row) -> None:
        """Fill the windows (W, K, V) and the mean ROI-to-ROI connectome over runs (E,) of one subject."""
        config = self.study.config.connectomes
        all_edges = []
        for number, path in enumerate(runs):
            run_data = read_run(
                path,
                self.study.grid,
                tr=config.tr,
                minimum_volumes=max(config.minimum_volumes, 2 * config.windows),
                minimum_coverage=config.minimum_coverage,
                interpolation=config.interpolation,
            )
            first = number * config.windows
            parts, run_edges = run_connectomes(run_data, self.study.rois, config.windows)
            values[first : first + config.windows] = parts
            all_edges.append(run_edges)
            receipt.qc |= run_data.quality()
        edges[:] = np.mean(all_edges, axis=0)
        receipt.qc |= {
            "runs": float(len(runs)),
            "mean_abs_r": float(np.nanmean(np.abs(values.astype(np.float32)))),
        }
