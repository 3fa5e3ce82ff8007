"""Weights and patterns of voxels and edges: a second pass over the features, for all targets at once."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from dtg_ray.config import PredictionConfig
from dtg_ray.imaging.export import ALIGNED, MNI, map_image
from dtg_ray.ledger import target_unit
from dtg_ray.stages.prediction.cells import Engines
from dtg_ray.stages.prediction.features import Features, Part
from dtg_ray.stages.prediction.people import Target
from dtg_ray.stats.gram import Gram
from dtg_ray.stats.solvers import Factorised, Inverses
from dtg_ray.stats.weights import FinalFit, final_fit
from dtg_ray.store.tables import write_table

KINDS = ("weights", "pattern")
"""How to read a target out of the features, and what goes with it in them."""


@dataclass(frozen=True, eq=False)
class Learnt:
    """What was learnt of one target, or one class of it.

    Parameters
    ----------
    name : str
    products : (n, 2) float32
        What the features of everybody are multiplied with to give weights and pattern; 0 for who took no part.
    """

    name: str
    products: NDArray[np.float32]


def learn(engines: Engines, target: Target, config: PredictionConfig) -> list[Learnt]:
    """Fit a target to all who have a value; of several penalties with the median of those that the folds chose.

    Parameters
    ----------
    engines : Engines
    target : Target
    config : PredictionConfig

    Raises
    ------
    ValueError
        When there can be no folds, or the penalty is too small.
    """
    X = engines.features(target)
    if isinstance(config.alpha, str):
        alpha = engines.n_features / len(target.subjects)
    elif isinstance(config.alpha, tuple):
        alpha = float(np.median(engines.engine(target, config.folds, config.seed).alphas(target.signs[0])))
    else:
        alpha = config.alpha
    features: Gram | Factorised | NDArray[np.float64] = X.gram if isinstance(X, Inverses) else X
    fit: FinalFit = final_fit(features, target.signs.T, alpha, target.confounds)
    rows = [engines.place[subject] for subject in target.subjects]
    names = target.classes[1:] if len(target.classes) == 2 else target.classes
    found = []
    for number in range(len(target.signs)):
        products = np.zeros((len(engines.place), 2), dtype=np.float32)
        products[rows] = np.column_stack([fit.dual[:, number], fit.pattern[:, number]])
        unit = target_unit(target.name)
        found.append(Learnt(f"{unit}_{target_unit(names[number])}" if names else unit, products))
    return found


def write_weights(features: Features, folder: str, learnt: list[Learnt]) -> None:
    """Write the weights and patterns of all targets: images of maps, tables of connectomes.

    Parameters
    ----------
    features : Features
        Of the subjects of `learnt`.
    folder : str
        Below the study's root.
    learnt : list of Learnt
    """
    products = np.column_stack([one.products for one in learnt])  # (n, 2 T)
    found = {part.name: np.zeros((products.shape[1], len(part.columns)), np.float32) for part in features.parts}
    for piece, columns, X in features.blocks(features.pieces()):
        at = np.searchsorted(piece.part.columns, columns[0])
        found[piece.part.name][:, at : at + len(columns)] = products.T @ X  # (2 T, w)
    for part in features.parts:
        for number, one in enumerate(learnt):
            _write(features, part, f"{folder}/{one.name}", found[part.name][2 * number : 2 * number + 2])


def _write(features: Features, part: Part, name: str, values: NDArray[np.float32]) -> None:
    study, what = features.study, part.name.replace(":", "-")
    if part.contrast is None:
        first, second = np.triu_indices(study.n_rois, 1)
        names = np.array(study.roi_set.names)
        table = pd.DataFrame({"roi_a": names[first], "roi_b": names[second], **dict(zip(KINDS, values, strict=True))})
        write_table(study.storage, f"{name}_{what}.parquet", table)
        return
    code = MNI if study.config.grid.mask is None else ALIGNED
    for kind, of_columns in zip(KINDS, values, strict=True):
        vector = np.zeros(study.grid.n_voxels, dtype=np.float32)
        vector[part.columns] = of_columns
        text = f"{kind} of {name.rsplit('/', maxsplit=1)[-1]} on {part.name}"
        image = map_image(study.grid, vector, code=code, description=text, intent="estimate")
        study.storage.write(f"{name}_{what}_{kind}.nii.gz", image)
