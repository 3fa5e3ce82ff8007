"""The results of a study: where they are, and how to read them. What was not made is an empty table."""

from __future__ import annotations

import functools
import gzip
from pathlib import PurePosixPath

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from dtg_ray.config import feature_folder
from dtg_ray.errors import MissingFileError
from dtg_ray.ledger import model_hash, target_unit
from dtg_ray.store.arrays import read
from dtg_ray.store.tables import read_table
from dtg_ray.study import Study

CONTRASTS, GROUPS, COMPARISONS, SPACE = (
    f"evaluation/{name}.parquet" for name in ("contrasts", "groups", "comparisons", "space")
)
SCORES, FEATURE_COMPARISONS = "prediction/scores.parquet", "prediction/comparisons.parquet"
FIGURES = ("r", "diagonality", "identification", "dice", "dice_auc")
"""Of the agreement of a subject's maps; the mean over subjects of each is the figure of a contrast."""
ACTUAL, PREDICTED = "actual", "predicted"
HELD_OUT = "test"
ALL = "(all)"
"""In place of a contrast: the mean over contrasts of each subject."""


def model_table(model: str, what: str) -> str:
    """Where a table of the evaluation of a model is: `subjects`, a row per subject and contrast, or `contrasts`."""
    return f"evaluation/{model}/{what}.parquet"


def matrix_table(model: str, contrast: str) -> str:
    """Where the subject-by-subject matrix of a contrast is: rows measured maps, columns predicted ones."""
    return f"evaluation/{model}/correlation/{target_unit(contrast)}.parquet"


def group_image(model: str, contrast: str, kind: str, what: str) -> str:
    """Where a map of held-out people is: the "mean" or "sd" of the "actual" or "predicted" ones."""
    return f"evaluation/{model}/maps/{target_unit(contrast)}_{kind}_{what}.nii.gz"


def prediction_table(feature: str, what: str, target: str) -> str:
    """Where a table of one phenotype is: `prediction/FEATURES/WHAT/TARGET.parquet`."""
    return f"prediction/{feature_folder(feature)}/{what}/{target_unit(target)}.parquet"


class Results:
    """Reads the results of a study.

    Parameters
    ----------
    study : Study
    """

    def __init__(self, study: Study) -> None:
        self.study = study

    def table(self, name: str) -> pd.DataFrame:
        """A table below the root; empty where it was not made."""
        try:
            return read_table(self.study.storage, name)
        except MissingFileError:
            return pd.DataFrame()

    @functools.cached_property
    def contrasts(self) -> pd.DataFrame:
        """A row per model and contrast: figures of held-out people with intervals."""
        return self.table(CONTRASTS)

    @functools.cached_property
    def models(self) -> list[str]:
        """Models that were evaluated, in the order of study.yaml."""
        done = set(self.contrasts["model"]) if len(self.contrasts) else set()
        return [name for name in self.study.config.models if name in done]

    @property
    def model(self) -> str:
        """Whose maps are shown: the first network, or another model where that was not evaluated."""
        first = self.study.default_model
        return min(self.models or [first], key=lambda name: (name != first, _is_baseline(self.study, name)))

    @property
    def groups(self) -> pd.DataFrame:
        """Figures by split, and of held-out people by site, sex and so on, with intervals."""
        return self.table(GROUPS)

    @property
    def comparisons(self) -> pd.DataFrame:
        """Paired tests between models."""
        return self.table(COMPARISONS)

    @property
    def space(self) -> pd.DataFrame:
        """Where each measured and synthetic map is in the space of subjects."""
        return self.table(SPACE)

    def subjects(self, model: str) -> pd.DataFrame:
        """A row per subject and contrast: the figures of a model."""
        return self.table(model_table(model, "subjects"))

    def matrix(self, model: str, contrast: str) -> pd.DataFrame:
        """Correlation of every measured map (row) with every predicted one (column) of held-out people."""
        table = self.table(matrix_table(model, contrast))
        return table.set_index(ACTUAL) if len(table) else table

    def group_map(self, model: str, contrast: str, kind: str, what: str = "mean") -> NDArray[np.float32] | None:
        """A map of held-out people, (V,); None where it was not made."""
        from nibabel.nifti1 import Nifti1Image

        try:
            data = self.study.storage.read(group_image(model, contrast, kind, what))
        except MissingFileError:
            return None
        image = Nifti1Image.from_bytes(gzip.decompress(data))
        return self.study.grid.vectorize(np.asarray(image.dataobj, dtype=np.float32))

    @functools.cached_property
    def scores(self) -> pd.DataFrame:
        """A row per feature set and phenotype."""
        return self.table(SCORES)

    @property
    def feature_comparisons(self) -> pd.DataFrame:
        """Pairs of feature sets."""
        return self.table(FEATURE_COMPARISONS)

    def prediction(self, feature: str, what: str, target: str) -> pd.DataFrame:
        """`folds`, `predictions` or `nulls` of one phenotype."""
        return self.table(prediction_table(feature, what, target))

    def attributions(self, model: str) -> pd.DataFrame:
        """What drives a network as it is today: a row per method, target and ROI, as `dtg interpret` has found."""
        table = self.table(f"interpretation/{model}.parquet")
        return table[table["weights"] == model_hash(self.study, model)] if len(table) else table

    def attribution(self, model: str, method: str, kind: str, target: str, roi: str) -> NDArray[np.float32]:
        """Mean attribution of a contrast or phenotype through one ROI, (V,)."""
        name = f"interpretation/{model}/{method}/{kind}-{target_unit(target)}.zarr"
        array = self.study.storage.open_array(name, "attribution")
        return np.asarray(read(array, (0, self.study.roi_set.names.index(roi))), dtype=np.float32)

    def history(self, model: str) -> pd.DataFrame:
        """The training of a network, a row per epoch."""
        return self.table(f"models/{model}/history.parquet")

    def transfer_curves(self) -> dict[str, pd.DataFrame]:
        """Tables of `dtg transfer-curve`, by the names of both models."""
        paths = [PurePosixPath(name) for name in self.study.storage.names("transfer")]
        tables = [path for path in paths if len(path.parts) == 2 and path.suffix == ".parquet"]
        return {path.stem: self.table(str(path)) for path in tables}


def _is_baseline(study: Study, model: str) -> bool:
    return study.config.models[model].kind in {"linear", "group_mean", "retest"}
