"""Phenotype prediction: features from Zarr, scores of planted and absent effects, exclusions, resuming, schedulers."""

from __future__ import annotations

import io
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
import yaml
from numpy.testing import assert_allclose
from scipy import stats
from sklearn.linear_model import LinearRegression, Ridge, RidgeClassifier
from sklearn.model_selection import KFold

from dtg_ray import Study, ledger
from dtg_ray.errors import ConfigError, StudyError
from dtg_ray.stages import pipeline, predict
from dtg_ray.stages.prediction import cells, features, people
from dtg_ray.stages.prediction.features import Features, members, parts
from dtg_ray.stages.prediction.gram import gram_sum
from dtg_ray.stages.prediction.scores import COMPARISONS, SCORES, table_name
from dtg_ray.stages.runtime import Options
from dtg_ray.stats.permutation import Exchangeability
from dtg_ray.store.arrays import write
from dtg_ray.store.receipts import Receipts
from dtg_ray.store.tables import read_table
from dtg_ray.study import PEOPLE

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


@pytest.fixture
def make(finished: Path, tmp_path: Path) -> Make:
    """A copy of the finished study, not predicted yet, with other settings of `prediction`."""

    def copied(**settings: Any) -> Study:
        root = tmp_path / f"study-{len(list(tmp_path.iterdir()))}"
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
    root = Path(study.uri)
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in sorted((root / "prediction").rglob("*.*"))}


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
    return read_table(study.storage, table_name(feature, what, target))


def matrix(study: Study, feature: str, subjects: list[str]) -> np.ndarray:
    """Features as plain numpy reads them, (n, p)."""
    rows = study.positions(subjects)
    if feature == "connectome":
        return study.storage.open_zarr("connectomes.zarr")["roi_connectome"][:][rows].astype(np.float64)
    maps = study.measured() if feature.startswith("measured") else study.synthetic(feature.split(":")[1])
    chosen = maps.to_numpy() if feature.count(":") < 2 else maps.sel(contrast=[feature.split(":")[2]]).to_numpy()
    return np.concatenate(list(chosen[:, rows][:, :, study.grey_matter].astype(np.float64)), axis=1)


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
        table = read_table(study.storage, COMPARISONS).set_index("target")
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
        table = read_table(study.storage, COMPARISONS)
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


class TestBadInput:
    def test_a_constant_target_is_left_out_by_name(self, make: Make) -> None:
        study = set_phenotypes(make(targets=["constant", "network_score"]), constant=1.0)
        rows = predict.run(study, QUIET)
        assert reasons(study)["constant"] == "constant: got nothing but 1 of 24 subjects, expected a target that varies"
        assert set(rows.loc[rows["subject"] == "network_score", "status"]) == {"done"}
        assert set(read_table(study.storage, SCORES)["target"]) == {"network_score"}

    def test_a_class_smaller_than_the_folds_is_left_out(self, make: Make) -> None:
        study = make(targets={"kind": {"kind": "classification"}})
        study = set_phenotypes(study, kind=["a"] * 22 + ["b"] * 2)
        predict.run(study, QUIET)
        assert reasons(study)["kind"] == "kind: got 2 subjects of class b, expected at least 3, one for each fold"

    def test_fewer_subjects_than_folds_are_left_out(self, make: Make) -> None:
        study = set_phenotypes(make(targets=["rare"]), rare=[1.0, 2.0] + [np.nan] * 22)
        predict.run(study, QUIET)
        assert reasons(study)["rare"] == "rare: got 2 subjects with all that is needed, expected at least 6"

    def test_text_is_no_number(self, make: Make) -> None:
        study = set_phenotypes(make(targets=["word"]), word=["low"] * 24)
        with pytest.raises(ConfigError, match=r"word: got 'low' of sub-0001, expected numbers"):
            predict.run(study, QUIET)

    def test_an_unknown_column_is_named(self, make: Make) -> None:
        with pytest.raises(ConfigError, match=r"got no column nothing, nowhere, expected some of age"):
            predict.run(make(targets=["nothing"], confounds=["nowhere", "age"]), QUIET)

    def test_a_group_in_two_folds(self, make: Make) -> None:
        study = make(fold_column="fold", groups="family", targets=["network_score"])
        study = set_phenotypes(study, fold=[0, 1] * 12, family=["f"] * 2 + [str(one) for one in range(22)])
        with pytest.raises(ConfigError, match="got group f in fold 0 and in another one"):
            predict.run(study, QUIET)

    def test_fewer_groups_than_folds_are_left_out(self, make: Make) -> None:
        study = set_phenotypes(make(groups="site", targets=["network_score"]), site=["x", "y"] * 12)
        predict.run(study, QUIET)
        assert reasons(study)["network_score"] == "network_score: got 2 groups for 3 folds, expected at least as many"

    def test_a_confound_that_does_not_vary_in_training(self, make: Make) -> None:
        study = make(confounds=["only"], targets=["network_score"])
        study = set_phenotypes(study, only=[1.0] + [0.0] * 23)
        predict.run(study, QUIET)
        assert "confounds of which one is constant or follows from others" in reasons(study)["network_score"]

    def test_a_whole_block_in_two_blocks(self, make: Make) -> None:
        study = make(within="site", whole="family", targets=["network_score"])
        study = set_phenotypes(study, site=["x", "y"] * 12, family=["f"] * 24)
        with pytest.raises(ConfigError, match="got block family=f in two blocks"):
            predict.run(study, QUIET)

    def test_families_in_several_folds_of_equal_shares(self, make: Make) -> None:
        study = set_phenotypes(make(stratify=True, whole="family", targets=["network_score"]), family=["f"] * 24)
        predict.run(study, QUIET)
        assert "got block family=f in two blocks of `within`, or in two folds" in reasons(study)["network_score"]

    def test_nobody_with_the_features(self, make: Make) -> None:
        """All maps of one contrast are missing."""
        study = make(features=["measured:MOTOR_LH"], targets=["network_score"], subjects="unseen", folds=12)
        predict.run(study, QUIET)
        assert "expected at least 24" in reasons(study)["network_score"]


class TestTables:
    def write(self, path: Path, study: Study, **columns: Any) -> str:
        names = [name.removeprefix("sub-") for name in study.cohort["subject"]]
        pd.DataFrame({"eid": [*names[1:], "9999999"], **columns}).to_csv(path, index=False)
        return str(path)

    def test_are_read_by_column_and_who_is_missing_is_counted_and_listed(
        self, make: Make, tmp_path: Path, capfd: pytest.CaptureFixture[str]
    ) -> None:
        study = make()
        values = np.arange(24.0)
        path = self.write(tmp_path / "more.csv", study, extra=values, unused=values)
        study = change(study, tables=[path], targets=["extra"])
        predict.run(study, Options())
        table = read_table(study.storage, "prediction/left_out.parquet").set_index("subject")["reason"]
        first = study.cohort["subject"].iloc[0]
        assert table.to_dict() == {
            "9999999": "in the tables, but not in the study",
            first: "in the study, but in no table",
        }
        assert "1 people are not in the study, 1 of the study are in no table" in "".join(capfd.readouterr())
        people = read_table(study.storage, "prediction/people.parquet")
        assert list(people.columns) == ["subject", "extra"]
        done = result(study, "connectome", "predictions", "extra").set_index("subject")["actual"]
        assert done.tolist() == values[:-1].tolist()
        assert first not in done.index

    def test_stand_over_the_phenotypes_of_the_study(self, make: Make, tmp_path: Path) -> None:
        study = make()
        path = self.write(tmp_path / "more.csv", study, age=np.arange(24.0))
        study = change(study, tables=[path], targets=["age"])
        predict.run(study, QUIET)
        assert Study(study.uri).people["age"].iloc[1] == 0
        assert Study(study.uri).people["sex"].notna().all()

    def test_a_new_value_redoes_its_target_alone(self, make: Make, tmp_path: Path) -> None:
        study = make()
        path = tmp_path / "more.csv"
        self.write(path, study, one=np.arange(24.0), two=np.arange(24.0) ** 2)
        study = change(study, tables=[str(path)], targets=["one", "two"], features=["connectome"])
        predict.run(study, QUIET)
        self.write(path, study, one=np.arange(24.0), two=np.arange(24.0) ** 3)
        predict.run(Study(study.uri), QUIET)
        assert attempts(study) == {"predict/connectome:one": 1, "predict/connectome:two": 2}


class TestBeforeAnythingElse:
    """`dtg run` finds what is wrong with `prediction:` before it computes anything."""

    @pytest.mark.parametrize(
        ("settings", "message"),
        [
            ({"targets": ["nothing"]}, "got no column nothing, expected some of"),
            ({"mask": "nowhere.nii.gz"}, "prediction: mask .*nowhere.nii.gz"),
            ({"tables": ["nowhere.csv"]}, "nowhere.csv: got no such file"),
        ],
    )
    def test_mistakes_are_found(self, make: Make, settings: dict[str, Any], message: str) -> None:
        study = make(**settings)
        shutil.rmtree(Path(study.uri) / "receipts")
        with pytest.raises(ConfigError, match=message):
            pipeline.run(Study(study.uri), QUIET)
        assert not (Path(study.uri) / "receipts").exists()

    def test_a_plan_needs_no_table_to_be_read(self, make: Make, tmp_path: Path, capsys: Any) -> None:
        more = pd.DataFrame({"subject": ["sub-0001"], "more": [1.0]})
        more.to_csv(tmp_path / "more.csv", index=False)
        study = make(tables=[str(tmp_path / "more.csv")], targets=["more"])
        predict.run(study, Options(dry_run=True))
        assert "predict/connectome: 2 of 2 to do" in capsys.readouterr().out
        assert not study.storage.exists(PEOPLE)


class TestAgain:
    def test_nothing_is_done_twice(self, make: Make) -> None:
        study = make()
        predict.run(study, QUIET)
        before = everything(study)
        predict.run(Study(study.uri), QUIET)
        assert everything(study) == before
        assert set(attempts(study).values()) == {1}

    def test_goes_on_after_the_last_target_that_was_done(self, make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
        settings = {"targets": ["age", "network_score", "noise_score"], "features": ["connectome", "synthetic:linear"]}
        undisturbed, study = make(**settings), make(**settings)
        predict.run(undisturbed, QUIET)
        real, calls = cells.null_distributions, iter(range(100))

        def dies(*arguments: Any) -> Any:
            if next(calls) == 2:
                raise KeyboardInterrupt
            return real(*arguments)

        monkeypatch.setattr(cells, "null_distributions", dies)
        with pytest.raises(KeyboardInterrupt):
            predict.run(study, QUIET)
        monkeypatch.undo()
        there = attempts(study)
        assert 0 < len(there) < len(attempts(undisturbed))
        predict.run(Study(study.uri), QUIET)
        assert everything(study) == everything(undisturbed)
        assert {name: attempts(study)[name] for name in there} == there, "what was done was not done again"

    def test_another_target_leaves_the_others_as_they_are(self, make: Make) -> None:
        study = make(features=["connectome"], targets=["network_score"])
        predict.run(study, QUIET)
        study = change(study, targets=["network_score", "age"])
        predict.run(study, QUIET)
        assert attempts(study) == {"predict/connectome:network_score": 1, "predict/connectome:age": 1}
        assert set(read_table(study.storage, SCORES)["target"]) == {"network_score", "age"}

    def test_another_confound_redoes_its_target_alone(self, make: Make) -> None:
        study = make(features=["connectome"], targets={"network_score": {}, "noise_score": {}})
        predict.run(study, QUIET)
        study = change(study, targets={"network_score": {"confounds": ["age"]}, "noise_score": {}})
        predict.run(study, QUIET)
        assert attempts(study) == {"predict/connectome:network_score": 2, "predict/connectome:noise_score": 1}

    def test_a_name_of_any_characters_is_one_of_a_file(self, make: Make) -> None:
        study = set_phenotypes(make(targets=["a/b c: 21003-2.0"]), **{"a/b c: 21003-2.0": np.arange(24.0)})
        predict.run(study, QUIET)
        assert read_table(study.storage, SCORES)["target"].tolist() == ["a/b c: 21003-2.0"] * 2


class TestSchedulers:
    """Wherever tasks run, the same bytes come out."""

    @pytest.fixture
    def expected(self, make: Make) -> dict[str, bytes]:
        study = make()
        predict.run(study, QUIET)
        return everything(study)

    def test_ray(self, make: Make, expected: dict[str, bytes]) -> None:
        study = make()
        predict.run(study, Options(quiet=True, scheduler="ray", cpus=2))
        assert everything(study) == expected

    def test_distributed(self, make: Make, expected: dict[str, bytes]) -> None:
        from distributed import LocalCluster

        study = make()
        with LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None, host="127.0.0.1") as cluster:
            predict.run(study, Options(quiet=True, scheduler=cluster.scheduler_address))
        assert everything(study) == expected

    def test_more_workers_than_feature_sets_share_the_gram_matrix(self, make: Make) -> None:
        study, again = make(features=["synthetic:linear"]), make(features=["synthetic:linear"])
        predict.run(study, QUIET)
        predict.run(again, Options(quiet=True, scheduler="ray", cpus=2))
        for name, data in everything(study).items():
            first, second = (pd.read_parquet(io.BytesIO(one)) for one in (data, everything(again)[name]))
            pd.testing.assert_frame_equal(first, second, rtol=1e-6)

    def test_no_cluster_at_an_address(self, tools: Any, make: Make) -> None:
        done = tools.dtg("predict", make().uri, "--scheduler", "nonsense", check=2)
        assert "expected threads, ray or the address" in done.stderr
