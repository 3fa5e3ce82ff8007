"""Networks of every kind, trained in this process: from scratch, fine-tuned, imported, interrupted, refused."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import safetensors.numpy
import torch
import yaml

from dtg_ray import Study, cli
from dtg_ray.models import build
from dtg_ray.stages.models import load_model
from dtg_ray.stages.training.checkpoints import Checkpoints
from reference import PUBLISHED, needs_published
from stage_tools import Arrays, Tools
from tensorboard_events import scalars

QUICK = {"epochs": 3, "batch_size": 4, "cpus_per_worker": 1, "checkpoint_minutes": 0}


@pytest.fixture(scope="module")
def prepared(tools: Tools, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A study with connectomes and measured maps; not to be changed."""
    root = tmp_path_factory.mktemp("prepared") / "study"
    tools.init(str(root))
    for stage in ("connectomes", "contrasts"):
        tools.dtg(stage, str(root), "--inline")
    return root


@pytest.fixture
def study(prepared: Path, tmp_path: Path) -> Path:
    root = tmp_path / "study"
    shutil.copytree(prepared, root)
    return root


def configure(root: Path, **models: Any) -> None:
    """Write other models into study.yaml."""
    path = root / "study.yaml"
    path.write_text(yaml.safe_dump({**yaml.safe_load(path.read_text()), "models": models}, sort_keys=False))


def network(**train: Any) -> dict[str, Any]:
    return {"kind": "network", "width": 3, "train": {**QUICK, **train}}


def dtg(*arguments: str) -> int:
    return cli.main([*arguments])


def weights(root: Path, name: str) -> dict[str, np.ndarray]:
    return safetensors.numpy.load((root / "models" / name / "model.safetensors").read_bytes())


def history(root: Path, name: str) -> pd.DataFrame:
    return pd.read_parquet(root / "models" / name / "history.parquet")


class TestATraining:
    def test_keeps_the_best_by_every_figure_and_the_last(self, study: Path) -> None:
        configure(study, unet=network(epochs=6, learning_rate=0.02, select="best_corr"))
        assert dtg("train", str(study), "--inline", "--quiet") == 0
        lines = history(study, "unet")
        (selected,) = lines.index[lines["selected"] == 1]
        assert selected == lines["validation_r"].idxmax()
        kept = {path.parent.name for path in (study / "models" / "unet").glob("*/model.json")}
        assert kept == {"best_loss", "best_diag", "last"}
        model = load_model(Study(str(study)), "unet")
        assert json.loads((study / "models/unet/model.json").read_text())["provenance"]["weights"] == "best_corr"
        assert model.contrasts == Study(str(study)).config.contrasts

    def test_says_what_happens_and_tells_tensorboard(self, study: Path, capsys: pytest.CaptureFixture[str]) -> None:
        configure(study, unet=network())
        assert dtg("train", str(study), "--inline") == 0
        said = capsys.readouterr().err
        assert "train/unet: epoch 1/3, loss " in said
        assert " to go\n" in said
        lines = history(study, "unet")
        assert {f"validation_r/{name}" for name in Study(str(study)).config.contrasts} <= set(lines)
        assert lines["waiting"].between(0, 1).all()
        logged = scalars(next((study / "train/unet").glob("*/tensorboard")))
        for figure in ("loss", "validation_r", "learning_rate"):
            np.testing.assert_allclose([logged[figure][epoch] for epoch in range(3)], lines[figure], rtol=1e-6)

    def test_nothing_depends_on_how_data_are_read(self, study: Path) -> None:
        configure(study, a=network(), b=network(readers=2, cache_gigabytes=0))
        assert dtg("train", str(study), "--inline", "--quiet") == 0
        assert (study / "models/a/model.safetensors").read_bytes() == (
            study / "models/b/model.safetensors"
        ).read_bytes()

    def test_a_compiler_that_fails_is_done_without(self, study: Path) -> None:
        configure(study, plain=network(), compiled=network(compile=True))
        nothing = {"CXX": "/nowhere/c++", "TORCHINDUCTOR_CACHE_DIR": str(study / "cache")}
        command = [sys.executable, "-m", "dtg_ray.cli", "train", str(study), "--inline"]
        done = subprocess.run(command, env={**os.environ, **nothing}, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        assert "train/compiled: torch.compile failed (" in done.stderr
        assert "training without it" in done.stderr
        for key, value in weights(study, "plain").items():
            np.testing.assert_array_equal(weights(study, "compiled")[key], value)

    def test_that_diverges_stops_with_the_last_good_checkpoint(
        self, study: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        configure(study, unet={**network(learning_rate=1e30, epochs=9), "norm": "none"})
        assert dtg("train", str(study), "--inline") == 1
        assert "a lower learning_rate, or clip" in capsys.readouterr().err
        for path in (study / "train/unet").glob("*/checkpoint-*"):
            found = Checkpoints(Study(str(study)).storage, f"train/unet/{path.parent.name}").newest()
            assert found is not None
            assert all(np.isfinite(loss) for loss in found["losses"])
        assert not (study / "models").exists()

    def test_several_workers_are_not_inline(self, study: Path, capsys: pytest.CaptureFixture[str]) -> None:
        configure(study, unet=network(workers=2))
        assert dtg("train", str(study), "--inline") == 1
        assert "got --inline for 2 workers" in capsys.readouterr().err


class TestInterrupted:
    def start(self, root: Path) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "dtg_ray.cli", "train", str(root), "--inline", "--quiet"]
        return subprocess.Popen(command, stderr=subprocess.DEVNULL)

    def test_in_mid_epoch_ends_in_the_same_bytes(self, study: Path, tmp_path: Path, arrays: Arrays) -> None:
        configure(study, unet=network(epochs=12))
        whole = tmp_path / "whole"
        shutil.copytree(study, whole)
        assert dtg("train", str(whole), "--inline", "--quiet") == 0
        process = self.start(study)
        while not list((study / "train" / "unet").glob("*/checkpoint-0000[2-9]-00000[12]-*.pt")):
            assert process.poll() is None, "training was over before it could be killed"
            time.sleep(0.002)
        process.kill()
        process.wait()
        assert not (study / "models").exists()
        assert dtg("train", str(study), "--inline", "--quiet") == 0
        assert arrays(study) == arrays(whole)
        assert len(history(study, "unet")) == 12

    def test_by_a_full_disk_loses_no_checkpoint(self, study: Path, tmp_path: Path, arrays: Arrays) -> None:
        configure(study, unet=network(epochs=16))
        process = self.start(study)
        while not list((study / "train" / "unet").glob("*/checkpoint-0000[3-9]-*.pt")):
            assert process.poll() is None, "training was over before it could be killed"
            time.sleep(0.002)
        process.kill()
        process.wait()
        kept = {path: path.read_bytes() for path in (study / "train/unet").glob("*/checkpoint-*.pt")}
        configure(study, unet=network(epochs=16, checkpoint_minutes=60))  # does not change what is trained
        smallest = min(map(len, kept.values()))
        full = (
            "import resource, sys; from dtg_ray.cli import main; resource.setrlimit(resource.RLIMIT_FSIZE, ({0}, {0}));"
        )
        command = [full.format(smallest // 2), f"sys.exit(main(['train', {str(study)!r}, '--inline']))"]
        done = subprocess.run([sys.executable, "-c", " ".join(command)], capture_output=True, text=True, check=False)
        assert done.returncode == 1, done.stderr
        assert "could not be written in 3 attempts" in done.stderr
        assert "could not be written: File too large); the one before it is kept" in done.stderr
        assert {path: path.read_bytes() for path in (study / "train/unet").glob("*/checkpoint-*.pt")} == kept
        assert dtg("train", str(study), "--inline", "--quiet") == 0
        whole = tmp_path / "whole"
        shutil.copytree(study, whole, ignore=shutil.ignore_patterns("train", "models", "receipts"))
        shutil.copytree(study / "receipts/connectomes", whole / "receipts/connectomes")
        shutil.copytree(study / "receipts/contrasts", whole / "receipts/contrasts")
        assert dtg("train", str(whole), "--inline", "--quiet") == 0
        assert arrays(study) == arrays(whole)

    def test_a_disk_that_is_full_for_a_while_does_not_end_it(
        self, study: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("dtg_ray.stages.training.loop.PAUSE", 0.0)
        configure(study, unet=network(epochs=2))
        import resource

        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        count = []

        def mend(_self: object, state: Any, position: Any) -> None:
            """Give the disk room again after the first epoch; the writing itself is the real one."""
            count.append(position)
            resource.setrlimit(resource.RLIMIT_FSIZE, (1000 if position[0] < 1 else soft, hard))
            try:
                real(_self, state, position)
            finally:
                resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))

        real = Checkpoints.save
        monkeypatch.setattr(Checkpoints, "save", mend)
        assert dtg("train", str(study), "--inline") == 0
        said = capsys.readouterr().err
        assert "the checkpoint after epoch 0 could not be written in 3 attempts" in said
        assert "training goes on, the one before it is kept" in said
        assert len([position for position in count if position == (0, 1)]) == 3

    def test_while_replacing_a_model_goes_on_with_the_new_one(
        self, study: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        configure(study, unet=network())
        assert dtg("train", str(study), "--inline", "--quiet") == 0
        configure(study, unet=network(epochs=16))
        command = [sys.executable, "-m", "dtg_ray.cli", "train", str(study), "--inline", "--quiet", "--overwrite"]
        process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
        while not list((study / "train" / "unet").glob("*/checkpoint-0000[4-9]-*.pt")):
            assert process.poll() is None, "training was over before it could be killed"
            time.sleep(0.002)
        process.kill()
        process.wait()
        assert len(history(study, "unet")) == 3, "the old model stays until the new one is there"
        assert dtg("train", str(study), "--inline", *(["--overwrite"])) == 0
        first = capsys.readouterr().err.split("train/unet: epoch ")[1]
        assert int(first.split("/")[0]) > 4
        assert len(history(study, "unet")) == 16
        assert len({path.parent for path in (study / "train" / "unet").rglob("checkpoint-*")}) == 1

    def test_with_other_people_than_before_is_told(self, study: Path, capsys: pytest.CaptureFixture[str]) -> None:
        configure(study, unet=network())
        assert dtg("train", str(study), "--inline", "--quiet") == 0
        shutil.rmtree(study / "models")
        shutil.rmtree(study / "receipts" / "train")
        path = next((study / "receipts" / "contrasts").glob("*.parquet"))
        receipt = pq.read_table(path)
        training = set(Study(str(study)).cohort.query("split == 'train'").index)
        failed = next(subject for subject in receipt["subject"].to_pylist() if subject in training)
        now = ["failed" if subject == failed else "done" for subject in receipt["subject"].to_pylist()]
        column = receipt.schema.get_field_index("status")
        pq.write_table(receipt.set_column(column, receipt.schema.field(column), [pa.array(now)]), path)
        assert dtg("train", str(study), "--inline", "--quiet") == 1
        assert "which differs in the people it is trained on, or their files" in capsys.readouterr().err


class TestAnotherConfiguration:
    def test_refuses_to_replace_a_model_until_told(self, study: Path, capsys: pytest.CaptureFixture[str]) -> None:
        configure(study, unet=network())
        assert dtg("train", str(study), "--inline", "--quiet") == 0
        before = {path: path.read_bytes() for path in study.rglob("*") if path.is_file()}
        configure(study, unet=network(learning_rate=0.01))
        assert dtg("train", str(study), "--inline", "--quiet") == 1
        assert "models/unet: got a model there that differs in train.learning_rate (0.001 there, 0.01 asked for)" in (
            capsys.readouterr().err
        )
        configure(study, unet=network())
        assert {path: path.read_bytes() for path in study.rglob("*") if path.is_file()} == before
        configure(study, unet=network(learning_rate=0.01))
        assert dtg("train", str(study), "--inline", "--quiet", "--overwrite") == 0
        assert history(study, "unet")["learning_rate"].tolist() == [0.01] * 3

    def test_refuses_to_go_on_with_another_ones_checkpoints(
        self, study: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        configure(study, unet=network())
        assert dtg("train", str(study), "--inline", "--quiet") == 0
        shutil.rmtree(study / "models")
        configure(study, unet={**network(), "width": 2})
        assert dtg("train", str(study), "--inline", "--quiet") == 1
        assert "train/unet: got another training there, which differs in width (3 there, 2" in (capsys.readouterr().err)
        assert dtg("train", str(study), "--inline", "--quiet", "--overwrite") == 0

    def test_is_trained_anew_when_told(self, study: Path, arrays: Arrays) -> None:
        configure(study, unet=network())
        assert dtg("train", str(study), "--inline", "--quiet") == 0
        before, ended = arrays(study), history(study, "unet")["ended"].max()
        assert dtg("train", str(study), "--inline", "--quiet", "--overwrite") == 0
        assert history(study, "unet")["ended"].min() > ended
        assert arrays(study) == before

    def test_how_data_are_read_is_no_other_configuration(self, study: Path) -> None:
        configure(study, unet=network())
        assert dtg("train", str(study), "--inline", "--quiet") == 0
        configure(study, unet=network(readers=0, cache_gigabytes=1, checkpoint_minutes=7))
        assert dtg("train", str(study), "--quiet") == 0  # nothing to do


@pytest.fixture(scope="module")
def with_networks(prepared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A study with a network to start from; not to be changed."""
    root = tmp_path_factory.mktemp("pretrained") / "study"
    shutil.copytree(prepared, root)
    configure(root, unet=network(epochs=2), linear={"kind": "linear"})
    assert dtg("train", str(root), "--inline", "--quiet") == 0
    return root


class TestFinetuned:
    @pytest.fixture
    def pretrained(self, with_networks: Path, tmp_path: Path) -> Path:
        """A study with a network that also predicts contrasts which another study does not have."""
        return Path(shutil.copytree(with_networks, tmp_path / "study"))

    def test_with_a_frozen_head_it_moves_the_backbone_alone(self, pretrained: Path) -> None:
        assert self.finetune(pretrained, "unet", "frozen") == 0
        before, after = weights(pretrained, "unet"), weights(pretrained, "unet-frozen")
        head = {name for name in before if name.startswith("network.out_block.1.")}
        assert head == {"network.out_block.1.weight", "network.out_block.1.bias"}
        for name in head:
            np.testing.assert_array_equal(after[name], before[name])
        moved = [name for name in before if name.endswith("0.weight") and name not in head]
        assert moved
        assert all(np.any(after[name] != before[name]) for name in moved)

    def test_with_a_new_head_it_predicts_the_contrasts_of_the_study(self, pretrained: Path) -> None:
        assert self.finetune(pretrained, "unet", "new", "--name", "mine", seed=5) == 0
        before, after = weights(pretrained, "unet"), weights(pretrained, "mine")
        assert np.abs(after["network.out_block.1.weight"] - before["network.out_block.1.weight"]).max() > 0.05
        close = np.abs(after["network.in_block.conv.0.weight"] - before["network.in_block.conv.0.weight"]).max()
        assert 0 < close < 0.05
        assert load_model(Study(str(pretrained)), "mine").contrasts == Study(str(pretrained)).config.contrasts

    def test_from_a_model_of_another_study_with_other_contrasts(
        self, tools: Tools, pretrained: Path, tmp_path: Path
    ) -> None:
        other = tmp_path / "other"
        settings = {**yaml.safe_load(tools.settings.read_text()), "contrasts": ["MOTOR_LH"]}
        settings["models"] = {"linear": {"kind": "linear"}}
        path = tmp_path / "other.yaml"
        path.write_text(yaml.safe_dump(settings))
        source = ("--bids", str(tools.data), "--rois", str(tools.rois), "--config", str(path))
        assert dtg("init", str(other), *source) == 0
        for stage in ("connectomes", "contrasts"):
            assert dtg(stage, str(other), "--inline", "--quiet") == 0
        for _ in range(2):
            assert self.finetune(other, f"{pretrained}/models/unet", "frozen", "--name", "unet-frozen") == 0
        study = Study(str(other))
        assert list(study.config.models) == ["linear", "study-unet", "unet-frozen"]
        assert study.config.contrasts_of("unet-frozen") == Study(str(pretrained)).config.contrasts
        assert [column for column in history(other, "unet-frozen") if column.startswith("validation_r/")] == [
            "validation_r/MOTOR_LH"
        ]
        for stage in ("synthesize", "evaluate"):
            assert dtg(stage, str(other), "--model", "unet-frozen", "--inline", "--quiet") == 0
        assert pd.read_parquet(other / "evaluation/unet-frozen/contrasts.parquet")["contrast"].tolist() == ["MOTOR_LH"]
        assert study.synthetic("unet-frozen").shape[0] == 3
        assert study.map(study.cohort.index[0], "EMOTION_FACES", "unet-frozen").shape == study.grid.shape

    def test_compares_contrasts_by_name_whatever_their_order(self, pretrained: Path, tmp_path: Path) -> None:
        other = tmp_path / "other"
        shutil.copytree(pretrained, other, ignore=shutil.ignore_patterns("train", "models", "contrasts*"))
        document = yaml.safe_load((other / "study.yaml").read_text())
        document["contrasts"] = document["contrasts"][::-1]
        (other / "study.yaml").write_text(yaml.safe_dump(document, sort_keys=False))
        configure(other, linear={"kind": "linear"})
        assert dtg("contrasts", str(other), "--inline", "--quiet") == 0
        losses = {}
        for root, source in ((pretrained, "unet"), (other, f"{pretrained}/models/unet")):
            assert self.finetune(root, source, "frozen", "--name", "tuned") == 0
            losses[root] = history(root, "tuned")["loss"]
        np.testing.assert_allclose(losses[pretrained], losses[other], rtol=1e-4)

    def test_again_goes_on_or_has_nothing_to_do(self, pretrained: Path, capsys: pytest.CaptureFixture[str]) -> None:
        assert self.finetune(pretrained, "unet", "new") == 0
        capsys.readouterr()
        assert self.finetune(pretrained, "unet", "new") == 0
        assert "train/unet-new: nothing to do" in capsys.readouterr().err

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            (("--from", "linear", "--head", "new"), "expected a network that stands before it"),
            (("--from", "unet", "--head", "new", "--name", "linear"), "got the name 'linear', which a model of this"),
            (("--from", "unet", "--head", "new", "--train", "epochs"), "got --train epochs, expected NAME=VALUE"),
            (("--from", "unet", "--head", "new", "--train", "epoch=3"), "models.unet-new.train.epoch: Extra inputs"),
            (("--from", "nowhere/models/unet", "--head", "new"), "nowhere/models/unet/model.json: got no such file"),
        ],
    )
    def test_refuses(
        self, pretrained: Path, arguments: tuple[str, ...], message: str, capsys: pytest.CaptureFixture[str]
    ) -> None:
        before = (pretrained / "study.yaml").read_bytes()
        assert dtg("finetune", str(pretrained), *arguments, "--inline") in {1, 2}
        assert message in capsys.readouterr().err
        assert (pretrained / "study.yaml").read_bytes() == before

    def test_with_other_settings_changes_nothing(self, pretrained: Path, capsys: pytest.CaptureFixture[str]) -> None:
        assert self.finetune(pretrained, "unet", "new") == 0
        before = {path: path.read_bytes() for path in pretrained.rglob("*") if path.is_file()}
        assert self.finetune(pretrained, "unet", "new", seed=1) == 2
        assert "differs in train.seed (0 there, 1 asked for)" in capsys.readouterr().err
        assert {path: path.read_bytes() for path in pretrained.rglob("*") if path.is_file()} == before
        assert self.finetune(pretrained, "unet", "new", "--overwrite", seed=1) == 0

    def test_sources_of_the_same_name_are_not_taken_for_each_other(
        self, pretrained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        for place in ("x", "y"):
            shutil.copytree(pretrained, tmp_path / place / "study")
        assert self.finetune(pretrained, f"{tmp_path}/x/study/models/unet", "new") == 0
        assert self.finetune(pretrained, f"{tmp_path}/y/study/models/unet", "new", "--name", "b") == 2
        assert "which would be called 'study-unet' as another model of this study" in capsys.readouterr().err
        assert "b" not in Study(str(pretrained)).config.models

    @staticmethod
    def finetune(root: Path, source: str, head: str, *more: str, seed: int = 0) -> int:
        train = ("epochs=2", "batch_size=4", "cpus_per_worker=1", f"seed={seed}")
        return dtg("finetune", str(root), "--from", source, "--head", head, *more, "--train", *train, "--inline")


@needs_published
class TestImported:
    CONFIG: ClassVar[dict[str, Any]] = {
        "architecture": "attentionunet",
        "max_depth": 1,
        "n_conv_layers": 1,
        "fdim": 4,
        "n_channels": 5,
        "n_out_channels": 2,
        "resolution": None,
        "contrasts": ["MOTOR_LH", "GAMBLING_REWARD"],
    }

    @pytest.fixture
    def checkpoint(self, tmp_path: Path) -> Path:
        """A Lightning checkpoint of the published shape, for as many ROIs as the study has."""
        torch.manual_seed(1)
        built = build({"architecture": "attention_unet", "n_rois": 5, "n_contrasts": 2, "width": 4})
        path = tmp_path / "deeptaskgen.ckpt"
        torch.save({"epoch": 3, "state_dict": built.state_dict(), "optimizer_states": []}, path)
        return path

    def run(self, study: Path, checkpoint: Path, *more: str, **changes: Any) -> int:
        config = study.parent / "config.yaml"
        config.write_text(yaml.safe_dump({**self.CONFIG, **changes}))
        return dtg("import-model", str(study), str(checkpoint), "--config", str(config), *more)

    def test_predicts_as_the_published_network_on_grey_matter(self, study: Path, checkpoint: Path) -> None:
        from dtg_ray.models.published import load_published

        assert self.run(study, checkpoint, "--name", "published") == 0
        assert dtg("train", str(study), "--model", "published") == 0
        opened = Study(str(study))
        model, grid = load_model(opened, "published"), opened.grid
        names = ("architecture", "max_depth", "n_conv_layers", "fdim", "n_channels", "n_out_channels")
        theirs = load_published(checkpoint, **{name: self.CONFIG[name] for name in names})
        connectome = np.random.default_rng(0).standard_normal((1, 5, grid.n_voxels)).astype(np.float32)
        masked = np.stack([grid.volume(row * opened.grey_matter) for row in connectome[0]])
        with torch.inference_mode():
            box = theirs(torch.from_numpy(masked[None].astype(np.float32)))[0].numpy()
        np.testing.assert_allclose(model.predict(connectome)[0, 1], grid.vectorize(box[1]), atol=1e-5)
        assert json.loads((study / "models/published/model.json").read_text())["provenance"]["source"] == str(
            checkpoint
        )

    def test_its_maps_are_synthesized_and_compared_where_the_study_has_them(
        self, study: Path, checkpoint: Path
    ) -> None:
        assert self.run(study, checkpoint) == 0
        assert dtg("train", str(study), "--model", "imported") == 0
        for stage in ("synthesize", "evaluate"):
            assert dtg(stage, str(study), "--model", "imported", "--inline", "--quiet") == 0
        assert list(Study(str(study)).synthetic("imported")["contrast"].values) == ["MOTOR_LH", "GAMBLING_REWARD"]
        assert pd.read_parquet(study / "evaluation/imported/contrasts.parquet")["contrast"].tolist() == ["MOTOR_LH"]

    def test_is_where_a_fine_tuning_starts(self, study: Path, checkpoint: Path) -> None:
        assert self.run(study, checkpoint, "--name", "published") == 0
        train = ("epochs=1", "batch_size=4", "cpus_per_worker=1")
        arguments = ("--from", "published", "--head", "frozen", "--inline", "--train", *train)
        assert dtg("finetune", str(study), *arguments) == 0
        tuned = load_model(Study(str(study)), "published-frozen")
        np.testing.assert_array_equal(tuned.input_mask, Study(str(study)).grey_matter)
        assert tuned.contrasts == ("MOTOR_LH", "GAMBLING_REWARD")

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"n_channels": 50}, "got a network for 50 ROIs, expected 5"),
            ({"resolution": 2}, "got a network trained on the MNI152 grid of 2 mm, expected the study's, of 19x24x20"),
            ({"contrasts": ["A"]}, "got 1 names of contrasts for 2 outputs"),
            ({"fdim": 8}, "weights that do not fit the network"),
            ({"architecture": "vae"}, "got the published architecture 'vae'"),
            ({"depth": 2}, "depth: Extra inputs are not permitted"),
            ({"activation": "tanh"}, "got the published activation 'tanh'"),
        ],
    )
    def test_refuses_what_does_not_fit(
        self, study: Path, checkpoint: Path, changes: dict, message: str, capsys: pytest.CaptureFixture[str]
    ) -> None:
        before = (study / "study.yaml").read_bytes()
        assert self.run(study, checkpoint, **changes) in {1, 2}
        assert message in capsys.readouterr().err
        assert (study / "study.yaml").read_bytes() == before
        assert not (study / "models").exists()

    def test_refuses_pickled_code(self, study: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        class Bomb:
            def __reduce__(self) -> tuple:
                return os.mkdir, (str(tmp_path / "exploded"),)

        path = tmp_path / "bomb.ckpt"
        torch.save({"state_dict": {}, "hyper_parameters": Bomb()}, path)
        assert self.run(study, path) == 1
        assert "bomb.ckpt: got a file with pickled code" in capsys.readouterr().err
        assert not (tmp_path / "exploded").exists()

    def test_refuses_a_model_of_other_rois(
        self, study: Path, finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        foreign = tmp_path / "models" / "unet"
        shutil.copytree(finished / "models" / "unet", foreign)
        description = json.loads((foreign / "model.json").read_text())
        description["provenance"]["rois"] = "0" * 16
        (foreign / "model.json").write_text(json.dumps(description))
        assert dtg("import-model", str(study), str(foreign), "--name", "foreign") == 1
        assert "got a model for ROI maps 0000000000000000, expected those of the study" in capsys.readouterr().err
        assert dtg("import-model", str(study), str(finished / "models" / "unet"), "--name", "foreign") == 0
        assert dtg("import-model", str(study), str(finished / "models" / "unet"), "--name", "foreign") == 2
        assert dtg("import-model", str(study), str(finished / "models" / "unet"), "--name", "unet") == 2

    def test_reads_what_the_published_code_wrote(self, study: Path) -> None:
        path = PUBLISHED / "model_unet_depth1_conv1.ckpt"
        changes = {"architecture": "unet", "n_channels": 6, "n_out_channels": 5, "contrasts": list("ABCDE")}
        assert self.run(study, path, **changes) == 1  # the study has 5 ROIs
        document = yaml.safe_load((study / "study.yaml").read_text())
        assert "imported" not in document["models"]


class TestTooFew:
    def test_nobody_and_one_person_to_train_on(
        self, tools: Tools, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        data, root = tmp_path / "data", tmp_path / "study"
        shutil.copytree(tools.data, data)
        tools.init(str(root), data=data)
        cohort = Study(str(root)).cohort
        training = list(cohort.index[cohort["split"] == "train"])
        for subject in training[1:]:
            (file,) = (data / subject / "func").glob("*task-rest*_bold.nii.gz")
            file.write_bytes(b"not an image")
        for stage in ("connectomes", "contrasts"):
            dtg(stage, str(root), "--inline", "--quiet")
        assert dtg("train", str(root), "--model", "unet", "--inline") == 1
        assert "got 1 subjects to train on with a connectome and a contrast map, expected at least 2" in (
            capsys.readouterr().err
        )
        (file,) = (data / training[0] / "func").glob("*task-rest*_bold.nii.gz")
        file.write_bytes(b"not an image")
        shutil.rmtree(root / "receipts" / "connectomes")
        dtg("connectomes", str(root), "--inline", "--quiet")
        assert dtg("train", str(root), "--model", "unet", "--inline") == 1
        assert "got 0 subjects to train on" in capsys.readouterr().err

    def test_fewer_than_two_for_a_worker(self, study: Path, capsys: pytest.CaptureFixture[str]) -> None:
        configure(study, unet=network(workers=8, batch_size=16))
        assert dtg("train", str(study)) == 1
        assert "expected at least 16: two for each of 8 workers" in capsys.readouterr().err


class TestTransferCurve:
    def test_is_a_table_and_a_plot_that_survive_a_kill(self, study: Path, capsys: pytest.CaptureFixture[str]) -> None:
        tuned = {"kind": "finetuned", "start": "unet", "head": "new", "train": QUICK}
        configure(study, unet=network(), tuned=tuned)
        assert dtg("train", str(study), "--model", "unet", "--inline", "--quiet") == 0
        models, sizes = ("--finetuned", "tuned", "--scratch", "unet"), ("--sizes", "2", "1%", "50%")
        arguments = [*models, "--inline", "--seeds", "2", *sizes]
        assert dtg("transfer-curve", str(study), *arguments) == 0
        table = pd.read_parquet(study / "transfer/tuned-unet.parquet")
        assert len(table) == 2 * 2 * 2
        assert sorted(table["subjects"].unique()) == [2, 5]
        assert set(table["steps"]) == {6}  # as many as all of the training subjects give: 10 in batches of 4
        assert (study / "transfer/tuned-unet.png").read_bytes().startswith(b"\x89PNG")
        assert "finetuned r" in capsys.readouterr().out
        assert not list((study / "transfer").rglob("checkpoint-*"))
        (study / "transfer/tuned-unet.parquet").unlink()
        receipts = sorted((study / "receipts/transfer/tuned-unet").glob("*.parquet"))
        receipts[0].unlink()
        others = {path: path.read_bytes() for path in receipts[1:]}
        assert dtg("transfer-curve", str(study), *arguments) == 0
        assert {path: path.read_bytes() for path in receipts[1:]} == others
        pd.testing.assert_frame_equal(pd.read_parquet(study / "transfer/tuned-unet.parquet"), table)

    def test_refuses_other_kinds_and_sizes(self, study: Path, capsys: pytest.CaptureFixture[str]) -> None:
        tuned = {"kind": "finetuned", "start": "unet", "head": "new", "train": QUICK}
        configure(study, unet=network(), tuned=tuned)
        for arguments, message in (
            (("--finetuned", "unet", "--scratch", "unet"), "got unet, a network model, expected one of kind finetuned"),
            (("--finetuned", "tuned", "--scratch", "other"), "got model 'other', expected one of unet, tuned"),
            (("--finetuned", "tuned", "--scratch", "unet"), "train/unet"),
        ):
            assert dtg("transfer-curve", str(study), *arguments) in {1, 2}
            assert message in capsys.readouterr().err
