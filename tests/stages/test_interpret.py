"""`dtg interpret` on a small finished study: against plain torch, interrupted, and what it refuses."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
import torch
import xarray as xr
from sklearn.linear_model import Ridge

from dtg_ray import Study, ledger
from dtg_ray.errors import MissingFileError, StudyError
from dtg_ray.models.attribution import readout
from dtg_ray.stages import interpret
from dtg_ray.stages.interpretation import parts
from dtg_ray.stages.interpretation.parts import Method, PartWorker
from dtg_ray.stages.interpretation.targets import Target, direction_of, phenotype_targets
from dtg_ray.stages.maps import SubjectReader
from dtg_ray.stages.models import load_model
from dtg_ray.stages.prediction.features import members
from dtg_ray.stages.runtime import Options
from dtg_ray.stages.withdraw import withdraw
from dtg_ray.store.receipts import Receipts
from prediction_tools import change, matrix, set_phenotypes
from stage_tools import Tools

QUIET = Options(quiet=True, inline=True)
FEW = ("--subjects", "5", "--steps", "3", "--inline", "--quiet")
STAGE = "interpret/unet/integrated_gradients"


@pytest.fixture
def root(finished: Path, tmp_path: Path) -> Path:
    shutil.copytree(finished, tmp_path / "study")
    return tmp_path / "study"


@pytest.fixture
def contrast(finished: Path) -> str:
    return Study(str(finished)).config.contrasts[1]


@pytest.fixture
def done(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Parts that are computed, in order."""
    seen: list[str] = []
    do = PartWorker._do

    def counting(self: PartWorker, part: parts.Part) -> dict[str, float]:
        seen.append(part.unit)
        return do(self, part)

    monkeypatch.setattr(PartWorker, "_do", counting)
    return seen


def files(root: Path) -> dict[str, bytes]:
    """All results."""
    paths = sorted(path for path in (root / "interpretation").rglob("*") if path.is_file())
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in paths}


def table(root: Path) -> pd.DataFrame:
    return pd.read_parquet(root / "interpretation/unet.parquet")


def arrays(root: Path, target: str, method: str = "integrated_gradients") -> xr.Dataset:
    path = root / f"interpretation/unet/{method}/{target}.zarr"
    return xr.open_zarr(path, consolidated=False, zarr_format=3, chunks=None)


def chosen(study: Study, count: int) -> list[str]:
    people = study.cohort.index[study.cohort["split"] == "test"]
    return [people[number * len(people) // count] for number in range(count)]


def by_hand(study: Study, direction: np.ndarray, subject: str, steps: int) -> np.ndarray:
    """Integrated gradients of all maps times a direction (C, V), by plain torch in double precision."""
    network = load_model(study, "unet").network.double()  # type: ignore[union-attr]
    weights = torch.from_numpy(study.grid.volume(direction.astype(np.float64)))
    (window,) = SubjectReader(study).connectomes(subject, 1).astype(np.float64)
    total = np.zeros_like(window)
    for step in range(steps):
        box = torch.from_numpy(study.grid.volume(window * (step + 0.5) / steps)[None]).requires_grad_()
        (network(box)[0] * weights).sum().backward()
        total += study.grid.vectorize(box.grad.numpy()[0])  # type: ignore[union-attr]
    return total / steps * window


def expression(study: Study, contrast: str, subjects: list[str]) -> np.ndarray:
    """The direction of a contrast, (C, V)."""
    direction = np.zeros((len(study.config.contrasts), study.grid.n_voxels))
    mean = study.synthetic("unet").sel(contrast=contrast, subject=subjects).to_numpy().astype(float).mean(axis=0)
    direction[study.config.contrasts.index(contrast)] = np.where(study.grey_matter, mean, 0)
    return direction / np.linalg.norm(direction)


class TestContrasts:
    def test_arrays_are_means_over_subjects_of_what_plain_torch_gives(
        self, tools: Tools, root: Path, contrast: str
    ) -> None:
        tools.dtg("interpret", str(root), "--contrast", contrast, *FEW)
        study = Study(str(root))
        subjects = chosen(study, 5)
        direction = expression(study, contrast, subjects)
        expected = np.stack([by_hand(study, direction, subject, 3) for subject in subjects])
        found = arrays(root, f"contrast-{contrast}")
        scale = np.abs(expected).max()
        np.testing.assert_allclose(found["attribution"][0], expected.mean(axis=0), atol=1e-4 * scale)
        np.testing.assert_allclose(found["absolute"][0], np.abs(expected).mean(axis=0), atol=1e-4 * scale)

    def test_of_several_windows_are_means(self, finished: Path, contrast: str, monkeypatch) -> None:
        study = Study(str(finished))
        (subject,), target = chosen(study, 1), Target("contrast", contrast, (contrast,))
        book, method = ledger.Ledger(study), Method(steps=2)
        worker = PartWorker(study.uri, interpret._job(book, STAGE, "unet", method, {target: ""}, [subject]))
        scalar_of = readout(worker.model.select([contrast]), direction_of(study, "unet", target, [subject]))
        (window,) = worker._windows(subject)
        single = [worker._of_window(scalar_of, one, (0,)) for one in (window, window / 2)]
        monkeypatch.setattr(worker, "_windows", lambda _subject: np.stack([window, window / 2]))
        found, added_up, wanted = worker._attribution(scalar_of, subject)
        np.testing.assert_allclose(found, (single[0][0] + single[1][0]) / 2, rtol=1e-12)
        assert added_up == pytest.approx(found.sum())
        assert wanted == pytest.approx((single[0][1] + single[1][1]) / 2)

    def test_xarray_opens_them_with_names_and_places(self, tools: Tools, root: Path) -> None:
        tools.dtg("interpret", str(root), *FEW)
        study = Study(str(root))
        paths = sorted((root / "interpretation/unet/integrated_gradients").glob("*.zarr"))
        together = xr.open_mfdataset(paths, engine="zarr", consolidated=False, zarr_format=3)
        assert together["attribution"].dims == ("target", "roi", "voxel")
        assert together["attribution"].dtype == np.float32
        assert sorted(together["target"].to_numpy()) == sorted(study.config.contrasts), "all contrasts without a wish"
        assert together["roi"].to_numpy().tolist() == list(study.roi_set.names)
        np.testing.assert_array_equal(together["x"], study.grid.coordinates[:, 0])
        assert np.isfinite(together["absolute"]).all()
        assert paths[0].name == f"contrast-{min(study.config.contrasts)}.zarr"

    def test_the_table_sums_them_up(self, tools: Tools, root: Path, contrast: str) -> None:
        said = tools.dtg("interpret", str(root), "--contrast", contrast, *FEW).stdout
        study, lines = Study(str(root)), table(root)
        found = arrays(root, f"contrast-{contrast}")
        absolute = found["absolute"][0].to_numpy().astype(float)
        assert lines["rank"].tolist() == [1, 2, 3, 4, 5]
        assert lines["importance"].is_monotonic_decreasing
        assert lines["importance"].sum() == pytest.approx(1)
        assert set(lines["subjects"]) == {5}
        assert set(lines["kind"]) == {"contrast"}
        for _, line in lines.iterrows():
            number = study.roi_set.names.index(line["roi"])
            assert line["importance"] == pytest.approx(absolute[number].sum() / absolute.sum(), rel=1e-4)
            assert line["signed"] == pytest.approx(float(found["attribution"][0, number].sum()), rel=1e-3, abs=1e-4)
            peak = study.grid.coordinates[absolute[number].argmax()]
            assert line[["x", "y", "z"]].tolist() == peak.tolist()
        assert lines["roi"][0] in said

    def test_the_completeness_error_shrinks_with_more_steps(self, tools: Tools, root: Path, contrast: str) -> None:
        errors = []
        for steps in ("1", "64"):
            options = ("--contrast", contrast, "--subjects", "2", "--steps", steps, "--inline", "--quiet")
            tools.dtg("interpret", str(root), *options)
            errors.append(table(root)["completeness_error"][0])
        assert errors[1] < 0.02 < errors[0]

    def test_images_of_the_most_important_rois(self, tools: Tools, root: Path, contrast: str) -> None:
        tools.dtg("interpret", str(root), "--contrast", contrast, *FEW)
        assert not [name for name in files(root) if name.endswith(".nii.gz")]
        tools.dtg("interpret", str(root), "--contrast", contrast, *FEW, "--images", "2")
        first = table(root)["roi"][:2].tolist()
        base = f"interpretation/unet/integrated_gradients/contrast-{contrast}"
        images = [name for name in files(root) if name.endswith(".nii.gz")]
        assert images == sorted(f"{base}_roi-{roi}.nii.gz" for roi in first)
        values = Study(str(root)).grid.vectorize(np.asarray(nib.load(root / f"{base}_roi-{first[0]}.nii.gz").dataobj))
        expected = arrays(root, f"contrast-{contrast}")["attribution"].sel(roi=first[0])[0]
        np.testing.assert_array_equal(values, expected)


class TestSmoothGrad:
    def test_stands_beside_the_other_method(self, tools: Tools, root: Path, contrast: str) -> None:
        few = ("--contrast", contrast, "--subjects", "2", "--inline", "--quiet")
        tools.dtg("interpret", str(root), *few, "--steps", "2")
        tools.dtg("interpret", str(root), *few, "--method", "smooth_grad", "--samples", "2")
        lines = table(root).groupby("method")
        assert sorted(lines.groups) == ["integrated_gradients", "smooth_grad"]
        assert lines.get_group("smooth_grad")["completeness_error"].isna().all()
        assert lines.get_group("integrated_gradients")["completeness_error"].notna().all()

    def test_noise_follows_the_seed(self, tools: Tools, root: Path, contrast: str) -> None:
        few = ("--contrast", contrast, "--subjects", "2", "--method", "smooth_grad", "--samples", "2")

        def found(seed: str) -> bytes:
            tools.dtg("interpret", str(root), *few, "--seed", seed, "--inline", "--quiet")
            return arrays(root, f"contrast-{contrast}", "smooth_grad")["attribution"].to_numpy().tobytes()

        first = found("0")
        assert found("1") != first
        assert found("0") == first

    def test_no_two_people_have_the_same_noise(self, root: Path, contrast: str, monkeypatch) -> None:
        seeds = []
        monkeypatch.setattr(parts, "smooth_grad", lambda _f, x, *rest, **_: seeds.append(rest[2]) or x.double())
        request = interpret.Request(contrasts=(contrast,), subjects=5, method=Method("smooth_grad", seed=7))
        interpret.run(Study(str(root)), request, QUIET)
        rows = Study(str(root)).positions(chosen(Study(str(root)), 5)).tolist()
        assert seeds == [(7, row, 0) for row in rows]


class TestPhenotypes:
    @pytest.fixture
    def predicted(self, tools: Tools, root: Path) -> Study:
        study = Study(str(root))
        groups = np.array(["a", "b", "c"])[np.arange(len(study.cohort)) % 3]
        set_phenotypes(study, three=groups, two=np.where(groups == "a", "no", "yes"))
        targets = {"network_score": {}, "two": {"kind": "classification"}, "three": {"kind": "classification"}}
        settings = {"subjects": "all", "permutations": 0, "folds": 3, "repeats": 0, "targets": targets}
        study = change(study, **settings, features=["synthetic:unet"], weight_maps=True)
        tools.dtg("predict", study.uri, "--quiet")
        return study

    def test_are_read_out_by_the_weights_of_the_ridge_model(self, predicted: Study) -> None:
        """Against scikit-learn, fitted to everybody."""
        book = ledger.Ledger(predicted)
        subjects = members(book, "synthetic:unet")
        X = matrix(predicted, "synthetic:unet", subjects)
        y = predicted.people.loc[subjects, "network_score"].to_numpy(dtype=float)
        expected = Ridge(alpha=X.shape[1] / len(y)).fit(X, y).coef_.reshape(len(predicted.config.contrasts), -1)
        (target,) = phenotype_targets(book, "unet", ["network_score"])
        found = direction_of(predicted, "unet", target, subjects)
        np.testing.assert_allclose(found[:, predicted.grey_matter], expected, atol=1e-3 * np.abs(expected).max())
        assert (found[:, ~predicted.grey_matter] == 0).all()

    def test_go_through_all_maps(self, tools: Tools, predicted: Study) -> None:
        tools.dtg("interpret", predicted.uri, "--phenotype", "network_score", *FEW)
        (target,) = phenotype_targets(ledger.Ledger(predicted), "unet", ["network_score"])
        subjects = chosen(predicted, 5)
        direction = direction_of(predicted, "unet", target, subjects)
        expected = np.mean([by_hand(predicted, direction, subject, 3) for subject in subjects], axis=0)
        found = arrays(Path(predicted.uri), "phenotype-network_score")["attribution"][0]
        np.testing.assert_allclose(found, expected, atol=1e-4 * np.abs(expected).max())
        assert set(table(Path(predicted.uri))["kind"]) == {"phenotype"}, "contrasts only where asked for"

    def test_classes_have_targets_of_their_own(self, tools: Tools, predicted: Study) -> None:
        tools.dtg("interpret", predicted.uri, "--phenotype", "two", "three", *FEW)
        assert sorted(set(table(Path(predicted.uri))["target"])) == ["three:a", "three:b", "three:c", "two:yes"]

    def test_wait_for_their_prediction(self, tools: Tools, predicted: Study) -> None:
        shutil.rmtree(Path(predicted.uri) / "receipts/predict")
        done = tools.dtg("interpret", predicted.uri, "--phenotype", "two", *FEW, check=1)
        assert "waits for predict/synthetic-unet" in done.stderr

    def test_one_that_was_not_predicted_says_why(self, tools: Tools, predicted: Study) -> None:
        set_phenotypes(predicted, two="yes")
        tools.dtg("predict", predicted.uri, "--quiet")
        done = tools.dtg("interpret", predicted.uri, "--phenotype", "two", *FEW, check=2)
        assert "got nothing but class yes" in done.stderr

    def test_weights_that_were_lost_are_missed(self, tools: Tools, predicted: Study) -> None:
        next((Path(predicted.uri) / "prediction").rglob("network_score_*_weights.nii.gz")).unlink()
        done = tools.dtg("interpret", predicted.uri, "--phenotype", "network_score", *FEW, check=1)
        assert "expected the weights of network_score" in done.stderr


class TestAgain:
    def test_nothing_is_done_twice(self, tools: Tools, root: Path, contrast: str, done: list[str]) -> None:
        tools.dtg("interpret", str(root), "--contrast", contrast, *FEW)
        before = files(root)
        assert done == [f"contrast-{contrast}+00000", f"contrast-{contrast}+00001"]
        said = tools.dtg("interpret", str(root), "--contrast", contrast, *FEW[:-1])
        assert "nothing to do, 1 of 1 done" in said.stderr
        assert len(done) == 2
        assert files(root) == before
        assert not [name for name in before if "parts" in name], "parts go when they are added up"
        assert Receipts(Study(str(root)).storage, STAGE).units() == [f"contrast-{contrast}"]

    def test_an_interruption_costs_the_part_that_was_under_way(
        self, tools: Tools, root: Path, finished: Path, tmp_path: Path, done: list[str], monkeypatch
    ) -> None:
        """Of three contrasts in two parts each the fourth part breaks: one contrast and a half are done."""
        shutil.copytree(finished, tmp_path / "other")
        tools.dtg("interpret", str(tmp_path / "other"), *FEW)
        expected, units = files(tmp_path / "other"), list(done)
        done.clear()
        with monkeypatch.context() as broken:
            attribution = PartWorker._attribution
            broken.setattr(PartWorker, "_attribution", lambda *given: attribution(*given) if len(done) < 4 else 1 / 0)
            with pytest.raises(ZeroDivisionError):
                interpret.run(Study(str(root)), interpret.Request(subjects=5, method=Method(steps=3)), QUIET)
        assert done == units[:4]
        planned = json.loads(tools.dtg("interpret", str(root), *FEW, "--dry-run", "--json").stdout)
        assert (planned["units"], planned["pending"], planned["subjects"]) == (3, 2, 6)
        done.clear()
        tools.dtg("interpret", str(root), *FEW)
        assert done == units[3:]
        assert files(root) == expected

    @pytest.mark.parametrize("step", ["_write_arrays", "_write_table", "clear"])
    def test_interrupted_while_a_target_is_finished(
        self, tools: Tools, root: Path, contrast: str, done: list[str], monkeypatch, step: str
    ) -> None:
        with monkeypatch.context() as broken:
            broken.setattr(f"dtg_ray.stages.interpretation.results.{step}", lambda *_: 1 / 0)
            with pytest.raises(ZeroDivisionError):
                tools.dtg("interpret", str(root), "--contrast", contrast, *FEW)
        tools.dtg("interpret", str(root), "--contrast", contrast, *FEW)
        assert len(done) == 2, "no part is done again"
        left = files(root)
        assert not [name for name in left if "parts" in name]
        shutil.rmtree(root / "interpretation")
        shutil.rmtree(root / "receipts/interpret")
        tools.dtg("interpret", str(root), "--contrast", contrast, *FEW)
        assert files(root) == left

    def test_a_part_that_was_lost_is_made_again(
        self, tools: Tools, root: Path, contrast: str, done: list[str], monkeypatch
    ) -> None:
        with monkeypatch.context() as broken:
            broken.setattr("dtg_ray.stages.interpretation.results._means", lambda *_: 1 / 0)
            with pytest.raises(ZeroDivisionError):
                tools.dtg("interpret", str(root), "--contrast", contrast, *FEW)
        next((root / "interpretation/parts").rglob("00001.npy")).unlink()
        said = tools.dtg("interpret", str(root), "--contrast", contrast, *FEW, check=1)
        assert "of 1 subjects were lost" in said.stderr
        tools.dtg("interpret", str(root), "--contrast", contrast, *FEW)
        assert done[2:] == [f"contrast-{contrast}+00001"]

    def test_what_another_run_has_done_meanwhile_is_not_done_again(
        self, tools: Tools, root: Path, contrast: str, done: list[str], monkeypatch
    ) -> None:
        """Between the plan of this run and its first part another one does a part, then everything."""
        other, left = ("interpret", str(root), "--contrast", contrast, *FEW), interpret._left
        with monkeypatch.context() as broken:
            broken.setattr("dtg_ray.stages.interpretation.results._means", lambda *_: 1 / 0)
            with pytest.raises(ZeroDivisionError):
                tools.dtg(*other)
        monkeypatch.setattr(interpret, "_left", lambda _receipts, job: list(job.parts))
        tools.dtg(*other)
        assert len(done) == 2
        expected = files(root)
        shutil.rmtree(root / "receipts/interpret")

        def overtaken(*given: object) -> list[str]:
            monkeypatch.setattr(interpret, "_left", left)
            tools.dtg(*other)
            return left(*given)

        monkeypatch.setattr(interpret, "_left", overtaken)
        tools.dtg(*other)
        assert files(root) == expected

    @pytest.mark.slow
    def test_two_runs_at_once_do_no_harm(self, tools: Tools, root: Path, finished: Path, tmp_path: Path) -> None:
        shutil.copytree(finished, tmp_path / "other")
        tools.dtg("interpret", str(tmp_path / "other"), *FEW)
        runs = [tools.start("interpret", str(root), *FEW) for _ in range(2)]
        assert [run.wait(timeout=240) for run in runs] == [0, 0]
        assert files(root) == files(tmp_path / "other")

    def test_parts_of_a_target_that_another_run_has_finished_are_left_alone(self, tools: Tools, root: Path) -> None:
        tools.dtg("interpret", str(root), *FEW)
        before, book = files(root), ledger.Ledger(Study(str(root)))
        request = interpret.Request(subjects=5, method=Method(steps=3))
        subjects = interpret.chosen_subjects(book, "unet", request)
        stage, targets = STAGE, interpret.chosen_targets(book, "unet", request)
        owed = {target: interpret._fingerprint(book, stage, target, subjects, request.method) for target in targets}
        job = interpret._job(book, stage, "unet", request.method, owed, subjects)
        worker = PartWorker(str(root), job)
        assert [worker(unit)["failed"] for unit in job.parts] == [0] * len(job.parts)
        assert files(root) == before
        with pytest.raises(MissingFileError, match=r"direction\.npy"):
            PartWorker(str(root), replace(job, owed=dict.fromkeys(job.owed, "other")))(next(iter(job.parts)))

    @pytest.mark.parametrize("change_", [("--steps", "4"), ("--subjects", "4")])
    def test_other_settings_are_other_results(
        self, tools: Tools, root: Path, contrast: str, done: list[str], change_: tuple[str, str]
    ) -> None:
        tools.dtg("interpret", str(root), "--contrast", contrast, *FEW)
        done.clear()
        tools.dtg("interpret", str(root), "--contrast", contrast, *FEW, *change_)
        assert done
        assert set(table(root)["subjects"]) == {4 if change_[0] == "--subjects" else 5}

    def test_of_a_model_that_was_trained_anew_the_table_has_nothing_old(self, tools: Tools, root: Path) -> None:
        first, second, _ = Study(str(root)).config.contrasts
        tools.dtg("interpret", str(root), "--contrast", first, *FEW)
        old = set(table(root)["weights"])
        tools.dtg("interpret", str(root), "--contrast", second, *FEW)
        assert set(table(root)["target"]) == {first, second}
        name = next((root / "interpretation/unet/integrated_gradients").glob(f"contrast-{first}.parquet"))
        pd.read_parquet(name).assign(weights="other").to_parquet(name, index=False)
        shutil.rmtree(root / "interpretation/unet/integrated_gradients" / f"contrast-{second}.zarr")
        shutil.rmtree(root / "receipts/interpret")
        tools.dtg("interpret", str(root), "--contrast", second, *FEW)
        assert set(table(root)["target"]) == {second}
        assert set(table(root)["weights"]) == old

    def test_not_the_order_in_which_parts_come(
        self, tools: Tools, root: Path, finished: Path, tmp_path: Path, contrast: str, monkeypatch
    ) -> None:
        shutil.copytree(finished, tmp_path / "other")
        options = ("--contrast", contrast, "--subjects", "9", "--steps", "3", "--inline", "--quiet")
        tools.dtg("interpret", str(root), *options)
        left = interpret._left
        monkeypatch.setattr(interpret, "_left", lambda *given: left(*given)[::-1])
        tools.dtg("interpret", str(tmp_path / "other"), *options)
        assert files(tmp_path / "other") == files(root)

    @pytest.mark.slow
    def test_nor_the_number_of_workers(
        self, tools: Tools, root: Path, finished: Path, tmp_path: Path, contrast: str
    ) -> None:
        options = ("--contrast", contrast, "--subjects", "9", "--steps", "3", "--quiet")
        tools.dtg("interpret", str(root), *options, "--inline")
        for cpus in ("1", "2"):
            shutil.copytree(finished, tmp_path / cpus)
            tools.process("interpret", str(tmp_path / cpus), *options, "--cpus", cpus)
            assert files(tmp_path / cpus) == files(root), f"{cpus} workers"


class TestConnectomes:
    def test_that_are_not_stored_are_computed_from_rest_runs(
        self, tools: Tools, root: Path, finished: Path, tmp_path: Path, contrast: str
    ) -> None:
        shutil.copytree(finished, tmp_path / "other")
        tools.dtg("interpret", str(tmp_path / "other"), "--contrast", contrast, *FEW)
        forget_connectomes(root)
        tools.dtg("interpret", str(root), "--contrast", contrast, *FEW)
        assert files(root) == files(tmp_path / "other")

    def test_that_cannot_be_read_any_more_stop_it(
        self, root: Path, contrast: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        forget_connectomes(root)

        def unreadable(self: object, subject: str, runs: object) -> tuple:
            row = parts.Row(subject, "failed", message=f"{subject}: gone")
            return row, None, None

        monkeypatch.setattr("dtg_ray.stages.connectomes.ConnectomeWorker.compute", unreadable)
        with pytest.raises(StudyError, match="gone"):
            interpret.run(Study(str(root)), interpret.Request(contrasts=(contrast,), subjects=2), QUIET)


def forget_connectomes(root: Path) -> None:
    """As a study that never stored them: receipts say so, and the chunks are not there."""
    study = Study(str(root))
    book = ledger.Ledger(study)
    receipts = Receipts(study.storage, "connectomes")
    for unit, owed in book.account("connectomes").owed.items():
        rows = list(receipts.holding(unit, owed).values())
        for row in rows:
            row.qc["stored"] = 0.0
        receipts.write(unit, rows, attempt=1, host="here")
    shutil.rmtree(root / "connectomes.zarr/connectome/c")


class TestRefused:
    @pytest.mark.parametrize(
        ("options", "said"),
        [
            (("--contrast", "NONE"), "got contrast 'NONE', expected one of"),
            (("--phenotype", "NONE"), "got phenotype 'NONE', expected one that is predicted"),
            (("--phenotype", "network_score"), "prediction.weight_maps is false"),
            (("--model", "NONE"), "got model 'NONE'"),
            (("--model", "linear"), "got linear, a linear model, expected a network"),
            (("--model", "group_mean"), "got group_mean, a group_mean model, expected a network"),
            (("--split", "NONE"), "got split 'NONE', expected one of test, train, validation"),
            (("--subjects", "0"), "got --subjects 0"),
            (("--steps", "0"), "got --steps 0"),
            (("--method", "smooth_grad", "--noise", "-1"), "--noise -1"),
            (("--images", "-1"), "got --images -1"),
        ],
    )
    def test_what_cannot_be(self, tools: Tools, finished: Path, options: tuple[str, ...], said: str) -> None:
        done = tools.dtg("interpret", str(finished), "--inline", *options, check=2)
        assert said in done.stderr

    def test_a_phenotype_through_a_model_it_is_not_predicted_from(self, tools: Tools, root: Path) -> None:
        study = change(Study(str(root)), features=["synthetic:linear"], weight_maps=True)
        done = tools.dtg("interpret", study.uri, "--phenotype", "network_score", "--inline", check=2)
        assert "expected synthetic:unet among the feature sets" in done.stderr

    def test_before_maps_are_made(self, tools: Tools, root: Path) -> None:
        shutil.rmtree(root / "receipts/synthesize/unet")
        done = tools.dtg("interpret", str(root), *FEW, check=1)
        assert "waits for synthesize/unet" in done.stderr
        planned = tools.dtg("interpret", str(root), "--dry-run")
        assert "waits for synthesize/unet" in planned.stdout

    def test_attributions_that_are_not_finite_name_the_subject(
        self, tools: Tools, root: Path, contrast: str, monkeypatch
    ) -> None:
        monkeypatch.setattr(parts, "integrated_gradients", lambda _f, x, *_, **__: x.double() * float("nan"))
        done = tools.dtg("interpret", str(root), "--contrast", contrast, *FEW, check=1)
        assert f"{chosen(Study(str(root)), 5)[0]}: got attributions" in done.stderr


class TestPlan:
    def test_is_shown_and_nothing_done(self, tools: Tools, root: Path, contrast: str) -> None:
        options = ("--contrast", contrast, "--subjects", "5", "--dry-run")
        said = tools.dtg("interpret", str(root), *options).stdout
        assert f"{STAGE}: 1 of 1 to do, 5 subjects" in said
        assert "of a worker" in said
        assert not (root / "interpretation").exists()
        planned = json.loads(tools.dtg("interpret", str(root), *options, "--json").stdout)
        assert (planned["pending"], planned["subjects"], planned["cpus"]) == (1, 5, 1)
        assert planned["memory"] > 500 * 2**20
        assert planned["seconds"] > 0

    def test_takes_people_evenly_from_the_split(self, root: Path) -> None:
        study = Study(str(root))
        test = list(study.cohort.index[study.cohort["split"] == "test"])
        found: Callable[..., list[str]] = lambda **more: interpret.chosen_subjects(  # noqa: E731
            ledger.Ledger(study), "unet", interpret.Request(**more)
        )
        assert found(subjects=1000) == test
        assert found(subjects=3) == [test[number * len(test) // 3] for number in range(3)]
        assert set(found(split="train")) == set(study.cohort.index[study.cohort["split"] == "train"])


def test_who_withdraws_takes_all_interpretations_along(tools: Tools, root: Path, contrast: str) -> None:
    tools.dtg("interpret", str(root), "--contrast", contrast, *FEW, "--images", "1")
    gone = chosen(Study(str(root)), 5)[:1]
    assert withdraw(Study(str(root)), gone).traces == []
    assert files(root) == {}
    assert not list((root / "receipts").rglob("contrast-*"))
    study = Study(str(root))
    tools.dtg("interpret", study.uri, "--contrast", contrast, *FEW)
    assert gone[0] not in chosen(study, 5)
