"""What can go wrong with synthesis: each is told in words, nothing half-written is taken for done, and the same command
goes on when the cause is gone."""

from __future__ import annotations

import functools
import hashlib
import json
import os
import random
import shutil
import subprocess
import sys
import threading
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import safetensors.numpy
import yaml

from dtg_ray import Study, ledger
from dtg_ray.cli import main
from dtg_ray.cohort.simulate import simulate
from dtg_ray.stages import connectomes, mapping, predictor, synthesize
from dtg_ray.stages.contrasts import ContrastWorker
from dtg_ray.stages.mapping import BlockMaps, SynthesisWorker
from dtg_ray.store import receipts
from dtg_ray.store.receipts import Receipts
from dtg_ray.study import cohort_bytes
from small_disk import Disk, on, until_done, whole_files
from stage_tools import Arrays

TRAIN = {"epochs": 2, "batch_size": 2, "checkpoint_minutes": 0, "cpus_per_worker": 1, "readers": 0}
NETWORK = {"kind": "network", "width": 2, "train": TRAIN}
SETTINGS = {
    "grid": {"resolution": 12},
    "cohort": {"block_size": 4, "validation": 0.2, "test": 0.4},
    "connectomes": {"windows": 2},
    "synthesis": {"slab": 500, "precision": "float32"},
    "models": {"linear": {"kind": "linear"}, "unet": NETWORK},
    "prediction": {"permutations": 10, "folds": 2},
}
MODELS = tuple(SETTINGS["models"])
QUIET = ("--inline", "--quiet")


def dtg(*arguments: object, check: int = 0) -> None:
    assert main([str(argument) for argument in arguments]) == check


def made_of(data: Path) -> tuple[object, ...]:
    """What `dtg init` makes the study of."""
    return "--bids", data, "--rois", next(data.glob("tpl-*_probseg.nii.gz")), "--config", data.parent / "settings.yaml"


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images, a study with trained models and stored connectomes, and the same with all maps, undisturbed."""
    folder = tmp_path_factory.mktemp("breaks")
    simulate(folder / "data", subjects=12, resolution=12, volumes=70, rois=4, contrasts=3, seed=1, missing=0.2)
    (folder / "settings.yaml").write_text(yaml.safe_dump(SETTINGS))
    dtg("init", folder / "trained", *made_of(folder / "data"))
    for stage in ("connectomes", "contrasts", "train"):
        dtg(stage, folder / "trained", *QUIET)
    shutil.copytree(folder / "trained", folder / "finished")
    dtg("synthesize", folder / "finished", *QUIET)
    return folder


@pytest.fixture
def stored(cohort: Path, tmp_path: Path) -> Path:
    """A study that owes its maps, whose connectomes are stored."""
    shutil.copytree(cohort / "trained", tmp_path / "stored")
    return tmp_path / "stored"


@pytest.fixture
def root(stored: Path) -> Path:
    """A study that owes its maps, whose connectomes are made on the way."""
    shutil.rmtree(stored / "connectomes.zarr")
    shutil.rmtree(stored / "receipts/connectomes")
    return stored


@pytest.fixture
def done(cohort: Path, tmp_path: Path) -> Path:
    """A study that owes nothing before evaluation."""
    shutil.copytree(cohort / "finished", tmp_path / "done")
    return tmp_path / "done"


def maps(root: Path) -> dict[str, bytes]:
    """All bytes of all maps."""
    files = sorted((root / "synthetic").rglob("*"))
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in files if path.is_file()}


def change(root: Path, **settings: object) -> None:
    document = yaml.safe_load((root / "study.yaml").read_text())
    for key, value in settings.items():
        document[key] = {**document[key], **value} if isinstance(value, dict) else value
    (root / "study.yaml").write_text(yaml.safe_dump(document, sort_keys=False))


def rows(root: Path, stage: str) -> pd.DataFrame:
    return ledger.account(Study(str(root)), stage).rows.set_index("subject")


def refused(
    capsys: pytest.CaptureFixture[str], root: Path, *words: str, verb: str = "synthesize", code: int = 1
) -> str:
    """Run a verb that has to fail in words; nothing is done then, and nothing but words was said."""
    dtg(verb, root, *QUIET, check=code)
    said = capsys.readouterr().err
    assert "Traceback" not in said
    for word in words:
        assert word in said
    return said


def weights_of(root: Path, model: str = "unet") -> dict[str, np.ndarray]:
    return safetensors.numpy.load((root / f"models/{model}/model.safetensors").read_bytes())


def put_weights(root: Path, arrays: dict[str, np.ndarray], model: str = "unet", **described: object) -> None:
    """Write a model as somebody else would: with the right hash."""
    payload = safetensors.numpy.save(arrays)
    (root / f"models/{model}/model.safetensors").write_bytes(payload)
    describe(root, model, sha256=hashlib.sha256(payload).hexdigest(), **described)


def describe(root: Path, model: str, **described: object) -> None:
    """Change what a model says of itself."""
    path = root / f"models/{model}/model.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **described}))


class TestAModelThatDoesNotFit:
    """No subject is to blame, so none fails: the stage stops before anything is written."""

    @pytest.fixture
    def other(self, root: Path, tmp_path: Path):
        """Put the model of another study in the place of this one's."""

        def make(resolution: int = 12, contrasts: int = 3, rois: int = 4, seed: int = 1, **settings: object) -> None:
            folder = tmp_path / "other"
            simulate(
                folder / "data",
                subjects=8,
                resolution=resolution,
                volumes=70,
                rois=rois,
                contrasts=contrasts,
                seed=seed,
                missing=0,
            )
            chosen = {**SETTINGS, "grid": {"resolution": resolution}, "models": {"unet": NETWORK}, **settings}
            (folder / "settings.yaml").write_text(yaml.safe_dump(chosen))
            dtg("init", folder / "study", *made_of(folder / "data"))
            for stage in ("connectomes", "contrasts", "train"):
                dtg(stage, folder / "study", *QUIET)
            shutil.rmtree(root / "models/unet")
            shutil.copytree(folder / "study/models/unet", root / "models/unet")

        return make

    @pytest.mark.parametrize(
        ("differs", "word"),
        [
            ({"resolution": 16}, "of the grid it has"),
            ({"rois": 5}, "of numbers of ROIs it has 5, expected 4"),
            ({"contrasts": 2}, "of contrasts it has"),
            ({"seed": 7}, "of ROI maps it has"),
            ({"models": {"unet": {**NETWORK, "width": 3}}}, "of networks it has"),
        ],
        ids=str,
    )
    def test_is_refused(self, other, root: Path, cohort: Path, capsys, differs: dict, word: str) -> None:
        other(**differs)
        refused(capsys, root, "models/unet: got a model that does not fit the study", word, "--overwrite")
        assert not (root / "synthetic").exists()
        assert not (root / "receipts/synthesize").exists()
        assert not (root / "receipts/connectomes").exists()
        shutil.rmtree(root / "models/unet")
        shutil.copytree(cohort / "trained/models/unet", root / "models/unet")
        dtg("synthesize", root, *QUIET)
        assert maps(root) == maps(cohort / "finished")

    @pytest.mark.parametrize(
        ("damage", "words"),
        [
            (lambda at: (at / "model.json").write_text("{"), ("model.json: not JSON",)),
            (lambda at: (at / "model.json").write_text("[1]"), ("model.json: got a list, expected a description",)),
            (lambda at: (at / "model.json").write_text("{}"), ("got a model of format version None",)),
            (lambda at: (at / "model.safetensors").write_bytes(b"junk"), ("got tensors with sha256",)),
            (lambda at: (at / "model.safetensors").unlink(), ("models/unet: got no model there", "model.safetensors")),
        ],
    )
    def test_is_refused_when_damaged(self, root: Path, cohort: Path, capsys, damage, words: tuple[str, ...]) -> None:
        damage(root / "models/unet")
        refused(capsys, root, "models/unet", *words)
        assert not (root / "synthetic").exists()
        shutil.copytree(cohort / "trained/models/unet", root / "models/unet", dirs_exist_ok=True)
        dtg("synthesize", root, *QUIET)
        assert maps(root) == maps(cohort / "finished")

    @pytest.mark.parametrize("key", ["grid", "contrasts", "config"])
    def test_is_refused_when_it_says_nonsense_of_itself(self, root: Path, capsys, key: str) -> None:
        describe(root, "unet", **{key: 5})
        refused(capsys, root, "models/unet")
        assert not (root / "synthetic").exists()

    def test_is_refused_when_it_is_of_another_kind(self, root: Path, capsys) -> None:
        shutil.rmtree(root / "models/unet")
        shutil.copytree(root / "models/linear", root / "models/unet")
        refused(capsys, root, "of models of kind it has linear, expected network")

    def test_is_refused_with_an_activation_that_was_changed(self, root: Path, capsys) -> None:
        config = json.loads((root / "models/unet/model.json").read_text())["config"]
        describe(root, "unet", config={**config, "activation": "elu"})
        refused(capsys, root, "of networks it has", "'activation': 'elu'")

    def test_is_refused_with_a_config_that_its_weights_do_not_fit(self, root: Path, capsys) -> None:
        config = json.loads((root / "models/unet/model.json").read_text())["config"]
        describe(root, "unet", config={**config, "width": 5})
        refused(capsys, root, "weights that do not fit the network")

    def test_is_refused_with_weights_that_are_no_numbers(self, root: Path, capsys) -> None:
        arrays = weights_of(root)
        name = next(key for key in arrays if key.endswith(".weight"))
        arrays[name].flat[0] = np.nan
        put_weights(root, arrays)
        refused(capsys, root, "models/unet: got weights that are not finite", name.removeprefix("network."))
        assert not (root / "synthetic").exists()

    def test_whose_maps_are_no_numbers_fails_subjects_by_name(self, root: Path, cohort: Path) -> None:
        kept = {path: path.read_bytes() for path in (root / "models/linear").iterdir()}
        arrays = weights_of(root, "linear")
        arrays["coefficients"][0, 0, 0] = np.inf
        put_weights(root, arrays, "linear")
        dtg("synthesize", root, *QUIET, check=3)
        table = rows(root, "synthesize/linear")
        assert set(table["status"]) == {"failed"}
        assert set(table["error_type"]) == {"PredictionError"}
        message = table.loc["sub-0003", "message"]
        assert message.startswith("sub-0003: got maps by linear with ")
        assert "not finite" in message
        assert np.isnan(Study(str(root)).synthetic("linear")).all()
        assert set(rows(root, "synthesize/unet")["status"]) == {"done"}
        for path, data in kept.items():
            path.write_bytes(data)
        dtg("synthesize", root, *QUIET)
        assert maps(root) == maps(cohort / "finished")

    def test_that_is_not_in_the_study_is_named(self, root: Path, capsys) -> None:
        dtg("synthesize", root, *QUIET, "--model", "nobody", check=2)
        assert "got model 'nobody', expected one of linear, unet" in capsys.readouterr().err


class TestAModelThatChangesMeanwhile:
    """The worker has loaded it; whatever is in the folder later must not be written down as what made the maps."""

    def at_block(self, monkeypatch: pytest.MonkeyPatch, number: int, action) -> None:
        """Do something when the connectomes of a block are begun."""
        stream = connectomes.ConnectomeWorker.stream

        def disturbed(self, block, *arguments, **options):
            if block == number:
                action()
            return stream(self, block, *arguments, **options)

        monkeypatch.setattr(connectomes.ConnectomeWorker, "stream", disturbed)

    def test_is_missed_when_it_is_removed(self, root: Path, cohort: Path, capsys, monkeypatch) -> None:
        self.at_block(monkeypatch, 1, lambda: shutil.rmtree(root / "models/unet"))
        refused(capsys, root, "models/unet: got no model there, expected one")
        assert set(rows(root, "synthesize/linear")["unit"]) == {"block-00000", "block-00001"}
        monkeypatch.undo()
        shutil.copytree(cohort / "trained/models/unet", root / "models/unet")
        dtg("synthesize", root, *QUIET)
        assert maps(root) == maps(cohort / "finished")

    def test_makes_the_maps_after_it_and_owes_those_before(self, root: Path, monkeypatch) -> None:
        def replace() -> None:
            arrays = weights_of(root)
            name = next(key for key in arrays if key.endswith("weight"))
            put_weights(root, {**arrays, name: arrays[name] * 2})

        self.at_block(monkeypatch, 1, replace)
        dtg("synthesize", root, *QUIET, "--model", "unet")
        monkeypatch.undo()
        assert set(rows(root, "synthesize/unet")["unit"]) == {"block-00002"}, "signed by the weights that made them"
        dtg("synthesize", root, *QUIET, "--model", "unet")
        whole = root.parent / "whole"
        shutil.copytree(root, whole, ignore=shutil.ignore_patterns("synthetic", "synthesize"))
        dtg("synthesize", whole, *QUIET, "--model", "unet")
        assert maps(root) == maps(whole)


class TestSettingsThatChangeAfterMapsWereMade:
    @pytest.mark.parametrize(
        ("settings", "words"),
        [
            ({"contrasts": 1}, "got an array with shape, chunks, dtype"),
        ],
        ids=str,
    )
    def test_are_refused_with_a_way_out_and_lose_nothing(
        self, done: Path, cohort: Path, capsys, settings, words
    ) -> None:
        before, text = maps(done), (done / "study.yaml").read_text()
        if "contrasts" in settings:
            settings = {"contrasts": list(Study(str(done)).config.contrasts[:1])}
        change(done, synthesis=settings)
        refused(capsys, done, "synthetic/linear.zarr/maps", words, "change that back", "remove that .zarr folder")
        assert maps(done) == before
        (done / "study.yaml").write_text(text)
        assert (Study(str(done)).status()["pending"][4:6] == 0).all()
        change(done, synthesis=settings)
        shutil.rmtree(done / "synthetic")
        dtg("synthesize", done, *QUIET)
        one, other = (Study(str(path)).synthetic("unet") for path in (done, cohort / "finished"))
        np.testing.assert_allclose(one, other.sel(contrast=one["contrast"]), atol=2e-3)

    def test_other_contrasts_of_the_same_number_do_not_get_the_old_ones_names(self, root: Path, capsys) -> None:
        names = list(Study(str(root)).config.contrasts)
        change(root, synthesis={"contrasts": names[:2]})
        dtg("synthesize", root, *QUIET)
        before = maps(root)
        change(root, synthesis={"contrasts": names[1:]})
        refused(capsys, root, f"contrast: got {names[0]}, {names[1]}, expected {names[1]}, {names[2]}")
        assert maps(root) == before

    def test_spread_is_added_to_what_is_there(self, done: Path, cohort: Path) -> None:
        change(done, synthesis={"spread": True})
        dtg("synthesize", done, *QUIET)
        assert np.isfinite(Study(str(done)).storage.open_array("synthetic/unet.zarr", "spread")[:]).all()
        assert maps(cohort / "finished").items() <= maps(done).items()

    def test_unknown_contrasts_are_usage_errors(self, done: Path, capsys) -> None:
        change(done, synthesis={"contrasts": ["NONE"]})
        dtg("synthesize", done, *QUIET, check=2)
        assert "synthesis.contrasts: got ('NONE',), none of which linear predicts" in capsys.readouterr().err


def chunk(root: Path, name: str) -> Path:
    """The first chunk of an array that is there."""
    return min(path for path in (root / name / "c").rglob("*") if path.is_file())


DAMAGE = {
    "deleted": Path.unlink,
    "empty": lambda path: path.write_bytes(b""),
    "truncated": lambda path: path.write_bytes(path.read_bytes()[:-9]),
    "junk": lambda path: path.write_bytes(b"<html>404</html>" * 9),
}


class TestAChunk:
    @pytest.mark.parametrize("window", [0, 1])
    @pytest.mark.parametrize("how", DAMAGE)
    def test_of_a_stored_connectome_stops_the_stage_by_name(
        self, stored: Path, cohort: Path, capsys, how: str, window: int
    ) -> None:
        row = Study(str(stored)).cohort.loc["sub-0006", "row"]
        DAMAGE[how](stored / f"connectomes.zarr/connectome/c/{row}/{window}/0/0")
        refused(capsys, stored, "sub-0006: ", "delete the receipt of its block below receipts/connectomes/")
        assert not (stored / "receipts/synthesize/unet/block-00001.parquet").exists()
        (stored / "receipts/connectomes/block-00001.parquet").unlink()
        dtg("connectomes", stored, *QUIET)
        dtg("synthesize", stored, *QUIET)
        assert maps(stored) == maps(cohort / "finished")

    @pytest.mark.parametrize("how", DAMAGE)
    def test_of_maps_that_are_kept_is_made_again(self, done: Path, cohort: Path, how: str) -> None:
        """Only one subject is owed; the block of the others, who are kept, has lost a chunk."""
        receipts = done / "receipts/synthesize/unet/block-00000.parquet"
        table = pd.read_parquet(receipts)
        take_out(done, "synthesize/unet", "block-00000", table["subject"][0])
        DAMAGE[how](chunk(done, "synthetic/unet.zarr/maps"))
        dtg("synthesize", done, *QUIET)
        assert maps(done) == maps(cohort / "finished")
        assert (rows(done, "synthesize/unet")["status"] == "done").all()

    @pytest.mark.parametrize("how", DAMAGE)
    def test_of_roi_connectomes_that_are_kept_is_made_again(self, done: Path, cohort: Path, how: str) -> None:
        take_out(done, "connectomes", "block-00000", "sub-0001")
        path = done / "connectomes.zarr/roi_connectome/c/0/0"
        DAMAGE[how](path)
        dtg("connectomes", done, *QUIET)
        assert path.read_bytes() == (cohort / "finished" / path.relative_to(done)).read_bytes()
        assert len(rows(done, "connectomes")) == 12

    @pytest.mark.parametrize("how", ["deleted", "junk"])
    @pytest.mark.parametrize("name", ["rois", "mask"])
    def test_of_the_rois_stops_everything(self, root: Path, capsys, how: str, name: str) -> None:
        DAMAGE[how](chunk(root, f"rois.zarr/{name}"))
        refused(capsys, root, "rois.zarr")
        assert not (root / "receipts/connectomes").exists(), "no subject is to blame"

    @pytest.mark.parametrize("how", ["deleted", "junk"])
    def test_of_maps_that_are_done_is_told_by_whoever_reads_it(self, done: Path, capsys, how: str) -> None:
        DAMAGE[how](chunk(done, "synthetic/unet.zarr/maps"))
        dtg("export", done, done.parent / "out", "--model", "unet", *QUIET, check=1)
        assert "delete" in (said := capsys.readouterr().err)
        assert "Traceback" not in said


def take_out(root: Path, stage: str, unit: str, subject: str) -> None:
    """Let a receipt say nothing of a subject."""
    Receipts(Study(str(root)).storage, stage).erase(unit, [subject])


NONSENSE = {
    "empty": "",
    "cut off": None,
    "a list": "[]",
    "null": "null",
    "a group": '{"zarr_format":3,"node_type":"group"}',
}


class TestAFile:
    @pytest.mark.parametrize("how", NONSENSE)
    @pytest.mark.parametrize("name", ["connectomes.zarr/connectome", "synthetic/unet.zarr/maps", "rois.zarr/rois"])
    def test_that_describes_an_array_is_named(self, done: Path, cohort: Path, capsys, how: str, name: str) -> None:
        path = done / name / "zarr.json"
        text = path.read_text()
        path.write_text(text[: len(text) // 2] if NONSENSE[how] is None else NONSENSE[how])
        for model in MODELS:
            (done / f"receipts/synthesize/{model}/block-00001.parquet").unlink()
        refused(capsys, done, name.split("/", maxsplit=1)[0], "zarr.json")
        path.write_text(text)
        dtg("synthesize", done, *QUIET)
        assert maps(done) == maps(cohort / "finished")

    @pytest.mark.parametrize("data", [b"", b"PAR1 torn"])
    def test_that_is_a_torn_receipt_has_its_block_done_again(self, done: Path, cohort: Path, data: bytes) -> None:
        (done / "receipts/synthesize/unet/block-00001.parquet").write_bytes(data)
        (done / "receipts/connectomes/block-00002.parquet").write_bytes(data)
        dtg("synthesize", done, *QUIET)
        assert maps(done) == maps(cohort / "finished")
        assert len(rows(done, "synthesize/unet")) == 12

    def test_that_is_a_torn_or_stale_index_is_not_believed(self, done: Path, cohort: Path, monkeypatch) -> None:
        monkeypatch.setattr(receipts, "MANY", 2)
        storage = Study(str(done)).storage
        index = receipts.Receipts(storage, "synthesize/unet")
        index.index()
        assert (done / "index/synthesize/unet.parquet").exists()
        (done / "receipts/synthesize/unet/block-00001.parquet").unlink()
        dtg("synthesize", done, *QUIET)
        assert maps(done) == maps(cohort / "finished")
        for data in (b"", b"PAR1 torn"):
            (done / "index/synthesize/unet.parquet").write_bytes(data)
            assert len(rows(done, "synthesize/unet")) == 12

    @pytest.mark.parametrize("share", [0.0, 0.3, 0.6, 0.9])
    def test_that_is_half_a_study_yaml_is_refused(self, done: Path, capsys, share: float) -> None:
        path = done / "study.yaml"
        lines = path.read_text().splitlines(keepends=True)
        path.write_text("".join(lines[: int(share * len(lines))]))
        dtg("synthesize", done, *QUIET, check=2)
        said = capsys.readouterr().err
        assert "study.yaml" in said
        assert "Traceback" not in said

    @pytest.mark.parametrize("verb", ["synthesize", "status"])
    def test_that_is_half_a_manifest_is_refused(self, done: Path, capsys, verb: str) -> None:
        path = done / "cohort.parquet"
        path.write_bytes(path.read_bytes()[:-100])
        dtg(verb, done, *(QUIET if verb != "status" else ()), check=1)
        said = capsys.readouterr().err
        assert "cohort.parquet: got no Parquet table" in said
        assert "Traceback" not in said


class TestADiskThatIsFull:
    def test_at_every_moment_of_synthesis(self, disk: Disk, root: Path, cohort: Path, capsys) -> None:
        root = on(disk, root)
        said = until_done(disk, capsys, "synthesize", root, *QUIET, step=8 * 1024)
        text = "".join(said)
        for what in ("connectomes.zarr", "synthetic/linear.zarr", "receipts/connectomes/block", "receipts/synthesize"):
            assert what in text, f"it never was full for {what}"
        whole_files(root)
        assert maps(root) == maps(cohort / "finished")
        for stage in ("connectomes", *(f"synthesize/{model}" for model in MODELS)):
            assert (rows(root, stage)["status"] == "done").all()

    def test_at_every_moment_of_adding_people(self, disk: Disk, cohort: Path, tmp_path: Path, capsys) -> None:
        few = tmp_path / "few.txt"
        few.write_text("\n".join(f"sub-{number:04d}" for number in range(1, 9)))
        made = made_of(cohort / "data")
        dtg("init", tmp_path / "one", *made, "--subjects", few)
        root = on(disk, tmp_path / "one")
        dtg("init", tmp_path / "one", "--add", "--bids", cohort / "data")
        before = Study(str(root)).cohort["subject"].tolist()
        disk.fill()
        dtg("init", root, "--add", "--bids", cohort / "data", check=1)
        assert Study(str(root)).cohort["subject"].tolist() == before
        until_done(disk, capsys, "init", root, "--add", "--bids", cohort / "data", step=4 * 1024)
        whole_files(root)
        for name in ("cohort.parquet", "phenotypes.parquet", "left_out.parquet"):
            assert (root / name).read_bytes() == (tmp_path / "one" / name).read_bytes()

    def test_at_every_moment_of_a_withdrawal(self, disk: Disk, done: Path, tmp_path: Path, capsys) -> None:
        left = tmp_path / "left.txt"
        left.write_text("sub-0002\nsub-0011\n")
        root = on(disk, done)
        dtg("withdraw", done, left)
        said = until_done(disk, capsys, "withdraw", root, left, step=4 * 1024)
        assert len(said) > 1
        whole_files(root)
        assert maps(root) == maps(done)
        for name in ("cohort.parquet", "phenotypes.parquet"):
            assert (root / name).read_bytes() == (done / name).read_bytes()
        for stage in ledger.stages(Study(str(root))):
            one, other = (ledger.account(Study(str(path)), stage) for path in (root, done))
            assert one.pending() == other.pending(), stage

    def test_at_every_moment_of_an_export(self, disk: Disk, done: Path, tmp_path: Path, capsys) -> None:
        dtg("export", done, tmp_path / "out", *QUIET)
        (disk.root / "out").mkdir()
        said = until_done(disk, capsys, "export", done, disk.root / "out", *QUIET, step=32 * 1024)
        assert len(said) > 1
        images = {path.name: path.read_bytes() for path in (tmp_path / "out").rglob("*.nii.gz")}
        assert images
        assert {path.name: path.read_bytes() for path in (disk.root / "out").rglob("*.nii.gz")} == images


class TestADiskThatIsReadOnly:
    @pytest.mark.parametrize("verb", ["synthesize", "connectomes", "contrasts"])
    def test_is_told_and_nothing_is_lost(self, disk: Disk, root: Path, cohort: Path, capsys, verb: str) -> None:
        shutil.rmtree(root / "receipts/contrasts")
        root = on(disk, root)
        disk.remount("ro")
        said = refused(capsys, root, "could not be written", "Read-only file system", verb=verb)
        assert str(root) in said
        disk.remount("rw")
        dtg("synthesize", root, *QUIET)
        assert maps(root) == maps(cohort / "finished")

    def test_is_enough_for_who_only_reads(self, disk: Disk, done: Path, tmp_path: Path) -> None:
        root = on(disk, done)
        disk.remount("ro")
        dtg("synthesize", root, *QUIET)
        dtg("status", root)
        dtg("export", root, tmp_path / "out", *QUIET)

    def test_is_told_by_export_and_withdrawal(self, disk: Disk, done: Path, tmp_path: Path, capsys) -> None:
        root, left = on(disk, done), tmp_path / "left.txt"
        left.write_text("sub-0002\n")
        disk.remount("ro")
        for arguments in (("export", done, disk.root / "out", *QUIET), ("withdraw", root, left)):
            dtg(*arguments, check=1)
            said = capsys.readouterr().err
            assert "could not be written" in said
            assert "Read-only file system" in said


class Turns:
    """Two threads, of which one runs at a time.

    Who goes on is drawn at each of their steps, or comes from a script: who runs, until just before which step.
    """

    def __init__(self, seed: int, script: Sequence[tuple[int, str]] = ()) -> None:
        self._random, self._condition = random.Random(seed), threading.Condition()
        self._script, self._waiting = list(script), []
        self._turn, self._errors = 0, []

    def step(self, what: str = "") -> None:
        """Somebody else may be next."""
        name = threading.current_thread().name
        if name not in {"driver 0", "driver 1"}:
            return
        me = int(name[-1])
        with self._condition:
            self._turn = self._next(me, what)
            self._condition.notify_all()
            self._condition.wait_for(lambda: self._turn == me)

    def _next(self, me: int, what: str) -> int:
        if not self._script:
            return self._random.choice(self._waiting)
        if (me, what) == self._script[0]:
            del self._script[0]
        return self._script[0][0] if self._script else self._random.choice(self._waiting)

    def run(self, *jobs) -> None:
        """Do all of them; the first error of any is raised."""
        self._waiting = list(range(len(jobs)))

        def work(number: int, job) -> None:
            try:
                self.step()
                job()
            except Exception as error:  # noqa: BLE001 - raised where it is waited for
                self._errors.append(error)
            with self._condition:
                self._waiting.remove(number)
                self._script = [part for part in self._script if part[0] != number]
                self._turn = next(iter(self._waiting), -1)
                self._condition.notify_all()

        threads = [
            threading.Thread(target=work, args=(number, job), name=f"driver {number}")
            for number, job in enumerate(jobs)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(120)
            assert not thread.is_alive()
        if self._errors:
            raise self._errors[0]


def in_turns(monkeypatch: pytest.MonkeyPatch, turns: Turns) -> None:
    """Have a step before everything that another driver can see, or could have changed."""
    for owner, name, what in (
        (Receipts, "holding", "holding"),
        (Receipts, "withdraw", "withdraw"),
        (Receipts, "write", "receipt"),
        (Receipts, "erase", "erase"),
        (connectomes, "read", "read edges"),
        (connectomes, "write", "windows"),
        (connectomes, "write_rows", "edges"),
        (mapping, "read", "read maps"),
        (mapping, "write_rows", "maps"),
        (mapping, "kept_rows", "kept maps"),
    ):
        monkeypatch.setattr(owner, name, with_a_step(turns, getattr(owner, name), what))


def with_a_step(turns: Turns, function, what: str):
    """A function before which somebody else may be next; receipts' are told apart by their stage."""

    @functools.wraps(function)
    def stepping(*arguments, **options):
        stage = f" {arguments[0].stage}" if isinstance(arguments[0], Receipts) else ""
        turns.step(what + stage)
        return function(*arguments, **options)

    return stepping


def nothing_is_wrong(root: Path, expected: Path) -> None:
    """What receipts say is done is there, and is what an undisturbed run has made."""
    study, undisturbed = Study(str(root)), Study(str(expected))
    position = study.cohort["row"]
    for model in MODELS:
        one, other = (there.storage.open_array(f"synthetic/{model}.zarr", "maps") for there in (study, undisturbed))
        for subject in ledger.account(study, f"synthesize/{model}").subjects("done"):
            np.testing.assert_array_equal(one[:, position[subject]], other[:, position[subject]], err_msg=subject)
    account = ledger.account(study, "connectomes")
    for name, subjects in (("roi_connectome", account.subjects("done")), ("connectome", ledger.stored(account))):
        one, other = (there.storage.open_array("connectomes.zarr", name) for there in (study, undisturbed))
        for subject in subjects:
            np.testing.assert_array_equal(one[position[subject]], other[position[subject]], err_msg=subject)


class TestTwoDrivers:
    """Of one block at the same time, in every order of what they read and write; no lock keeps them apart."""

    SEEDS = range(12)
    UNIT = "block-00000"

    @pytest.fixture
    def half(self, root: Path, cohort: Path) -> Path:
        """A study in which one subject failed, whose file is good again, so that drivers can see them differently."""
        data = cohort / "data"
        bad = next((data / "sub-0002/func").glob("*_bold.nii.gz"))
        kept, times = bad.read_bytes(), bad.stat()
        bad.write_bytes(kept[:1000])
        try:
            dtg("synthesize", root, *QUIET, check=3)
        finally:
            bad.write_bytes(kept)
            os.utime(bad, ns=(times.st_atime_ns, times.st_mtime_ns))
        return root

    def finish(self, root: Path, cohort: Path) -> None:
        """The next run owes what was taken back, and nothing else; then all is as it would have been."""
        nothing_is_wrong(root, cohort / "finished")
        dtg("synthesize", root, *QUIET, "--retry-failed")
        nothing_is_wrong(root, cohort / "finished")
        assert maps(root) == maps(cohort / "finished")
        assert (rows(root, "synthesize/unet")["status"] == "done").all()
        assert len(rows(root, "synthesize/unet")) == 12

    @pytest.mark.parametrize("seed", SEEDS)
    def test_of_whom_one_sees_somebody_fail(self, half: Path, cohort: Path, monkeypatch, seed: int) -> None:
        for model in MODELS:
            (half / f"receipts/synthesize/{model}/{self.UNIT}.parquet").unlink()
        models, turns = {self.UNIT: MODELS}, Turns(seed)
        workers = [SynthesisWorker(str(half), models, retry=retry) for retry in (False, True)]
        in_turns(monkeypatch, turns)
        turns.run(*(functools.partial(worker, self.UNIT) for worker in workers))
        monkeypatch.undo()
        self.finish(half, cohort)

    def test_of_whom_one_undoes_maps_that_the_other_commits(
        self, half: Path, cohort: Path, monkeypatch, caplog
    ) -> None:
        """The one that saw somebody fail writes between the maps and the receipt of the one that did not."""
        for model in MODELS:
            (half / f"receipts/synthesize/{model}/{self.UNIT}.parquet").unlink()
        turns = Turns(0, [(0, "maps"), (1, "receipt synthesize/linear"), (0, "receipt synthesize/unet")])
        workers = [SynthesisWorker(str(half), {self.UNIT: MODELS}, retry=retry) for retry in (False, True)]
        in_turns(monkeypatch, turns)
        turns.run(*(functools.partial(worker, self.UNIT) for worker in workers))
        monkeypatch.undo()
        assert "block-00000 of synthesize/linear: another run wrote it at the same time; 1 are owed" in caplog.text
        self.finish(half, cohort)

    def test_of_whom_one_undoes_roi_connectomes_of_the_other(
        self, root: Path, cohort: Path, monkeypatch, caplog
    ) -> None:
        """It had read them before the other one wrote its own, and writes them back."""
        synthesize._prepare(Study(str(root)), MODELS)
        turns = Turns(0, [(1, "edges"), (0, "receipt connectomes"), (1, "the end")])
        workers = [connectomes.ConnectomeWorker(str(root), splits) for splits in (None, ("test",))]
        in_turns(monkeypatch, turns)
        turns.run(*(functools.partial(worker, self.UNIT) for worker in workers))
        monkeypatch.undo()
        assert "block-00000 of connectomes: another run wrote it at the same time" in caplog.text
        self.finish(root, cohort)

    @pytest.mark.parametrize("seed", SEEDS)
    def test_of_whom_one_stores_the_connectomes_of_some(self, root: Path, cohort: Path, monkeypatch, seed: int) -> None:
        """`dtg run` stores those that are trained on; `dtg synthesize` makes everybody's on the way."""
        connectomes.make_arrays(Study(str(root)))
        dtg("synthesize", root, *QUIET, "--dry-run")
        synthesize._prepare(Study(str(root)), MODELS)
        turns = Turns(seed)
        maker = SynthesisWorker(str(root), {self.UNIT: MODELS})
        storer = connectomes.ConnectomeWorker(str(root), ("train", "validation"))
        everybody = connectomes.ConnectomeWorker(str(root))
        in_turns(monkeypatch, turns)
        other = storer if seed % 2 else everybody
        turns.run(functools.partial(maker, self.UNIT), functools.partial(other, self.UNIT))
        monkeypatch.undo()
        self.finish(root, cohort)

    @pytest.mark.parametrize("seed", SEEDS)
    def test_of_whom_one_stores_all_and_one_some(self, root: Path, cohort: Path, monkeypatch, seed: int) -> None:
        connectomes.make_arrays(Study(str(root)))
        turns = Turns(seed)
        workers = [connectomes.ConnectomeWorker(str(root), splits) for splits in (None, ("test",))]
        in_turns(monkeypatch, turns)
        turns.run(*(functools.partial(worker, self.UNIT) for worker in workers))
        monkeypatch.undo()
        (root / "synthetic").mkdir()
        shutil.copytree(cohort / "finished/synthetic", root / "synthetic", dirs_exist_ok=True)
        nothing_is_wrong(root, cohort / "finished")
        dtg("connectomes", root, *QUIET)
        assert len(ledger.stored(ledger.account(Study(str(root)), "connectomes"))) == 12
        for name in ("connectome", "roi_connectome"):
            one, other = (
                Study(str(at)).storage.open_array("connectomes.zarr", name) for at in (root, cohort / "finished")
            )
            np.testing.assert_array_equal(one[:], other[:])

    def test_of_whom_one_comes_when_the_block_is_done_leaves_it_alone(self, done: Path) -> None:
        """Taking its receipts back would make the first driver's next stage wait for them."""
        before = {path: path.read_bytes() for path in (done / "receipts").rglob("*.parquet")}
        SynthesisWorker(str(done), {self.UNIT: MODELS})(self.UNIT)
        connectomes.ConnectomeWorker(str(done))(self.UNIT)
        ContrastWorker(str(done), "contrasts")(self.UNIT)
        assert {path: path.read_bytes() for path in (done / "receipts").rglob("*.parquet")} == before


@pytest.mark.slow
class TestTwoCommandsAtOnce:
    def both(self, *commands: tuple[object, ...]) -> None:
        started = [
            subprocess.Popen(
                [sys.executable, "-m", "dtg_ray.cli", *map(str, command)],
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
            )
            for command in commands
        ]
        said = [process.communicate(timeout=500)[0].decode() for process in started]
        assert [process.returncode for process in started] == [0, 0], "\n".join(said)

    def test_two_runs_with_a_ray_of_their_own(self, cohort: Path, tmp_path: Path, arrays: Arrays) -> None:
        for name in ("alone", "both"):
            dtg("init", tmp_path / name, *made_of(cohort / "data"))
        dtg("run", tmp_path / "alone", *QUIET)
        command = ("run", tmp_path / "both", "--quiet", "--cpus", 1)
        self.both(command, command)
        assert arrays(tmp_path / "both") == arrays(tmp_path / "alone")
        assert (Study(str(tmp_path / "both")).status()["pending"] == 0).all()

    def test_synthesize_beside_connectomes(self, root: Path, cohort: Path) -> None:
        self.both(("synthesize", root, "--quiet", "--cpus", 1), ("connectomes", root, *QUIET))
        assert maps(root) == maps(cohort / "finished")
        dtg("connectomes", root, *QUIET)
        nothing_is_wrong(root, cohort / "finished")
        assert (Study(str(root)).status()["pending"][:6] == 0).all()


class TestSubjects:
    @pytest.fixture
    def data(self, cohort: Path, root: Path, tmp_path: Path) -> Path:
        """The images of a study of its own, which may be damaged."""
        shutil.copytree(cohort / "data", tmp_path / "data")
        study = Study(str(root))
        table = study.manifest
        for runs in table["rest"]:
            runs[:] = [replace(run, image=run.image.replace(str(cohort), str(tmp_path))) for run in runs]
        study.storage.write("cohort.parquet", cohort_bytes(table))
        return tmp_path / "data"

    def damage(self, data: Path, subjects) -> dict[Path, bytes]:
        found = {}
        for subject in subjects:
            path = next((data / subject / "func").glob("*_bold.nii.gz"))
            found[path] = path.read_bytes()
            path.write_bytes(found[path][:500])
        return found

    @pytest.mark.parametrize("who", ["a block", "everybody"])
    def test_who_all_fail_are_named_and_can_be_mended(
        self, data: Path, root: Path, cohort: Path, capsys, who: str
    ) -> None:
        people = Study(str(root)).cohort
        failing = list(people.index if who == "everybody" else people.index[people["block"] == 1])
        good = self.damage(data, failing)
        dtg("synthesize", root, *QUIET, check=3)
        said = capsys.readouterr().out
        assert all(subject in said for subject in failing)
        status = Study(str(root)).status().set_index("stage")
        assert status.loc["connectomes", "failed"] == len(failing)
        assert status.loc["synthesize/unet", "excluded"] == len(failing)
        dtg("synthesize", root, *QUIET, "--allow-failures", len(failing))
        dtg("synthesize", root, *QUIET, check=3)
        dtg("synthesize", root, *QUIET, "--retry-failed", check=3)
        for path, content in good.items():
            path.write_bytes(content)
        dtg("synthesize", root, *QUIET, "--retry-failed")
        assert maps(root) == maps(cohort / "finished")

    def test_who_fail_beyond_what_is_allowed_stop_it(self, data: Path, root: Path, capsys) -> None:
        self.damage(data, Study(str(root)).cohort.index)
        dtg("synthesize", root, *QUIET, "--allow-failures", 3, check=1)
        assert "got 4 subjects that failed, expected at most 3" in capsys.readouterr().err
        assert len(rows(root, "connectomes")) == 4

    def test_whose_runs_give_fewer_windows_than_asked_for_get_maps(self, root: Path) -> None:
        seconds = connectomes.read_header(Study(str(root)).cohort["rest"].iloc[0][0].image).tr
        change(root, connectomes={"windows": 2, "window_minutes": 40 * seconds / 60})
        dtg("synthesize", root, *QUIET)
        assert {qc["windows"] for qc in rows(root, "synthesize/unet")["qc"]} == {1.0}
        assert np.isfinite(Study(str(root)).synthetic("unet")).all()
        dtg("synthesize", root, *QUIET, "--retry-failed")

    def test_who_fail_by_the_model_are_made_again_alone(self, root: Path, cohort: Path, monkeypatch) -> None:
        check = predictor.check_finite
        seen: list[str] = []

        def unlucky(model: str, made: np.ndarray) -> None:
            seen.append(model)
            check(model, made * np.nan if len(seen) == 3 else made)

        monkeypatch.setattr("dtg_ray.stages.mapping.check_finite", unlucky)
        dtg("synthesize", root, *QUIET, check=3)
        (row,) = ledger.failures(ledger.Ledger(Study(str(root)))).to_dict("records")
        assert (row["stage"], row["subject"], row["error_type"]) == ("synthesize/linear", "sub-0002", "PredictionError")
        seen.clear()
        dtg("synthesize", root, *QUIET, check=3)
        assert seen == []
        monkeypatch.setattr("dtg_ray.stages.mapping.check_finite", check)
        dtg("synthesize", root, *QUIET, "--retry-failed")
        assert maps(root) == maps(cohort / "finished")


@pytest.mark.s3
class TestABucket:
    @pytest.fixture
    def study(self, s3, stored: Path) -> str:
        """The study whose connectomes are stored, in a bucket."""
        uri = f"{s3()}/study"
        Study(uri)._root.fs.put(f"{stored}/", f"{uri}/", recursive=True)
        return uri

    def same(self, uri: str, cohort: Path) -> None:
        storage = Study(uri).storage
        found = storage.read_many(storage.names("synthetic"))
        assert found == maps(cohort / "finished")

    @pytest.mark.parametrize("only", ["/synthetic/unet.zarr/maps/c/", "/receipts/synthesize/unet/block-00001"])
    def test_that_refuses_to_be_written_is_named(self, faults, study: str, cohort: Path, capsys, only: str) -> None:
        faults.refused, faults.only = ("PUT",), only
        dtg("synthesize", study, *QUIET, check=1)
        said = capsys.readouterr().err
        assert "could not be written" in said
        assert only.strip("/").split("/c")[0] in said
        assert "Traceback" not in said
        faults.refused, faults.only = (), ""
        dtg("synthesize", study, *QUIET)
        self.same(study, cohort)

    def test_that_vanishes_is_named(self, study: str, capsys, monkeypatch) -> None:
        bucket = study.split("/")[2]
        done = BlockMaps.commit

        def vanish(self: BlockMaps):
            fs = Study(study).storage.fs
            fs.rm(f"s3://{bucket}", recursive=True)
            return done(self)

        monkeypatch.setattr(BlockMaps, "commit", vanish)
        dtg("synthesize", study, *QUIET, check=1)
        said = capsys.readouterr().err
        assert bucket in said
        assert "Traceback" not in said
        monkeypatch.undo()
        dtg("synthesize", study, *QUIET, check=1)
        assert "got no study.yaml, expected a study" in capsys.readouterr().err


@pytest.mark.slow
class TestOnRay:
    """What stops a worker is told in the words of the worker."""

    def test_a_full_disk(self, disk: Disk, root: Path, cohort: Path, capsys) -> None:
        root = on(disk, root)
        synthesize._prepare(Study(str(root)), MODELS)
        disk.fill()
        dtg("synthesize", root, "--quiet", "--cpus", 1, check=1)
        said = capsys.readouterr().err
        assert "block-0000" in said
        assert "could not be written: No space left on device" in said
        assert "Traceback" not in said
        disk.give(2**23)
        dtg("synthesize", root, "--quiet", "--cpus", 1)
        assert maps(root) == maps(cohort / "finished")

    def test_a_manifest_that_is_lost_when_workers_start(self, root: Path, capsys, monkeypatch) -> None:
        def lose(*arguments: object) -> list[object]:
            (root / "cohort.parquet").write_bytes(b"torn")
            return crews(*arguments)

        crews = synthesize.crews
        monkeypatch.setattr(synthesize, "crews", lose)
        dtg("synthesize", root, "--quiet", "--cpus", 1, check=1)
        said = capsys.readouterr().err
        assert "cohort.parquet: got no Parquet table" in said
        assert "Traceback" not in said
