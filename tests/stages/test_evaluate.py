"""Evaluation of synthetic maps: every figure against another way, tables, groups, comparisons, lost maps."""

from __future__ import annotations

import shutil
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
import yaml
from scipy import stats

from dtg_ray import Study, ledger
from dtg_ray.errors import StudyError
from dtg_ray.results import ALL, FIGURES, Results, group_image
from dtg_ray.stages import evaluate
from dtg_ray.stages.evaluation import pairs, space, summary
from dtg_ray.stages.runtime import Options
from dtg_ray.stats.resampling import bootstrap_mean
from dtg_ray.store.arrays import write

QUIET = Options(quiet=True)


@pytest.fixture
def results(finished: Path) -> Results:
    return Results(Study(str(finished)))


def copy(finished: Path, folder: Path, **settings: object) -> Study:
    """A copy of the finished study, not evaluated yet, with other settings of `evaluation`."""
    root = folder / "study"
    shutil.copytree(finished, root, ignore=shutil.ignore_patterns("evaluation", "evaluate", "comparison.parquet"))
    shutil.rmtree(root / "receipts/comparison", ignore_errors=True)
    path = root / "study.yaml"
    document = yaml.safe_load(path.read_text())
    document["evaluation"] = {**document["evaluation"], **settings}
    path.write_text(yaml.safe_dump(document, sort_keys=False))
    return Study(str(root))


def both(study: Study, model: str, contrast: str, split: str = "test") -> tuple[list[str], np.ndarray, np.ndarray]:
    """Who has both maps, and these over grey matter, (n, G) each, as xarray reads them."""
    cohort = study.cohort
    subjects = [who for who in cohort.index[cohort["split"] == split] if contrast in cohort["contrasts"][who]]
    maps = [
        one.sel(contrast=contrast, subject=subjects).to_numpy()[:, study.grey_matter].astype(float)
        for one in (study.measured(), study.synthetic(model))
    ]
    return subjects, maps[0], maps[1]


def held_out(results: Results, model: str, contrast: str) -> pd.DataFrame:
    """Figures of held-out people."""
    table = results.subjects(model)
    return table[(table["contrast"] == contrast) & (table["split"] == "test")].reset_index(drop=True)


class TestSubjects:
    @pytest.mark.parametrize("split", ["test", "train", "validation"])
    def test_figures_are_those_of_numpy(self, results: Results, split: str) -> None:
        study, compared = results.study, 0
        table = results.subjects("unet")
        for contrast in study.config.contrasts:
            subjects, actual, predicted = both(study, "unet", contrast, split)
            if len(subjects) < 2:
                continue
            matrix = np.corrcoef(actual, predicted)[: len(subjects), len(subjects) :]
            found = table[(table["contrast"] == contrast) & (table["split"] == split)]
            assert found["subject"].tolist() == subjects
            np.testing.assert_allclose(found["r"], np.diagonal(matrix), atol=1e-6)
            others = (matrix.sum(axis=1) - np.diagonal(matrix)) / (len(subjects) - 1)
            np.testing.assert_allclose(found["diagonality"], np.diagonal(matrix) - others, atol=1e-6)
            np.testing.assert_array_equal(found["identification"], matrix.argmax(axis=1) == np.arange(len(subjects)))
            kept = [np.abs(maps) > np.sort(np.abs(maps))[:, [-int(maps.shape[1] / 4)]] for maps in (actual, predicted)]
            dice = 2 * (kept[0] & kept[1]).sum(axis=1) / (kept[0].sum(axis=1) + kept[1].sum(axis=1))
            np.testing.assert_allclose(found["dice"], dice)
            compared += 1
        assert compared

    def test_contrasts_are_means_over_held_out_people(self, results: Results) -> None:
        people = results.subjects("unet")
        means = people[people["split"] == "test"].groupby("contrast")[list(FIGURES)].mean()
        table = results.contrasts.query("model == 'unet'").set_index("contrast")
        pd.testing.assert_frame_equal(table.loc[means.index, list(FIGURES)], means, check_names=False)
        assert (table["r_low"] < table["r"]).all()
        assert (table["r"] < table["r_high"]).all()

    def test_the_matrix_is_of_measured_rows_and_predicted_columns(self, results: Results) -> None:
        contrast = results.study.config.contrasts[0]
        subjects, actual, predicted = both(results.study, "linear", contrast)
        matrix = results.matrix("linear", contrast)
        assert matrix.index.tolist() == subjects == matrix.columns.tolist()
        assert matrix.iloc[0, 1] == pytest.approx(np.corrcoef(actual[0], predicted[1])[0, 1], abs=1e-6)

    def test_group_maps_are_of_the_whole_brain(self, results: Results) -> None:
        study, contrast = results.study, results.study.config.contrasts[1]
        subjects, _, _ = both(study, "unet", contrast)
        for kind, maps in (("actual", study.measured()), ("predicted", study.synthetic("unet"))):
            values = maps.sel(contrast=contrast, subject=subjects).to_numpy().astype(float)
            for what, expected in (("mean", values.mean(axis=0)), ("sd", values.std(axis=0, ddof=1))):
                found = results.group_map("unet", contrast, kind, what)
                np.testing.assert_allclose(found, expected, atol=1e-5)
                image = nib.load(Path(study.uri) / group_image("unet", contrast, kind, what))
                np.testing.assert_allclose(image.affine, study.grid.affine)
        (row,) = results.contrasts.query("model == 'unet' and contrast == @contrast").to_dict("records")
        means = [results.group_map("unet", contrast, kind)[study.grey_matter] for kind in ("actual", "predicted")]
        assert row["mean_map_r"] == pytest.approx(np.corrcoef(means)[0, 1], abs=1e-5)


class TestTogether:
    def test_many_people_are_compared_in_equal_groups(self, finished: Path, tmp_path: Path, monkeypatch) -> None:
        whole = Results(Study(str(finished)))
        contrast = whole.study.config.contrasts[0]
        monkeypatch.setattr(pairs, "TOGETHER", 4)
        study = copy(finished, tmp_path)
        evaluate.run(study, QUIET)
        table, before = (held_out(one, "unet", contrast) for one in (Results(study), whole))
        assert len(table) > 4
        pd.testing.assert_frame_equal(table[["subject", "r", "dice"]], before[["subject", "r", "dice"]])
        subjects, actual, predicted = both(study, "unet", contrast)
        first = round(len(subjects) / -(-len(subjects) // 4))
        matrix = np.corrcoef(actual[:first], predicted[:first])[:first, first:]
        np.testing.assert_array_equal(table["identification"][:first], matrix.argmax(axis=1) == np.arange(first))
        others = (matrix.sum(axis=1) - np.diagonal(matrix)) / (first - 1)
        np.testing.assert_allclose(table["diagonality"][:first], np.diagonal(matrix) - others, atol=1e-6)
        (line,) = Results(study).contrasts.query("model == 'unet' and contrast == @contrast").to_dict("records")
        assert line["chance"] == -(-len(subjects) // 4) / len(subjects)
        np.testing.assert_allclose(
            Results(study).group_map("unet", contrast, "actual"), whole.group_map("unet", contrast, "actual"), atol=1e-6
        )


class TestModels:
    def test_are_compared_by_paired_tests(self, results: Results) -> None:
        table = results.comparisons
        assert set(zip(table["first"], table["second"], strict=True)) == {
            ("group_mean", "linear"),
            ("group_mean", "unet"),
            ("linear", "unet"),
        }
        contrast = results.study.config.contrasts[2]
        people = {model: held_out(results, model, contrast).set_index("subject") for model in ("linear", "unet")}
        subjects = people["unet"].index
        families = results.study.cohort["group"].reindex(subjects).replace("", None).fillna(subjects.to_series())
        assert families.nunique() < len(subjects), "some are of one family"
        expected = stats.ttest_rel(*(people[model]["r"].groupby(families).mean() for model in ("linear", "unet")))
        row = table.query("first == 'linear' and second == 'unet' and contrast == @contrast and figure == 'r'")
        assert row["t"].tolist() == pytest.approx([expected.statistic])
        assert row["p"].tolist() == pytest.approx([expected.pvalue])
        over_all = table["contrast"] == ALL
        for _, tests in table[~over_all].groupby(["first", "second", "figure"]):
            np.testing.assert_allclose(tests["q"], stats.false_discovery_control(tests["p"]))
        for _, tests in table[over_all].groupby("figure"):
            np.testing.assert_allclose(tests["q"], stats.false_discovery_control(tests["p"]))
        assert over_all.sum() == 3 * 4

    def test_over_all_contrasts_only_what_both_have_of_a_person_is_compared(self, results: Results) -> None:
        """A model of one easy contrast is not better than one of many for that."""
        table = results.subjects("unet").query("split == 'test'")
        fewer = table[table["contrast"] == results.study.config.contrasts[0]]
        wide = {name: summary._of_split(summary._wide(one), "test") for name, one in (("all", table), ("one", fewer))}
        tests = summary.compare_models(results.study, wide).set_index(["contrast", "figure"])
        assert tests.loc[(ALL, "r"), "difference"] == 0
        assert tests.loc[(ALL, "r"), "subjects"] == len(fewer)

    def test_families_count_as_one(self, results: Results, monkeypatch: pytest.MonkeyPatch) -> None:
        """In intervals and in tests."""
        people = {
            model: summary._of_split(summary._wide(results.subjects(model)), "test") for model in ("linear", "unet")
        }
        alone = summary.compare_models(results.study, people).query("contrast == @ALL and figure == 'r'")
        cohort = results.study.cohort
        monkeypatch.setitem(cohort, "group", [f"family-{number % 3}" for number in range(len(cohort))])
        together = summary.compare_models(results.study, people).query("contrast == @ALL and figure == 'r'")
        assert together["difference"].tolist() == alone["difference"].tolist()
        families = cohort["group"].reindex(people["unet"].index)
        per_family = [one[(ALL, "r")].groupby(families).mean() for one in people.values()]
        assert together["p"].tolist() == pytest.approx([stats.ttest_rel(*per_family).pvalue])
        values = people["unet"][[(ALL, "r")]]
        names = {"model": "unet", "by": "split", "group": "test"}
        (line,) = summary._means(results.study, values, names)
        expected = bootstrap_mean(values.to_numpy(), 2000, 42, families.to_numpy(dtype=str))
        assert line["low"] == expected.low[0]

    def test_gain_is_over_the_linear_model(self, results: Results) -> None:
        table = results.contrasts.set_index(["model", "contrast"])
        for contrast in results.study.config.contrasts:
            gain = 100 * (table.loc[("unet", contrast), "r"] / table.loc[("linear", contrast), "r"] - 1)
            row = table.loc[("unet", contrast)]
            assert row["gain_r"] == pytest.approx(gain)
            assert row["gain_r_low"] < row["gain_r"] < row["gain_r_high"]
        assert table.loc["linear"]["gain_r"].abs().max() < 1e-9

    def test_groups_are_splits_and_values_of_columns(self, results: Results) -> None:
        table = results.groups
        assert set(table["by"]) == {"split", "site", "sex"}
        contrast = results.study.config.contrasts[0]
        people = held_out(results, "unet", contrast)
        sexes = people["subject"].map(results.study.people["sex"])
        rows = table[(table["model"] == "unet") & (table["by"] == "sex") & (table["contrast"] == contrast)]
        for sex in ("F", "M"):
            members, row = people[sexes == sex], rows[rows["group"] == sex]
            assert row.query("figure == 'r'")["value"].tolist() == pytest.approx([members["r"].mean()])
            assert row["subjects"].tolist() == [len(members)] * len(FIGURES)

    def test_another_grouping_changes_summaries_alone(self, finished: Path, tmp_path: Path) -> None:
        study = copy(finished, tmp_path)
        evaluate.run(study, QUIET)
        before = Study(study.uri).storage.stamps("evaluation/unet")
        path = Path(study.uri) / "study.yaml"
        document = yaml.safe_load(path.read_text())
        document["evaluation"] |= {"by": ["site"], "bootstrap": 0}
        path.write_text(yaml.safe_dump(document, sort_keys=False))
        evaluate.run(Study(study.uri), QUIET)
        assert Study(study.uri).storage.stamps("evaluation/unet") == before
        assert set(Results(Study(study.uri)).groups["by"]) == {"split", "site"}
        assert Results(Study(study.uri)).groups["low"].isna().all()

    def test_one_model_alone_is_compared_with_nothing(self, finished: Path, tmp_path: Path) -> None:
        study = copy(finished, tmp_path)
        evaluate.run(study, QUIET, "linear")
        assert not len(Results(study).comparisons), "the others were not evaluated yet"
        assert len(Results(study).subjects("linear"))
        evaluate.run(Study(study.uri), QUIET)
        assert len(Results(Study(study.uri)).comparisons)


class TestSpace:
    def test_has_every_map_of_some_people(self, results: Results) -> None:
        table = results.space
        assert set(table["kind"]) == {"actual", "predicted"}
        assert set(table["contrast"]) == set(results.study.config.contrasts)
        assert np.isfinite(table[["x", "y"]]).all(axis=None)

    def test_is_gone_when_nobody_shall_be_in_it(self, finished: Path, tmp_path: Path) -> None:
        study = copy(finished, tmp_path)
        evaluate.run(study, QUIET)
        assert len(Results(study).space)
        shutil.rmtree(Path(study.uri) / "receipts/comparison", ignore_errors=True)
        path = Path(study.uri) / "study.yaml"
        document = yaml.safe_load(path.read_text())
        document["evaluation"]["space_subjects"] = 0
        path.write_text(yaml.safe_dump(document, sort_keys=False))
        evaluate.run(Study(study.uri), QUIET)
        assert not len(Results(Study(study.uri)).space)

    def test_puts_maps_of_one_task_together(self) -> None:
        rng = np.random.default_rng(0)
        tasks = rng.normal(size=(3, 500)).repeat(20, axis=0)
        x, y, _, explained = space.embed((tasks + 0.3 * rng.normal(size=tasks.shape)).astype(np.float32), 0)
        points = np.column_stack([x, y]).reshape(3, 20, 2)
        spread = points.std(axis=1).max()
        between = np.linalg.norm(points.mean(axis=1)[:, None] - points.mean(axis=1), axis=-1)
        assert between[np.triu_indices(3, 1)].min() > 5 * spread
        assert 0.5 < explained <= 1


class TestLost:
    def test_a_lost_map_is_told_by_its_subject(self, finished: Path, tmp_path: Path) -> None:
        study = copy(finished, tmp_path)
        contrast = study.config.contrasts[0]
        subjects, _, _ = both(study, "unet", contrast)
        row = int(study.positions(subjects[2:3])[0])
        maps = study.storage.open_zarr("synthetic/unet.zarr", writable=True)["maps"]
        write(maps, (slice(0, 1), slice(row, row + 1)), np.full((1, 1, maps.shape[-1]), np.nan, dtype=np.float16))
        with pytest.raises(StudyError, match=f"{subjects[2]}: got no map of {contrast}"):
            evaluate.run(study, QUIET)
        assert "comparison" not in set(ledger.status(ledger.Ledger(study)).query("settled == 1")["stage"])

    def test_again_does_nothing(self, finished: Path, tmp_path: Path) -> None:
        study = copy(finished, tmp_path)
        evaluate.run(study, QUIET)
        before = study.storage.stamps("evaluation")
        evaluate.run(Study(study.uri), QUIET)
        assert Study(study.uri).storage.stamps("evaluation") == before
