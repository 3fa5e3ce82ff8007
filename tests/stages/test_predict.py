"""Phenotype prediction: features from Zarr, scores of planted and absent effects, exclusions, resuming, schedulers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
from numpy.testing import assert_allclose
from scipy import stats
from sklearn.linear_model import LinearRegression, Ridge, RidgeClassifier, RidgeCV
from sklearn.model_selection import KFold

from dtg_ray import Study, ledger
from dtg_ray.errors import ConfigError, StudyError
from dtg_ray.results import FEATURE_COMPARISONS, SCORES
from dtg_ray.stages import predict
from dtg_ray.stages.prediction import features, people
from dtg_ray.stages.prediction.features import Features, members, parts
from dtg_ray.stages.prediction.gram import gram_sum
from dtg_ray.stats.permutation import Exchangeability
from dtg_ray.store.arrays import write
from dtg_ray.store.tables import read_table
from prediction_tools import (
    QUIET,
    Make,
    change,
    copier,
    matrix,
    reasons,
    result,
    set_phenotypes,
)


@pytest.fixture
def make(finished: Path, tmp_path: Path) -> Make:
    """A copy of the finished study, not predicted yet, with other settings of `prediction`."""
    return copier(finished, tmp_path)


class TestFeatures:
    @pytest.mark.parametrize("feature", ["synthetic:unet", "synthetic:unet:MOTOR_LH", "measured", "connectome"])
    def test_gram_matrix_is_that_of_the_centred_features(
        self, finished: Path, feature: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        study = Study(str(finished))
        subjects = members(ledger.Ledger(study), feature)
        X = matrix(study, feature, subjects)
        X -= X.mean(axis=0)
        monkeypatch.setattr(features, "SLAB_BYTES", 1)  # a chunk at a time, and several blocks of each
        monkeypatch.setattr(features, "COLUMN_BYTES", 4 * len(subjects) * 300)
        found = Features(study, feature, subjects)
        gram = gram_sum(found, found.pieces()).gram()
        assert gram.n_features == X.shape[1]
        assert_allclose(gram.matrix, X @ X.T, rtol=1e-5, atol=1e-5 * np.abs(X @ X.T).max())

    def test_torch_adds_up_the_same_as_blas(self, finished: Path) -> None:
        study = Study(str(finished))
        found = Features(study, "measured", members(ledger.Ledger(study), "measured"))
        ours, torch = (gram_sum(found, found.pieces(), device=device).gram() for device in ("", "cpu"))
        assert_allclose(torch.matrix, ours.matrix, rtol=1e-5, atol=1e-5 * np.abs(ours.matrix).max())
        assert torch.n_features == ours.n_features

    def test_shares_of_the_pieces_add_up(self, finished: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(features, "SLAB_BYTES", 1)
        study = Study(str(finished))
        found = Features(study, "measured", members(ledger.Ledger(study), "measured"))
        assert len(found.pieces()) > 3
        first, *others = (predict.gram_share(study.uri, "measured", number, 3) for number in range(3))
        for other in others:
            first.merge(other)
        whole = gram_sum(found, found.pieces()).gram()
        assert_allclose(first.gram().matrix, whole.matrix, rtol=1e-5, atol=1e-6 * np.abs(whole.matrix).max())

    def test_a_star_is_each_contrast(self, make: Make) -> None:
        study = make(features=["synthetic:linear:*", "measured:*"])
        names = study.config.feature_sets()
        assert names == tuple(
            f"{kind}:{name}" for kind in ("synthetic:linear", "measured") for name in study.config.contrasts
        )
        assert [part.contrast for name in names for part in parts(study, name)] == [0, 1, 2] * 2

    def test_a_stack_is_its_parts_side_by_side(self, make: Make) -> None:
        study = make(stacks={"both": {"of": ["synthetic:linear:MOTOR_LH", "connectome"]}}, features=["both"])
        subjects = members(ledger.Ledger(study), "both")
        X = np.hstack([matrix(study, name, subjects) for name in ("synthetic:linear:MOTOR_LH", "connectome")])
        assert_allclose(Features(study, "both", subjects).matrix(), X, rtol=1e-6)

    def test_a_mask_is_an_image(self, make: Make, tmp_path: Path) -> None:
        study = make()
        chosen = np.zeros(study.grid.n_voxels, dtype=np.float32)
        chosen[100:150] = 1
        study.grid.image(chosen).to_filename(tmp_path / "mask.nii.gz")
        study = change(study, mask=str(tmp_path / "mask.nii.gz"), features=["synthetic:linear:MOTOR_LH"])
        (part,) = parts(study, "synthetic:linear:MOTOR_LH")
        np.testing.assert_array_equal(part.columns, np.arange(100, 150))
        assert len(parts(change(study, mask="brain"), "synthetic:linear:MOTOR_LH")[0].columns) == study.grid.n_voxels

    def test_a_mask_that_is_not_there_is_named(self, make: Make, tmp_path: Path) -> None:
        study = make(mask=str(tmp_path / "none.nii.gz"))
        with pytest.raises(ConfigError, match=r"none.nii.gz"):
            predict.run(study, QUIET)

    def test_measured_features_need_every_contrast(self, finished: Path) -> None:
        study = Study(str(finished))
        complete = {subject for subject, maps in study.cohort["contrasts"].items() if len(maps) == 3}
        book = ledger.Ledger(study)
        assert set(members(book, "measured")) <= complete
        assert len(members(book, "measured")) < len(members(book, "connectome"))

    def test_one_contrast_needs_that_one_alone(self, make: Make) -> None:
        study = make(features=["measured:*"])
        for name in study.config.feature_sets():
            having = [who for who, maps in study.cohort["contrasts"].items() if name.split(":")[1] in maps]
            assert members(ledger.Ledger(study), name) == having

    def test_lost_maps_are_told_by_the_name_of_their_subject(self, make: Make) -> None:
        study = make(features=["synthetic:linear"])
        subject = study.cohort["subject"].iloc[7]
        maps = study.storage.open_zarr("synthetic/linear.zarr", writable=True)["maps"]
        write(maps, (slice(None), slice(7, 8)), np.full((3, 1, maps.shape[-1]), np.nan, dtype=np.float16))
        with pytest.raises(StudyError, match=rf"{subject}: got NaN in synthetic/linear.zarr \(synthetic:linear:"):
            predict.run(study, QUIET)


class TestScores:
    def test_are_those_of_scikit_learn(self, make: Make) -> None:
        study = make()
        predict.run(study, QUIET)
        for feature in study.config.feature_sets():
            subjects = members(ledger.Ledger(study), feature)
            X, y = matrix(study, feature, subjects), study.people.loc[subjects, "network_score"].to_numpy(dtype=float)
            expected = np.empty(len(y))
            for train, test in KFold(3, shuffle=True, random_state=42).split(X):
                expected[test] = Ridge(alpha=X.shape[1] / len(train)).fit(X[train], y[train]).predict(X[test])
            table = result(study, feature, "predictions", "network_score")
            assert table["subject"].tolist() == subjects
            assert_allclose(table["predicted"], expected, atol=1e-5 * y.std())
            (scores,) = result(study, feature, "scores", "network_score").to_dict("records")
            assert scores["r"] == pytest.approx(np.corrcoef(expected, y)[0, 1], abs=1e-5)
            null = result(study, feature, "nulls", "network_score")
            assert len(null) == 20
            assert scores["p"] == pytest.approx((1 + (null["r"] >= scores["r"]).sum()) / 21)

    @pytest.mark.parametrize("alpha", [1e-3, [1e-3, 1e-2]])
    def test_of_a_small_penalty_are_those_of_scikit_learn(self, make: Make, alpha: Any) -> None:
        """What single precision rounds off would be larger than such a penalty."""
        study = make(alpha=alpha, features=["synthetic:linear"], targets=["noise_score"])
        predict.run(study, QUIET)
        subjects = members(ledger.Ledger(study), "synthetic:linear")
        X, y = matrix(study, "synthetic:linear", subjects), study.people.loc[subjects, "noise_score"].to_numpy(float)
        X -= X.mean(axis=0)
        expected = np.empty(len(y))
        for train, test in KFold(3, shuffle=True, random_state=42).split(X):
            model = Ridge(alpha=alpha) if isinstance(alpha, float) else RidgeCV(alphas=alpha)
            expected[test] = model.fit(X[train], y[train]).predict(X[test])
        predicted = result(study, "synthetic:linear", "predictions", "noise_score")["predicted"]
        assert_allclose(predicted, expected, atol=1e-8 * y.std())

    def test_of_classes_are_those_of_scikit_learn(self, make: Make) -> None:
        study = make()
        predict.run(study, QUIET)
        subjects = members(ledger.Ledger(study), "connectome")
        X, y = matrix(study, "connectome", subjects), study.people.loc[subjects, "sex"].to_numpy(dtype=str)
        expected, decision = np.empty(len(y), dtype=object), np.empty(len(y))
        for train, test in KFold(3, shuffle=True, random_state=42).split(X):
            model = RidgeClassifier(alpha=X.shape[1] / len(train)).fit(X[train], y[train])
            expected[test], decision[test] = model.predict(X[test]), model.decision_function(X[test])
        table = result(study, "connectome", "predictions", "sex")
        assert table["actual"].tolist() == list(y)
        assert table["predicted"].tolist() == list(expected)
        assert_allclose(table["decision_M"], decision, atol=1e-5)
        (scores,) = result(study, "connectome", "scores", "sex").to_dict("records")
        assert scores["accuracy"] == pytest.approx(np.mean(expected == y))
        assert scores["metric"] == "auc"

    def test_confounds_are_regressed_out_inside_the_training_folds(self, make: Make) -> None:
        study = make(confounds=["age", "sex"], features=["connectome"], targets=["network_score", "age"])
        predict.run(study, QUIET)
        subjects = members(ledger.Ledger(study), "connectome")
        people = study.people.loc[subjects]
        X, y = matrix(study, "connectome", subjects), people["network_score"].to_numpy(dtype=float)
        Z = np.column_stack([people["age"], people["sex"] == "M"]).astype(float)
        actual, predicted = np.empty(len(y)), np.empty(len(y))
        for train, test in KFold(3, shuffle=True, random_state=42).split(X):
            of_X, of_y = (LinearRegression().fit(Z[train], what[train]) for what in (X, y))
            model = Ridge(alpha=X.shape[1] / len(train)).fit(
                X[train] - of_X.predict(Z[train]), y[train] - of_y.predict(Z[train])
            )
            actual[test] = y[test] - of_y.predict(Z[test])
            predicted[test] = model.predict(X[test] - of_X.predict(Z[test]))
        table = result(study, "connectome", "predictions", "network_score")
        assert_allclose(table["actual"], actual, atol=1e-5)
        assert_allclose(table["predicted"], predicted, atol=1e-5)
        # a target is no confound of itself: age keeps its spread
        of_age = result(study, "connectome", "predictions", "age")["actual"]
        assert of_age.std() > 0.5 * people["age"].std()

    def test_missing_values_leave_only_their_subjects_out(self, make: Make) -> None:
        study = make(features=["connectome"], targets=["network_score", "age"])
        table = study.phenotypes["network_score"].to_numpy(dtype=float).copy()
        table[2] = np.nan
        study = set_phenotypes(study, network_score=table)
        predict.run(study, QUIET)
        subjects = list(study.cohort["subject"])
        known = result(study, "connectome", "predictions", "network_score")["subject"].tolist()
        assert known == [subject for subject in subjects if subject != subjects[2]]
        assert len(result(study, "connectome", "predictions", "age")) == len(subjects)

    def test_groups_stay_in_one_fold(self, make: Make) -> None:
        study = make(groups="family", features=["connectome"], targets=["network_score"])
        families = np.repeat(np.arange(8), 3)
        study = set_phenotypes(study, family=families)
        predict.run(study, QUIET)
        folds = result(study, "connectome", "predictions", "network_score")["fold"].to_numpy()
        assert all(len(set(folds[families == family])) == 1 for family in range(8))
        assert set(folds) == {0, 1, 2}

    def test_folds_of_equal_shares_are_those_whom_people_change_places_inside(self, make: Make) -> None:
        """Twelve of each class in three folds: with two classes no order can change how many of each a fold has."""
        study = make(stratify=True, features=["connectome"], targets={"kind": {"kind": "classification"}})
        study = set_phenotypes(study, kind=np.random.default_rng(0).permutation(["a", "b"] * 12))
        predict.run(study, QUIET)
        table = result(study, "connectome", "predictions", "kind")
        assert (pd.crosstab(table["fold"], table["actual"]) == 4).all(axis=None)
        X = matrix(study, "connectome", table["subject"].tolist())
        fold, signs = table["fold"].to_numpy(), np.where(table["actual"] == "b", 1.0, -1.0)
        accuracies = []
        for order in Exchangeability(24, 42, within=fold).orders(0, 20):
            decisions = np.empty(24)
            for one in range(3):
                train, test = fold != one, fold == one
                model = Ridge(alpha=X.shape[1] / train.sum()).fit(X[train], signs[order][train])
                decisions[test] = model.predict(X[test])
            accuracies.append(((decisions > 0) == (signs[order] > 0)).mean())
        assert_allclose(result(study, "connectome", "nulls", "kind")["accuracy"], accuracies)

    def test_folds_may_be_those_of_a_column(self, make: Make) -> None:
        study = set_phenotypes(make(fold_column="site_fold", features=["connectome"]), site_fold=["b", "a", "c"] * 8)
        predict.run(study, QUIET)
        assert result(study, "connectome", "predictions", "network_score")["fold"].tolist() == [1, 0, 2] * 8

    def test_alpha_of_several_is_chosen(self, make: Make) -> None:
        study = make(alpha=[0.1, 10.0, 1e4], features=["connectome"], targets=["network_score"])
        predict.run(study, QUIET)
        assert result(study, "connectome", "scores", "network_score")["alpha"][0] in {0.1, 10.0, 1e4}

    def test_a_hopeless_test_stops_early_and_says_so(self, make: Make) -> None:
        settings = {"permutations": 200, "features": ["connectome"], "targets": ["noise_score", "network_score"]}
        whole = make(**settings)
        stopped = make(**settings, early_stopping=5)
        for study in (whole, stopped):
            predict.run(study, QUIET)
        scores = read_table(stopped.storage, SCORES).set_index("target")
        short = scores.index[scores["p_method"] == "negative binomial"]
        assert len(short)
        for target in short:
            null, observed = result(whole, "connectome", "nulls", target)["r"], scores.loc[target, "r"]
            stop = int(np.flatnonzero(null >= observed)[4]) + 1
            assert result(stopped, "connectome", "nulls", target)["r"].tolist() == pytest.approx(null[:stop].tolist())
            assert scores.loc[target, "p"] == pytest.approx(5 / stop)
        assert (scores["permutations_family"] == scores["permutations"].min()).all()


class TestFamilyAndComparisons:
    def test_family_wise_p_is_never_below_p(self, make: Make) -> None:
        study = make(permutations=100)
        predict.run(study, QUIET)
        table = read_table(study.storage, SCORES)
        assert len(table) == 4
        assert (table["p_family"] >= table["p"] - 1e-12).all()
        assert_allclose(table["q"], stats.false_discovery_control(table["p"]))

    def test_the_t_test_is_of_the_folds_of_all_repeats(self, make: Make) -> None:
        study = make(repeats=4)
        predict.run(study, QUIET)
        table = read_table(study.storage, FEATURE_COMPARISONS).set_index("target")
        first, second = (result(study, name, "common/folds", "network_score") for name in study.config.feature_sets())
        assert len(first) == 4 * 3
        d = first["r"] - second["r"]
        t = d.mean() / np.sqrt(d.var(ddof=1) * (1 / 12 + first["test"].mean() / first["train"].mean()))
        assert table.loc["network_score", "t"] == pytest.approx(t)
        assert table.loc["network_score", "p_t"] == pytest.approx(2 * stats.t.sf(abs(t), 11))
        assert table.loc["sex", "metric"] == "auc"

    def test_the_same_features_do_not_differ(self, make: Make) -> None:
        study = make(stacks={"again": {"of": ["connectome"]}}, features=["connectome", "again"])
        predict.run(study, QUIET)
        table = read_table(study.storage, FEATURE_COMPARISONS)
        assert (table["difference"] == 0).all()
        assert (table[["p_t", "p_permutation"]] == 1).all(axis=None)

    def test_only_those_who_have_all_features_are_compared(self, make: Make) -> None:
        study = make(features=["measured", "connectome"], targets=["network_score"])
        predict.run(study, QUIET)
        common = result(study, "connectome", "common/predictions", "network_score")
        assert common["subject"].tolist() == members(ledger.Ledger(study), "measured")
        assert len(common) < len(result(study, "connectome", "predictions", "network_score"))

    def test_permutations_of_all_feature_sets_are_of_the_same_people(self, make: Make) -> None:
        """Where nobody is missing the k-th order is the same, whatever the features."""
        study = make(stacks={"again": {"of": ["connectome"]}}, features=["connectome", "again"])
        predict.run(study, QUIET)
        first, second = (result(study, name, "nulls", "network_score") for name in ("connectome", "again"))
        pd.testing.assert_frame_equal(first, second)


class TestWeights:
    def test_are_those_of_a_fit_to_everybody(self, make: Make) -> None:
        study = make(weight_maps=True, features=["synthetic:linear:MOTOR_LH"], targets=["network_score"])
        predict.run(study, QUIET)
        subjects = members(ledger.Ledger(study), "synthetic:linear")
        X = matrix(study, "synthetic:linear:MOTOR_LH", subjects)
        y = study.people.loc[subjects, "network_score"].to_numpy(dtype=float)
        model = Ridge(alpha=X.shape[1] / len(y)).fit(X, y)
        fitted = model.predict(X) - y.mean()
        folder = Path(study.uri) / "prediction/synthetic-linear-MOTOR_LH/weights"
        for kind, expected in (
            ("weights", model.coef_),
            ("pattern", (X - X.mean(axis=0)).T @ fitted / (fitted @ fitted)),
        ):
            image = nib.load(folder / f"network_score_synthetic-linear-MOTOR_LH_{kind}.nii.gz")
            assert_allclose(image.affine, study.grid.affine)
            vector = study.grid.vectorize(image.get_fdata())
            assert_allclose(vector[study.grey_matter], expected, atol=1e-4 * np.abs(expected).max())
            assert not vector[~study.grey_matter].any()

    def test_take_the_penalty_that_most_folds_chose(self, make: Make) -> None:
        alphas = {"alpha": [1e-3, 1e5], "features": ["connectome"], "targets": ["network_score"]}
        study = make(weight_maps=True, **alphas)
        predict.run(study, QUIET)
        (chosen,) = result(study, "connectome", "scores", "network_score")["alpha"]
        again = make(weight_maps=True, **{**alphas, "alpha": chosen})
        predict.run(again, QUIET)
        name = "prediction/connectome/weights/network_score_connectome.parquet"
        pd.testing.assert_frame_equal(read_table(study.storage, name), read_table(again.storage, name))

    def test_are_left_out_for_a_target_that_cannot_have_folds(self, make: Make) -> None:
        settings = {"features": ["connectome"], "targets": ["network_score", "age"], "confounds": []}
        study = make(weight_maps=True, alpha=[1, 10], groups="site", fold_column=None, **settings)
        study = set_phenotypes(study, site=["x", "y"] * 12)
        predict.run(study, QUIET)
        assert set(reasons(study)) == {"network_score", "age"}

    def test_of_connectomes_name_both_regions(self, make: Make) -> None:
        study = make(weight_maps=True, features=["connectome"])
        predict.run(study, QUIET)
        folder = Path(study.uri) / "prediction/connectome/weights"
        assert sorted(path.name for path in folder.iterdir()) == [
            "network_score_connectome.parquet",
            "sex_M_connectome.parquet",
        ]
        table = pd.read_parquet(folder / "sex_M_connectome.parquet")
        assert len(table) == study.n_rois * (study.n_rois - 1) // 2
        assert list(table.columns) == ["roi_a", "roi_b", "weights", "pattern"]


def test_codes_of_classes_stay_apart_however_long_they_are() -> None:
    """A column with a missing value holds whole numbers as floats."""
    assert [people._label(code) for code in (4123006.0, 4123007.0, 1.0, 1.5, "a", 2)] == [
        *("4123006", "4123007", "1", "1.5", "a", "2")
    ]
