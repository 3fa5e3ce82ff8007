"""Measured and predicted maps of the same people: who has both, and how they are read."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dtg_ray.cohort.manifest import TRAINING
from dtg_ray.ledger import Ledger
from dtg_ray.results import HELD_OUT
from dtg_ray.stages.derivative import Source, source_of
from dtg_ray.stages.maps import lost, usable
from dtg_ray.stats.moments import Moments, merge, moments
from dtg_ray.store.arrays import read
from dtg_ray.study import Study

TOGETHER = 1000
"""People whose maps are compared with each other: what bounds the memory, and keeps identification comparable."""


@dataclass(frozen=True)
class Pairs:
    """People of one split with a measured and a predicted map of one contrast.

    Parameters
    ----------
    contrast, split : str
    subjects : list of str
        At least two, in the order of the cohort.
    """

    contrast: str
    split: str
    subjects: list[str]

    def together(self) -> list[list[str]]:
        """Who is compared with each other: as few equal groups as are small enough."""
        n_groups = -(-len(self.subjects) // TOGETHER)
        edges = [round(len(self.subjects) * number / n_groups) for number in range(n_groups + 1)]
        return [self.subjects[start:stop] for start, stop in itertools.pairwise(edges)]


def pairs(book: Ledger, model: str) -> list[Pairs]:
    """What is to be compared of a model, of the people held out first."""
    source, cohort = source_of(book.study, model), book.study.cohort
    done = set(book.account(source.stage).subjects("done"))
    found = []
    for split in (HELD_OUT, *TRAINING):
        members = [subject for subject in usable(book, split) if subject in done]
        for contrast in (name for name in book.study.config.contrasts if name in source.contrasts):
            having = [
                who for who in members if contrast in cohort["contrasts"][who] and source.has(cohort, who, contrast)
            ]
            if len(having) > 1:
                found.append(Pairs(contrast, split, having))
    return found


@dataclass(frozen=True, eq=False)
class Maps:
    """Maps of some people.

    Parameters
    ----------
    grey : (n, G) float16
        Over grey matter.
    whole : Moments
        Mean and spread of each voxel of the grid, (V,).
    """

    grey: NDArray[np.float16]
    whole: Moments


def read_maps(study: Study, source: Source, contrast: str, subjects: Sequence[str]) -> Maps:
    """Read the maps of some people, a block of the study at a time.

    Raises
    ------
    StudyError
        When a map was lost that is done, naming its subject.
    """
    array, number = study.storage.open_array(source.array, "maps"), source.contrasts.index(contrast)
    rows, grey = study.positions(subjects), np.flatnonzero(study.grey_matter)
    found, voxels = np.empty((len(rows), len(grey)), dtype=np.float16), study.grid.n_voxels
    whole = Moments(0, np.zeros(voxels), np.zeros(voxels))
    size = study.config.cohort.block_size
    for block in np.unique(rows // size):
        at = np.flatnonzero(rows // size == block)
        inside = rows[at] - block * size
        values = read(array, (number, slice(block * size, min((block + 1) * size, array.shape[1]))))[inside]
        if (bad := np.isnan(values).any(axis=1)).any():
            raise lost(subjects[int(at[np.argmax(bad)])], f"map of {contrast}", source.stage)
        found[at] = values[:, grey]
        whole = merge(whole, moments(values))
    return Maps(found, whole)
