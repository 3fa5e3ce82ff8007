"""A cohort that lives: people come later, people withdraw; what is there of the others stays as it is."""

from __future__ import annotations

import io
import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
import yaml

from dtg_ray import Study, ledger
from dtg_ray.cli import main
from dtg_ray.cohort.simulate import simulate
from dtg_ray.stages.traces import find_traces
from dtg_ray.stages.withdraw import withdraw
from dtg_ray.store.receipts import Receipts, Row
from dtg_ray.study import PEOPLE_LEFT_OUT

TRAIN = {"epochs": 2, "batch_size": 2, "checkpoint_minutes": 0, "cpus_per_worker": 1, "readers": 0}
SETTINGS = {
    "grid": {"resolution": 12},
    "cohort": {"block_size": 4, "validation": 0.2, "test": 0.4},
    "synthesis": {"slab": 500},
    "models": {
        "linear": {"kind": "linear"},
        "unet": {"kind": "network", "width": 2, "train": TRAIN},
        "both": {"kind": "ensemble", "members": ["linear", "unet"]},
    },
    "prediction": {"permutations": 10, "folds": 2},
}
FIRST = [f"sub-{number:04d}" for number in range(1, 15)]
LATER = [f"sub-{number:04d}" for number in range(15, 19)]
GONE = ["sub-0003", "sub-0006", "sub-0014"]
ARRAYS = ("connectomes.zarr", "contrasts.zarr", "synthetic/linear.zarr", "synthetic/unet.zarr", "synthetic/both.zarr")


def dtg(*arguments: object, check: int = 0) -> None:
    assert main([str(argument) for argument in arguments]) == check


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images of everybody, whenever they come, beside a study of the first that is finished."""
    folder = tmp_path_factory.mktemp("living")
    simulate(folder / "data", subjects=18, resolution=12, volumes=40, rois=4, contrasts=2, seed=1, missing=0.2)
    (folder / "first.txt").write_text("\n".join(FIRST))
    (folder / "settings.yaml").write_text(yaml.safe_dump(SETTINGS))
    atlas = next((folder / "data").glob("tpl-*_probseg.nii.gz"))
    made = ("--bids", folder / "data", "--rois", atlas, "--config", folder / "settings.yaml")
    dtg("init", folder / "study", *made, "--subjects", folder / "first.txt")
    dtg("run", folder / "study", "--inline", "--quiet")
    return folder


@pytest.fixture
def root(cohort: Path, tmp_path: Path) -> Path:
    """A study that may be changed."""
    shutil.copytree(cohort / "study", tmp_path / "study")
    return tmp_path / "study"


def files(root: Path, *kinds: str) -> dict[str, bytes]:
    names = {path.relative_to(root).as_posix(): path for path in root.rglob("*") if path.is_file()}
    return {name: path.read_bytes() for name, path in sorted(names.items()) if any(kind in name for kind in kinds)}


def rows_of(root: Path, subjects: list[str]) -> dict[str, np.ndarray]:
    """What all arrays hold of some people."""
    study, found = Study(str(root)), {}
    for name in ARRAYS:
        group = study.storage.open_zarr(name)
        for key, array in group.arrays():
            dimensions = array.metadata.dimension_names
            if "subject" in dimensions and key != "subject":
                found[f"{name}/{key}"] = np.take(array[:], study.positions(subjects), dimensions.index("subject"))
    return found


def assert_same(first: dict[str, np.ndarray], second: dict[str, np.ndarray]) -> None:
    assert first.keys() == second.keys()
    for name, values in first.items():
        np.testing.assert_array_equal(values, second[name], err_msg=name)


def pending(root: Path, *, but: tuple[str, ...] = ()) -> list[str]:
    study = Study(str(root))
    return [
        stage
        for stage in ledger.stages(study)
        if not stage.startswith(but or "-") and ledger.account(study, stage).pending()
    ]


RESULTS = ("evaluate", "comparison", "predict", "scores", "report")


class TestAdd:
    def test_appends_blocks_and_touches_nothing_else(self, cohort: Path, root: Path) -> None:
        kept, chunks = rows_of(root, FIRST), files(root, "/c/")
        receipts = files(root, "receipts/connectomes", "receipts/contrasts", "receipts/train", "receipts/synthesize")
        weights = files(root, "models/")
        dtg("init", root, "--add", "--bids", cohort / "data")
        study = Study(str(root))
        assert study.cohort["subject"].tolist() == FIRST + LATER
        assert study.cohort.loc[LATER, "row"].tolist() == [16, 17, 18, 19], "a new block begins with a new chunk"
        assert set(study.cohort.loc[LATER, "split"]) == {"test"}
        assert set(pending(root, but=RESULTS)) == {
            "connectomes",
            "contrasts",
            *(f"synthesize/{model}" for model in SETTINGS["models"]),
        }
        dtg("run", root, "--inline", "--quiet")
        assert pending(root) == []
        assert_same(rows_of(root, FIRST), kept)
        assert {name: files(root, "/c/")[name] for name in chunks if "/subject/" not in name} == {
            name: data for name, data in chunks.items() if "/subject/" not in name
        }
        assert files(root, "models/") == weights
        after = files(root, "receipts/")
        assert {name: after[name] for name in receipts} == receipts, "no block that was there was done again"

    def test_ends_in_what_all_at_once_would_be(self, cohort: Path, root: Path, tmp_path: Path) -> None:
        """Connectomes, measured maps and maps of the same weights do not depend on when somebody came."""
        dtg("init", root, "--add", "--bids", cohort / "data")
        dtg("connectomes", root, "--inline", "--quiet")
        dtg("contrasts", root, "--inline", "--quiet")
        atlas = next((cohort / "data").glob("tpl-*_probseg.nii.gz"))
        other = tmp_path / "other"
        dtg("init", other, "--bids", cohort / "data", "--rois", atlas, "--config", cohort / "settings.yaml")
        dtg("connectomes", other, "--inline", "--quiet")
        dtg("contrasts", other, "--inline", "--quiet")
        for name, array in (("connectomes.zarr", "connectome"), ("contrasts.zarr", "maps")):
            one, two = (Study(str(path)) for path in (root, other))
            first, second = (study.storage.open_zarr(name)[array][:] for study in (one, two))
            axis = 0 if array == "connectome" else 1
            taken = [
                np.take(values, study.positions(FIRST + LATER), axis) for values, study in ((first, one), (second, two))
            ]
            np.testing.assert_array_equal(*taken)

    def test_xarray_shows_nobody_where_a_block_has_room(self, cohort: Path, root: Path) -> None:
        dtg("init", root, "--add", "--bids", cohort / "data")
        dtg("run", root, "--inline", "--quiet")
        maps = Study(str(root)).synthetic("linear")
        assert maps["subject"].to_numpy().tolist() == FIRST + LATER
        assert np.isfinite(maps.sel(subject="sub-0015").to_numpy()).all()

    def test_again_finds_nobody(self, cohort: Path, root: Path, capsys: pytest.CaptureFixture[str]) -> None:
        dtg("init", root, "--add", "--bids", cohort / "data")
        before = files(root, "")
        dtg("init", root, "--add", "--bids", cohort / "data")
        assert "0 subjects added" in capsys.readouterr().out
        assert files(root, "") == before

    def test_family_of_somebody_trained_on_is_left_alone(self, cohort: Path, root: Path, tmp_path: Path) -> None:
        study = Study(str(root))
        trained = study.cohort[study.cohort["split"] == "train"].iloc[0]
        shutil.copytree(cohort / "data", tmp_path / "data")
        table = pd.read_csv(tmp_path / "data/participants.tsv", sep="\t", dtype="str")
        table.loc[table["participant_id"] == LATER[0], "family"] = trained["group"]
        table.to_csv(tmp_path / "data/participants.tsv", sep="\t", index=False)
        dtg("init", root, "--add", "--bids", tmp_path / "data")
        assert Study(str(root)).cohort.loc[LATER, "split"].tolist() == ["related", "test", "test", "test"]
        assert not [stage for stage in pending(root) if stage.startswith("train")]

    def test_settings_belong_to_the_study(self, cohort: Path, root: Path, capsys: pytest.CaptureFixture[str]) -> None:
        dtg("init", root, "--add", "--bids", cohort / "data", "--resolution", 4, check=2)
        assert "--add with --resolution" in capsys.readouterr().err

    def test_wants_a_study(self, cohort: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        dtg("init", tmp_path / "none", "--add", "--bids", cohort / "data", check=1)
        assert "got no study.yaml" in capsys.readouterr().err


class TestWithdraw:
    @pytest.fixture
    def left(self) -> list[str]:
        return [subject for subject in FIRST if subject not in GONE]

    def ids(self, tmp_path: Path, names: list[str] = GONE) -> Path:
        (tmp_path / "ids.csv").write_text("eid\n" + "\n".join(name.removeprefix("sub-") for name in names) + "\n")
        return tmp_path / "ids.csv"

    def test_erases_them_and_nobody_else(self, root: Path, tmp_path: Path, left: list[str], capsys) -> None:
        kept, weights = rows_of(root, left), files(root, "models/unet/model.safetensors")
        dtg("withdraw", root, self.ids(tmp_path))
        said = capsys.readouterr().out
        assert "3 of 3 participants were in the study and are erased" in said
        assert "no trace of them" in said
        study = Study(str(root))
        assert study.cohort["subject"].tolist() == left
        assert_same(rows_of(root, left), kept)
        assert files(root, "models/unet/model.safetensors") == weights
        for name, data in files(root, "").items():
            if not name.endswith(".parquet"):
                assert not any(subject.encode() in data for subject in GONE), name
            else:
                assert not any(subject in str(pq.read_table(io.BytesIO(data)).to_pylist()) for subject in GONE), name
        empty = [Study(str(root)).manifest["subject"].tolist().index("") for _ in (1,)]
        for name in ARRAYS:
            group = study.storage.open_zarr(name)
            assert not set(GONE) & set(group["subject"][:].tolist())
        maps = study.storage.open_zarr("synthetic/unet.zarr")["maps"][:, empty]
        assert np.isnan(maps).all()

    def test_what_was_made_of_the_others_holds(self, root: Path, tmp_path: Path) -> None:
        dtg("withdraw", root, self.ids(tmp_path))
        assert pending(root, but=RESULTS) == []
        before = files(root, "/c/", "receipts/connectomes", "receipts/synthesize", "receipts/train", "models/")
        dtg("run", root, "--inline", "--quiet")
        assert pending(root) == []
        assert files(root, "/c/", "receipts/connectomes", "receipts/synthesize", "receipts/train", "models/") == before

    def test_results_that_they_were_part_of_are_made_anew(self, root: Path, tmp_path: Path) -> None:
        assert files(root, "evaluation/", "prediction/", "report/")
        dtg("withdraw", root, self.ids(tmp_path))
        assert files(root, "evaluation/", "prediction/", "report/") == {}
        dtg("run", root, "--inline", "--quiet")
        for data in files(root, "prediction/").values():
            assert not any(subject in str(pq.read_table(io.BytesIO(data)).to_pylist()) for subject in GONE)

    @pytest.mark.parametrize("gone", [GONE, ["sub-9001"]])
    def test_tables_of_phenotypes_that_name_them_bring_nobody_back(self, root: Path, tmp_path: Path, gone) -> None:
        """Neither those of the study nor those whom the tables alone know."""
        listed = [*FIRST, "sub-9001", "sub-9002"]
        pd.DataFrame({"subject": listed, "score": np.arange(len(listed))}).to_csv(tmp_path / "more.csv", index=False)
        document = yaml.safe_load((root / "study.yaml").read_text())
        document["prediction"] |= {"tables": [str(tmp_path / "more.csv")], "targets": {"score": {}}}
        (root / "study.yaml").write_text(yaml.safe_dump(document, sort_keys=False))
        dtg("run", root, "--inline", "--quiet")
        assert pd.read_parquet(root / PEOPLE_LEFT_OUT)["subject"].tolist() == ["sub-9001", "sub-9002"]
        dtg("withdraw", root, self.ids(tmp_path, gone))
        dtg("run", root, "--inline", "--quiet")
        assert find_traces(Study(str(root)), gone)[1] == []
        left_out = pd.read_parquet(root / PEOPLE_LEFT_OUT)["subject"].tolist()
        assert left_out == [subject for subject in ("sub-9001", "sub-9002") if subject not in gone]
        assert pending(root) == []

    def test_models_say_that_some_of_theirs_withdrew(self, root: Path, tmp_path: Path) -> None:
        study = Study(str(root))
        trained = study.cohort.index[study.cohort["split"] == "train"][:1].tolist()
        dtg("withdraw", root, self.ids(tmp_path, trained))
        provenance = json.loads((root / "models/unet/model.json").read_text())["provenance"]
        assert trained[0] not in provenance["training"]
        assert provenance["withdrawn"] == 1
        assert pending(root, but=RESULTS) == []
        assert not list((root / "train" / "unet").rglob("*.pt"))

    def test_they_stay_out(self, cohort: Path, root: Path, tmp_path: Path, capsys) -> None:
        """Also those whom the study never had."""
        dtg("withdraw", root, self.ids(tmp_path, [*GONE, LATER[0]]))
        dtg("init", root, "--add", "--bids", cohort / "data")
        assert "4 have withdrawn and stay out" in capsys.readouterr().out
        assert not {*GONE, LATER[0]} & set(Study(str(root)).cohort["subject"])

    def test_a_whole_block_and_the_last_row(self, root: Path, tmp_path: Path) -> None:
        dtg("withdraw", root, self.ids(tmp_path, [*FIRST[4:8], FIRST[-1]]))
        study = Study(str(root))
        assert study.n_rows == len(FIRST)
        assert study.blocks() == [0, 2, 3]
        dtg("run", root, "--inline", "--quiet")
        assert pending(root) == []

    @pytest.mark.parametrize(
        "step",
        [
            "_sign_models_again",
            "_empty_lines",
            "_erase_rows",
            "_erase_from_receipts",
            "_erase_from_tables",
            "_remove",
            "find_traces",
        ],
    )
    def test_interrupted_anywhere_the_same_command_finishes_it(
        self, root: Path, monkeypatch: pytest.MonkeyPatch, step: str, left: list[str]
    ) -> None:
        kept = rows_of(root, left)
        with monkeypatch.context() as broken:
            broken.setattr(f"dtg_ray.stages.withdraw.{step}", lambda *_: 1 / 0)
            with pytest.raises(ZeroDivisionError):
                withdraw(Study(str(root)), GONE)
        done = withdraw(Study(str(root)), GONE)
        assert done.traces == []
        assert_same(rows_of(root, left), kept)
        assert pending(root, but=RESULTS) == []

    def test_again_changes_nothing(self, root: Path, tmp_path: Path) -> None:
        dtg("withdraw", root, self.ids(tmp_path))
        before = files(root, "")
        dtg("withdraw", root, self.ids(tmp_path))
        assert files(root, "") == before

    def test_nobody_is_an_error(self, root: Path, tmp_path: Path, capsys) -> None:
        (tmp_path / "empty.txt").write_text("eid\n\n")
        dtg("withdraw", root, tmp_path / "empty.txt", check=2)
        assert "got nobody" in capsys.readouterr().err


class TestTheScan:
    """It finds what is put there for it to find."""

    @pytest.fixture
    def study(self, root: Path) -> Study:
        assert withdraw(Study(str(root)), GONE).traces == []
        return Study(str(root))

    def found(self, study: Study) -> set[str]:
        return {trace.file for trace in find_traces(study, GONE)[1]}

    def test_in_a_text(self, study: Study) -> None:
        study.storage.write("notes/log.txt", b"sub-0003 looked odd")
        assert self.found(study) == {"notes/log.txt"}

    def test_in_the_name_of_a_file(self, study: Study) -> None:
        study.storage.write("export/sub-0006_map.nii.gz", b"")
        assert self.found(study) == {"export/sub-0006_map.nii.gz"}

    def test_in_a_table_however_deep(self, study: Study) -> None:
        study.storage.write("a.parquet", _parquet({"who": [["x", "sub-0014"]]}))
        study.storage.write("b.parquet", _parquet({"who": [{"uri": "s3://b/sub-0003/rest.nii"}]}))
        assert self.found(study) == {"a.parquet", "b.parquet"}

    def test_in_a_receipt(self, study: Study) -> None:
        Receipts(study.storage, "synthesize/old").write("block-00000", [Row("sub-0003", "done")], attempt=1, host="")
        assert self.found(study) == {"receipts/synthesize/old/block-00000.parquet"}

    def test_in_a_row_of_an_array(self, study: Study) -> None:
        import zarr

        group = zarr.open_group(study.storage.zarr_store("contrasts.zarr"), mode="r+")
        group["maps"][0, 2] = 1.0
        assert self.found(study) == {"contrasts.zarr/maps"}

    def test_not_in_longer_numbers(self, study: Study) -> None:
        study.storage.write("notes.txt", b"10003 00031 sub-00033 x0003")
        assert self.found(study) == set()


def _parquet(columns: dict[str, list[object]]) -> bytes:
    buffer = io.BytesIO()
    pd.DataFrame(columns).to_parquet(buffer)
    return buffer.getvalue()
