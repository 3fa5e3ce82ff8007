"""`dtg synthesize`: contrast maps of everybody with a connectome, whole blocks at a time.

The maps of a second visit take the place of a model's as they were measured.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd

from dtg_ray import ledger
from dtg_ray.models import activation_values
from dtg_ray.models.artifact import Model, NetworkModel
from dtg_ray.stages import contrasts
from dtg_ray.stages.blocks import BlockWorker, nan_rows, recorded, run_blocks
from dtg_ray.stages.contrasts import make_maps
from dtg_ray.stages.maps import SubjectReader, chosen_models
from dtg_ray.stages.models import load_model, network_config
from dtg_ray.stages.plan import Plan
from dtg_ray.stages.runtime import Options
from dtg_ray.store.arrays import write_rows
from dtg_ray.store.receipts import Row
from dtg_ray.study import Study

ACTIVATIONS = 4
"""Outputs of layers, of the size of the largest, that are in memory at once: two, and what a convolution works with."""


def run(study: Study, options: Options, model: str | None = None) -> pd.DataFrame:
    """Synthesize the maps that are owed, of one model or all; returns the rows of all receipts."""
    rows = []
    for name in chosen_models(study, model):
        make = functools.partial(make_maps, name=array_name(name), contrasts=study.config.contrasts_of(name))
        rows.append(
            run_blocks(
                study,
                f"synthesize/{name}",
                RetestWorker if is_retest(study, name) else SynthesisWorker,
                functools.partial(plan, name=name),
                make,
                options,
            )
        )
    return pd.concat(rows, ignore_index=True)


def array_name(model: str) -> str:
    """Where the maps of a model are."""
    return f"synthetic/{model}.zarr"


def is_retest(study: Study, model: str) -> bool:
    """Whether a model is the maps of second visits."""
    return study.config.models[model].kind == "retest"


def plan(study: Study, pending: list[str], name: str) -> Plan:
    """Bytes, and the memory of a worker: the maps of a block, one connectome, and the network's activations."""
    waiting = "" if ledger.model_hash(study, name) else f"train/{name}"
    if is_retest(study, name):
        return replace(contrasts.plan(study, pending, f"synthesize/{name}", RetestWorker.column), waiting=waiting)
    members = study.cohort[study.cohort["block"].isin([ledger.block_number(unit) for unit in pending])]
    n_voxels = study.grid.n_voxels
    maps, windows = len(study.config.contrasts_of(name)) * n_voxels, study.config.connectomes.windows
    network = network_config(study, name) if pending else None
    largest = activation_values(network, study.grid.shape)[1] if network else 0
    return Plan(
        stage=f"synthesize/{name}",
        units=len(study.blocks()),
        pending=len(pending),
        subjects=len(members),
        bytes_in=len(members) * windows * study.n_rois * n_voxels * 2,
        bytes_out=len(members) * maps * 2,
        memory=maps * (2 * study.config.cohort.block_size + 8)
        + study.n_rois * n_voxels * 12
        + ACTIVATIONS * largest * 4
        + 500 * 2**20,
        cpus=study.config.synthesis.cpus_per_actor,
        gpus=study.config.synthesis.gpus_per_actor,
        waiting=waiting,
    )


class SynthesisWorker(BlockWorker):
    """One block of synthetic maps."""

    @functools.cached_property
    def name(self) -> str:
        """Name of the model."""
        return self.receipts.stage.split("/")[1]

    @functools.cached_property
    def model(self) -> Model:
        """The model, on this actor's device; with a set number of threads, so that all actors compute alike."""
        import torch

        torch.set_num_threads(self.study.config.synthesis.cpus_per_actor)
        model = load_model(self.study, self.name)
        if isinstance(model, NetworkModel):
            on_gpu = self.study.config.synthesis.gpus_per_actor > 0
            model.prepare_for_inference("cuda" if on_gpu else "cpu")
        return model

    @functools.cached_property
    def maps(self) -> Any:
        """The array, open for writing."""
        import zarr

        return zarr.open_group(self.study.storage.zarr_store(array_name(self.name)), mode="r+", zarr_format=3)["maps"]

    @functools.cached_property
    def with_connectome(self) -> set[str]:
        """Everybody whose connectome is done."""
        return set(ledger.account(self.study, "connectomes").subjects("done"))

    def work(self, block: int, kept: Mapping[str, Row]) -> list[Row]:  # noqa: ARG002 - maps are made again, to the bit
        """Write the maps of a block; NaN for those without a connectome."""
        members, reader, model = self.study.block(block), SubjectReader(self.study), self.model
        values = nan_rows((len(model.contrasts), len(members), self.study.grid.n_voxels))
        receipts = []
        for position, subject in enumerate(members["subject"]):
            receipt = Row(subject, "excluded", message=f"{subject}: no connectome, see stage connectomes")
            if subject in self.with_connectome:
                receipt.message = ""
                windows = reader.connectomes(subject)
                with recorded(receipt):
                    values[:, position] = model.predict(windows).mean(axis=0)  # over windows
                    receipt.qc = {
                        "windows": float(len(windows)),
                        "mean_abs": float(np.abs(values[:, position]).mean()),
                    }
            receipts.append(receipt)
        write_rows(self.maps, 1, self.study.rows(block), values)
        return receipts


class RetestWorker(contrasts.ContrastWorker):
    """One block of the maps of second visits."""

    column = "retest"
    none = "no map of a second visit in the manifest"

    @property
    def name(self) -> str:
        """Where the array is."""
        return array_name(self.receipts.stage.split("/")[1])
