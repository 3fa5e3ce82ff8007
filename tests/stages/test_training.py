"""Training: batches, resuming, several workers, and what cannot be trained."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import safetensors.numpy
import yaml

from dtg_ray import Study
from dtg_ray.cohort.simulate import simulate
from dtg_ray.config import TrainConfig
from dtg_ray.ledger import Ledger
from dtg_ray.stages.maps import usable
from dtg_ray.stages.models import load_model
from dtg_ray.stages.training.recipe import is_over, learning_rate_factor, parts_of
from stage_tools import COHORT, Tools


class TestATrainedNetwork:
    def test_keeps_its_history_and_the_weights_that_validated_best(self, finished: Path) -> None:
        history = pd.read_parquet(finished / "models" / "unet" / "history.parquet")
        assert list(history["epoch"]) == list(range(8))
        assert history["loss"].iloc[-1] < history["loss"].iloc[0]
        (best,) = history.index[history["selected"] == 1]
        assert best == history["validation_loss"].idxmin()

    def test_says_what_it_was_trained_on(self, finished: Path) -> None:
        import json

        study = Study(str(finished))
        provenance = json.loads((finished / "models" / "unet" / "model.json").read_text())["provenance"]
        assert provenance["training"] == usable(Ledger(study), "train")
        assert provenance["settings"]["train"]["epochs"] == 8

    def test_is_due_again_when_its_files_are_gone(self, tools: Tools, finished: Path, tmp_path: Path) -> None:
        root = tmp_path / "study"
        shutil.copytree(finished, root)
        weights = (root / "models" / "linear" / "model.safetensors").read_bytes()
        shutil.rmtree(root / "models" / "linear")
        tools.dtg("train", str(root), "--model", "linear", "--inline")
        assert (root / "models" / "linear" / "model.safetensors").read_bytes() == weights

    def test_starts_from_the_checkpoint_when_only_the_end_was_lost(
        self, tools: Tools, finished: Path, tmp_path: Path
    ) -> None:
        root = tmp_path / "study"
        shutil.copytree(finished, root)
        weights = (root / "models" / "unet" / "model.safetensors").read_bytes()
        shutil.rmtree(root / "models" / "unet")
        shutil.rmtree(root / "receipts" / "train" / "unet")
        said = tools.dtg("train", str(root), "--model", "unet", "--inline").stderr
        assert "epoch" not in said, "it was all trained already"
        assert (root / "models" / "unet" / "model.safetensors").read_bytes() == weights


class TestParts:
    @pytest.mark.parametrize(
        ("members", "accumulate", "sizes"), [(8, 1, [8]), (8, 4, [2] * 4), (7, 3, [2, 2, 3]), (3, 5, [3])]
    )
    def test_of_a_batch_have_two_subjects_or_more_and_weigh_by_their_number(self, members, accumulate, sizes) -> None:
        parts = parts_of(members, TrainConfig(accumulate=accumulate))
        assert [part.stop - part.start for part in parts] == sizes
        assert [row for part in parts for row in range(part.start, part.stop)] == list(range(members))
        assert sum(part.weight for part in parts) == pytest.approx(1)
        assert [part.last for part in parts] == [False] * (len(parts) - 1) + [True]


class TestWhenItIsOver:
    def lines(self, *losses: float) -> list[dict[str, float]]:
        return [{"loss": 0.0, "validation_loss": loss} for loss in losses]

    def test_after_all_epochs_or_when_patience_ends(self) -> None:
        config = TrainConfig(epochs=6, stop_patience=1)
        assert not is_over(self.lines(3, 2, 2.5), config)
        assert is_over(self.lines(3, 2, 2.5, 2.1), config)
        assert is_over(self.lines(6, 5, 4, 3, 2, 1), config)
        assert not is_over(self.lines(3, 2, 2.5, 2.1), TrainConfig(epochs=6))

    def test_the_rate_falls_when_validation_gets_no_better(self) -> None:
        config = TrainConfig(schedule="plateau", plateau_patience=1, plateau_factor=0.5)
        assert [learning_rate_factor(0, config, [3, 2, 2, 2][:epochs]) for epochs in range(5)] == [1, 1, 1, 1, 0.5]


def settings_with(tools: Tools, folder: Path, **changes: object) -> Path:
    path = folder / "settings.yaml"
    path.write_text(yaml.safe_dump({**yaml.safe_load(tools.settings.read_text()), **changes}))
    return path


@pytest.fixture(scope="module")
def trained(tools: Tools, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A study with one network trained in several ways, on people without missing maps, so that parts weigh alike."""
    folder = tmp_path_factory.mktemp("trained")
    plain = {"epochs": 2, "batch_size": 4, "cpus_per_worker": 1, "loss": "mse"}
    network = {"kind": "network", "width": 2, "norm": "instance"}
    hasty = {"epochs": 30, "stop_patience": 0, "learning_rate": 0.3, "loss": "rc", "clip": 1.0, "schedule": "plateau"}
    models = {
        "whole": {**network, "train": plain},
        "parts": {**network, "train": {**plain, "accumulate": 2}},
        "workers": {**network, "train": {**plain, "workers": 2, "readers": 1, "cache_gigabytes": 0}},
        "contrastive": {**network, "train": {**plain, "loss": "crr", "alpha": 2.0}},
        "together": {**network, "train": {**plain, "loss": "crr", "alpha": 2.0, "workers": 2, "global_batch": True}},
        "hasty": {**network, "architecture": "resunet", "train": {**plain, **hasty, "weight_decay": 0.1}},
    }
    path, root = settings_with(tools, folder, models=models), folder / "study"
    simulate(folder / "data", **{**COHORT, "missing": 0.0, "subjects": 16})
    rois = next((folder / "data").glob("tpl-*_probseg.nii.gz"))
    source = ("--bids", str(folder / "data"), "--rois", str(rois), "--config", str(path))
    tools.dtg("init", str(root), *source)
    for stage in ("connectomes", "contrasts"):
        tools.dtg(stage, str(root), "--inline")
    for name, model in models.items():
        if model["train"].get("workers", 1) == 1:
            tools.dtg("train", str(root), "--model", name, "--inline")
    tools.process("train", str(root), "--quiet")
    return root


@pytest.mark.slow
class TestTrainedInSeveralWays:
    @pytest.mark.parametrize("name", ["parts", "workers"])
    def test_parts_of_a_batch_and_two_workers_train_one_network(self, trained: Path, name: str) -> None:
        whole, other = (
            safetensors.numpy.load((trained / "models" / model / "model.safetensors").read_bytes())
            for model in ("whole", name)
        )
        # a bias before a norm has no gradient but rounding, which Adam blows up
        for key in [key for key in whole if key.endswith("weight")]:
            np.testing.assert_allclose(other[key], whole[key], atol=2e-4)
        assert load_model(Study(str(trained)), name).kind == "network"

    def test_workers_share_validation_and_come_to_what_one_comes_to(self, trained: Path) -> None:
        histories = [pd.read_parquet(trained / "models" / name / "history.parquet") for name in ("whole", "workers")]
        for figure in ("loss", "validation_loss", "validation_r"):
            np.testing.assert_allclose(histories[1][figure], histories[0][figure], rtol=1e-3)

    def test_a_contrastive_loss_of_two_workers_is_that_of_one(self, trained: Path) -> None:
        alone, together = (
            pd.read_parquet(trained / "models" / name / "history.parquet") for name in ("contrastive", "together")
        )
        for figure in ("loss", "validation_loss"):
            np.testing.assert_allclose(together[figure], alone[figure], atol=1e-4)
        whole = pd.read_parquet(trained / "models" / "whole" / "history.parquet")
        assert np.abs(whole["loss"] - alone["loss"]).min() > 0.01, "the contrastive term should count"

    def test_patience_ends_a_training(self, trained: Path) -> None:
        history = pd.read_parquet(trained / "models" / "hasty" / "history.parquet")
        assert len(history) < 30
        assert history["validation_loss"].iloc[-1] >= history["validation_loss"].min()
        assert "learning_rate" in history


class TestWhatCannotBeTrained:
    def test_a_contrast_that_nobody_has(self, tools: Tools, tmp_path: Path) -> None:
        path = settings_with(tools, tmp_path, contrasts=["MOTOR_LH", "MOTOR_NOBODY"])
        source = ("--bids", str(tools.data), "--rois", str(tools.rois), "--config", str(path))
        refused = tools.dtg("init", str(tmp_path / "study"), *source, check=2)
        assert "MOTOR_NOBODY, which nobody has" in refused.stderr

    def test_a_contrast_that_no_training_subject_has(self, tools: Tools, finished: Path, tmp_path: Path) -> None:
        cohort = Study(str(finished)).cohort
        data, root = tmp_path / "data", tmp_path / "study"
        shutil.copytree(tools.data, data)
        for subject in cohort.index[cohort["split"] != "test"]:
            for file in (data / subject / "func").glob("*contrast-LH*"):
                file.unlink()
        tools.init(str(root), data=data)
        for stage in ("connectomes", "contrasts"):
            tools.dtg(stage, str(root), "--inline")
        without = [
            maps for maps in Study(str(root)).cohort.query("split == 'train'")["contrasts"] if "MOTOR_LH" in maps
        ]
        assert not without, "the splits should be as in the undamaged study"
        for model in ("group_mean", "unet"):
            done = tools.dtg("train", str(root), "--model", model, check=1)
            assert "no training subject with MOTOR_LH" in done.stderr
            assert not (root / "models" / model).exists()

    def test_people_without_a_contrast_of_the_study_are_not_trained_on(self, tools: Tools, tmp_path: Path) -> None:
        path = settings_with(tools, tmp_path, contrasts=["MOTOR_LH"])
        root = tmp_path / "study"
        tools.dtg("init", str(root), "--bids", str(tools.data), "--rois", str(tools.rois), "--config", str(path))
        cohort = Study(str(root)).cohort
        have = cohort["contrasts"].map(len) == 1
        assert set(cohort.loc[~have, "split"]) == {"synthesis"}
        assert have.sum() < len(cohort)

    def test_a_model_the_study_does_not_have(self, tools: Tools, finished: Path) -> None:
        assert "group_mean, linear, unet" in tools.dtg("train", str(finished), "--model", "vnet", check=2).stderr
