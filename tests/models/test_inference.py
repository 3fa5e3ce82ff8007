"""A network made fast predicts what it predicted before: every architecture, on a CPU and on a GPU if there is one."""

import copy
import logging

import numpy as np
import pytest
import torch
from torch import nn

from dtg_ray.errors import ModelError
from dtg_ray.imaging.grid import Grid
from dtg_ray.models import build, fast_layers, inference
from dtg_ray.models.artifact import NetworkModel, dump
from dtg_ray.models.fast_layers import SplitTransposed, TiledConv, grow, tile_convolutions, tiles_over

CONTRASTS = ("faces-shapes", "2back", "story-math")
CONFIG = {"n_rois": 3, "n_contrasts": 3, "width": 4}
ARCHITECTURES = ["attention_unet", "unet", "attention_unet_minimal", "unet_minimal", "resunet", "vnet"]
KINDS = [
    *({"architecture": name, "convs_per_block": convs} for name in ARCHITECTURES for convs in (1, 2)),
    {"architecture": "attention_unet", "depth": 2, "activation": "elu"},
    {"architecture": "vnet", "n_rois": 2, "activation": "leaky_relu"},
    {"architecture": "unet", "norm": "instance"},
    {"architecture": "resunet", "norm": "instance"},
    {"architecture": "unet", "norm": "none"},
    {"architecture": "resunet", "norm": "none"},
]


@pytest.fixture(scope="module")
def grid():
    """A ball, off the centre of a box of odd and even edges."""
    x, y, z = np.indices((21, 26, 17))
    return Grid(np.diag([-2.0, 2, 2, 1]), ((x - 11) / 9) ** 2 + ((y - 12) / 11) ** 2 + ((z - 9) / 8) ** 2 < 1)


@pytest.fixture(autouse=True)
def small_tiles(monkeypatch):
    monkeypatch.setattr(fast_layers, "TILE", (5, 9))


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    """Threads that wait for each other in networks this small take most of the time."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def make(grid, kind, input_mask=None):
    """A model whose batch norms are not the identity, but fit: else maps would hardly differ from their mean."""
    config = CONFIG | kind
    torch.manual_seed(0)
    network = build(config)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm3d):
            module.momentum = None  # the plain mean over what it saw
            module.weight.data.uniform_(0.5, 1.5)
            module.bias.data.uniform_(-0.5, 0.5)
    boxes = grid.volume(connectomes(grid, config["n_rois"]).astype(np.float32))
    with torch.no_grad():
        network(torch.from_numpy(boxes))
    return NetworkModel(network, config, CONTRASTS, grid, input_mask)


def connectomes(grid, rois=3, people=3):
    return np.random.default_rng(1).standard_normal((people, rois, grid.n_voxels)).astype(np.float16)


def layers(model, kind):
    return [module for module in model._inference.network.modules() if isinstance(module, kind)]


def smallest_r(maps, expected):
    pairs = zip(maps.reshape(-1, maps.shape[-1]), expected.reshape(-1, maps.shape[-1]), strict=True)
    return min(np.corrcoef(a.astype(float), b)[0, 1] for a, b in pairs)


@pytest.fixture(params=KINDS, ids=lambda kind: "-".join(map(str, kind.values())))
def kind(request):
    return request.param


class TestSameMaps:
    def test_float32_changes_rounding_only(self, grid, kind):
        model, rest = make(grid, kind), connectomes(grid, kind.get("n_rois", 3))
        expected, files = model.predict(rest), dump(model)
        model.prepare_for_inference()
        np.testing.assert_allclose(model.predict(rest), expected, rtol=1e-5, atol=1e-5)
        assert dump(model) == files

    def test_bfloat16_correlates_and_really_is_bfloat16(self, grid, kind):
        model, rest = make(grid, kind), connectomes(grid, kind.get("n_rois", 3))
        expected = model.predict(rest)
        model.prepare_for_inference(dtype="bfloat16")
        maps = model.predict(rest)
        assert maps.dtype == np.float32
        assert smallest_r(maps, expected) > 0.999
        assert np.abs(maps - expected).max() > 1e-4

    @pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
    def test_voxels_outside_the_input_mask_do_not_count(self, grid, dtype):
        mask = np.arange(grid.n_voxels) % 3 > 0
        model, rest = make(grid, {"architecture": "unet"}, mask), connectomes(grid)
        expected = model.predict(rest)
        model.prepare_for_inference(dtype=dtype)
        changed = np.where(mask, rest, np.nan)
        np.testing.assert_array_equal(model.predict(changed), model.predict(rest))
        assert smallest_r(model.predict(changed), expected) > 0.999

    def test_a_map_does_not_depend_on_who_was_there_before_or_beside(self, grid, kind):
        model, rest = make(grid, kind), connectomes(grid, kind.get("n_rois", 3))
        model.prepare_for_inference(dtype="bfloat16")
        together = model.predict(rest)
        np.testing.assert_array_equal(model.predict(rest[2:])[0], together[2])
        np.testing.assert_array_equal(model.predict(rest), together)

    @pytest.mark.parametrize("batch", [2, 3, 8])
    def test_several_at_once(self, grid, kind, batch):
        model, rest = make(grid, kind), connectomes(grid, kind.get("n_rois", 3))
        expected = model.predict(rest)
        model.prepare_for_inference(batch=batch)
        np.testing.assert_allclose(model.predict(rest), expected, rtol=1e-5, atol=1e-5)


class TestContrasts:
    @pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
    @pytest.mark.parametrize("architecture", ARCHITECTURES)
    def test_some_are_rows_of_all(self, grid, architecture, dtype):
        model, rest = make(grid, {"architecture": architecture}), connectomes(grid)
        model.prepare_for_inference(dtype=dtype)
        everything, files = model.predict(rest), dump(model)
        model.prepare_for_inference(dtype=dtype, contrasts=["story-math", "faces-shapes"])
        np.testing.assert_allclose(model.predict(rest), everything[:, [2, 0]], atol=1e-6)
        assert model.contrasts == ("story-math", "faces-shapes")
        assert dump(model) == files
        model.prepare_for_inference(dtype=dtype)
        assert model.contrasts == CONTRASTS
        np.testing.assert_array_equal(model.predict(rest), everything)

    def test_one_that_is_not_there(self, grid):
        model = make(grid, {"architecture": "unet"})
        with pytest.raises(ModelError, match=r"got the contrasts \['gambling'\], expected some of faces-shapes, 2back"):
            model.prepare_for_inference(contrasts=("2back", "gambling"))


class TestHalfPrecision:
    @pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
    @pytest.mark.parametrize("architecture", ["unet", "vnet"])  # with and without a head of its own
    def test_nothing_becomes_infinite(self, grid, architecture, dtype):
        model, rest = make(grid, {"architecture": architecture}), connectomes(grid)
        bias = model.network.state_dict()[f"{model.network.output_layer}.bias"]
        bias.copy_(torch.tensor([1e6, -1e6, 65503.0]))
        model.prepare_for_inference(dtype=dtype)
        maps = model.predict(rest, "float16")
        assert maps.dtype == np.float16
        assert (maps[:, 0] == 65504).all()
        assert (maps[:, 1] == -65504).all()
        assert np.isfinite(maps).all()


class TestFolding:
    @pytest.mark.parametrize("architecture", ARCHITECTURES)
    @pytest.mark.parametrize("convs", [1, 3])
    def test_reaches_every_norm_that_follows_a_convolution(self, grid, architecture, convs):
        # the first norm of each of the 5 residual units follows a sum, which the shortcut sees without it
        model = make(grid, {"architecture": architecture, "convs_per_block": convs})
        assert sum(isinstance(module, nn.BatchNorm3d) for module in model.network.modules()) > 0
        model.prepare_for_inference()
        assert len(layers(model, nn.BatchNorm3d)) == (5 if architecture == "resunet" else 0)
        assert layers(model, nn.ConvTranspose3d) == []


class TestSplitTransposed:
    @pytest.mark.parametrize(("kernel", "stride", "border"), [(3, 2, 0), (3, 2, 1), (2, 2, 0), (5, 3, 1), (3, 1, 0)])
    def test_is_the_transposed_convolution(self, kernel, stride, border):
        torch.manual_seed(0)
        layer = nn.ConvTranspose3d(3, 4, kernel, stride, border).double()
        x = torch.randn(2, 3, 4, 5, 6, dtype=torch.float64)
        with torch.no_grad():
            torch.testing.assert_close(SplitTransposed(layer)(x), layer(x))


class TestTiles:
    def test_cover_the_mask_once(self, grid):
        count = np.zeros(grid.shape, dtype=int)
        for tile in tiles_over(grid.mask):
            count[tile] += 1
        assert count.max() == 1
        assert count[grid.mask].all()
        assert count.sum() < 0.8 * count.size

    def test_grow_reaches_so_many_voxels_along_every_axis(self):
        mask = np.zeros((7, 6, 5), dtype=bool)
        mask[3, 5, 0] = True
        expected = np.zeros_like(mask)
        expected[1:6, 3:, :3] = True
        np.testing.assert_array_equal(grow(mask, 2), expected)

    @pytest.mark.parametrize(
        ("kind", "count"),
        [
            ({"architecture": "attention_unet"}, 2),
            ({"architecture": "unet", "convs_per_block": 2}, 3),
            ({"architecture": "unet", "norm": "instance"}, 1),
            ({"architecture": "resunet"}, 1),
            ({"architecture": "resunet", "norm": "instance"}, 0),
        ],
    )
    def test_are_where_they_save_something(self, grid, kind, count):
        model = make(grid, kind)
        model.prepare_for_inference()
        assert len(layers(model, TiledConv)) == count

    def test_a_mask_that_fills_the_box_has_none(self, grid):
        full = Grid(grid.affine, np.ones(grid.shape, dtype=bool))
        model = make(full, {"architecture": "vnet"})
        model.prepare_for_inference()
        assert layers(model, TiledConv) == []

    def test_what_nobody_sees_is_not_worked_out(self, grid):
        network = copy.deepcopy(make(grid, {"architecture": "unet", "norm": "none"}).network)
        box = torch.from_numpy(grid.volume(connectomes(grid, people=1).astype(np.float32)))
        with torch.inference_mode():
            expected = network(box)
            tile_convolutions(network, grid.mask)
            maps = network(box)
        apart = (maps - expected).abs().amax(dim=(0, 1)).numpy() > 1e-5
        assert not apart[grid.mask].any()
        assert apart[~grid.mask].mean() > 0.3


class TestCompile:
    def test_a_compiler_that_fails_is_done_without(self, grid, monkeypatch, caplog):
        def broken(network):
            def call(boxes):
                raise RuntimeError("no C++ compiler\nin sight")

            return call

        model, rest = make(grid, {"architecture": "unet"}), connectomes(grid)
        model.prepare_for_inference()
        expected = model.predict(rest)
        monkeypatch.setattr(torch, "compile", broken)
        with caplog.at_level(logging.WARNING):
            model.prepare_for_inference(compile=True)
            np.testing.assert_array_equal(model.predict(rest), expected)
        assert caplog.messages == ["torch.compile failed (RuntimeError: no C++ compiler); predicting without it"]

    def test_what_it_makes_is_used(self, grid, monkeypatch):
        calls = []

        def traced(network):
            return lambda boxes: calls.append(len(boxes)) or network(boxes)

        monkeypatch.setattr(torch, "compile", traced)
        model, rest = make(grid, {"architecture": "unet"}), connectomes(grid)
        model.prepare_for_inference(compile=True, batch=2)
        assert calls == [2]
        model.predict(rest)
        assert calls == [2, 2, 1]


class TestMemory:
    def test_half_a_batch_where_a_whole_one_does_not_fit(self, grid, caplog):
        model, rest = make(grid, {"architecture": "unet"}), connectomes(grid, people=9)
        expected = model.predict(rest)
        model.prepare_for_inference(batch=8)
        network, seen = model._inference.network, []

        def small(boxes):
            seen.append(len(boxes))
            if len(boxes) > 2:
                raise torch.cuda.OutOfMemoryError("CUDA out of memory")
            return network(boxes)

        model._inference.network = small
        np.testing.assert_allclose(model.predict(rest), expected, rtol=1e-5, atol=1e-5)
        assert seen == [8, 4, 2, 2, 2, 2, 1]
        model.predict(rest[:2])
        assert seen[-1] == 2
        assert caplog.messages == [f"out of GPU memory: going on with {count} subjects at once" for count in (4, 2)]

    def test_too_little_for_one_is_an_error(self, grid):
        model = make(grid, {"architecture": "unet"})
        model.prepare_for_inference(batch=2)

        def never(boxes):
            raise torch.cuda.OutOfMemoryError("CUDA out of memory")

        model._inference.network = never
        with pytest.raises(torch.cuda.OutOfMemoryError):
            model.predict(connectomes(grid))

    @pytest.mark.parametrize(("gigabytes", "expected"), [(0.1, 1), (3, 2), (6, 4), (9, 4), (80, 16)])
    def test_a_batch_takes_half_of_what_is_free(self, monkeypatch, gigabytes, expected):
        # 8 of the largest activations, 64 x 77 x 93 x 79 in bfloat16, and a box, are 0.63 GB a subject
        grid = Grid(np.eye(4), np.ones((76, 93, 78), dtype=bool))
        config = {"architecture": "attention_unet", "n_rois": 50, "n_contrasts": 47}
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _device: (gigabytes * 1e9, 80e9))
        assert inference.affordable_batch(config, grid, torch.zeros(1, dtype=torch.bfloat16)) == expected

    def test_freed_memory_is_kept_where_the_c_library_can(self, monkeypatch):
        asked = []

        class Library:
            @staticmethod
            def mallopt(*arguments):
                asked.append(arguments)
                return 1

        monkeypatch.setattr(inference.ctypes, "CDLL", lambda _name: Library)
        assert inference.reuse_memory()
        assert asked == [(-4, 0), (-1, -1)]
        monkeypatch.setattr(inference.ctypes, "CDLL", lambda _name: object())
        assert not inference.reuse_memory()

    def test_network_and_box_are_made_once(self, grid):
        model, rest = make(grid, {"architecture": "unet"}), connectomes(grid)
        model.prepare_for_inference()
        model.predict(rest)
        made, boxes = model._inference, model._inference.boxes
        model.predict(rest)
        assert model._inference is made
        assert model._inference.boxes is boxes


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
class TestOnTheGPU:
    @pytest.mark.parametrize("architecture", ARCHITECTURES)
    def test_float32_is_close(self, grid, architecture):
        model, rest = make(grid, {"architecture": architecture}), connectomes(grid)
        expected = model.predict(rest)
        model.prepare_for_inference("cuda")
        np.testing.assert_allclose(model.predict(rest), expected, rtol=1e-4, atol=1e-4)

    @pytest.mark.parametrize("architecture", ARCHITECTURES)
    def test_bfloat16_correlates_and_is_the_same_each_time(self, grid, architecture):
        model, rest = make(grid, {"architecture": architecture}), connectomes(grid, people=5)
        expected = model.predict(rest)
        model.prepare_for_inference("cuda", "bfloat16", batch=2, contrasts=CONTRASTS[::-1])
        maps = model.predict(rest, "float16")
        assert smallest_r(maps, expected[:, ::-1]) > 0.999
        np.testing.assert_array_equal(model.predict(rest, "float16"), maps)
