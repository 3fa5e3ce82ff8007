"""Phenotype prediction: the Gram matrix from Zarr, and the scores of planted and absent effects."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from numpy.testing import assert_allclose
from sklearn.linear_model import Ridge
from sklearn.model_selection import KFold

from dtg_ray import Study, ledger
from dtg_ray.stages import predict
from dtg_ray.stats.gram import Gram


@pytest.fixture
def study(finished: Path) -> Study:
    return Study(str(finished))


@pytest.mark.parametrize("feature", ["synthetic:unet", "measured", "connectome"])
def test_gram_matrix_is_that_of_the_centred_features(
    study: Study, feature: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    subjects = predict.members(ledger.Ledger(study), feature)
    rows = study.positions(subjects)
    if feature == "connectome":
        X = study.storage.open_zarr("connectomes.zarr")["roi_connectome"][:][rows]
    else:
        maps = study.synthetic("unet") if feature.startswith("synthetic") else study.measured()
        X = np.concatenate(list(maps.to_numpy()[:, rows][:, :, study.grey_matter]), axis=1)
    X = X.astype(np.float64) - X.astype(np.float64).mean(axis=0)
    monkeypatch.setattr(predict, "COLUMN_BYTES", 4 * len(rows) * 700)  # several pieces
    gram = predict.gram_matrix(study, feature, subjects)
    assert gram.n_features == X.shape[1]
    assert_allclose(gram.matrix, X @ X.T, rtol=1e-5, atol=1e-5 * np.abs(X @ X.T).max())


def test_scores_are_those_of_scikit_learn(study: Study) -> None:
    subjects = predict.members(ledger.Ledger(study), "connectome")
    X = study.storage.open_zarr("connectomes.zarr")["roi_connectome"][:][study.positions(subjects)].astype(np.float64)
    y = study.phenotypes.loc[subjects, "network_score"].to_numpy(dtype=float)
    expected = np.empty(len(y))
    for train, test in KFold(3, shuffle=True, random_state=42).split(X):
        expected[test] = Ridge(alpha=X.shape[1] / len(train)).fit(X[train], y[train]).predict(X[test])
    result = predict.predict_target(
        study, predict.gram_matrix(study, "connectome", subjects), subjects, "network_score"
    )
    assert_allclose(result.predictions["predicted"], expected, atol=1e-4)
    assert result.score["r"] == pytest.approx(np.corrcoef(expected, y)[0, 1], abs=1e-5)
    assert len(result.null) == 50


def test_missing_phenotypes_leave_only_their_subjects_out(study: Study) -> None:
    subjects = predict.members(ledger.Ledger(study), "connectome")
    gram = predict.gram_matrix(study, "connectome", subjects)
    study.phenotypes.loc[subjects[0], "network_score"] = np.nan
    result = predict.predict_target(study, gram, subjects, "network_score")
    assert result.score["subjects"] == len(subjects) - 1
    assert subjects[0] not in set(result.predictions["subject"])
    without = Gram(gram.matrix[1:, 1:], gram.n_features)
    again = predict.predict_target(study, without, subjects[1:], "network_score")
    assert again.score["r"] == pytest.approx(result.score["r"])


def test_a_constant_phenotype_has_no_score(study: Study) -> None:
    subjects = predict.members(ledger.Ledger(study), "connectome")
    study.phenotypes["constant"] = 1.0
    result = predict.predict_target(study, predict.gram_matrix(study, "connectome", subjects), subjects, "constant")
    assert np.isnan(result.score["r"])
    assert result.predictions.empty


def test_measured_features_need_every_contrast(study: Study) -> None:
    complete = {subject for subject, maps in study.cohort["contrasts"].items() if len(maps) == 3}
    assert set(predict.members(ledger.Ledger(study), "measured")) <= complete
    assert len(predict.members(ledger.Ledger(study), "measured")) < len(
        predict.members(ledger.Ledger(study), "connectome")
    )
