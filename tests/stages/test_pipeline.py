"""`dtg run` on real files, from the command line, as a user does it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
import xarray as xr
from numpy.testing import assert_allclose

from dtg_ray import Study, ledger
from dtg_ray.ledger import Ledger
from dtg_ray.stages.maps import usable
from dtg_ray.stages.models import load_model
from stage_tools import Arrays, Tools, lasting


class TestAFinishedStudy:
    def test_has_every_subject_done_in_every_stage(self, finished: Path) -> None:
        status = Study(str(finished)).status()
        assert (status["pending"] == 0).all()
        assert (status["failed"] == 0).all()
        blocks = status[status["stage"].str.startswith(("connectomes", "contrasts", "synthesize"))]
        assert (blocks[["done", "failed", "excluded", "pending"]].sum(axis=1) == 24).all()
        assert len(blocks) == 5

    def test_holds_the_connectomes_that_numpy_computes_from_the_files(self, finished: Path) -> None:
        study = Study(str(finished))
        row = study.cohort.iloc[5]
        bold = study.grid.vectorize(np.moveaxis(nib.load(row["rest"][0].image).get_fdata(), -1, 0))  # (T, V)
        maps = study.rois - study.rois.mean(axis=1, keepdims=True)
        series = np.linalg.lstsq(maps.T, (bold - bold.mean(axis=0)).T, rcond=None)[0]  # (K, T)
        expected = np.corrcoef(np.concatenate([series, bold.T]))[: len(maps), len(maps) :]
        group = study.storage.open_zarr("connectomes.zarr")
        assert_allclose(group["connectome"][5, 0], expected, atol=1e-3)
        edges = np.corrcoef(series)[np.triu_indices(len(maps), 1)]
        assert_allclose(group["roi_connectome"][5], edges, atol=1e-5)

    def test_holds_the_measured_maps_and_nan_where_there_is_none(self, finished: Path) -> None:
        study = Study(str(finished))
        measured = study.measured()
        for subject, scans in study.cohort["contrasts"].items():
            for contrast in study.config.contrasts:
                stored = measured.sel(subject=subject, contrast=contrast).to_numpy()
                if contrast in scans:
                    assert_allclose(
                        stored, study.grid.vectorize(nib.load(scans[contrast].image).get_fdata()), rtol=1e-3, atol=1e-3
                    )
                else:
                    assert np.isnan(stored).all()
        assert study.cohort["contrasts"].map(len).min() < 3, "the cohort should have missing contrasts"

    def test_holds_the_maps_its_models_predict(self, finished: Path) -> None:
        study = Study(str(finished))
        connectome = np.asarray(study.storage.open_zarr("connectomes.zarr")["connectome"][7], dtype=np.float32)
        for name in study.config.models:
            expected = load_model(study, name).predict(connectome)[0]
            stored = study.synthetic(name).isel(subject=7).to_numpy()
            assert_allclose(stored, expected, rtol=2e-3, atol=2e-3)

    def test_group_mean_is_the_mean_of_the_training_maps(self, finished: Path) -> None:
        study = Study(str(finished))
        maps = study.measured().sel(subject=usable(Ledger(study), "train")).to_numpy().astype(float)
        assert_allclose(study.synthetic("group_mean").isel(subject=0), np.nanmean(maps, axis=1), rtol=2e-3, atol=2e-3)

    def test_opens_with_xarray_and_as_an_image(self, finished: Path) -> None:
        study = Study(str(finished))
        dataset = xr.open_zarr(finished / "synthetic" / "unet.zarr", consolidated=False)
        assert dataset["maps"].dims == ("contrast", "subject", "voxel")
        assert set(dataset.coords) == {"contrast", "subject", "x", "y", "z"}
        image = study.map("sub-0002", study.config.contrasts[0])
        vector = dataset["maps"].sel(subject="sub-0002", contrast=study.config.contrasts[0])
        assert image.shape == study.grid.shape
        assert_allclose(study.grid.vectorize(np.asarray(image.dataobj)), vector)
        place = np.round(np.linalg.inv(image.affine) @ [*(float(dataset[axis][100]) for axis in "xyz"), 1]).astype(int)
        assert image.dataobj[tuple(place[:3])] == np.float32(vector[100])

    def test_writes_figures_of_held_out_subjects_only(self, finished: Path) -> None:
        study = Study(str(finished))
        for name in study.config.models:
            table = pd.read_parquet(finished / "evaluation" / name / "contrasts.parquet")
            assert list(table["contrast"]) == list(study.config.contrasts)
            assert (table["subjects"] <= (study.cohort["split"] == "test").sum()).all()
            assert table["r"].between(-1, 1).all()

    def test_predicts_only_from_subjects_no_model_has_seen(self, finished: Path) -> None:
        study = Study(str(finished))
        table = pd.read_parquet(finished / "prediction" / "synthetic-unet" / "predictions" / "age.parquet")
        assert set(study.cohort.loc[table["subject"], "split"]) == {"test"}
        scores = pd.read_parquet(finished / "prediction" / "scores.parquet")
        assert set(scores["features"]) == {"synthetic:unet", "measured", "connectome"}
        assert {"age", "network_score", "noise_score"} <= set(scores["target"])
        assert (scores["p"] >= 1 / 51).all()

    def test_records_inputs_and_quality_in_the_receipts(self, finished: Path) -> None:
        study = Study(str(finished))
        rows = ledger.account(study, "connectomes").rows.set_index("subject")
        for subject, runs in study.cohort["rest"].items():
            row = rows.loc[subject]
            assert row["uri"] == runs[0].image
            assert row["size"] == Path(runs[0].image).stat().st_size
            assert row["qc"]["volumes"] == 40
            assert row["qc"]["tr"] == pytest.approx(2.0)
            assert row["seconds"] > 0
            assert row["peak_memory"] > 10**7


class TestRunningAgain:
    def test_changes_no_byte_and_starts_no_ray(
        self, tools: Tools, finished: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("ray.init", None)
        before = {path: path.stat().st_mtime_ns for path in finished.rglob("*") if path.is_file()}
        again = tools.dtg("run", str(finished), "--keep-connectomes")
        assert {path: path.stat().st_mtime_ns for path in finished.rglob("*") if path.is_file()} == before
        assert again.stderr.count("nothing to do") == 17
        assert "Reconstruction" in again.stdout

    def test_does_only_the_block_whose_receipt_is_gone(
        self, tools: Tools, finished: Path, tmp_path: Path, arrays: Arrays
    ) -> None:
        root = tmp_path / "study"
        shutil.copytree(finished, root)
        lost = root / "receipts" / "connectomes" / "block-00002.parquet"
        lost.unlink()
        others = {path: path.read_bytes() for path in (root / "receipts").rglob("*.parquet")}
        tools.dtg("connectomes", str(root), "--inline")
        assert lost.exists()
        assert {path: path.read_bytes() for path in others} == others
        assert arrays(root) == arrays(finished)

    def test_a_receipt_cut_in_half_counts_as_none(self, tools: Tools, finished: Path, tmp_path: Path) -> None:
        root = tmp_path / "study"
        shutil.copytree(finished, root)
        torn = root / "receipts" / "contrasts" / "block-00001.parquet"
        torn.write_bytes(torn.read_bytes()[:200])
        done = tools.dtg("contrasts", str(root), "--inline")
        assert "1 of 6 to do, 4 subjects" in done.stderr
        assert not ledger.account(Study(str(root)), "contrasts").pending()

    def test_a_changed_setting_makes_what_depends_on_it_due_again(self, finished: Path, tmp_path: Path) -> None:
        root = tmp_path / "study"
        shutil.copytree(finished, root)
        config = root / "study.yaml"
        config.write_text(config.read_text().replace("permutations: 50", "permutations: 60"))
        status = Study(str(root)).status().set_index("stage")
        assert set(status.index[status["pending"] > 0]) == {
            "predict/synthetic-unet",
            "predict/measured",
            "predict/connectome",
            "scores",
            "report",
        }


class TestTheCommandLine:
    def test_plans_without_doing_anything(self, tools: Tools, tmp_path: Path) -> None:
        root = Path(tools.init(str(tmp_path / "study")))
        before = sorted(root.rglob("*"))
        plans = tools.dtg("run", str(root), "--dry-run", "--json", "--keep-connectomes").stdout.splitlines()
        assert sorted(root.rglob("*")) == before
        first = json.loads(plans[0])
        assert (first["stage"], first["pending"], first["subjects"]) == ("connectomes", 6, 24)
        assert first["bytes_in"] == sum(path.stat().st_size for path in tools.data.rglob("*_bold.nii.gz"))
        assert json.loads(plans[-2])["waiting"]

    def test_init_again_changes_nothing_and_another_study_is_refused(self, tools: Tools, tmp_path: Path) -> None:
        root = tools.init(str(tmp_path / "study"))
        before = {path: path.read_bytes() for path in Path(root).rglob("*") if path.is_file()}
        tools.init(root)
        refused = tools.dtg(
            "init", root, "--bids", str(tools.data), "--rois", str(tools.rois), "--resolution", "9", check=2
        )
        assert "another study" in refused.stderr
        assert {path: path.read_bytes() for path in Path(root).rglob("*") if path.is_file()} == before

    def test_a_stage_out_of_turn_says_what_comes_first(self, tools: Tools, tmp_path: Path) -> None:
        root = tools.init(str(tmp_path / "study"))
        done = tools.process("train", root, check=1)
        assert "connectomes" in done.stderr
        assert "dtg run" in done.stderr

    def test_status_is_readable_by_programs(self, tools: Tools, finished: Path) -> None:
        document = json.loads(tools.dtg("status", str(finished), "--json").stdout)
        assert document["failures"] == []
        assert document["stages"][0]["done"] == 24

    def test_no_study_is_an_error_with_a_hint(self, tools: Tools, tmp_path: Path) -> None:
        done = tools.dtg("status", str(tmp_path / "nothing"), check=1)
        assert "dtg init" in done.stderr

    def test_help_waits_for_no_heavy_import(self) -> None:
        import subprocess
        import sys

        heavy = "('torch', 'ray', 'pandas', 'zarr', 'numpy')"
        code = f"import sys, dtg_ray.cli as cli; cli.parser(); print([m for m in {heavy} if m in sys.modules])"
        assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


@pytest.mark.s3
@pytest.mark.slow
def test_a_study_on_s3_has_the_same_arrays(tools: Tools, finished: Path, s3: Callable[[], str], arrays: Arrays) -> None:
    import s3fs

    root = f"{s3()}/population/study"
    tools.init(root)
    tools.dtg("run", root, "--inline", "--quiet", "--keep-connectomes")
    filesystem = s3fs.S3FileSystem()
    prefix = root.removeprefix("s3://")
    expected = arrays(finished)
    assert set(expected) <= {path[len(prefix) + 1 :] for path in filesystem.find(prefix)}
    for name, data in expected.items():
        assert lasting(name, filesystem.cat_file(f"{prefix}/{name}")) == data, name
    assert (Study(root).status()["pending"] == 0).all()
