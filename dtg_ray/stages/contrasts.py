"""`dtg contrasts`: the measured task maps of everybody who did the tasks, from the files to Zarr."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd

from dtg_ray import ledger
from dtg_ray.imaging.contrast import read_contrast
from dtg_ray.imaging.scan import Scan
from dtg_ray.stages import estimates
from dtg_ray.stages.blocks import BlockWorker, describe_input, kept_rows, recorded, run_blocks
from dtg_ray.stages.crews import Crew
from dtg_ray.stages.layout import coordinates, make_or_check, refuse_gone
from dtg_ray.stages.plan import Plan, resources_of
from dtg_ray.stages.runtime import Options
from dtg_ray.store.arrays import ArraySpec, write_rows
from dtg_ray.store.receipts import Row
from dtg_ray.study import Study

STAGE = "contrasts"
NAME = ledger.array_of(STAGE)
MAPS = {"maps": "contrast map"}


def run(study: Study, options: Options) -> pd.DataFrame:
    """Read the maps that are owed; returns the rows of all receipts."""
    return read_maps(study, STAGE, ContrastWorker, NAME, options)


def read_maps(
    study: Study, stage: str, worker: type[ContrastWorker], name: str, options: Options, waiting: str = ""
) -> pd.DataFrame:
    """Read the maps of one visit that are owed into an array; returns the rows of all receipts."""
    account = ledger.account(study, stage)
    refuse_gone(study, account)
    pending = account.pending(retry_failed=options.retry_failed)
    todo = replace(plan(study, account, pending, worker.column), waiting=waiting)
    todo.show(options)
    make_worker = functools.partial(worker, retry=options.retry_failed)
    crew = Crew(make_worker, (study.uri, stage), resources_of(todo))
    make = functools.partial(make_maps, study, name, study.config.contrasts, MAPS)
    changed = run_blocks(study, todo, pending, [stage], [crew], make, options)
    return (ledger.account(study, stage) if changed else account).rows


def make_maps(study: Study, name: str, contrasts: Sequence[str], arrays: Mapping[str, str], dry: bool = False) -> None:
    """Make arrays of maps (contrast, subject, voxel), chunked by block and slab of voxels; a dry one checks them."""
    n_voxels = study.grid.n_voxels
    shape = (len(contrasts), study.n_rows, n_voxels)
    chunks = (1, study.config.cohort.block_size, min(study.config.synthesis.slab, n_voxels))
    specs = {
        key: ArraySpec(shape, chunks, ("contrast", "subject", "voxel"), attributes={"long_name": what, "units": "z"})
        for key, what in arrays.items()
    }
    names = np.array(contrasts, dtype=np.dtypes.StringDType())
    places = {"contrast": ("contrast", names), **coordinates(study)}
    make_or_check(study, name, specs, places, dry)


def plan(study: Study, account: ledger.Account, pending: list[str], column: str) -> Plan:
    """Bytes, and the memory of a worker: the maps of a block, in a column of the cohort."""
    members = study.cohort[study.cohort["block"].isin([ledger.block_number(unit) for unit in pending])]
    one = len(study.config.contrasts) * study.grid.n_voxels
    n_maps = int(sum(len(maps) for maps in members[column]))
    chunks = estimates.chunk_count(len(study.config.contrasts), study.grid.n_voxels, study.config.synthesis.slab)
    objects = len(pending) * (chunks + 1)
    each, measured_on = estimates.measured(account)
    guess = n_maps * study.grid.n_voxels * estimates.SECONDS_PER_MAP_VOXEL
    return Plan(
        stage=account.stage,
        units=len(study.blocks()),
        pending=len(pending),
        subjects=len(members),
        bytes_in=n_maps * study.grid.n_voxels * 4,
        bytes_out=one * len(members) * 2,
        objects=objects,
        memory=one * study.config.cohort.block_size * 2 * 2 + 300 * 2**20,
        seconds=each * len(members) if measured_on else guess,
        measured_on=measured_on,
        requests=estimates.requests(study.uri, objects, len(pending)),
    )


class ContrastWorker(BlockWorker):
    """One block of measured maps."""

    column = "contrasts"
    """Of the cohort."""
    none = "no contrast map in the manifest"

    @property
    def name(self) -> str:
        """Where the array is."""
        return NAME

    @functools.cached_property
    def maps(self) -> Any:
        """The array, open for writing."""
        return self.study.storage.open_array(self.name, "maps", writable=True)

    def today(self, block: int) -> dict[str, str | None]:
        """Fingerprints of the subjects of a block."""
        return ledger.map_fingerprints(self.study, self.column, block)[ledger.block_unit(block)]

    def work(self, block: int, kept: Mapping[str, Row]) -> list[Row]:
        """Write the maps of a block; NaN where a contrast was not acquired or a subject failed."""
        members, rows = self.study.block(block), self.study.rows(block)
        values = kept_rows(self.maps, 1, rows, (members.loc[list(kept), "row"] - rows.start).to_dict())
        receipts = []
        columns = (members["subject"], members["row"] - rows.start, members[self.column])
        for subject, position, scans in zip(*columns, strict=True):
            receipt = kept.get(subject, Row(subject, "excluded", message=f"{subject}: {self.none}"))
            if scans and subject not in kept:
                receipt.message = ""
                with recorded(receipt, next(iter(scans.values())).image):
                    self.read(scans, values[:, position], receipt)
                if receipt.status == "failed":
                    values[:, position] = np.nan
            receipts.append(receipt)
        write_rows(self.maps, 1, rows, values)
        return receipts

    def read(self, scans: dict[str, Scan], values: np.ndarray, receipt: Row) -> None:
        """Fill the maps (C, V) of one subject; any unreadable map fails the subject."""
        for number, contrast in enumerate(self.study.config.contrasts):
            if contrast in scans:
                describe_input(receipt, scans[contrast].image)
                values[number] = read_contrast(scans[contrast], self.study.grid)
        receipt.qc["contrasts"] = float(len(scans))
