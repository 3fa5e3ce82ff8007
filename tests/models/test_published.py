"""Checkpoints of the published code: agreement of the networks, and files that must be refused."""

import json

import numpy as np
import pytest
import torch

from dtg_ray.errors import ModelError
from dtg_ray.models import build
from dtg_ray.models.published import ARCHITECTURES, load_published, published_config
from reference import PUBLISHED, needs_published

SETTINGS = {"max_depth": 2, "n_conv_layers": 1, "fdim": 4, "n_channels": 3, "n_out_channels": 2}
MODELS = json.loads((PUBLISHED / "models.json").read_text()) if PUBLISHED.is_dir() else []


@needs_published
@pytest.mark.parametrize("settings", MODELS, ids=[model["file"] for model in MODELS])
def test_published_networks(settings):
    name, options = settings["file"], {key: settings[key] for key in settings if key != "file"}
    network = load_published(PUBLISHED / f"{name}.ckpt", **options)
    assert not network.training
    with np.load(PUBLISHED / f"{name}.npz") as file, torch.inference_mode():
        y = network(torch.from_numpy(file["x"])).numpy()
        np.testing.assert_allclose(y, file["y"], atol=1e-5)


@needs_published
def test_all_architectures_are_among_the_published():
    # the published code of the other two does not run: see test_published_residual.py
    assert {model["architecture"] for model in MODELS} == set(ARCHITECTURES) - {"resunet", "vnet"}


@pytest.fixture
def checkpoint(tmp_path):
    """Write an object as a checkpoint, return the path."""

    def write(content):
        path = tmp_path / "model.ckpt"
        torch.save(content, path)
        return path

    return write


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_every_architecture_comes_back_as_it_was_saved(checkpoint, architecture):
    network = build(published_config(architecture=architecture, **SETTINGS)).eval()
    path = checkpoint({"epoch": 3, "state_dict": network.state_dict(), "optimizer_states": []})
    x = torch.randn(1, 3, 9, 8, 10)
    with torch.inference_mode():
        loaded = load_published(path, architecture=architecture, **SETTINGS)(x)
        torch.testing.assert_close(loaded, network(x), rtol=0, atol=0)


class Bomb:
    """Runs a command when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return type(self.path).touch, (self.path,)


class TestRefused:
    def refuse(self, path, message):
        with pytest.raises(ModelError, match=message) as caught:
            load_published(path, architecture="unet", **SETTINGS)
        return caught.value

    def test_pickled_code_is_not_run(self, checkpoint, tmp_path):
        path = checkpoint({"state_dict": {}, "callbacks": Bomb(tmp_path / "exploded")})
        error = self.refuse(path, "model.ckpt: got a file with pickled code")
        assert not (tmp_path / "exploded").exists()
        assert "torch.save" in error.hint
        torch.load(path, weights_only=False)
        assert (tmp_path / "exploded").exists()  # the bomb is live

    def test_missing_file(self, tmp_path):
        self.refuse(tmp_path / "none.ckpt", "none.ckpt: got no such file")

    @pytest.mark.parametrize("content", [b"", b"not a checkpoint", b"PK\x03\x04 torn", bytes(range(256))])
    def test_file_of_something_else(self, tmp_path, content):
        (tmp_path / "model.ckpt").write_bytes(content)
        self.refuse(tmp_path / "model.ckpt", "model.ckpt: got a file")

    def test_truncated_file(self, checkpoint):
        path = checkpoint({"state_dict": build(published_config(architecture="unet", **SETTINGS)).state_dict()})
        path.write_bytes(path.read_bytes()[:-500])
        self.refuse(path, "got a file that cannot be read")

    @pytest.mark.parametrize("content", [{"weights": {}}, [1, 2], {"state_dict": None}, torch.zeros(3)])
    def test_no_state_dict(self, checkpoint, content):
        self.refuse(checkpoint(content), "expected a Lightning checkpoint with a 'state_dict'")

    def test_other_settings(self, checkpoint):
        network = build(published_config(architecture="unet", **SETTINGS | {"fdim": 8}))
        self.refuse(checkpoint({"state_dict": network.state_dict()}), "weights that do not fit the network")

    def test_missing_weights(self, checkpoint):
        state = build(published_config(architecture="unet", **SETTINGS)).state_dict()
        del state["in_block.conv.0.bias"]
        self.refuse(
            checkpoint({"state_dict": state}),
            r"got 1 weights .*in_block.conv.0.bias of shape missing, expected \(4,\)",
        )

    def test_more_weights_than_the_network_has(self, checkpoint):
        state = build(published_config(architecture="unet", **SETTINGS)).state_dict()
        self.refuse(checkpoint({"state_dict": state | {"loss": torch.zeros(1)}}), "expected no such weights")

    def test_weights_that_are_no_tensors(self, checkpoint):
        self.refuse(checkpoint({"state_dict": {"in_block.conv.0.bias": "text"}}), "do not fit")

    def test_unknown_architecture(self):
        with pytest.raises(ModelError, match="got the published architecture 'vae', expected one of attentionunet,"):
            load_published("model.ckpt", architecture="vae", **SETTINGS)

    @pytest.mark.parametrize("levels", [1, 0, -1])
    def test_vnet_without_a_second_level(self, levels):
        with pytest.raises(ModelError, match=f"got max_depth {levels}, expected at least 2 levels"):
            load_published("model.ckpt", architecture="vnet", **SETTINGS | {"max_depth": levels})
