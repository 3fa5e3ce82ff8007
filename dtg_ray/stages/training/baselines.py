"""The group mean, and the linear model as a map-reduce: a fit per subject, and their mean."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

import numpy as np
from tqdm import tqdm

from dtg_ray.ledger import Ledger
from dtg_ray.models.artifact import Model
from dtg_ray.models.baselines import GroupMean, Linear, RunningMean, fit_linear_subject, parcels_from_rois
from dtg_ray.stages.crews import Crew, map_units
from dtg_ray.stages.maps import SubjectReader, window_counts
from dtg_ray.stages.runtime import Options, Resources
from dtg_ray.study import Study


def fit_group_mean(study: Study, training: list[str], options: Options) -> Model:
    """The mean of the training maps."""
    reader = SubjectReader(study)
    mean = RunningMean((len(study.config.contrasts), study.grid.n_voxels))
    for subject in tqdm(training, desc="train/group_mean", unit="subject", disable=options.quiet):
        mean.add(reader.maps(subject))
    maps = mean.mean().astype(np.float32)
    return GroupMean(maps, study.config.contrasts, study.grid, study.n_rois)


def fit_linear(study: Study, training: list[str], options: Options) -> Model:
    """Mean over subjects of their own fits, added up in the order of the cohort whatever order they end in."""
    parcels = parcels_from_rois(study.rois)
    memory = study.grid.n_voxels * (study.n_rois + len(study.config.contrasts)) * 12 + 300 * 2**20
    counts = window_counts(Ledger(study), training)
    results = map_units([Crew(LinearFit, (study.uri, counts), Resources(1, 0, memory))], training, options)
    mean = RunningMean((len(study.config.contrasts), int(parcels.max()) + 1, study.n_rois + 1))
    early: dict[str, np.ndarray] = {}  # whoever ended before somebody who stands before them
    remaining = iter(training)
    due = next(remaining, None)
    for result in tqdm(results, total=len(training), desc="train/linear", unit="subject", disable=options.quiet):
        early[result["unit"]] = np.asarray(result["coefficients"])
        while due in early:
            mean.add(early.pop(due))
            due = next(remaining, None)
    return Linear(mean.mean(), parcels, study.config.contrasts, study.grid)


class LinearFit:
    """Fits the linear model to one subject after the other, who have so many windows each."""

    def __init__(self, uri: str, windows: Mapping[str, int]) -> None:
        self.study, self.windows = Study(uri), windows
        self.reader = SubjectReader(self.study)

    @functools.cached_property
    def parcels(self) -> np.ndarray:
        """Parcel of each voxel."""
        return parcels_from_rois(self.study.rois)

    def __call__(self, subject: str) -> dict[str, Any]:
        """Coefficients (C, P, K + 1) of a subject; windows are averaged."""
        connectome = self.reader.connectomes(subject, self.windows[subject]).mean(axis=0)
        return {
            "unit": subject,
            "coefficients": fit_linear_subject(connectome, self.reader.maps(subject), self.parcels),
        }
