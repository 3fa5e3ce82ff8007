"""Studies as they are shipped, through `dtg init`, `dtg connectomes` and `dtg contrasts`."""

from __future__ import annotations

import io
import json
import shutil
import zipfile
from pathlib import Path

import fsspec
import nibabel as nib
import numpy as np
import pandas as pd
import pytest
import yaml

from cohort_files import (
    GRID,
    rest_run,
    task_map,
    write_cohort,
    write_image,
    write_map,
    write_rest,
    write_rois,
    write_table,
)
from dtg_ray import Study, ledger
from dtg_ray.cli import main
from dtg_ray.cohort import generative
from dtg_ray.cohort import simulate as simulated
from dtg_ray.imaging.connectome import connectome, roi_timeseries
from dtg_ray.imaging.rest import Recipe, read_run
from dtg_ray.imaging.scan import Scan
from dtg_ray.results import Results
from dtg_ray.stages import evaluate
from dtg_ray.study import COHORT, cohort_bytes
from native_files import NATIVE, displacement, native_image
from stage_tools import Tools

REST, TASK = "fMRI/rfMRI.ica", "fMRI/tfMRI.feat"
VOLUMES = 34


def init(folder: Path | str, layout: str, *roots: str, **settings: object) -> str:
    """Make a study of a layout; returns its root."""
    rois, config = write_rois(f"{folder}/rois.nii.gz"), f"{folder}/settings.yaml"
    text = yaml.safe_dump({"grid": {"resolution": 16}, "cohort": {"block_size": 2}, **settings})
    fs, name = fsspec.url_to_fs(config)
    fs.pipe_file(name, text.encode())
    more = ("--config", config, "--rois", rois)
    dtg("init", f"{folder}/study", f"--{layout}", *roots, *more)
    return f"{folder}/study"


def dtg(*arguments: str, check: int = 0) -> None:
    """Run `dtg` in this process: none of these stages needs Ray."""
    assert main(arguments) == check


def rows(root: str, stage: str) -> pd.DataFrame:
    return ledger.account(Study(root), stage).rows.set_index("subject")


def connectomes(root: str) -> np.ndarray:
    return np.asarray(Study(root).storage.open_zarr("connectomes.zarr")["connectome"][:])


def ukb_files(folder: Path, eid: int) -> dict[str, bytes]:
    """What the rest and task zips of one person hold."""
    folder.mkdir(parents=True)
    rest = native_image(folder / "rest.nii.gz", seed=eid, shape=(*NATIVE, VOLUMES))
    task = native_image(folder / "task.nii.gz", flip=True, seed=eid + 1)
    mask = np.ones(NATIVE, dtype=np.uint8)
    mask[:, :2] = 0
    nib.Nifti1Image(mask, nib.load(rest).affine).to_filename(folder / "mask.nii.gz")
    return {
        f"{REST}/filtered_func_data_clean.nii.gz": Path(rest).read_bytes(),
        f"{REST}/mask.nii.gz": (folder / "mask.nii.gz").read_bytes(),
        f"{REST}/mc/prefiltered_func_data_mcf_rel_mean.rms": b"0.125\n",
        f"{REST}/reg/example_func2standard_warp.nii.gz": Path(displacement(folder / "rw.nii.gz", rest)).read_bytes(),
        f"{TASK}/stats/zstat5.nii.gz": Path(task).read_bytes(),
        f"{TASK}/mask.nii.gz": nib.Nifti1Image(np.ones(NATIVE, np.uint8), nib.load(task).affine).to_bytes(),
        f"{TASK}/reg/example_func2standard_warp.nii.gz": Path(displacement(folder / "tw.nii.gz", task)).read_bytes(),
    }


def put(root: str, files: dict[str, bytes]) -> None:
    for name, data in files.items():
        fs, path = fsspec.url_to_fs(f"{root}/{name}")
        fs.makedirs(path.rsplit("/", 1)[0], exist_ok=True)
        fs.pipe_file(path, data)


def zips(root: str, eid: int, files: dict[str, bytes]) -> None:
    """Ship one person's files as UK Biobank does."""
    for field, part in ((20227, REST), (20249, TASK)):
        buffer = io.BytesIO()
        with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
            for name, data in files.items():
                if name.startswith(part):
                    archive.writestr(name, data)
        put(root, {f"{eid}_{field}_2_0.zip": buffer.getvalue()})


@pytest.fixture(scope="module")
def people(tmp_path_factory: pytest.TempPathFactory) -> dict[int, dict[str, bytes]]:
    folder = tmp_path_factory.mktemp("ukb")
    return {eid: ukb_files(folder / str(eid), eid) for eid in (1000011, 1000022)}


class TestUKBiobank:
    @pytest.mark.parametrize("where", ["local", pytest.param("s3", marks=pytest.mark.s3)])
    def test_zips_and_what_was_in_them_give_the_same(self, tmp_path, request, people, where) -> None:
        place = str(tmp_path) if where == "local" else request.getfixturevalue("s3")()
        for eid, files in people.items():
            zips(f"{place}/zips", eid, files)
            for field, part in ((20227, REST), (20249, TASK)):
                mine = {f"{eid}_{field}_2_0/{name}": data for name, data in files.items() if name.startswith(part)}
                put(f"{place}/folders", mine)
        results = []
        for kind in ("zips", "folders"):
            root = init(f"{place}/{kind}-study", "ukb", f"{place}/{kind}")
            for stage in ("connectomes", "contrasts"):
                dtg(stage, root, "--inline")
            results.append((connectomes(root), Study(root).measured().to_numpy()))
            assert Study(root).config.contrasts == ("EMOTION_FACES-SHAPES",)
            quality = rows(root, "connectomes")["qc"].loc["1000011"]
            assert quality["motion"] == 0.125
            assert 0.5 < quality["coverage"] < 1
            assert quality["volumes"] == VOLUMES
        np.testing.assert_array_equal(results[0][0], results[1][0])
        np.testing.assert_array_equal(results[0][1], results[1][1])
        assert np.isfinite(results[0][0]).all()
        assert len(np.unique(results[0][1])) > 100

    def test_are_the_native_images_through_their_warps(self, tmp_path, people) -> None:
        files = people[1000011]
        put(f"{tmp_path}/folders/1000011_20227_2_0", {name: data for name, data in files.items() if REST in name})
        put(f"{tmp_path}/folders/1000011_20249_2_0", {name: data for name, data in files.items() if TASK in name})
        root = init(tmp_path, "ukb", f"{tmp_path}/folders")
        dtg("connectomes", root, "--inline")
        base = f"{tmp_path}/folders/1000011_20227_2_0/{REST}"
        scan = Scan(
            f"{base}/filtered_func_data_clean.nii.gz",
            warp=f"{base}/reg/example_func2standard_warp.nii.gz",
            mask=f"{base}/mask.nii.gz",
        )
        run = read_run(scan, GRID, Recipe())
        series = roi_timeseries(run.bold, Study(root).rois)
        np.testing.assert_allclose(connectomes(root)[0, 0], connectome(run.bold, series), atol=1e-3)

    def test_bad_packages_fail_by_name_and_leave_the_others_alone(self, tmp_path, people) -> None:
        good = people[1000011]
        warp, image = f"{REST}/reg/example_func2standard_warp.nii.gz", f"{REST}/filtered_func_data_clean.nii.gz"
        cases = {
            1000011: (good, None),
            1000022: ({name: data for name, data in good.items() if name != warp}, "got an archive without"),
            1000033: ({**good, image: b"<html>403</html>"}, "got a web page, expected a NIfTI header"),
            1000044: ({**good, image: good[image][:-3000]}, "ends in volume|damaged"),
            1000055: ({**good, warp: good[image]}, r"got a warp of shape .* expected \(X, Y, Z, 3\)"),
            1000066: ({**good, image: good[f"{REST}/mask.nii.gz"]}, "expected a 4-D series"),
            1000077: ({name: data for name, data in good.items() if "mc/" not in name}, None),
        }
        for eid, (files, _) in cases.items():
            zips(f"{tmp_path}/zips", eid, files)
        (tmp_path / "zips/1000088_20227_2_0.zip").write_bytes(b"PK torn")
        root = init(tmp_path, "ukb", f"{tmp_path}/zips")
        dtg("connectomes", root, "--inline", check=3)
        table = rows(root, "connectomes")
        for eid, (_, message) in {**cases, 1000088: ({}, "got an archive that cannot be read")}.items():
            row = table.loc[str(eid)]
            assert row["status"] == ("done" if message is None else "failed")
            if message:
                assert pd.Series([row["message"]]).str.contains(message).all(), row["message"]
                assert row["message"].startswith(f"{eid}: ")
                assert f"{eid}_20227_2_0.zip" in row["message"]
        assert "motion" not in table.loc["1000077", "qc"]


def test_hcp_gives_windows_from_all_runs_and_the_names_of_its_contrasts(tmp_path) -> None:
    for number, subject in enumerate(("100307", "100408")):
        results = tmp_path / f"hcp/{subject}/MNINonLinear/Results"
        runs = ("REST1_LR", "REST1_RL", "REST2_LR", "REST2_RL")[: 4 - 2 * number]
        for index, run in enumerate(runs):
            data = rest_run(10 * number + index, VOLUMES)
            write_image(results / f"rfMRI_{run}/rfMRI_{run}_hp2000_clean.nii.gz", data, tr=0.72)
        (results / "rfMRI_REST1_LR/Movement_RelativeRMS_mean.txt").write_text("0.08")
        feat = results / "tfMRI_EMOTION/tfMRI_EMOTION_hp200_s4_level2vol.feat"
        write_image(feat / "cope3.feat/stats/zstat1.nii.gz", task_map(number))
    root = init(tmp_path, "hcp", f"{tmp_path}/hcp", connectomes={"windows": 4, "minimum_volumes": 15})
    dtg("connectomes", root, "--inline")
    study = Study(root)
    assert study.config.contrasts == ("EMOTION_FACES-SHAPES",)
    values = connectomes(root)
    assert np.isfinite(values).all()
    bold = rest_run(3, VOLUMES)[GRID.mask].T  # the last run of the first subject
    np.testing.assert_allclose(values[0, 3], connectome(bold, roi_timeseries(bold, study.rois)), atol=1e-3)
    bold = rest_run(11, VOLUMES)[GRID.mask].T  # two runs, each cut in two
    series = roi_timeseries(bold, study.rois)
    half = slice(VOLUMES // 2, VOLUMES)
    np.testing.assert_allclose(values[1, 3], connectome(bold[half], series[half]), atol=1e-3)
    assert rows(root, "connectomes")["qc"].loc["100307"]["runs"] == 4


class TestFMRIPrep:
    @pytest.fixture
    def data(self, tmp_path) -> Path:
        """Three people, one of whom moves; their z-maps are in another derivatives folder."""
        for number, subject in enumerate(("01", "02", "03")):
            func, rng = tmp_path / f"fmriprep/sub-{subject}/func", np.random.default_rng(number)
            base = f"{func}/sub-{subject}_task-rest"
            drift = np.cumsum(rng.normal(size=VOLUMES))
            bold = rest_run(number, VOLUMES) + rng.normal(size=(*GRID.shape, 1)) * drift
            write_image(f"{base}_space-MNI152NLin2009cAsym_desc-preproc_bold.nii.gz", bold.astype(np.float32))
            write_image(f"{base}_space-T1w_desc-preproc_bold.nii.gz", rest_run(9, VOLUMES))
            mask = GRID.mask.astype(np.uint8)
            write_image(f"{base}_space-MNI152NLin2009cAsym_desc-brain_mask.nii.gz", mask)
            displacement = np.full(VOLUMES, 0.9 if subject == "02" else 0.1)
            displacement[0] = np.nan
            motion = {f"{kind}_{axis}": rng.normal(size=VOLUMES) for kind in ("trans", "rot") for axis in "xyz"}
            motion["trans_x"] = drift
            table = [dict(zip(motion, row, strict=True)) for row in zip(*motion.values(), strict=True)]
            for row, value in zip(table, displacement, strict=True):
                row["framewise_displacement"] = value
            write_table(f"{base}_desc-confounds_timeseries.tsv", table)
            Path(f"{base}_desc-confounds_timeseries.json").write_text(json.dumps({}))
            name = f"fitlins/sub-{subject}/sub-{subject}_task-faces_contrast-facesVshapes_stat-z_statmap.nii.gz"
            write_image(tmp_path / name, task_map(number))
        return tmp_path

    def make(self, data: Path, name: str, **settings: object) -> str:
        (data / name).mkdir()
        rois, config = write_rois(data / name / "rois.nii.gz"), data / name / "settings.yaml"
        config.write_text(yaml.safe_dump({"grid": {"resolution": 16}, "cohort": {"block_size": 2}, **settings}))
        roots, root = (str(data / "fmriprep"), str(data / "fitlins")), str(data / name / "study")
        select = ("--select", "space=MNI152NLin2009cAsym")
        dtg("init", root, "--bids", *roots, "--rois", rois, "--config", str(config), *select)
        return root

    def test_confounds_are_taken_out(self, data) -> None:
        raw = self.make(data, "raw")
        clean = self.make(data, "clean", cleaning={"strategy": ["motion"], "options": {"motion": "basic"}})
        for root in (raw, clean):
            dtg("connectomes", root, "--inline")
            assert Study(root).config.contrasts == ("faces_facesVshapes",)
        dirty, cleaned = (np.abs(connectomes(root).astype(float)).mean() for root in (raw, clean))
        assert dirty > 2 * cleaned

    def test_people_who_break_a_rule_are_excluded_by_its_name_and_the_others_go_on(self, data) -> None:
        root = self.make(data, "strict", quality={"maximum_motion": 0.5})
        dtg("connectomes", root, "--inline")  # excluded is not failed
        table = rows(root, "connectomes")
        assert table["status"].to_dict() == {"sub-01": "done", "sub-02": "excluded", "sub-03": "done"}
        assert "quality.maximum_motion: got 0.9, expected at most 0.5" in table.loc["sub-02", "message"]
        assert table.loc["sub-02", "message"].startswith("sub-02: ")
        assert table.loc["sub-02", "qc"]["motion"] == pytest.approx(0.9)
        values = connectomes(root)
        assert np.isnan(values[1]).all()
        assert np.isfinite(values[[0, 2]]).all()
        (listed,) = ledger.failures(ledger.Ledger(Study(root))).to_dict("records")
        assert (listed["subject"], listed["status"]) == ("sub-02", "excluded")
        counts = Study(root).status().set_index("stage").loc["connectomes"]
        assert counts[["done", "excluded", "failed", "pending"]].tolist() == [2, 1, 0, 0]

    def test_who_broke_a_rule_is_tried_again_when_asked_for(self, data) -> None:
        root = self.make(data, "retried", quality={"maximum_motion": 0.5})
        dtg("connectomes", root, "--inline")
        path = data / "fmriprep/sub-02/func/sub-02_task-rest_desc-confounds_timeseries.tsv"
        path.write_text(path.read_text().replace("0.9\n", "0.2\n"))
        dtg("connectomes", root, "--inline")
        assert rows(root, "connectomes").loc["sub-02", "status"] == "excluded"
        dtg("connectomes", root, "--inline", "--retry-failed")
        assert set(rows(root, "connectomes")["status"]) == {"done"}
        assert np.isfinite(connectomes(root)).all()

    def test_runs_in_the_space_of_a_person_are_never_taken_for_mni(self, data, capsys) -> None:
        for path in data.glob("fmriprep/sub-01/func/*space-MNI*"):
            path.rename(str(path).replace("_space-MNI152NLin2009cAsym", ""))
        for path in data.glob("fmriprep/*/func/*space-T1w*"):
            path.unlink()
        rois = write_rois(data / "rois.nii.gz")
        roots = (str(data / "fmriprep"), str(data / "fitlins"))
        dtg("init", str(data / "study"), "--bids", *roots, "--rois", rois, "--resolution", "16")
        assert "only in an individual space (sub-01)" in capsys.readouterr().out
        assert list(Study(str(data / "study")).cohort["subject"]) == ["sub-02", "sub-03"]

    def test_a_rule_that_is_changed_is_applied_again(self, data) -> None:
        root = self.make(data, "changed", quality={"maximum_motion": 0.5})
        dtg("connectomes", root, "--inline")
        path = Path(root) / "study.yaml"
        path.write_text(path.read_text().replace("maximum_motion: 0.5", "maximum_motion: 1.0"))
        dtg("connectomes", root, "--inline")
        assert set(rows(root, "connectomes")["status"]) == {"done"}
        assert np.isfinite(connectomes(root)).all()

    def test_confounds_that_are_missing_fail_their_subject(self, data) -> None:
        (data / "fmriprep/sub-03/func/sub-03_task-rest_desc-confounds_timeseries.tsv").unlink()
        root = self.make(data, "missing", cleaning={"strategy": ["motion"]})
        dtg("connectomes", root, "--inline", check=3)
        row = rows(root, "connectomes").loc["sub-03"]
        assert (row["status"], row["error_type"]) == ("failed", "MissingFileError")
        assert "got no table of confounds" in row["message"]


def test_a_label_atlas_gives_connectomes_of_region_means(tmp_path) -> None:
    labels = np.zeros(GRID.shape, dtype=np.int16)
    labels[:, :4], labels[:, 4:7], labels[:, 7:] = 11, 25, 40
    atlas = write_image(tmp_path / "atlas.nii.gz", labels)
    paths = [
        {
            "subject": f"s{number}",
            "rest": write_image(tmp_path / f"{number}.nii.gz", rest_run(number, VOLUMES)),
            "contrast:ANY": write_image(tmp_path / f"map{number}.nii.gz", task_map(number)),
        }
        for number in range(2)
    ]
    table = write_table(tmp_path / "paths.csv", paths)
    root = str(tmp_path / "study")
    dtg("init", root, "--table", table, "--rois", atlas, "--resolution", "16")
    dtg("connectomes", root, "--inline")
    bold = rest_run(1, VOLUMES)[GRID.mask].T
    series = np.stack([bold[:, labels[GRID.mask] == label].mean(axis=1) for label in (11, 25, 40)], axis=1)
    np.testing.assert_allclose(connectomes(root)[1, 0], connectome(bold, series), atol=1e-3)
    edges = Study(root).storage.open_zarr("connectomes.zarr")["roi_connectome"][1]
    np.testing.assert_allclose(edges, np.corrcoef(series.T)[np.triu_indices(3, 1)], atol=1e-4)


def test_only_people_who_are_asked_for_take_part(tools: Tools, tmp_path) -> None:
    shutil.copytree(tools.data, tmp_path / "data")
    (tmp_path / "wanted.txt").write_text("sub-0002\n0005\nsub-9999\n")
    root = tools.init(str(tmp_path / "study"), "--subjects", str(tmp_path / "wanted.txt"), data=tmp_path / "data")
    assert list(Study(root).cohort["subject"]) == ["sub-0002", "sub-0005"]
    left_out = pd.read_parquet(f"{root}/left_out.parquet").set_index("subject")["reason"]
    assert left_out.to_dict() == {"sub-9999": "wanted, but not found"}


@pytest.fixture(scope="module")
def twice(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A simulated cohort, half of whom come twice, and its study; one map of the second visit is damaged."""
    folder = tmp_path_factory.mktemp("twice")
    data, root = folder / "data", str(folder / "study")
    options = {"subjects": 24, "resolution": 8, "volumes": 40, "rois": 5, "contrasts": 3, "retest": 0.5, "missing": 0.2}
    dtg("simulate", str(data), *(f"--{name}={value}" for name, value in options.items()))
    settings = {
        "grid": {"resolution": 8},
        "cohort": {"block_size": 4, "validation": 0, "test": 0.2},
        "models": {"group_mean": {"kind": "group_mean"}, "again": {"kind": "retest"}},
        "prediction": {"permutations": 20, "folds": 2, "features": ["synthetic:again"]},
    }
    (folder / "settings.yaml").write_text(yaml.safe_dump(settings))
    source = ("--bids", str(data), "--retest", str(data / "retest"), "--rois", str(next(data.glob("tpl-*.nii.gz"))))
    dtg("init", root, *source, "--config", str(folder / "settings.yaml"))
    for stage in ("connectomes", "contrasts"):
        dtg(stage, root, "--inline", "--quiet")
    dtg("train", root, "--inline", "--quiet", "--model", "again")
    return data, root


class TestRetest:
    def read(self, root: str, check: int = 0) -> np.ndarray:
        """Maps of the second visit, (contrast, subject, voxel)."""
        dtg("synthesize", root, "--inline", "--quiet", "--model", "again", check=check)
        return Study(root).synthetic("again").to_numpy()

    def test_maps_are_those_of_the_images(self, twice) -> None:
        data, root = twice
        maps, study = self.read(root), Study(root)
        people = {path.parents[1].name for path in data.glob("retest/*/func/*")}
        assert len(people) == 12
        for row, subject in enumerate(study.cohort["subject"]):
            for number, contrast in enumerate(study.config.contrasts):
                task, name = contrast.split("_")
                (*found,) = data.glob(f"retest/{subject}/func/*task-{task}_*contrast-{name}_*")
                expected = nib.load(found[0]).get_fdata()[study.grid.mask] if found else np.nan
                np.testing.assert_array_equal(maps[number, row], np.float16(expected) + np.zeros_like(maps[0, 0]))
        status = rows(root, "synthesize/again")["status"]
        assert set(status.index[status == "done"]) == people
        assert set(status[status != "done"]) == {"excluded"}

    def test_people_are_held_out_with_their_families(self, twice) -> None:
        cohort = Study(twice[1]).cohort
        again = cohort["retest"].map(len) > 0
        assert (cohort.loc[cohort["group"].isin(cohort.loc[again, "group"]), "split"] == "test").all()
        assert (cohort["split"] == "train").sum() >= 2

    def test_agrees_with_the_first_visit_as_well_as_the_noise_lets_it(self, twice) -> None:
        data, root = twice
        self.read(root)
        dtg("evaluate", root, "--inline", "--quiet", "--model", "again")
        study = Study(root)
        table = pd.read_parquet(f"{root}/evaluation/again/contrasts.parquet").set_index("contrast")
        truth = json.loads((data / "truth.json").read_text())
        cohort = simulated.Cohort(data, simulated.Options(**truth["options"]))
        ceilings: dict[str, list[float]] = {name: [] for name in study.config.contrasts}
        for index, maps in enumerate(study.cohort["retest"]):
            networks = generative.network_maps(
                study.grid.coordinates, cohort.population, cohort.parameters, cohort.subject(index)
            )
            for contrast in cohort.population.contrasts:
                if (name := f"{contrast.task}_{contrast.name}") in maps:
                    true = generative.task_map(networks, contrast, cohort.parameters)[study.grey_matter]
                    ceilings[name].append(true.var() / (true.var() + cohort.parameters.task_noise**2))
        assert table["subjects"].to_dict() == {name: len(values) for name, values in ceilings.items()}
        assert table["subjects"].min() < 12, "some lack contrasts"
        for name, values in ceilings.items():
            assert table.loc[name, "r"] == pytest.approx(np.mean(values), abs=0.02)
        assert (table["identification"] == 1).all()

    def test_takes_part_in_everything_that_follows(self, twice) -> None:
        root = twice[1]
        dtg("run", root, "--inline", "--quiet")
        study = Study(root)
        assert (study.status()["pending"] == 0).all()
        scores = pd.read_parquet(f"{root}/prediction/scores.parquet")
        complete = sum(len(maps) == 3 for maps in study.cohort["retest"])
        assert set(scores["subjects"]) == {complete}
        assert study.storage.exists("report/index.html")
        table, people = Results(study).contrasts.set_index(["model", "contrast"]), {}
        for model in ("group_mean", "again"):
            rows = Results(study).subjects(model).query("split == 'test'")
            people[model] = rows.set_index(["contrast", "subject"])["r"]
        both = pd.concat(people, axis=1).dropna().groupby("contrast").mean()
        shares = (both["group_mean"] / both["again"]).sort_index()
        found = table.loc["group_mean", "share_of_ceiling"].sort_index()
        assert found.tolist() == pytest.approx(shares.tolist())
        assert (table.loc["again", "share_of_ceiling"] == 1).all()

    def test_of_one_person_is_too_few_to_compare_and_leaves_the_picture_to_the_others(self, twice, tmp_path) -> None:
        shutil.copytree(twice[1], tmp_path / "study")
        study = Study(str(tmp_path / "study"))
        alone = next(subject for subject, maps in study.cohort["retest"].items() if maps)
        study.cohort["retest"] = [maps if name == alone else {} for name, maps in study.cohort["retest"].items()]
        study.storage.write(COHORT, cohort_bytes(study.cohort))
        dtg("run", study.uri, "--inline", "--quiet")
        message = rows(study.uri, "evaluate/again").loc["again", "message"]
        assert message == "again: got no contrast of which two held-out people have both maps"
        assert evaluate.read_summary(Study(study.uri))["model"].tolist() == ["group_mean"]
        with_it = study.storage.read("report/figures/people.png")
        path = tmp_path / "study/study.yaml"
        document = yaml.safe_load(path.read_text())
        del document["models"]["again"]
        path.write_text(yaml.safe_dump({**document, "prediction": {"features": ["measured"]}}, sort_keys=False))
        dtg("report", study.uri, "--inline", "--quiet")
        assert study.storage.read("report/figures/people.png") == with_it

    def test_a_damaged_map_fails_its_subject_by_name(self, twice, tmp_path) -> None:
        shutil.copytree(twice[1], tmp_path / "study")
        shutil.copytree(twice[0] / "retest", tmp_path / "retest")
        root = str(tmp_path / "study")
        study = Study(root)
        for maps in study.cohort["retest"]:
            for name, scan in maps.items():
                maps[name] = Scan(scan.image.replace(str(twice[0]), str(tmp_path)))
        study.storage.write(COHORT, cohort_bytes(study.cohort))
        damaged = next(subject for subject, maps in study.cohort["retest"].items() if maps)
        image = Path(next(iter(study.cohort["retest"][damaged].values())).image)
        image.write_bytes(image.read_bytes()[:2000])
        maps = self.read(root, check=3)
        table = rows(root, "synthesize/again")
        assert table.index[table["status"] == "failed"].tolist() == [damaged]
        assert image.name in table.loc[damaged, "message"]
        assert np.isnan(maps[:, study.positions([damaged])]).all()
        assert (table["status"] == "done").sum() == 11

    def test_may_be_another_session_of_the_same_folder(self, tmp_path, capsys) -> None:
        for subject in ("01", "02", "03"):
            write_rest(tmp_path / "data", subject, "ses-1")
            for session in ("ses-1", "ses-2"):
                write_map(tmp_path / "data", subject, "LH", session)
        source = (
            "--bids",
            str(tmp_path / "data"),
            "--rois",
            write_rois(tmp_path / "rois.nii.gz"),
            "--resolution",
            "16",
        )
        more = ("--select", "ses=1", "--retest", str(tmp_path / "data"))
        dtg("init", str(tmp_path / "study"), *source, *more, check=2)
        assert "as a map of both visits of sub-01" in capsys.readouterr().err
        dtg("init", str(tmp_path / "study"), *source, *more, "--retest-select", "ses=2")
        maps = Study(str(tmp_path / "study")).cohort["retest"]["sub-02"]
        assert maps["MOTOR_LH"].image.endswith("sub-02_task-MOTOR_ses-2_contrast-LH_stat-z_statmap.nii.gz")

    def test_options_belong_together(self, tmp_path, capsys) -> None:
        source = (str(tmp_path / "study"), "--rois", "x")
        dtg("init", *source, "--bids", "x", "--retest-select", "ses=2", check=2)
        assert "got --retest-select without --retest" in capsys.readouterr().err
        (tmp_path / "table.csv").write_text("subject,rest\n1,a.nii\n")
        dtg("init", *source, "--table", str(tmp_path / "table.csv"), "--retest", "a.csv", "b.csv", check=2)
        assert "got --retest with 2 roots, expected one with --table" in capsys.readouterr().err


def test_options_of_another_layout_are_refused(tmp_path, capsys) -> None:
    dtg("init", str(tmp_path), "--bids", "x", "--rois", "y", "--instance", "2", check=2)
    assert "got --instance with --bids" in capsys.readouterr().err


def test_whoever_broke_a_rule_has_no_part_in_models_and_maps(tmp_path) -> None:
    rois = write_cohort(tmp_path / "data", subjects=14, without_maps=3)
    for subject in ("03", "12"):
        write_rest(tmp_path / "data", subject, data=(rest_run(int(subject)) - 100) * 50 + 100)
    settings = {
        "grid": {"resolution": 16},
        "cohort": {"block_size": 4, "test": 0.3},
        "quality": {"minimum_tsnr": 10},
        "models": {"group_mean": {"kind": "group_mean"}, "linear": {"kind": "linear"}},
        "prediction": {"permutations": 20, "folds": 2, "subjects": "all"},
    }
    (tmp_path / "settings.yaml").write_text(yaml.safe_dump(settings))
    root, source = str(tmp_path / "study"), ("--bids", str(tmp_path / "data"), "--rois", rois)
    dtg("init", root, *source, "--config", str(tmp_path / "settings.yaml"))
    dtg("run", root, "--inline", "--quiet")
    study = Study(root)
    out = np.isin(study.cohort["subject"], ["sub-03", "sub-12"])
    for model in study.config.models:
        assert (np.isnan(study.synthetic(model).to_numpy()).all(axis=(0, 2)) == out).all()
        provenance = json.loads(study.storage.read(f"models/{model}/model.json"))["provenance"]
        assert not {"sub-03", "sub-12"} & {*provenance["training"], *provenance["validation"]}
    scores = pd.read_parquet(f"{root}/prediction/scores.parquet")
    assert set(scores.loc[scores["features"] == "connectome", "subjects"]) == {12}
