"""`dtg predict`: phenotypes from maps and connectomes, by ridge regression with permutation tests.

Dask reads the arrays by columns and adds up one Gram matrix per feature set; everything after that is small.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import dask
import numpy as np
import pandas as pd
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits
from tqdm import tqdm

from dtg_ray import ledger
from dtg_ray.cohort import manifest
from dtg_ray.cohort.manifest import TRAINING
from dtg_ray.errors import ConfigError, StudyError, UsageError
from dtg_ray.stages.mapping import array_name
from dtg_ray.stages.maps import require_settled
from dtg_ray.stages.plan import Plan
from dtg_ray.stages.runtime import Options
from dtg_ray.stages.single import settle
from dtg_ray.stats.folds import fold_indices
from dtg_ray.stats.gram import Gram
from dtg_ray.stats.metrics import mae, pearson, r2
from dtg_ray.stats.permutation import p_value, permutation_indices
from dtg_ray.stats.ridge import cross_validated_ridge
from dtg_ray.store.arrays import read
from dtg_ray.store.receipts import Row
from dtg_ray.store.tables import read_table, write_table
from dtg_ray.study import Study

COLUMN_BYTES = 256 * 2**20
"""Features of all subjects in memory at a time, per thread."""
THREADS = 2


def run(study: Study, options: Options) -> pd.DataFrame:
    """Predict every target from every feature set; returns the rows of the receipts."""
    book = ledger.Ledger(study)
    rows = [_run_one(book, feature, options) for feature in study.config.feature_sets()]
    return pd.concat(rows, ignore_index=True)


def read_scores(study: Study) -> pd.DataFrame:
    """Scores of all feature sets that are done: features, target, subjects, r, p, r2, mae."""
    book = ledger.Ledger(study)
    done = [
        feature
        for feature in study.config.feature_sets()
        if book.account(f"predict/{ledger.feature_folder(feature)}").subjects("done")
    ]
    tables = [read_table(study.storage, _table(feature, "scores")) for feature in done]
    return pd.concat(tables, ignore_index=True) if tables else pd.DataFrame()


def targets(study: Study) -> list[str]:
    """The phenotypes to predict.

    Raises
    ------
    ConfigError
        When one is unknown or not numeric.
    """
    table = study.phenotypes
    numeric = [name for name in table.columns if pd.api.types.is_numeric_dtype(table[name])]
    wanted = list(study.config.prediction.targets)
    if wrong := [name for name in wanted if name not in numeric]:
        raise ConfigError(f"prediction.targets: got {wrong}, expected some of the numeric columns {numeric}")
    return wanted or [name for name in numeric if table[name].min() < table[name].max()]


def members(book: ledger.Ledger, feature: str) -> list[str]:
    """Whose features are complete, in the order of the cohort; by default only those never trained or validated on."""
    study, cohort = book.study, book.study.cohort
    if study.config.prediction.subjects == "unseen":
        cohort = cohort[~cohort["split"].isin([*TRAINING, manifest.RELATED])]
    if column := _measured_in(study, feature):
        wanted = set(study.config.contrasts)
        cohort = cohort[np.array([wanted <= set(maps) for maps in cohort[column]], dtype=bool)]
    done = set(book.account(_source(feature)).subjects("done"))
    return [subject for subject in cohort["subject"] if subject in done]


def _source(feature: str) -> str:
    """The stage that makes a feature set."""
    kind, _, model = feature.partition(":")
    return {"measured": "contrasts", "connectome": "connectomes"}.get(kind, f"synthesize/{model}")


def _measured_in(study: Study, feature: str) -> str:
    """The column of the cohort with the files of a feature set of measured maps; empty for others."""
    kind, _, model = feature.partition(":")
    is_retest = kind == "synthetic" and study.config.models[model].kind == "retest"
    return "contrasts" if kind == "measured" else "retest" if is_retest else ""


def _table(feature: str, what: str) -> str:
    return f"prediction/{ledger.feature_folder(feature)}/{what}.parquet"


def _run_one(book: ledger.Ledger, feature: str, options: Options) -> pd.DataFrame:
    study, stage = book.study, f"predict/{ledger.feature_folder(feature)}"
    account = book.account(stage)
    pending = account.pending()
    names, subjects = targets(study), members(book, feature)
    waiting = require_settled(book, [_source(feature)], "prediction") if pending else ""
    n, p = len(subjects), sum(part.size for part in parts(study, feature))
    memory = THREADS * 2 * COLUMN_BYTES + 4 * 8 * n * n + 8 * n * study.config.prediction.permutations * 4
    todo = Plan(stage, 1, len(pending), n, 2 * n * p, memory=memory, cpus=THREADS, waiting=waiting)
    return settle(study, account, todo, lambda _today: _predict(study, feature, subjects, names, options), options)


def _predict(study: Study, feature: str, subjects: list[str], names: list[str], options: Options) -> Row:
    """Write scores, predictions and null distributions of one feature set."""
    folds = study.config.prediction.folds
    if len(subjects) < 2 * folds or not names:
        why = f"got {len(subjects)} subjects and {len(names)} phenotypes, expected at least {2 * folds} and 1"
        return Row(feature, "excluded", message=f"{feature}: {why}")
    # BLAS threads only get into each other's way: Dask reads and multiplies in two of its own
    with threadpool_limits(1):
        return _predict_all(study, feature, subjects, names, options)


def _predict_all(study: Study, feature: str, subjects: list[str], names: list[str], options: Options) -> Row:
    gram = gram_matrix(study, feature, subjects)
    results = [
        predict_target(study, gram, subjects, name)
        for name in tqdm(names, desc=f"predict/{feature}", unit="phenotype", disable=options.quiet)
    ]
    for what, tables in (
        ("scores", [pd.DataFrame([result.score]) for result in results]),
        ("predictions", [result.predictions for result in results]),
        ("nulls", [result.null for result in results]),
    ):
        table = pd.concat(tables, ignore_index=True)
        table.insert(0, "features", feature)
        write_table(study.storage, _table(feature, what), table)
    return Row(feature, "done", qc={"subjects": float(len(subjects)), "features": float(gram.n_features)})


@dataclass(frozen=True)
class TargetResult:
    """Score, out-of-fold predictions and null distribution of one target."""

    score: dict[str, object]
    predictions: pd.DataFrame
    null: pd.DataFrame


def predict_target(study: Study, gram: Gram, subjects: list[str], name: str) -> TargetResult:
    """Predict one phenotype of those who have a value, and test r against permutations.

    Parameters
    ----------
    study : Study
    gram : Gram
        Of `subjects`.
    subjects : list of str
    name : str
        Column of the phenotype table.
    """
    config = study.config.prediction
    values = study.phenotypes.loc[subjects, name].astype("float64").to_numpy()
    known = np.flatnonzero(np.isfinite(values))
    y, n = values[known], len(known)
    if n < 2 * config.folds or np.ptp(y) == 0:
        score = {"target": name, "subjects": n, "r": np.nan, "p": np.nan, "r2": np.nan, "mae": np.nan}
        return TargetResult(score, pd.DataFrame(), pd.DataFrame())
    permutations = permutation_indices(n, config.permutations, config.seed)
    folds = fold_indices(n, config.folds, config.seed)
    result = cross_validated_ridge(gram.subset(known), y, folds, config.alpha, permutations)
    observed, null = pearson(y, result.predictions), pearson(y[permutations], result.permuted_predictions)
    score = {
        "target": name,
        "subjects": n,
        "r": float(observed),
        "p": float(p_value(observed, null)),
        "r2": float(r2(y, result.predictions)),
        "mae": float(mae(y, result.predictions)),
    }
    table = pd.DataFrame(
        {"target": name, "subject": np.array(subjects)[known], "actual": y, "predicted": result.predictions}
    )
    return TargetResult(score, table, pd.DataFrame({"target": name, "permutation": range(len(null)), "r": null}))


@dataclass(frozen=True)
class Part:
    """Some columns of a feature set: where they are stored, and which are used."""

    store: str
    array: str
    contrast: int | None
    columns: NDArray[np.int64]

    @property
    def size(self) -> int:
        """Number of features."""
        return len(self.columns)


def parts(study: Study, feature: str) -> list[Part]:
    """A feature set as columns of arrays; all contrasts of a set of maps are put side by side.

    Raises
    ------
    UsageError
        When there is no such feature set.
    """
    kind, _, model = feature.partition(":")
    if kind == "connectome":
        edges = study.n_rois * (study.n_rois - 1) // 2
        return [Part("connectomes.zarr", "roi_connectome", None, np.arange(edges))]
    if kind not in {"measured", "synthetic"}:
        raise UsageError(f"got features {feature!r}, expected synthetic:MODEL, measured or connectome")
    columns = np.flatnonzero(study.grey_matter) if study.config.prediction.mask == "grey_matter" else None
    voxels = np.arange(study.grid.n_voxels) if columns is None else columns
    if kind == "measured":
        store, contrasts = "contrasts.zarr", study.config.contrasts
    else:
        store, contrasts = array_name(model), study.config.maps_of(model)
    return [Part(store, "maps", number, voxels) for number in range(len(contrasts))]


def gram_matrix(study: Study, feature: str, subjects: list[str]) -> Gram:
    """The Gram matrix of a feature set, added up over columns by Dask: float32 products, float64 sums.

    Parameters
    ----------
    study : Study
    feature : str
    subjects : list of str
        n of them.

    Returns
    -------
    Gram
        (n, n) float64 and the number of features.
    """
    rows = study.positions(subjects)
    pieces = parts(study, feature)
    width = max(1, COLUMN_BYTES // (4 * len(rows)))
    tasks = [
        dask.delayed(_partial_gram)(study.uri, piece.store, piece.array, piece.contrast, rows, columns)
        for piece in pieces
        for columns in _runs(piece.columns, width)
    ]
    while len(tasks) > 1:  # a tree of sums in a fixed order: the same bits however many threads
        tasks = [dask.delayed(_add)(tasks[i : i + 8]) for i in range(0, len(tasks), 8)]
    (matrix,) = dask.compute(tasks[0], scheduler="threads", num_workers=THREADS)
    return Gram(matrix, sum(piece.size for piece in pieces))


def _runs(columns: NDArray[np.int64], width: int) -> Iterator[NDArray[np.int64]]:
    for start in range(0, len(columns), width):
        yield columns[start : start + width]


def _add(matrices: list[NDArray[np.float64]]) -> NDArray[np.float64]:
    return np.sum(matrices, axis=0)


def _partial_gram(
    uri: str, store: str, name: str, contrast: int | None, rows: NDArray[np.int64], columns: NDArray[np.int64]
) -> NDArray[np.float64]:
    """Gram matrix (n, n) of some centred columns."""
    array = Study(uri).storage.open_array(store, name)
    index = (slice(int(rows.min()), int(rows.max()) + 1), slice(int(columns[0]), int(columns[-1]) + 1))
    block = read(array, index if contrast is None else (contrast, *index))
    X = block[rows - rows.min()][:, columns - columns[0]].astype(np.float32)  # (n, columns)
    if not np.isfinite(X).all():
        raise StudyError(
            f"{store}: got NaN among the features of subjects that are done, expected numbers",
            hint="a part of it was lost: remove the receipts of its stage and run that again",
        )
    X -= X.mean(axis=0, dtype=np.float64).astype(np.float32)
    return np.asarray(X @ X.T, dtype=np.float64)
