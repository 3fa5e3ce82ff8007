"""Maps made from rest runs in one go, by several models together, with what else can be asked of them."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml

from dtg_ray import Study, ledger
from dtg_ray.cli import main
from dtg_ray.cohort.simulate import simulate
from dtg_ray.stages import connectomes, synthesize
from dtg_ray.stages.maps import SubjectReader
from dtg_ray.stages.models import load_model
from dtg_ray.store.arrays import erase

TRAIN = {"epochs": 2, "batch_size": 2, "checkpoint_minutes": 0, "cpus_per_worker": 1, "readers": 0}
NETWORK = {"kind": "network", "width": 2, "train": TRAIN}
SETTINGS = {
    "grid": {"resolution": 12},
    "cohort": {"block_size": 4, "validation": 0.2, "test": 0.4},
    "connectomes": {"windows": 2},
    "synthesis": {"slab": 500, "precision": "float32"},
    "models": {
        "linear": {"kind": "linear"},
        "unet": NETWORK,
        "other": {**NETWORK, "width": 3},
        "both": {"kind": "ensemble", "members": ["unet", "other"]},
    },
    "prediction": {"permutations": 10, "folds": 2},
}
MODELS = tuple(SETTINGS["models"])


def dtg(*arguments: object, check: int = 0) -> None:
    assert main([str(argument) for argument in arguments]) == check


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images, and a study whose models are trained."""
    folder = tmp_path_factory.mktemp("synthesis")
    simulate(folder / "data", subjects=14, resolution=12, volumes=70, rois=4, contrasts=3, seed=1, missing=0.2)
    (folder / "settings.yaml").write_text(yaml.safe_dump(SETTINGS))
    atlas = next((folder / "data").glob("tpl-*_probseg.nii.gz"))
    made = ("--bids", folder / "data", "--rois", atlas, "--config", folder / "settings.yaml")
    dtg("init", folder / "trained", *made)
    dtg("connectomes", folder / "trained", "--inline", "--quiet")
    dtg("contrasts", folder / "trained", "--inline", "--quiet")
    dtg("train", folder / "trained", "--inline", "--quiet")
    shutil.copytree(folder / "trained", folder / "stored")
    dtg("synthesize", folder / "stored", "--inline", "--quiet")
    return folder


@pytest.fixture
def root(cohort: Path, tmp_path: Path) -> Path:
    """A study whose models are trained, but whose connectomes were never stored."""
    shutil.copytree(cohort / "trained", tmp_path / "study")
    shutil.rmtree(tmp_path / "study/connectomes.zarr")
    shutil.rmtree(tmp_path / "study/receipts/connectomes")
    return tmp_path / "study"


@pytest.fixture
def stored(cohort: Path) -> Path:
    """The same study with maps from stored connectomes; not to be changed."""
    return cohort / "stored"


def maps(root: Path) -> dict[str, bytes]:
    files = sorted((root / "synthetic").rglob("*"))
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in files if path.is_file()}


def contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def change(root: Path, **settings: object) -> Study:
    document = yaml.safe_load((root / "study.yaml").read_text())
    for key, value in settings.items():
        document[key] = {**document[key], **value} if isinstance(value, dict) else value
    (root / "study.yaml").write_text(yaml.safe_dump(document, sort_keys=False))
    return Study(str(root))


def array(root: Path, name: str, key: str) -> np.ndarray:
    return np.asarray(Study(str(root)).storage.open_zarr(name)[key][:])


def receipts(root: Path, stage: str) -> pd.DataFrame:
    varying = ["attempt", "seconds", "peak_memory", "host", "finished", "qc"]
    return ledger.account(Study(str(root)), stage).rows.drop(columns=varying)


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Whose rest runs are read, in order."""
    seen: list[str] = []
    compute = connectomes.ConnectomeWorker.compute

    def counting(self: connectomes.ConnectomeWorker, subject: str, runs: object) -> object:
        seen.append(subject)
        return compute(self, subject, runs)

    monkeypatch.setattr(connectomes.ConnectomeWorker, "compute", counting)
    return seen


class TestStreaming:
    def test_gives_the_same_bytes_and_stores_nothing_between(self, root: Path, stored: Path) -> None:
        dtg("synthesize", root, "--inline", "--quiet")
        assert maps(root) == maps(stored)
        assert np.isnan(array(root, "connectomes.zarr", "connectome")).all()
        np.testing.assert_array_equal(
            array(root, "connectomes.zarr", "roi_connectome"), array(stored, "connectomes.zarr", "roi_connectome")
        )
        for stage in ("connectomes", *(f"synthesize/{name}" for name in MODELS)):
            pd.testing.assert_frame_equal(receipts(root, stage), receipts(stored, stage))

    def test_reads_everybody_once_for_all_models(self, root: Path, reads: list[str]) -> None:
        dtg("synthesize", root, "--inline", "--quiet")
        assert reads == Study(str(root)).cohort["subject"].tolist()
        dtg("synthesize", root, "--inline", "--quiet")
        assert len(reads) == 14, "again there is nothing to do"

    def test_keeps_connectomes_when_asked(self, root: Path, stored: Path, reads: list[str]) -> None:
        dtg("synthesize", root, "--inline", "--quiet", "--model", "linear", "--keep-connectomes")
        np.testing.assert_array_equal(
            array(root, "connectomes.zarr", "connectome"), array(stored, "connectomes.zarr", "connectome")
        )
        assert len(reads) == 14
        dtg("synthesize", root, "--inline", "--quiet")
        assert len(reads) == 14, "the other models read what was stored"
        assert maps(root) == maps(stored)

    def test_a_model_that_comes_later_reads_again_and_leaves_receipts_alone(self, root: Path, reads: list[str]) -> None:
        dtg("synthesize", root, "--inline", "--quiet", "--model", "linear")
        before = {path: path.read_bytes() for path in (root / "receipts/connectomes").iterdir()}
        dtg("synthesize", root, "--inline", "--quiet", "--model", "unet")
        assert len(reads) == 28
        assert {path: path.read_bytes() for path in (root / "receipts/connectomes").iterdir()} == before

    def test_only_what_is_lost_is_made_again(self, root: Path, stored: Path, reads: list[str]) -> None:
        dtg("synthesize", root, "--inline", "--quiet")
        reads.clear()
        (root / "receipts/synthesize/unet/block-00002.parquet").unlink()
        dtg("synthesize", root, "--inline", "--quiet")
        assert reads == Study(str(root)).block(2)["subject"].tolist()
        assert maps(root) == maps(stored)

    def test_a_bad_file_fails_its_subject_and_can_be_mended(self, root: Path, stored: Path, reads: list[str]) -> None:
        study = Study(str(root))
        bad = Path(study.cohort.loc["sub-0006", "rest"][0].image)
        data, before = bad.read_bytes(), bad.stat()
        try:
            bad.write_bytes(data[: len(data) // 2])
            dtg("synthesize", root, "--inline", "--quiet", check=3)
            table = study.status().set_index("stage")
            assert table.loc["connectomes", ["done", "failed"]].tolist() == [13, 1]
            assert table.loc["synthesize/unet", ["done", "excluded"]].tolist() == [13, 1]
            dtg("synthesize", root, "--inline", "--quiet", check=3)
            assert len(reads) == 14, "a failure is not tried again unasked"
        finally:
            bad.write_bytes(data)
            os.utime(bad, ns=(before.st_atime_ns, before.st_mtime_ns))
        dtg("synthesize", root, "--inline", "--quiet", "--retry-failed")
        assert reads[14:] == ["sub-0006"]
        assert maps(root) == maps(stored)

    def test_files_out_of_reach_do_not_undo_what_is_done(self, cohort: Path, root: Path, stored: Path) -> None:
        """A model that comes later owes its maps; nobody loses those of the others."""
        dtg("synthesize", root, "--inline", "--quiet", "--model", "linear")
        before, away = array(root, "synthetic/linear.zarr", "maps"), cohort / "away"
        (cohort / "data").rename(away)
        try:
            dtg("synthesize", root, "--inline", "--quiet", "--model", "unet")
            dtg("synthesize", root, "--inline", "--quiet", "--model", "linear")
        finally:
            away.rename(cohort / "data")
        np.testing.assert_array_equal(array(root, "synthetic/linear.zarr", "maps"), before)
        table = Study(str(root)).status().set_index("stage")
        assert table.loc[["connectomes", "synthesize/linear"], "done"].tolist() == [14, 14]
        assert table.loc["synthesize/unet", "pending"] == 14
        dtg("synthesize", root, "--inline", "--quiet")
        assert maps(root) == maps(stored)

    def test_killed_while_it_stores_no_receipt_is_left_of_other_settings(
        self, root: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        dtg("connectomes", root, "--inline", "--quiet")
        change(root, cleaning={"detrend": True})
        with monkeypatch.context() as broken:
            broken.setattr(connectomes.ConnectomeWorker, "_commit", lambda *_: 1 / 0)
            with pytest.raises(ZeroDivisionError):
                dtg("synthesize", root, "--inline", "--quiet", "--model", "linear", "--keep-connectomes")
        study = change(root, cleaning={"detrend": False})
        first = study.block(0)["subject"].tolist()
        assert not set(first) & set(ledger.account(study, "connectomes").subjects("done"))

    def test_whole_run_stores_only_who_is_trained_on(self, cohort: Path, tmp_path: Path) -> None:
        root = tmp_path / "study"
        atlas = next((cohort / "data").glob("tpl-*_probseg.nii.gz"))
        made = ("--bids", cohort / "data", "--rois", atlas, "--config", cohort / "settings.yaml")
        dtg("init", root, *made)
        dtg("run", root, "--inline", "--quiet")
        study = Study(str(root))
        trained = study.cohort["split"].isin(["train", "validation"]).to_numpy()
        is_stored = ~np.isnan(array(root, "connectomes.zarr", "connectome")[:, 0, 0, 0])
        np.testing.assert_array_equal(is_stored, trained)
        assert (study.status()["pending"] == 0).all()
        assert maps(root) == maps(cohort / "stored")
        assert (root / "evaluation/unet/contrasts.parquet").exists()
        assert (root / "prediction/connectome/scores/age.parquet").exists()


@pytest.mark.slow
class TestOnRay:
    @pytest.mark.parametrize("pools", ["one", "two"])
    def test_gives_the_same_bytes(self, root: Path, stored: Path, pools: str) -> None:
        change(root, synthesis={"pools": pools})
        dtg("synthesize", root, "--quiet")
        assert maps(root) == maps(stored)
        for stage in ("connectomes", *(f"synthesize/{name}" for name in MODELS)):
            pd.testing.assert_frame_equal(receipts(root, stage), receipts(stored, stage))

    def test_two_crews_hand_on_blocks_without_anybody(self, root: Path) -> None:
        study = change(root, synthesis={"pools": "two"}, quality={"minimum_minutes": 1000})
        dtg("synthesize", root, "--quiet", "--model", "linear")
        table = study.status().set_index("stage")
        assert table.loc["connectomes", "excluded"] == table.loc["synthesize/linear", "excluded"] == 14


class TestTwoPools:
    def test_inline_gives_the_same_bytes(self, root: Path, stored: Path) -> None:
        change(root, synthesis={"pools": "two"})
        dtg("synthesize", root, "--inline", "--quiet")
        assert maps(root) == maps(stored)


class TestAsked:
    """Precision, contrasts, spread, ensembles."""

    def test_maps_are_the_mean_over_windows_and_the_spread_their_deviation(self, root: Path, stored: Path) -> None:
        study = change(root, synthesis={"spread": True})
        dtg("synthesize", root, "--inline", "--quiet", "--model", "unet")
        reader, model = SubjectReader(Study(str(stored))), load_model(study, "unet")
        model.prepare_for_inference()
        for row, subject in enumerate(study.cohort["subject"][:3]):
            each = model.predict(reader.connectomes(subject, 2))  # (W, C, V)
            assert len(each) == 2
            for key, expected in (("maps", each.mean(axis=0)), ("spread", each.std(axis=0, ddof=1))):
                np.testing.assert_array_equal(
                    array(root, "synthetic/unet.zarr", key)[:, row], expected.astype(np.float16)
                )

    def test_an_ensemble_is_the_mean_of_its_members_and_its_spread_theirs(self, root: Path) -> None:
        change(root, synthesis={"spread": True})
        dtg("synthesize", root, "--inline", "--quiet")
        one, two, both = (
            array(root, f"synthetic/{name}.zarr", "maps").astype(np.float32) for name in ("unet", "other", "both")
        )
        np.testing.assert_allclose(both, (one + two) / 2, atol=2e-3)
        spread = array(root, "synthetic/both.zarr", "spread")
        np.testing.assert_allclose(spread, np.abs(one - two) / np.sqrt(2), atol=2e-3)

    def test_an_ensemble_waits_for_all_its_members(self, root: Path, capsys: pytest.CaptureFixture[str]) -> None:
        shutil.rmtree(root / "models/other")
        dtg("synthesize", root, "--inline", "--model", "both")
        assert "synthesize/both: waits for train/other" in capsys.readouterr().err
        assert not (root / "synthetic").exists()

    def test_with_one_window_there_is_no_spread(self, root: Path) -> None:
        change(root, synthesis={"spread": True}, connectomes={"windows": 1})
        dtg("synthesize", root, "--inline", "--quiet", "--model", "linear")
        assert np.isnan(array(root, "synthetic/linear.zarr", "spread")).all()
        assert np.isfinite(array(root, "synthetic/linear.zarr", "maps")).all()

    def test_only_the_contrasts_asked_for(self, root: Path, stored: Path) -> None:
        names = Study(str(root)).config.contrasts
        study = change(root, synthesis={"contrasts": [names[2], names[0]]})
        dtg("synthesize", root, "--inline", "--quiet")
        for name in MODELS:
            assert study.synthetic(name)["contrast"].to_numpy().tolist() == [names[0], names[2]]
            np.testing.assert_allclose(
                array(root, f"synthetic/{name}.zarr", "maps"),
                array(stored, f"synthetic/{name}.zarr", "maps")[[0, 2]],
                atol=1e-3,
            )
        dtg("evaluate", root, "--inline", "--quiet")
        assert pd.read_parquet(root / "evaluation/unet/contrasts.parquet")["contrast"].tolist() == [names[0], names[2]]

    def test_bfloat16_is_close(self, root: Path, stored: Path) -> None:
        change(root, synthesis={"precision": "bfloat16"})
        dtg("synthesize", root, "--inline", "--quiet", "--model", "unet")
        one, two = (array(path, "synthetic/unet.zarr", "maps").astype(np.float32) for path in (root, stored))
        for first, second in zip(one.reshape(-1, one.shape[2]), two.reshape(-1, two.shape[2]), strict=True):
            assert np.corrcoef(first, second)[0, 1] > 0.99  # of a network with two features that has learnt little

    @pytest.mark.parametrize(
        ("settings", "message"),
        [
            ({"synthesis": {"contrasts": ["NONE"]}}, "none of which"),
            ({"models": {"both": {"kind": "ensemble", "members": ["unet", "none"]}}}, "got ['none']"),
            ({"models": {"both": {"kind": "ensemble", "members": ["unet"]}}}, "at least 2"),
        ],
    )
    def test_what_cannot_be_is_refused(self, root: Path, capsys, settings: dict[str, object], message: str) -> None:
        change(root, **settings)
        dtg("synthesize", root, "--inline", check=2)
        assert message in capsys.readouterr().err


class TestFailures:
    def test_too_many_stop_the_stage(self, root: Path, capsys: pytest.CaptureFixture[str]) -> None:
        study = Study(str(root))
        table = study.manifest
        for subject in ("sub-0002", "sub-0003"):
            table["rest"][subject][:] = [type(table["rest"][subject][0])("/nowhere/rest.nii.gz")]
        from dtg_ray.study import COHORT, cohort_bytes

        study.storage.write(COHORT, cohort_bytes(table))
        dtg("synthesize", root, "--inline", "--quiet", "--allow-failures", "1", check=1)
        assert "got 2 subjects that failed, expected at most 1" in capsys.readouterr().err
        assert sum(ledger.account(Study(str(root)), "synthesize/unet").rows["status"] == "done") == 2
        dtg("synthesize", root, "--inline", "--quiet", "--allow-failures", "2")
        dtg("synthesize", root, "--inline", "--quiet", check=3)


class TestTakenAway:
    """Arrays, or parts of them, that somebody removed by hand."""

    @pytest.mark.parametrize(
        ("name", "stage"), [("contrasts.zarr", "contrasts"), ("synthetic/unet.zarr", "synthesize/unet")]
    )
    @pytest.mark.parametrize("part", ["", "maps"])
    def test_is_said_and_made_again_without_its_receipts(
        self, stored: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, stage: str, part: str
    ) -> None:
        root = Path(shutil.copytree(stored, tmp_path / "study"))
        shutil.rmtree(root / name / part)
        dtg(stage.split("/", maxsplit=1)[0], root, "--inline", "--quiet", check=1)
        assert f"{name}: not there, or not whole; expected maps of" in capsys.readouterr().err
        shutil.rmtree(root / "receipts" / stage)
        dtg(stage.split("/", maxsplit=1)[0], root, "--inline", "--quiet")
        assert contents(root / name) == contents(stored / name)

    @pytest.mark.parametrize(
        ("name", "stage"), [("synthetic/unet.zarr", "synthesize/unet"), ("contrasts.zarr", "contrasts")]
    )
    def test_a_lost_row_is_not_evaluated_as_if_nothing_were(
        self, stored: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, stage: str
    ) -> None:
        """As a driver leaves it that saw somebody fail and was killed before its receipt, while another one did not."""
        study = Study(shutil.copytree(stored, tmp_path / "study").as_posix())
        who = next(one for one, row in study.cohort.iterrows() if row["split"] == "test" and row["contrasts"])
        erase(study.storage.open_array(name, "maps", writable=True), 1, [int(study.cohort["row"][who])])
        dtg("evaluate", study.uri, "--inline", "--quiet", "--model", "unet", check=1)
        said = capsys.readouterr().err
        assert f"{who}: got no map of" in said
        assert f"receipts/{stage}/" in said

    def test_a_lost_window_is_not_trained_on_as_if_there_were_one_less(
        self, stored: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        study = Study(shutil.copytree(stored, tmp_path / "study").as_posix())
        who = study.cohort["subject"][study.cohort["split"] == "train"].iloc[0]
        connectomes_ = study.storage.open_array("connectomes.zarr", "connectome", writable=True)
        connectomes_[int(study.cohort["row"][who]), 1] = np.nan
        dtg("train", study.uri, "--inline", "--quiet", "--model", "linear", "--overwrite", check=1)
        assert f"{who}: got no connectome" in capsys.readouterr().err

    def test_a_spread_that_is_no_longer_asked_for_is_emptied(self, root: Path) -> None:
        change(root, synthesis={"spread": True})
        dtg("synthesize", root, "--inline", "--quiet", "--model", "linear")
        assert np.isfinite(array(root, "synthetic/linear.zarr", "spread")).any()
        change(root, synthesis={"spread": False})
        dtg("synthesize", root, "--inline", "--quiet", "--model", "linear")
        assert np.isnan(array(root, "synthetic/linear.zarr", "spread")).all()


class TestSaidBeforehand:
    @pytest.mark.parametrize(
        ("stage", "settings"),
        [
            ("connectomes", {"connectomes": {"windows": 3}}),
            ("contrasts", {"contrasts": ["MOTOR_LH", "EMOTION_FACES", "LANGUAGE_STORY"]}),
            ("synthesize", {"synthesis": {"contrasts": ["MOTOR_LH"]}}),
        ],
    )
    def test_that_arrays_of_another_shape_are_there(
        self, stored: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], stage: str, settings: dict[str, object]
    ) -> None:
        root = Path(shutil.copytree(stored, tmp_path / "study"))
        study = change(root, **settings)
        shutil.rmtree(root / "receipts" / stage)
        before = {path.relative_to(root): path.stat().st_mtime_ns for path in root.rglob("*")}
        dtg(stage, root, "--dry-run", "--inline", check=1)
        assert "study.yaml or the cohort was changed after it was made" in capsys.readouterr().err
        assert {path.relative_to(root): path.stat().st_mtime_ns for path in root.rglob("*")} == before
        assert study.storage.names("connectomes.zarr")

    def test_that_a_model_is_not_that_of_todays_settings(self, root: Path, caplog: pytest.LogCaptureFixture) -> None:
        change(root, models={"unet": {**NETWORK, "train": {**TRAIN, "epochs": 3}}})
        dtg("synthesize", root, "--dry-run", "--inline", "--model", "unet")
        assert "unet: trained by other settings" in caplog.text


def test_another_block_size_is_refused(stored: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = Path(shutil.copytree(stored, tmp_path / "study"))
    change(root, cohort={"block_size": 3})
    for verb in ("status", "connectomes", "run"):
        dtg(verb, root, check=1)
        assert "got cohort.block_size 3, expected what the study was made with" in capsys.readouterr().err


def test_an_ensemble_takes_as_long_as_its_members_or_nothing_beside_them(stored: Path, tmp_path: Path) -> None:
    root = Path(shutil.copytree(stored, tmp_path / "study"))
    book = ledger.Ledger(Study(str(root)))
    units = list(book.account("connectomes").owed)
    one, two, both = (synthesize.plan(book, name, units) for name in ("unet", "other", "both"))
    assert both.seconds == pytest.approx(one.seconds + two.seconds)
    assert both.seconds > max(one.seconds, two.seconds) > 0
    assert synthesize.together(book, [one, two, both], units, []).seconds == pytest.approx(one.seconds + two.seconds)
    assert synthesize.together(book, [one, both], units, []).seconds == pytest.approx(one.seconds + both.seconds)


def test_what_makes_no_sense_is_a_matter_of_usage(stored: Path, capsys: pytest.CaptureFixture[str]) -> None:
    dtg("synthesize", stored, "--allow-failures", "-1", check=2)
    dtg("synthesize", stored, "--model", "nope", check=2)
    assert "got model 'nope'" in capsys.readouterr().err
