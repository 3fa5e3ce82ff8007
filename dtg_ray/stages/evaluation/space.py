"""The space of subjects: measured and synthetic maps of all tasks in two dimensions."""

from __future__ import annotations

import importlib.util

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from sklearn.decomposition import PCA
from threadpoolctl import threadpool_limits

from dtg_ray import ledger
from dtg_ray.results import ACTUAL, HELD_OUT, PREDICTED, SPACE
from dtg_ray.stages.derivative import MEASURED, source_of
from dtg_ray.stages.evaluation.pairs import pairs, read_maps
from dtg_ray.store.tables import write_table

VOXELS = 20_000
"""Of grey matter, evenly taken: maps are smooth, and two dimensions are all that is wanted."""
COMPONENTS = 50
"""Principal components that UMAP starts from."""


def write(book: ledger.Ledger) -> int:
    """Write where each map is, of the first network; returns how many there are.

    The table has contrast, subject, kind ("actual" or "predicted"), x, y, method ("PCA", or "UMAP" where umap-learn is
    installed) and explained, the share of variance of two principal components.
    """
    study, model = book.study, book.study.default_model
    wanted = [pair for pair in pairs(book, model) if pair.split == HELD_OUT]
    many = study.config.evaluation.space_subjects
    if not many or not wanted:
        study.storage.delete(SPACE)  # of an earlier state
        return 0
    names, maps = [], []
    for pair in wanted:
        some = pair.subjects[:: -(-len(pair.subjects) // many)]
        for kind, name in ((ACTUAL, MEASURED), (PREDICTED, model)):
            grey = read_maps(study, source_of(study, name), pair.contrast, some).grey
            maps.append(_standardised(grey[:, :: -(-grey.shape[1] // VOXELS)]))
            names += [(pair.contrast, subject, kind) for subject in some]
    x, y, method, explained = embed(np.concatenate(maps), study.config.evaluation.seed)
    table = pd.DataFrame(names, columns=["contrast", "subject", "kind"])
    write_table(study.storage, SPACE, table.assign(x=x, y=y, method=method, explained=explained))
    return len(table)


def _standardised(maps: NDArray[np.float16]) -> NDArray[np.float32]:
    """Maps with mean 0 and length 1: how alike two are is their correlation, whatever their strength."""
    values = maps.astype(np.float32)
    values -= values.mean(axis=1, keepdims=True)
    length = np.linalg.norm(values, axis=1, keepdims=True)
    return np.divide(values, length, out=np.zeros_like(values), where=length > 0)


def embed(maps: NDArray[np.float32], seed: int) -> tuple[NDArray, NDArray, str, float]:
    """Two coordinates of each map (n, V), how they were found, and the share of variance of two components."""
    pca = PCA(min(COMPONENTS, *maps.shape), svd_solver="randomized", random_state=seed)
    with threadpool_limits(1):  # more of them give other last bits
        scores = pca.fit_transform(maps.astype(np.float64))
    explained = float(pca.explained_variance_ratio_[:2].sum())
    if len(maps) < 15 or importlib.util.find_spec("umap") is None:
        return scores[:, 0], scores[:, 1] if scores.shape[1] > 1 else np.zeros(len(maps)), "PCA", explained
    import umap

    x, y = umap.UMAP(random_state=seed, n_jobs=1).fit_transform(scores).T
    return x, y, "UMAP", explained
