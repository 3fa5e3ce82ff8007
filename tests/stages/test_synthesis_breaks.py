"""What can go wrong with synthesis: each is told in words, nothing half-written is taken for done, and the same command
goes on when the cause is gone."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import safetensors.numpy
import yaml

from dtg_ray import Study, ledger
from dtg_ray.cli import main
from dtg_ray.cohort.simulate import simulate
from dtg_ray.stages import connectomes

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
        name = next(key for key in arrays if key.startswith("network."))
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
        dtg("synthesize", root, *QUIET, "--model", "nobody", check=1)
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
