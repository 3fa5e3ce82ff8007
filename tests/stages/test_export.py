"""Maps as a BIDS dataset: what the files hold, who is in it, and what a second or interrupted export does."""

from __future__ import annotations

import json
import os
import shutil
import signal
import time
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
import yaml
from nilearn.image import mean_img
from nilearn.maskers import NiftiMasker

from cohort_files import make_study, task_map, write_map, write_rest, write_rois
from dtg_ray import Study, __version__, cli, ledger
from dtg_ray.cohort.layouts import bids
from dtg_ray.imaging.contrast import read_contrast
from dtg_ray.stages import contrasts, export, init, synthesize, train
from dtg_ray.stages.derivative import public_uri, without_credentials
from dtg_ray.stages.runtime import Options
from dtg_ray.store.files import Storage
from dtg_ray.store.receipts import Receipts
from stage_tools import Tools

INLINE = Options(inline=True, quiet=True)
FACES = "EMOTION_FACES"
ONE = "sub-0002/func/sub-0002_task-EMOTION_space-MNI152NLin6Asym_contrast-FACES_stat-z_desc-synthetic_statmap.nii.gz"
GROUP = "group/task-EMOTION_space-MNI152NLin6Asym_contrast-FACES_stat-{}_desc-synthetic_statmap.nii.gz"


def run(study: object, out: object, *options: str) -> int:
    return cli.main(["export", str(study), str(out), "--inline", "--quiet", *options])


def files(out: Path) -> dict[str, bytes]:
    return {path.relative_to(out).as_posix(): path.read_bytes() for path in sorted(out.rglob("*")) if path.is_file()}


def images(out: Path) -> list[str]:
    return [name for name in files(out) if name.endswith("_statmap.nii.gz")]


def times(out: Path) -> dict[str, int]:
    return {path.relative_to(out).as_posix(): path.stat().st_mtime_ns for path in out.rglob("*") if path.is_file()}


def sidecar(out: Path, image: str) -> dict[str, object]:
    document: dict[str, object] = json.loads((out / image.replace(".nii.gz", ".json")).read_text())
    return document


@pytest.fixture(scope="module")
def out(finished: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Everything of the first network; not to be changed."""
    out = tmp_path_factory.mktemp("exported") / "maps"
    assert run(finished, out, "--group") == 0
    return out


@pytest.fixture
def copy(out: Path, tmp_path: Path) -> Path:
    """The same, to be changed."""
    return Path(shutil.copytree(out, tmp_path / "copy"))


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> Study:
    """Six people, the last of whom has no map, the first only one of two; the file of the third cannot be read."""
    root = tmp_path_factory.mktemp("measured")
    study = make_study(root)
    shutil.rmtree(study.uri)
    (root / "data/sub-01/func/sub-01_task-MOTOR_contrast-RH_stat-z_statmap.nii.gz").unlink()
    (root / "data/sub-03/func/sub-03_task-MOTOR_contrast-LH_stat-z_statmap.nii.gz").write_bytes(b"damaged")
    study = init.init(
        study.uri,
        bids.find(f"{root}/data"),
        [f"{root}/data/rois.nii.gz"],
        {
            "grid": {"resolution": 16},
            "cohort": {"block_size": 2, "validation": 0.2, "test": 0.4},
        },
    ).study
    contrasts.run(study, INLINE)
    return study


class TestImages:
    def test_are_the_maps_of_the_study_exactly(self, finished: Path, out: Path) -> None:
        study = Study(str(finished))
        for subject in study.cohort["subject"]:
            for contrast in study.config.contrasts:
                expected = study.map(subject, contrast)
                path = next((out / subject / "func").glob(f"*_contrast-{contrast.split('_')[1]}_*.nii.gz"))
                image = nib.load(path)
                np.testing.assert_array_equal(np.asanyarray(image.dataobj), np.asanyarray(expected.dataobj))
                np.testing.assert_array_equal(image.affine, expected.affine)
                assert int(image.header["sform_code"]) == int(image.header["qform_code"]) == 4
        assert len(images(out)) == 24 * 3 + 3 * 2
        assert ONE in images(out)

    def test_open_with_nilearn(self, finished: Path, out: Path) -> None:
        study = Study(str(finished))
        masker = NiftiMasker(out / "space-MNI152NLin6Asym_desc-brain_mask.nii.gz", standardize=None).fit()
        vectors = masker.transform([out / ONE])
        expected = study.synthetic("unet").sel(contrast=FACES, subject="sub-0002").to_numpy()
        np.testing.assert_array_equal(np.ravel(vectors), expected.astype(np.float32))
        mean = mean_img(sorted(out.glob("sub-*/func/*contrast-FACES*.nii.gz")), copy_header=True)
        np.testing.assert_allclose(
            mean.get_fdata(), nib.load(out / GROUP.format("mean")).get_fdata(), rtol=1e-4, atol=1e-6
        )

    def test_are_read_back_as_z_maps(self, finished: Path, out: Path) -> None:
        study = Study(str(finished))
        people = {person.subject: person for person in bids.find(str(out), needed="contrasts").participants}
        assert list(people) == study.cohort["subject"].tolist()
        assert all(set(person.contrasts) == set(study.config.contrasts) for person in people.values())
        vector = read_contrast(people["sub-0005"].contrasts[FACES], study.grid)
        expected = study.synthetic("unet").sel(contrast=FACES, subject="sub-0005").to_numpy()
        np.testing.assert_array_equal(vector, expected)

    def test_say_what_they_are(self, finished: Path, out: Path) -> None:
        study = Study(str(finished))
        described = json.loads((finished / "models/unet/model.json").read_text())
        for subject, split in study.cohort["split"].items():
            name = ONE.replace("sub-0002", str(subject))
            document = sidecar(out, name)
            assert document["Subject"] == subject
            assert document["Split"] == split
            assert f"in the split {split}, " in str(document["Description"])
            assert ("the model has not seen" in str(document["Description"])) == (split not in {"train", "validation"})
        assert (document["Contrast"], document["TaskName"], document["Units"]) == (FACES, "EMOTION", "z")
        assert document["SourceStudy"] == finished.as_uri()
        assert document["SpatialReference"] == "bids::space-MNI152NLin6Asym_desc-brain_mask.nii.gz"
        assert document["GeneratedBy"] == [{"Name": "dtg_ray", "Version": __version__}]
        model = document["Model"]
        assert isinstance(model, dict)
        assert (model["Name"], model["Kind"], model["WeightsSHA256"]) == ("unet", "network", described["sha256"])
        assert model["Architecture"]["width"] == 4
        assert model["Settings"]["train"]["loss"] == "crr"
        assert model["TrainingSampleSize"] == len(described["provenance"]["training"]) > 0

    def test_the_dataset_describes_itself_as_bids_asks(self, finished: Path, out: Path) -> None:
        document = json.loads((out / "dataset_description.json").read_text())
        assert document["DatasetType"] == "derivative"
        assert document["BIDSVersion"].startswith("1.")
        assert document["Name"] == "Synthetic task-contrast maps (unet)"
        assert document["GeneratedBy"][0]["Name"] == "dtg_ray"
        assert document["GeneratedBy"][0]["Version"] == __version__
        assert document["SourceDatasets"] == [{"URL": finished.as_uri()}]
        assert document["ReferencesAndLinks"] == ["https://doi.org/10.1038/s42003-025-09158-6"]
        assert "predicted from resting-state fMRI, not measured" in (out / "README.md").read_text()

    def test_nothing_is_written_into_the_study(self, finished: Path, tmp_path: Path) -> None:
        before = times(finished)
        assert run(finished, tmp_path / "out", "--contrasts", FACES) == 0
        assert times(finished) == before


class TestGroup:
    def test_is_what_numpy_makes_of_the_array(self, finished: Path, out: Path) -> None:
        study = Study(str(finished))
        maps = study.synthetic("unet").sel(contrast=FACES).to_numpy().astype(np.float64)
        for stat, expected in (("mean", maps.mean(axis=0)), ("std", maps.std(axis=0, ddof=1))):
            image = nib.load(out / GROUP.format(stat))
            np.testing.assert_allclose(image.get_fdata()[study.grid.mask], expected, rtol=1e-6)
            assert not image.get_fdata()[~study.grid.mask].any()
            assert image.header.get_intent()[0] == "estimate"

    def test_says_over_whom(self, finished: Path, out: Path) -> None:
        splits = Study(str(finished)).cohort["split"].value_counts().to_dict()
        document = sidecar(out, GROUP.format("std"))
        assert document["SampleSize"] == 24
        assert document["SampleSizePerSplit"] == splits
        assert str(document["Description"]).startswith("Standard deviation over subjects")

    def test_is_over_the_people_who_are_asked_for_and_replaces_that_over_others(
        self, finished: Path, copy: Path, tmp_path: Path
    ) -> None:
        study, ids = Study(str(finished)), tmp_path / "ids.txt"
        some = ["sub-0001", "sub-0007", "sub-0024"]
        ids.write_text("\n".join(some))
        assert run(finished, copy, "--group-only", "--subjects", str(ids)) == 0
        maps = study.synthetic("unet").sel(contrast=FACES, subject=some).to_numpy().astype(np.float64)
        for stat, expected in (("mean", maps.mean(axis=0)), ("std", maps.std(axis=0, ddof=1))):
            image = nib.load(copy / GROUP.format(stat))
            np.testing.assert_allclose(image.get_fdata()[study.grid.mask], expected, rtol=1e-6)
        assert sidecar(copy, GROUP.format("mean"))["SampleSize"] == 3
        assert len(images(copy)) == 78, "the maps of the others were taken away"

    def test_of_one_person_is_the_map_and_has_no_deviation(self, finished: Path, copy: Path, tmp_path: Path) -> None:
        (tmp_path / "ids.txt").write_text("0002")
        assert run(finished, copy, "--group-only", "--subjects", str(tmp_path / "ids.txt")) == 0
        np.testing.assert_array_equal(
            nib.load(copy / GROUP.format("mean")).get_fdata(), nib.load(copy / ONE).get_fdata()
        )
        assert not list(copy.glob("group/*stat-std*"))

    def test_alone_writes_nobodys_maps(self, finished: Path, tmp_path: Path) -> None:
        assert run(finished, tmp_path / "out", "--group-only", "--contrasts", FACES) == 0
        assert images(tmp_path / "out") == [GROUP.format("mean"), GROUP.format("std")]


class TestAgain:
    def test_nothing_is_written(self, finished: Path, copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
        before = times(copy)
        assert run(finished, copy, "--group") == 0
        assert times(copy) == before
        assert "0 images written, 78 were there already (of unet, 24 subjects)" in capsys.readouterr().out

    def test_elsewhere_is_the_same_bytes(self, finished: Path, out: Path, tmp_path: Path) -> None:
        assert run(finished, tmp_path / "again", "--group") == 0
        assert files(tmp_path / "again") == files(out)

    @pytest.mark.parametrize("lost", [ONE, ONE.replace(".nii.gz", ".json")])
    def test_what_was_lost_is_written_again(self, finished: Path, out: Path, copy: Path, lost: str) -> None:
        before = times(copy)
        (copy / lost).unlink()
        assert run(finished, copy, "--group") == 0
        assert files(copy) == files(out)
        pair = {ONE, ONE.replace(".nii.gz", ".json")}
        assert {name for name, at in times(copy).items() if at != before[name]} == pair

    @pytest.mark.parametrize("damage", [b"", b"[]", b'{"Fingerprint": "of something else"}'])
    def test_an_image_with_another_provenance_is_replaced(
        self, finished: Path, out: Path, copy: Path, damage: bytes
    ) -> None:
        (copy / ONE.replace(".nii.gz", ".json")).write_bytes(damage)
        (copy / ONE).write_bytes(b"of something else")
        assert run(finished, copy, "--group") == 0
        assert files(copy) == files(out)

    def test_an_image_that_could_not_be_written_has_no_sidecar(self, finished: Path, out: Path, copy: Path) -> None:
        (copy / ONE).unlink()
        (copy / ONE / "in the way").mkdir(parents=True)
        assert run(finished, copy, "--group") == 1
        assert not (copy / ONE.replace(".nii.gz", ".json")).exists()
        shutil.rmtree(copy / ONE)
        assert run(finished, copy, "--group") == 0
        assert files(copy) == files(out)

    def test_maps_that_were_made_again_are_exported_again(self, finished: Path, tmp_path: Path) -> None:
        study = Path(shutil.copytree(finished, tmp_path / "study"))
        assert run(study, tmp_path / "out", "--group", "--contrasts", FACES) == 0
        before = times(tmp_path / "out")
        (study / "receipts/synthesize/unet/block-00001.parquet").unlink()
        synthesize.run(Study(str(study)), INLINE, "unet")
        assert run(study, tmp_path / "out", "--group", "--contrasts", FACES) == 0
        block = Study(str(study)).block(1)["subject"]
        changed = {name for name, at in times(tmp_path / "out").items() if at != before[name]}
        assert {name.split("/")[0] for name in changed} == {*block, "group"}

    def test_people_and_contrasts_that_are_gone_go_from_the_dataset_too(
        self, finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        study, place = Path(shutil.copytree(finished, tmp_path / "study")), tmp_path / "maps"
        assert run(study, place, "--group") == 0
        (place / "sub-0002/func/notes.txt").write_text("mine")
        (tmp_path / "ids.txt").write_text("sub-0002\n")
        assert cli.main(["withdraw", str(study), str(tmp_path / "ids.txt")]) == 0
        assert run(study, place, "--group") == 0
        assert "3 images were removed" in capsys.readouterr().out
        assert [path.name for path in (place / "sub-0002/func").iterdir()] == ["notes.txt"]
        assert len(images(place)) == 23 * 3 + 3 * 2
        config = (study / "study.yaml").read_text()
        settings = yaml.safe_load(config)
        settings["synthesis"]["contrasts"] = [FACES]
        (study / "study.yaml").write_text(yaml.safe_dump(settings))
        shutil.rmtree(study / "synthetic")
        synthesize.run(Study(str(study)), INLINE, "unet")
        assert run(study, place, "--group") == 0
        assert f"{23 * 2 + 4} images were removed" in capsys.readouterr().out
        assert len(images(place)) == 23 + 2

    def test_who_is_still_to_be_done_keeps_the_images(self, finished: Path, tmp_path: Path) -> None:
        study, place = Path(shutil.copytree(finished, tmp_path / "study")), tmp_path / "maps"
        assert run(study, place) == 0
        before = images(place)
        (study / "receipts/synthesize/unet/block-00001.parquet").unlink()
        assert run(study, place) == 0
        assert images(place) == before

    def test_who_fails_now_has_no_image(self, measured: Study, tmp_path: Path) -> None:
        study = Path(shutil.copytree(measured.uri, tmp_path / "study"))
        assert run(study, tmp_path / "out", "--model", "measured") == 0
        before = images(tmp_path / "out")
        receipts = Receipts(Storage(str(study)), "contrasts")
        rows = receipts.holding("block-00000", ledger.map_fingerprints(measured, "contrasts")["block-00000"])
        rows["sub-02"].status, rows["sub-02"].error_type = "failed", "SubjectError"
        receipts.write("block-00000", rows.values(), attempt=1, host="")
        assert run(study, tmp_path / "out", "--model", "measured") == 0
        assert images(tmp_path / "out") == [name for name in before if not name.startswith("sub-02/")] != before
        assert not (tmp_path / "out/sub-02").exists()

    def test_after_a_failure_goes_on(self, finished: Path, out: Path, tmp_path: Path) -> None:
        place = tmp_path / "out"
        place.mkdir()
        shutil.copy(out / "dataset_description.json", place)
        (place / "sub-0006").write_bytes(b"in the way")
        assert run(finished, place, "--group") == 1
        before = times(place)
        assert all((place / f"sub-000{number}").is_dir() for number in (1, 2, 3, 4)), "the block before"
        assert not (place / "group").exists()
        (place / "sub-0006").unlink()
        assert run(finished, place, "--group") == 0
        assert files(place) == files(out)
        assert {name: at for name, at in times(place).items() if name in before and name != "sub-0006"} == {
            name: at for name, at in before.items() if name != "sub-0006"
        }

    @pytest.mark.slow
    def test_after_a_kill_goes_on_and_nothing_is_half(
        self, tools: Tools, finished: Path, out: Path, tmp_path: Path
    ) -> None:
        place = tmp_path / "out"
        process = tools.start("export", str(finished), str(place), "--group", "--inline", "--quiet")
        deadline = time.monotonic() + 120
        while not list(place.glob("sub-*/func/*.json")):
            assert time.monotonic() < deadline
            assert process.poll() is None
            time.sleep(0.002)
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        there, complete = files(place), files(out)
        whole = {name: data for name, data in there.items() if not name.endswith(".partial")}
        assert len(whole) < len(complete), "the kill came too late to interrupt anything"
        assert whole.items() <= complete.items()
        assert all(name.replace(".json", ".nii.gz") in whole for name in whole if name.endswith("_statmap.json"))
        assert run(finished, place, "--group") == 0
        assert {name: data for name, data in files(place).items() if not name.endswith(".partial")} == complete


@pytest.mark.slow
def test_on_ray_it_is_the_same_bytes(tools: Tools, finished: Path, out: Path, tmp_path: Path) -> None:
    tools.process("export", str(finished), str(tmp_path / "out"), "--group", "--quiet", "--cpus", "2")
    assert files(tmp_path / "out") == files(out)


@pytest.mark.s3
def test_on_s3_it_is_the_same_bytes_and_goes_on(s3, finished: Path, out: Path) -> None:
    place = f"{s3()}/maps"
    assert run(finished, place, "--group", "--contrasts", FACES) == 0
    storage = Storage(place)
    names = storage.names("")
    wanted = {name for name in files(out) if "_statmap" not in name or "contrast-FACES" in name}
    assert {name.lstrip("/") for name in names} == wanted
    assert storage.read_many(sorted(wanted)) == {name: (out / name).read_bytes() for name in wanted}
    storage.delete(ONE)
    result = export.run(Study(str(finished)), place, export.Request(contrasts=(FACES,), group=True), INLINE)
    assert (result.written, result.kept) == (1, 25)


class TestWho:
    def test_and_what_can_be_chosen(self, finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        (tmp_path / "ids.txt").write_text("sub-0003\n0010\nsub-0003\n")
        options = ("--subjects", str(tmp_path / "ids.txt"), "--contrasts", FACES, "MOTOR_LH", "--model", "linear")
        assert run(finished, tmp_path / "out", *options) == 0
        assert len(images(tmp_path / "out")) == 4
        assert {name.split("/")[0] for name in images(tmp_path / "out")} == {"sub-0003", "sub-0010"}
        assert {sidecar(tmp_path / "out", name)["Contrast"] for name in images(tmp_path / "out")} == {FACES, "MOTOR_LH"}
        study = Study(str(finished))
        image = nib.load(tmp_path / "out" / ONE.replace("0002", "0003"))
        np.testing.assert_array_equal(image.get_fdata(), study.map("sub-0003", FACES, "linear").get_fdata())
        model = sidecar(tmp_path / "out", ONE.replace("0002", "0003"))["Model"]
        assert isinstance(model, dict)
        assert (model["Name"], model["Kind"], model["Settings"]) == ("linear", "linear", {"kind": "linear"})
        assert "4 images written" in capsys.readouterr().out

    def test_unknown_people_are_named(self, finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        (tmp_path / "ids.txt").write_text(" ".join(["sub-0001", *(f"nobody{number}" for number in range(7))]))
        assert run(finished, tmp_path / "out", "--subjects", str(tmp_path / "ids.txt")) == 2
        assert "nobody0, nobody1, nobody2, nobody3, nobody4 and 2 others" in capsys.readouterr().err
        assert not (tmp_path / "out").exists()

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            (("--model", "vnet"), "got model 'vnet', expected one of group_mean, linear, unet, measured"),
            (("--contrasts", FACES, "FACES"), "got contrast 'FACES', expected some of EMOTION_FACES, LANGUAGE_STORY"),
            (("--space", "MNI-152"), "got space 'MNI-152', expected letters and digits"),
        ],
    )
    def test_unknown_names_are_usage_errors(
        self, finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], options: list[str], message: str
    ) -> None:
        assert run(finished, tmp_path / "out", *options) == 2
        assert message in capsys.readouterr().err
        assert not (tmp_path / "out").exists()

    def test_maps_that_were_not_made_are_an_error(
        self, measured: Study, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert run(measured.uri, tmp_path / "out") == 1
        assert "got nobody with maps of unet, expected somebody" in capsys.readouterr().err

    def test_a_dry_run_says_what_it_would_do(
        self, finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert run(finished, tmp_path / "out", "--dry-run", "--group") == 0
        assert "export/unet: 9 of 9 to do, 24 subjects" in capsys.readouterr().out
        assert not (tmp_path / "out").exists()

    def test_results_as_json(self, finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        assert run(finished, tmp_path / "out", "--json", "--contrasts", FACES) == 0
        plan, result = map(json.loads, capsys.readouterr().out.splitlines())
        assert plan["subjects"] == 24
        assert result == {"written": 24, "kept": 0, "removed": 0, "left_out": {}}


class TestMeasured:
    def test_only_what_was_acquired_is_exported(self, measured: Study, tmp_path: Path) -> None:
        assert run(measured.uri, tmp_path / "out", "--model", "measured", "--group") == 0
        name = "sub-{0}/func/sub-{0}_task-MOTOR_contrast-{1}_stat-z_desc-measured_statmap.nii.gz"
        expected = [name.format(*one) for one in (("01", "LH"), ("02", "LH"), ("02", "RH"), ("04", "LH"))]
        assert [one for one in images(tmp_path / "out") if "group" not in one][:4] == expected
        assert len(images(tmp_path / "out")) == 7 + 4
        document = sidecar(tmp_path / "out", expected[0])
        assert document["Description"] == "Measured z map of MOTOR_LH."
        assert "Model" not in document
        assert "Space" not in document, "the names of these images do not say it"
        assert document["SpatialReference"] == "bids::desc-brain_mask.nii.gz"
        image = nib.load(tmp_path / "out" / expected[0])
        expected_map = task_map(1)[measured.grid.mask].astype(np.float16)
        np.testing.assert_array_equal(np.asanyarray(image.dataobj)[measured.grid.mask], expected_map)

    def test_means_are_over_those_who_have_the_map(self, measured: Study, tmp_path: Path) -> None:
        assert run(measured.uri, tmp_path, "--model", "measured", "--group-only") == 0
        for contrast, subjects in (
            ("LH", ["sub-01", "sub-02", "sub-04", "sub-05"]),
            ("RH", ["sub-02", "sub-04", "sub-05"]),
        ):
            maps = measured.measured().sel(contrast=f"MOTOR_{contrast}", subject=subjects).to_numpy().astype(np.float64)
            mean = f"group/task-MOTOR_contrast-{contrast}_stat-mean_desc-measured_statmap.nii.gz"
            std = nib.load(tmp_path / mean.replace("mean", "std")).get_fdata()[measured.grid.mask]
            np.testing.assert_allclose(
                nib.load(tmp_path / mean).get_fdata()[measured.grid.mask], maps.mean(axis=0), rtol=1e-6
            )
            np.testing.assert_allclose(std, maps.std(axis=0, ddof=1), rtol=1e-6)
            assert sidecar(tmp_path, mean)["SampleSize"] == len(subjects)

    def test_whoever_was_asked_for_and_has_none_is_left_out_with_the_reason(
        self, measured: Study, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        (tmp_path / "ids.txt").write_text("01 02 03 06")
        options = ("--model", "measured", "--subjects", str(tmp_path / "ids.txt"), "--contrasts", "MOTOR_RH")
        assert run(measured.uri, tmp_path / "out", *options) == 3
        lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("left out: ")]
        assert len(lines) == 3
        assert lines[0] == "left out: sub-01: none of these contrasts was acquired"
        assert lines[1].startswith("left out: sub-03: ")
        assert "sub-03_task-MOTOR_contrast-LH_stat-z_statmap.nii.gz" in lines[1]
        assert lines[2] == "left out: sub-06: no contrast map in the manifest"
        assert len(images(tmp_path / "out")) == 1

    def test_a_space_can_be_given(self, measured: Study, tmp_path: Path) -> None:
        assert run(measured.uri, tmp_path, "--model", "measured", "--space", "MNI152NLin2009cAsym") == 0
        assert all("_space-MNI152NLin2009cAsym_contrast-" in name for name in images(tmp_path))

    def test_a_map_that_was_lost_is_no_image_of_zeros(
        self, measured: Study, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        root = shutil.copytree(measured.uri, tmp_path / "study")
        shutil.rmtree(Path(root) / "contrasts.zarr/maps/c/0/1")
        assert run(root, tmp_path / "out", "--model", "measured") == 1
        assert "sub-04: got no map of MOTOR_LH, expected one: its chunk was lost" in capsys.readouterr().err
        assert not list((tmp_path / "out").glob("sub-04/func/*contrast-LH*"))


class TestOtherGrids:
    def test_a_grid_of_its_own_is_aligned_to_something(self, tmp_path: Path) -> None:
        study = make_study(tmp_path, grid={"mask": mask_file(tmp_path), "resolution": 2.0})
        contrasts.run(study, INLINE)
        assert run(study.uri, tmp_path / "out", "--model", "measured") == 0
        image = nib.load(tmp_path / "out" / images(tmp_path / "out")[0])
        assert int(image.header["sform_code"]) == int(image.header["qform_code"]) == 2
        np.testing.assert_array_equal(image.affine, study.grid.affine)

    def test_is_mni_where_the_images_are(self, tmp_path: Path) -> None:
        study = make_study(tmp_path, grid={"mask": mask_file(tmp_path), "resolution": 2.0})
        contrasts.run(study, INLINE)
        options = ("--model", "measured", "--space", "MNI152NLin6Asym")
        assert run(study.uri, tmp_path / "out", *options) == 0
        assert int(nib.load(tmp_path / "out" / images(tmp_path / "out")[0]).header["sform_code"]) == 4


def mask_file(folder: Path) -> str:
    mask = np.zeros((6, 7, 5), dtype=np.uint8)
    mask[1:-1, 1:-1, 1:-1] = 1
    affine = np.diag([-20.0, 20.0, 20.0, 1.0])
    affine[:3, 3] = 50, -70, -40
    nib.save(nib.Nifti1Image(mask, affine), folder / "mask.nii.gz")
    return str(folder / "mask.nii.gz")


def test_maps_of_the_second_visit_are_not_called_synthetic(tmp_path: Path) -> None:
    make_study(tmp_path)
    for number in (1, 2):
        write_map(f"{tmp_path}/again", f"{number:02d}", "LH", data=task_map(900 + number))
    found = init.find_retest(bids.find(f"{tmp_path}/data"), "bids", f"{tmp_path}/again", {})
    settings = {"grid": {"resolution": 16}, "models": {"retest": {"kind": "retest"}}}
    study = init.init(f"{tmp_path}/twice", found, [write_rois(f"{tmp_path}/rois.nii.gz")], settings).study
    train.run(study, INLINE, "retest")
    synthesize.run(study, INLINE, "retest")
    assert run(study.uri, tmp_path / "out", "--model", "retest") == 0
    name = "sub-{0}/func/sub-{0}_task-MOTOR_contrast-LH_stat-z_desc-retest_statmap.nii.gz"
    assert images(tmp_path / "out") == [name.format("01"), name.format("02")]
    assert sidecar(tmp_path / "out", name.format("01"))["Description"] == "Measured z map of MOTOR_LH, second visit."


def test_people_and_contrasts_of_any_name_have_files_of_their_own(tmp_path: Path) -> None:
    rows = []
    for number, subject in enumerate(("P_1", "P1", "1000001"), start=1):
        rest = write_rest(f"{tmp_path}/data", f"{number:02d}")
        maps = {
            f"contrast:{name}": write_map(f"{tmp_path}/data", f"{number:02d}", f"C{column}", data=task_map(column))
            for column, name in enumerate(("FACES", "A_B-C", "A_BxC", "ÄÖ"))
        }
        rows.append({"subject": subject, "rest": rest, **maps})
    pd.DataFrame(rows).to_csv(tmp_path / "paths.csv", index=False)
    found = init.find("table", str(tmp_path / "paths.csv"), None, {})
    settings = {"grid": {"resolution": 16}}
    study = init.init(f"{tmp_path}/study", found, [write_rois(f"{tmp_path}/rois.nii.gz")], settings).study
    contrasts.run(study, INLINE)
    assert run(study.uri, tmp_path / "out", "--model", "measured") == 0
    assert len(images(tmp_path / "out")) == 12
    said = {
        (sidecar(tmp_path / "out", name)["Subject"], sidecar(tmp_path / "out", name)["Contrast"])
        for name in images(tmp_path / "out")
    }
    assert said == {(row["subject"], name) for row in rows for name in study.config.contrasts}
    assert (tmp_path / "out/sub-1000001/func/sub-1000001_contrast-FACES_stat-z_desc-measured_statmap.nii.gz").exists()
    for name in images(tmp_path / "out"):
        document = sidecar(tmp_path / "out", name)
        expected = study.map(str(document["Subject"]), str(document["Contrast"]), "measured").get_fdata()
        np.testing.assert_array_equal(nib.load(tmp_path / "out" / name).get_fdata(), expected)


class TestPlaces:
    def refused(self, study: object, out: Path, *options: str) -> bool:
        before = times(out) if out.exists() else None
        code = run(study, out, *options)
        return code == 2 and (times(out) if out.exists() else None) == before

    @pytest.mark.parametrize("name", ["", "maps", "synthetic/unet.zarr", "../study/maps"])
    def test_inside_the_study_are_refused(self, finished: Path, name: str) -> None:
        assert self.refused(finished, finished / name)

    def test_behind_a_link_into_the_study_are_refused(self, finished: Path, tmp_path: Path) -> None:
        (tmp_path / "link").symlink_to(finished)
        assert self.refused(finished, tmp_path / "link" / "maps")

    def test_with_the_maps_of_another_model_are_refused(
        self, finished: Path, copy: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert self.refused(finished, copy, "--model", "linear")
        assert "got a dataset with Maps 'unet', expected 'linear'" in capsys.readouterr().err

    def test_with_maps_of_another_study_are_refused(self, measured: Study, copy: Path) -> None:
        assert self.refused(measured.uri, copy, "--model", "measured")

    def test_with_maps_named_by_another_space_are_refused(self, finished: Path, copy: Path) -> None:
        assert self.refused(finished, copy, "--space", "MNI152NLin2009cAsym")

    def test_with_a_dataset_of_somebody_else_are_refused(self, tools: Tools, finished: Path, tmp_path: Path) -> None:
        other = Path(shutil.copytree(tools.data, tmp_path / "data"))
        assert self.refused(finished, other)
        (other / "dataset_description.json").unlink()
        assert self.refused(finished, other), "people without a description"
        for text in ("[]", "not JSON", '{"Name": "theirs"}'):
            (other / "dataset_description.json").write_text(text)
            assert self.refused(finished, other)

    def test_with_a_study_are_refused(self, measured: Study, finished: Path) -> None:
        assert self.refused(finished, Path(measured.uri))

    def test_beside_the_study_are_fine(self, finished: Path, tmp_path: Path) -> None:
        study = Path(shutil.copytree(finished, tmp_path / "study"))
        assert run(study, tmp_path / "study-maps", "--contrasts", FACES) == 0

    @pytest.mark.s3
    def test_of_a_study_on_s3_are_told_in_the_same_way(self, s3, measured: Study, tmp_path: Path) -> None:
        study = make_study(s3())
        contrasts.run(study, INLINE)
        assert run(study.uri, f"{study.uri}/maps", "--model", "measured") == 2
        assert run(measured.uri, study.uri, "--model", "measured") == 2
        assert run(study.uri, tmp_path / "out", "--model", "measured") == 0
        assert len(images(tmp_path / "out")) == 10
        assert (
            sidecar(tmp_path / "out", images(tmp_path / "out")[0])["SourceStudy"] == public_uri(study.uri) == study.uri
        )


class TestCredentials:
    @pytest.mark.parametrize(
        ("text", "expected"),
        [
            ("s3://bucket/study", "s3://bucket/study"),
            ("https://user:secret@host/models/unet.ckpt", "https://host/models/unet.ckpt"),
            ("https://host/a.ckpt?X-Amz-Signature=secret&X=1", "https://host/a.ckpt"),
            ("zip://a.nii::https://me:secret@host/b.zip?token=secret", "zip://a.nii::https://host/b.zip"),
            ('{"a": "https://u:p@h/x?k=v", "b": "what? me@home"}', '{"a": "https://h/x", "b": "what? me@home"}'),
        ],
    )
    def test_are_left_out_of_uris(self, text: str, expected: str) -> None:
        assert without_credentials(text) == expected
