"""Studies to predict from, and what comes out of it."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import yaml

from dtg_ray import Study, ledger
from dtg_ray.results import prediction_table
from dtg_ray.stages.runtime import Options
from dtg_ray.store.receipts import Receipts
from dtg_ray.store.tables import read_table

QUIET = Options(quiet=True)
SETTINGS: dict[str, Any] = {
    "subjects": "all",
    "permutations": 20,
    "folds": 3,
    "repeats": 2,
    "targets": {"network_score": {}, "sex": {"kind": "classification"}},
    "features": ["synthetic:linear", "connectome"],
}
Make = Callable[..., Study]


def copier(finished: Path, folder: Path) -> Make:
    """Copies of a finished study, not predicted yet, with other settings of `prediction`."""

    def copied(**settings: Any) -> Study:
        root = folder / f"study-{len(list(folder.iterdir()))}"
        shutil.copytree(finished, root, ignore=shutil.ignore_patterns("prediction", "predict", "scores.parquet"))
        return change(Study(str(root)), **{**SETTINGS, **settings})

    return copied


def change(study: Study, **settings: Any) -> Study:
    path = Path(study.uri) / "study.yaml"
    document = yaml.safe_load(path.read_text())
    document["prediction"] = {**document["prediction"], **settings}
    path.write_text(yaml.safe_dump(document, sort_keys=False))
    return Study(study.uri)


def set_phenotypes(study: Study, **columns: Any) -> Study:
    path = Path(study.uri) / "phenotypes.parquet"
    pd.read_parquet(path).assign(**columns).to_parquet(path, index=False)
    return Study(study.uri)


def everything(study: Study) -> dict[str, bytes]:
    """All tables and images; not what a kill left half-written beside them."""
    root = Path(study.uri)
    paths = [path for path in sorted((root / "prediction").rglob("*.*")) if path.suffix != ".partial"]
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in paths}


def attempts(study: Study) -> dict[str, int]:
    """How often each target was done, by stage and target."""
    found = {}
    for stage in ledger.stages(study):
        if stage.startswith("predict/"):
            rows = Receipts(study.storage, stage).read(Receipts(study.storage, stage).units())
            found |= {f"{stage}:{who}": n for who, n in zip(rows["subject"], rows["attempt"], strict=True)}
    return found


def reasons(study: Study) -> dict[str, str]:
    """Why targets were excluded."""
    rows = pd.concat([ledger.account(study, stage).rows for stage in ledger.stages(study) if "predict/" in stage])
    rows = rows[rows["status"] == "excluded"]
    return dict(zip(rows["subject"], rows["message"], strict=True))


def result(study: Study, feature: str, what: str, target: str) -> pd.DataFrame:
    return read_table(study.storage, prediction_table(feature, what, target))


def matrix(study: Study, feature: str, subjects: list[str]) -> np.ndarray:
    """Features as plain numpy reads them, (n, p)."""
    rows = study.positions(subjects)
    if feature == "connectome":
        return study.storage.open_zarr("connectomes.zarr")["roi_connectome"][:][rows].astype(np.float64)
    maps = study.measured() if feature.startswith("measured") else study.synthetic(feature.split(":")[1])
    chosen = maps.to_numpy() if feature.count(":") < 2 else maps.sel(contrast=[feature.split(":")[2]]).to_numpy()
    return np.concatenate(list(chosen[:, rows][:, :, study.grey_matter].astype(np.float64)), axis=1)
