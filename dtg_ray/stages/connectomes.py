"""`dtg connectomes`: every subject's voxel-to-ROI and ROI-to-ROI connectome, from the files to Zarr."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from dtg_ray import ledger
from dtg_ray.config import CleaningConfig, StudyConfig
from dtg_ray.errors import ExcludedError, SubjectError
from dtg_ray.imaging.cleaning import NUMBERS_AT_ONCE, Cleaning
from dtg_ray.imaging.quality import Rules, broken_rule
from dtg_ray.imaging.rest import Recipe, Workspace, subject_connectomes
from dtg_ray.imaging.scan import Scan
from dtg_ray.imaging.series import read_header
from dtg_ray.stages.blocks import BlockWorker, describe_input, nan_rows, recorded, run_blocks
from dtg_ray.stages.plan import Plan
from dtg_ray.stages.runtime import Options
from dtg_ray.store.arrays import ArraySpec, prepare, write_rows
from dtg_ray.store.receipts import Row
from dtg_ray.study import Study

STAGE = "connectomes"
NAME = "connectomes.zarr"
VOLUMES_GUESS = 500
"""Volumes of a run that cannot be looked at."""
HEADERS_LOOKED_AT = 8
"""Subjects whose headers tell how long runs are."""


def run(study: Study, options: Options) -> pd.DataFrame:
    """Compute the connectomes that are owed; returns the rows of all receipts."""
    return run_blocks(study, STAGE, ConnectomeWorker, plan, make_arrays, options)


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
                (n_subjects, study.config.connectomes.windows, n_rois, n_voxels),
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
    """Bytes, and the memory of a worker: one run on the grid, ROIs and their weights, and one connectome."""
    rows = study.cohort[study.cohort["block"].isin([ledger.block_number(unit) for unit in pending])]
    n_voxels, n_rois, config = study.grid.n_voxels, study.n_rois, study.config
    connectome = n_rois * n_voxels
    cleaning = 8 * NUMBERS_AT_ONCE * 8 if to_cleaning(config.cleaning).wanted else 0
    return Plan(
        stage=STAGE,
        units=len(study.blocks()),
        pending=len(pending),
        subjects=len(rows),
        bytes_in=int(rows["rest_bytes"].clip(lower=0).sum()),
        bytes_out=len(rows) * config.connectomes.windows * connectome * 2,
        memory=_volumes(rows, config) * n_voxels * 4
        + connectome * (4 * 4 + 2 * config.connectomes.windows)
        + cleaning
        + 300 * 2**20,
    )


def _volumes(rows: pd.DataFrame, config: StudyConfig) -> int:
    """Volumes of the longest of some runs, by their headers."""
    known = [2 * config.connectomes.minimum_volumes]
    for runs in rows["rest"].iloc[:: max(len(rows) // HEADERS_LOOKED_AT, 1)][:HEADERS_LOOKED_AT]:
        for scan in runs:
            try:
                known.append(read_header(scan.image).n_volumes)
            except (SubjectError, OSError):
                known.append(VOLUMES_GUESS)
    return max(known)


def to_recipe(config: StudyConfig) -> Recipe:
    """How rest runs are read, as study.yaml says it."""
    settings = config.connectomes.model_dump(exclude={"maximum_gigabytes"})
    maximum = int(config.connectomes.maximum_gigabytes * 2**30)
    return Recipe(**settings, maximum_bytes=maximum, cleaning=to_cleaning(config.cleaning))


def to_cleaning(config: CleaningConfig) -> Cleaning:
    """What is taken out of rest runs, as study.yaml says it."""
    return Cleaning(**config.model_dump())


class ConnectomeWorker(BlockWorker):
    """One block of connectomes."""

    @functools.cached_property
    def arrays(self) -> tuple:
        """The two arrays, open for writing."""
        import zarr

        group = zarr.open_group(self.study.storage.zarr_store(NAME), mode="r+", zarr_format=3)
        return group["connectome"], group["roi_connectome"]

    @functools.cached_property
    def recipe(self) -> Recipe:
        """How runs are read."""
        return to_recipe(self.study.config)

    @functools.cached_property
    def rules(self) -> Rules:
        """Who is excluded."""
        return Rules(**self.study.config.quality.model_dump())

    @functools.cached_property
    def workspace(self) -> Workspace:
        """Memory that all subjects of this worker share, one after the other."""
        return Workspace()

    def work(self, block: int, kept: Mapping[str, Row]) -> list[Row]:
        """Write the connectomes of a block; a failed or excluded subject's rows stay, or become again, NaN."""
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
            with recorded(receipt, runs[0].image):
                describe_input(receipt, runs[0].image)
                block_edges[position] = self.compute(runs, values, receipt)
            if receipt.status != "done":
                values[:] = np.nan
                block_edges[position] = np.nan
            connectomes[rows.start + position] = values
            receipts.append(receipt)
        write_rows(edges, 0, rows, block_edges)
        return receipts

    def compute(self, runs: Sequence[Scan], values: NDArray[np.float16], receipt: Row) -> NDArray[np.float32]:
        """Fill the windows (W, K, V) of one subject; returns its ROI-to-ROI connectome (E,)."""
        edges, receipt.qc = subject_connectomes(
            runs, self.study.grid, self.study.roi_set.weights, self.recipe, values, self.workspace
        )
        if broken := broken_rule(receipt.qc, self.rules):
            raise ExcludedError(f"quality.{broken}", path=runs[0].image)
        return edges
