"""The common interface: what a network sees and returns, and the way to files and back."""

import hashlib
import json

import numpy as np
import pytest
import safetensors.numpy
import torch

from dtg_ray.errors import ModelError
from dtg_ray.imaging.grid import Grid
from dtg_ray.models import build
from dtg_ray.models.artifact import NetworkModel, dump, load
from dtg_ray.models.baselines import GroupMean, Linear, Retest

CONTRASTS = ("faces-shapes", "2back")
CONFIG = {"architecture": "attention_unet", "n_rois": 3, "n_contrasts": 2, "width": 4}


@pytest.fixture(scope="module")
def grid():
    mask = np.random.default_rng(0).random((7, 9, 6)) < 0.7
    return Grid(np.diag([-2.0, 2, 2, 1]), mask)


@pytest.fixture(scope="module")
def connectomes(grid):
    return np.random.default_rng(1).standard_normal((3, 3, grid.n_voxels)).astype(np.float32)


def network(config=CONFIG):
    """A network whose batch norms are not the identity."""
    torch.manual_seed(0)
    made = build(config)
    for module in made.modules():
        if isinstance(module, torch.nn.BatchNorm3d):
            for values in (module.running_mean, module.running_var, module.weight.data, module.bias.data):
                values.uniform_(0.5, 1.5)
    return made


def unet(grid):
    return NetworkModel(network(), CONFIG, CONTRASTS, grid)


def masked_unet(grid):
    mask = np.random.default_rng(2).random(grid.n_voxels) < 0.5
    return NetworkModel(network(), CONFIG, CONTRASTS, grid, mask)


def minimal_unet(grid):
    config = CONFIG | {"architecture": "unet_minimal", "norm": "instance", "activation": "elu"}
    return NetworkModel(network(config), config, CONTRASTS, grid)


def resunet(grid):
    config = CONFIG | {"architecture": "resunet", "convs_per_block": 2}
    return NetworkModel(network(config), config, CONTRASTS, grid)


def vnet(grid):
    config = CONFIG | {"architecture": "vnet", "convs_per_block": 3}
    return NetworkModel(network(config), config, CONTRASTS, grid)


def group_mean(grid):
    maps = np.random.default_rng(3).standard_normal((2, grid.n_voxels)).astype(np.float32)
    return GroupMean(maps, CONTRASTS, grid, n_rois=3)


def linear(grid):
    rng = np.random.default_rng(4)
    # transposed: arrays that are not in C order have to survive safetensors, which writes memory as it lies
    coefficients = rng.standard_normal((4, 5, 2)).transpose(2, 1, 0)
    return Linear(coefficients, rng.integers(-1, 5, grid.n_voxels), CONTRASTS, grid)


@pytest.mark.parametrize("make", [unet, masked_unet, minimal_unet, resunet, vnet, group_mean, linear])
class TestRoundTrip:
    def test_predictions_are_the_same_bits(self, grid, connectomes, make):
        model = make(grid)
        tensors, description = dump(model)
        loaded = load(tensors, json.loads(json.dumps(description)))
        np.testing.assert_array_equal(loaded.predict(connectomes), model.predict(connectomes))
        assert type(loaded) is type(model)
        assert (loaded.kind, loaded.contrasts, loaded.n_rois) == (model.kind, CONTRASTS, 3)
        assert loaded.grid.fingerprint == grid.fingerprint
        np.testing.assert_array_equal(loaded.grid.affine, grid.affine)

    def test_the_same_model_gives_the_same_bytes(self, grid, make):
        first, again = dump(make(grid)), dump(make(grid))
        assert first == again
        assert dump(load(*first)) == first

    def test_the_description_names_everything(self, grid, make):
        tensors, description = dump(make(grid))
        assert set(description) == {
            "format_version",
            "kind",
            "config",
            "contrasts",
            "n_rois",
            "grid",
            "sha256",
        }
        assert description["contrasts"] == list(CONTRASTS)
        assert description["grid"] == {"shape": [7, 9, 6], "fingerprint": grid.fingerprint}
        assert description["sha256"] == hashlib.sha256(tensors).hexdigest()

    def test_maps_are_float32_per_subject_contrast_and_voxel(self, grid, connectomes, make):
        maps = make(grid).predict(connectomes)
        assert maps.shape == (3, 2, grid.n_voxels)
        assert maps.dtype == np.float32
        assert maps.flags.c_contiguous

    @pytest.mark.parametrize("cut", [np.s_[0], np.s_[:, :2], np.s_[..., 1:]])
    def test_an_input_that_does_not_fit(self, grid, connectomes, make, cut):
        with pytest.raises(ValueError, match=rf"got connectomes of .*expected \(N, 3, {grid.n_voxels}\)"):
            make(grid).predict(connectomes[cut])

    def test_nobody_gets_nothing(self, grid, connectomes, make):
        assert make(grid).predict(connectomes[:0]).shape == (0, 2, grid.n_voxels)


class TestRetest:
    def test_is_the_same_after_the_way_to_files_and_back(self, grid):
        files = dump(Retest(CONTRASTS, grid, n_rois=3))
        loaded = load(*files)
        assert isinstance(loaded, Retest)
        assert (loaded.kind, loaded.contrasts, loaded.n_rois) == ("retest", CONTRASTS, 3)
        assert loaded.grid.fingerprint == grid.fingerprint
        assert dump(loaded) == files

    def test_predicts_nothing(self, grid, connectomes):
        with pytest.raises(ModelError, match="the maps of a second visit are read, not predicted"):
            Retest(CONTRASTS, grid, n_rois=3).predict(connectomes)


class TestNetworkModel:
    def test_the_network_sees_the_box_and_its_maps_are_masked(self, grid, connectomes):
        made = network()
        maps = NetworkModel(made, CONFIG, CONTRASTS, grid).predict(connectomes)
        with torch.inference_mode():
            boxes = made.eval()(torch.from_numpy(grid.volume(connectomes))).numpy()
        np.testing.assert_allclose(maps, grid.vectorize(boxes), atol=1e-6)

    def test_voxels_outside_the_input_mask_do_not_count(self, grid, connectomes):
        mask = np.arange(grid.n_voxels) % 3 > 0
        model = NetworkModel(network(), CONFIG, CONTRASTS, grid, mask)
        changed = connectomes + 100 * ~mask
        np.testing.assert_array_equal(model.predict(changed), model.predict(connectomes))
        unmasked = NetworkModel(network(), CONFIG, CONTRASTS, grid)
        np.testing.assert_array_equal(unmasked.predict(connectomes * mask), model.predict(connectomes))
        assert not np.array_equal(unmasked.predict(connectomes), model.predict(connectomes))

    def test_a_map_does_not_depend_on_the_batch(self, grid, connectomes):
        model = NetworkModel(network(), CONFIG, CONTRASTS, grid)
        np.testing.assert_array_equal(model.predict(connectomes)[2], model.predict(connectomes[2:])[0])

    def test_half_precision_connectomes_and_read_only_arrays_are_fine(self, grid, connectomes):
        half = connectomes.astype(np.float16)
        half.flags.writeable = False
        model = NetworkModel(network(), CONFIG, CONTRASTS, grid)
        np.testing.assert_array_equal(model.predict(half), model.predict(half.astype(np.float32)))

    def test_further_training_does_not_reach_it(self, grid, connectomes):
        made = network()
        model = NetworkModel(made, CONFIG, CONTRASTS, grid)
        before = model.predict(connectomes)
        assert made.training
        with torch.no_grad():
            made.out_block[1].bias += 1
        np.testing.assert_array_equal(model.predict(connectomes), before)

    def test_contrasts_and_mask_have_to_fit(self, grid):
        with pytest.raises(ModelError, match="got 1 contrasts, expected 2"):
            NetworkModel(network(), CONFIG, ("faces",), grid)
        with pytest.raises(ModelError, match=rf"got an input mask of shape \(4,\), expected \({grid.n_voxels},\)"):
            NetworkModel(network(), CONFIG, CONTRASTS, grid, np.ones(4, dtype=bool))


class TestSelect:
    @pytest.mark.parametrize("make", [unet, masked_unet, minimal_unet, resunet, vnet, group_mean, linear])
    def test_predicts_these_contrasts_in_this_order(self, grid, connectomes, make):
        model = make(grid)
        expected, files = model.predict(connectomes), dump(model)
        turned, one = model.select(["2back", "faces-shapes"]), model.select(("2back",))
        assert (turned.contrasts, one.contrasts, model.contrasts) == (CONTRASTS[::-1], ("2back",), CONTRASTS)
        np.testing.assert_allclose(turned.predict(connectomes), expected[:, ::-1], atol=1e-6)
        np.testing.assert_allclose(one.predict(connectomes), expected[:, 1:], atol=1e-6)
        assert dump(model) == files

    @pytest.mark.parametrize("make", [unet, vnet, group_mean, linear])
    def test_is_a_model_of_its_own(self, grid, connectomes, make):
        chosen = make(grid).select(["2back"])
        loaded = load(*dump(chosen))
        assert loaded.contrasts == ("2back",)
        np.testing.assert_array_equal(loaded.predict(connectomes), chosen.predict(connectomes))

    def test_of_second_visits(self, grid):
        assert Retest(CONTRASTS, grid, 3).select(["2back"]).contrasts == ("2back",)

    @pytest.mark.parametrize("make", [unet, group_mean, linear, lambda grid: Retest(CONTRASTS, grid, 3)])
    @pytest.mark.parametrize(("names", "got"), [(["2back", "gambling"], "'gambling'"), ([], "")])
    def test_a_contrast_it_does_not_have(self, grid, make, names, got):
        with pytest.raises(ModelError, match=rf"got the contrasts \[{got}\], expected some of faces-shapes, 2back"):
            make(grid).select(names)


class TestHalfPrecision:
    @pytest.mark.parametrize("make", [unet, vnet, group_mean, linear])
    def test_maps_as_they_are_stored(self, grid, connectomes, make):
        model = make(grid)
        maps = model.predict(connectomes, "float16")
        assert maps.dtype == np.float16
        np.testing.assert_array_equal(maps, model.predict(connectomes).astype(np.float16))

    def test_nothing_becomes_infinite(self, grid, connectomes):
        maps = group_mean(grid).maps * 1e5
        maps[0, :3] = [np.inf, -np.inf, np.nan]
        model = GroupMean(maps, CONTRASTS, grid, n_rois=3)
        stored = model.predict(connectomes[:1], "float16")[0]
        assert (stored.max(where=~np.isnan(stored), initial=0), stored[0, 1]) == (65504, -65504)
        assert np.flatnonzero(np.isnan(stored)).tolist() == [2]
        assert np.isfinite(linear(grid).predict(1e6 * connectomes, "float16")).all()


class TestRefused:
    @pytest.fixture
    def files(self, grid):
        return dump(unet(grid))

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"format_version": 2}, "got a model of format version 2, expected 1"),
            ({"format_version": None}, "got a model of format version None, expected 1"),
            ({"kind": "oracle"}, "got a model of kind 'oracle', expected one of network, group_mean, linear, retest"),
            ({"sha256": "0" * 64}, "got tensors with sha256 [0-9a-f]{64}, expected 0{64}"),
            ({"grid": {"shape": [7, 9, 6], "fingerprint": "another"}}, "expected another"),
            ({"config": CONFIG | {"width": 8}}, "weights that do not fit the network"),
            ({"config": CONFIG | {"wings": 2}}, "unknown keys"),
            ({"contrasts": ["faces"]}, "got 1 contrasts, expected 2"),
        ],
    )
    def test_description(self, files, change, message):
        tensors, description = files
        with pytest.raises(ModelError, match=message):
            load(tensors, description | change)

    def test_one_flipped_bit(self, files):
        tensors, description = files
        damaged = bytearray(tensors)
        damaged[-1] ^= 1
        with pytest.raises(ModelError, match="got tensors with sha256"):
            load(bytes(damaged), description)

    def test_a_key_that_is_missing_is_named(self, files):
        tensors, description = files
        del description["contrasts"]
        with pytest.raises(ModelError, match="without contrasts"):
            load(tensors, description)

    def test_tensors_that_are_missing_are_named(self, files):
        tensors, description = files
        arrays = safetensors.numpy.load(tensors)
        del arrays["grid.affine"]
        tensors = safetensors.numpy.save(arrays)
        with pytest.raises(ModelError, match=r"without the tensor 'grid\.affine'"):
            load(tensors, description | {"sha256": hashlib.sha256(tensors).hexdigest()})

    def test_something_that_is_no_model_cannot_be_dumped(self):
        class Oracle:
            pass

        with pytest.raises(ModelError, match="got a Oracle, expected a NetworkModel, GroupMean, Linear or Retest"):
            dump(Oracle())
