"""Figures of each subject: how well a predicted map agrees with the measured one, and how much it is the own."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from dtg_ray.imaging.export import ALIGNED, MNI, map_image
from dtg_ray.results import ACTUAL, FIGURES, HELD_OUT, PREDICTED, group_image, matrix_table
from dtg_ray.stages.derivative import MEASURED, source_of
from dtg_ray.stages.evaluation.pairs import Pairs, read_maps
from dtg_ray.stats.metrics import pearson
from dtg_ray.stats.moments import Moments, merge
from dtg_ray.stats.reconstruction import (
    dice,
    dice_auc,
    identified,
    normalized_diagonality_index,
    subject_correlation,
    subject_diagonality,
)
from dtg_ray.store.tables import write_table
from dtg_ray.study import Study


@dataclass(frozen=True, eq=False)
class Compared:
    """What came out of the maps of one contrast and split.

    Parameters
    ----------
    table : DataFrame
        contrast, split, subject and `FIGURES`, a row per subject.
    line : dict
        contrast, subjects, means of `FIGURES`, chance (of identification), normalized_diagonality, and mean_map_r and
        sd_map_r: the spatial correlation over grey matter of the measured and predicted mean, and standard deviation,
        over subjects.
    """

    table: pd.DataFrame
    line: dict[str, object]


def compare(uri: str, model: str, pairs: Pairs) -> Compared:
    """Compare the maps of one contrast; of people held out the matrix and the maps of the group are written too."""
    study = Study(uri)
    tables, normalized = [], []
    whole: dict[str, Moments] = {}
    for subjects in pairs.together():
        maps = {
            kind: read_maps(study, source_of(study, name), pairs.contrast, subjects)
            for kind, name in ((ACTUAL, MEASURED), (PREDICTED, model))
        }
        matrix = subject_correlation(maps[ACTUAL].grey, maps[PREDICTED].grey)
        tables.append(_by_subject(pairs, subjects, matrix, maps[ACTUAL].grey, maps[PREDICTED].grey))
        normalized.append(normalized_diagonality_index(matrix))
        if len(tables) == 1 and pairs.split == HELD_OUT:
            _write_matrix(study, matrix_table(model, pairs.contrast), subjects, matrix)
        whole = {kind: merge(whole[kind], found.whole) if whole else found.whole for kind, found in maps.items()}
    if pairs.split == HELD_OUT:
        _write_maps(study, model, pairs.contrast, whole)
    table, grey = pd.concat(tables, ignore_index=True), study.grey_matter
    line = {
        "contrast": pairs.contrast,
        "subjects": len(table),
        **{name: float(table[name].mean()) for name in FIGURES},
        "chance": len(tables) / len(table),
        "normalized_diagonality": float(np.average(normalized, weights=[len(one) for one in tables])),
        "mean_map_r": float(pearson(whole[ACTUAL].mean[grey], whole[PREDICTED].mean[grey])),
        "sd_map_r": float(pearson(whole[ACTUAL].deviation[grey], whole[PREDICTED].deviation[grey])),
    }
    return Compared(table, line)


def _by_subject(
    pairs: Pairs, subjects: list[str], matrix: NDArray[np.float64], actual: NDArray, predicted: NDArray
) -> pd.DataFrame:
    """A row per subject."""
    return pd.DataFrame(
        {
            "contrast": pairs.contrast,
            "split": pairs.split,
            "subject": subjects,
            "r": np.diagonal(matrix),
            "diagonality": subject_diagonality(matrix),
            "identification": identified(matrix),
            "dice": dice(predicted, actual),
            "dice_auc": dice_auc(predicted, actual),
        }
    )


def _write_matrix(study: Study, name: str, subjects: list[str], matrix: NDArray[np.float64]) -> None:
    """The subject-by-subject matrix as a table: a row per measured map, a column per predicted one."""
    table = pd.DataFrame(matrix.astype(np.float32), columns=subjects)
    table.insert(0, ACTUAL, subjects)
    write_table(study.storage, name, table)


def _write_maps(study: Study, model: str, contrast: str, maps: Mapping[str, Moments]) -> None:
    code = MNI if study.config.grid.mask is None else ALIGNED
    for kind, found in maps.items():
        for what, values in (("mean", found.mean), ("sd", found.deviation)):
            text = f"{what} of {kind} maps of {contrast}, {found.count} held-out subjects"
            vector = values.astype(np.float32)
            image = map_image(study.grid, vector, code=code, description=text, intent="estimate")
            study.storage.write(group_image(model, contrast, kind, what), image)
