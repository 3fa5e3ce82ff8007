"""`dtg evaluate`: how well a model's maps agree with the measured maps of subjects it has never seen."""

from __future__ import annotations

import dask
import numpy as np
import pandas as pd

from dtg_ray import ledger
from dtg_ray.stages.derivative import MEASURED, Source, source_of
from dtg_ray.stages.maps import chosen_models, lost, require_settled, usable
from dtg_ray.stages.plan import Plan
from dtg_ray.stages.runtime import Options
from dtg_ray.stages.single import settle
from dtg_ray.stats.metrics import pearson
from dtg_ray.stats.reconstruction import (
    diagonality_index,
    dice,
    dice_auc,
    identification_accuracy,
    subject_correlation,
)
from dtg_ray.store.arrays import read
from dtg_ray.store.receipts import Row
from dtg_ray.store.tables import read_table, write_table
from dtg_ray.study import Study


def run(study: Study, options: Options, model: str | None = None) -> pd.DataFrame:
    """Evaluate one model or all; returns the rows of their receipts."""
    book = ledger.Ledger(study)
    rows = [_run_one(book, name, options) for name in chosen_models(study, model)]
    return pd.concat(rows, ignore_index=True)


def table_name(model: str) -> str:
    """Where the figures of a model are: a row per contrast."""
    return f"evaluation/{model}.parquet"


def read_summary(study: Study) -> pd.DataFrame:
    """Means over contrasts, a row per model that has been evaluated, in the order of study.yaml."""
    lines = []
    book = ledger.Ledger(study)
    for model in study.config.models:
        if book.account(f"evaluate/{model}").subjects("done"):
            table = read_table(study.storage, table_name(model))
            figures = table.drop(columns=["contrast", "subjects"]).mean()
            lines.append({"model": model, "subjects": int(table["subjects"].max()), **figures.to_dict()})
    return pd.DataFrame(lines)


def _run_one(book: ledger.Ledger, name: str, options: Options) -> pd.DataFrame:
    study, stage = book.study, f"evaluate/{name}"
    account = book.account(stage)
    pending = account.pending()
    done = set(book.account(f"synthesize/{name}").subjects("done"))
    members = [subject for subject in usable(book, "test") if subject in done]
    waiting = require_settled(book, [f"synthesize/{name}", "contrasts"], "evaluation") if pending else ""
    maps = len(members) * study.grid.n_voxels
    size = maps * 4 * len(study.config.contrasts)
    todo = Plan(stage, 1, len(pending), len(members), size, memory=maps * 24, waiting=waiting)
    return settle(study, account, todo, lambda _today: _evaluate_one(study, name, members), options)


def _evaluate_one(study: Study, name: str, members: list[str]) -> Row:
    if len(members) < 2:
        return Row(name, "excluded", message=f"got {len(members)} held-out subjects with maps, expected at least 2")
    table = evaluate(study, name, members)
    if not len(table):
        return Row(name, "excluded", message=f"{name}: got no contrast that it predicts and two of them have measured")
    write_table(study.storage, table_name(name), table)
    return Row(name, "done", qc={"subjects": float(table["subjects"].max())})


def evaluate(study: Study, model: str, subjects: list[str]) -> pd.DataFrame:
    """Figures per contrast over grey matter, a contrast at a time in memory.

    Parameters
    ----------
    study : Study
    model : str
    subjects : list of str
        Held out, whose maps are done, measured and by the model.

    Returns
    -------
    DataFrame
        contrast, subjects (with both maps), r (mean over subjects of the correlation of own maps), diagonality,
        identification, dice (top 25%), dice_auc.

    Raises
    ------
    StudyError
        When a map was lost that is done.
    """
    source, cohort = source_of(study, model), study.cohort
    having = {
        name: [who for who in subjects if name in cohort["contrasts"][who] and source.has(cohort, who, name)]
        for name in study.config.contrasts
        if name in source.contrasts
    }
    tasks = [dask.delayed(_evaluate_contrast)(study.uri, model, name, who) for name, who in having.items()]
    lines = [line for line in dask.compute(*tasks, scheduler="threads", num_workers=2) if line is not None]
    return pd.DataFrame(lines)


def _evaluate_contrast(uri: str, model: str, contrast: str, subjects: list[str]) -> dict[str, object] | None:
    """Figures of one contrast over those who have both maps; None where there are fewer than two."""
    if len(subjects) < 2:
        return None
    study = Study(uri)
    actual, predicted = (_grey_maps(source_of(study, name), study, contrast, subjects) for name in (MEASURED, model))
    matrix = subject_correlation(actual, predicted)  # (n, n)
    return {
        "contrast": contrast,
        "subjects": len(subjects),
        "r": float(np.mean(pearson(actual, predicted))),
        "diagonality": diagonality_index(matrix),
        "identification": identification_accuracy(matrix),
        "dice": float(np.mean(dice(predicted, actual))),
        "dice_auc": float(np.mean(dice_auc(predicted, actual))),
    }


def _grey_maps(source: Source, study: Study, contrast: str, subjects: list[str]) -> np.ndarray:
    """Grey-matter maps of some subjects, (n, G) float32."""
    rows = study.positions(subjects)
    first, last = int(rows.min()), int(rows.max()) + 1
    block = read(study.storage.open_array(source.array, "maps"), (source.contrasts.index(contrast), slice(first, last)))
    maps = block[rows - first][:, study.grey_matter].astype(np.float32)
    is_lost = np.isnan(maps).any(axis=1)
    if is_lost.any():
        raise lost(subjects[int(np.argmax(is_lost))], f"map of {contrast}", source.stage)
    return maps
