"""U-Nets: sizes, settings, and each building block against its definition."""

import subprocess
import sys

import pytest
import torch
from torch import nn

from dtg_ray.errors import ModelError
from dtg_ray.models import build, complete_config
from dtg_ray.models.unet import AttentionGate, load_weights

UNETS = ("attention_unet", "unet", "attention_unet_minimal", "unet_minimal")
SMALL = {"architecture": "attention_unet", "n_rois": 3, "n_contrasts": 2, "width": 4}


def count(network):
    return sum(parameter.numel() for parameter in network.parameters())


def expected_count(config):
    """Parameters of an architecture, counted from its description."""
    convs, width, depth = config["convs_per_block"], config["width"], config["depth"]
    minimal, attention = "minimal" in config["architecture"], "attention" in config["architecture"]

    def block(first, last):
        return sum(27 * c * last + last + 2 * last for c in [first, *[last] * (convs - 1)])

    features = [width * 2**level for level in range(depth + 1)]
    total = block(config["n_rois"], width) + width * config["n_contrasts"] + config["n_contrasts"]
    total += sum(block(f // 2, f) for f in features[1:]) + block(features[-1], 2 * features[-1])
    for f in features:
        carried = 2 * f if minimal else f
        total += block(carried + f, f)
        total += 0 if minimal else 27 * 2 * f * f + f
        total += (carried * f + f) + (f * f + f) + (f + 1) if attention else 0
    return total


class TestBuild:
    def test_the_published_network_has_its_3450865_parameters(self):
        assert count(build({"architecture": "attention_unet", "n_rois": 50, "n_contrasts": 47})) == 3_450_865

    @pytest.mark.parametrize("architecture", UNETS)
    @pytest.mark.parametrize(("depth", "convs"), [(0, 1), (1, 2), (2, 1), (3, 3)])
    def test_parameters_are_those_of_the_description(self, architecture, depth, convs):
        config = SMALL | {
            "architecture": architecture,
            "depth": depth,
            "convs_per_block": convs,
            "norm": "batch",
        }
        assert count(build(config)) == expected_count(config)

    def test_defaults_are_filled_in(self):
        complete = complete_config({"architecture": "unet", "n_rois": 50, "n_contrasts": 47})
        assert complete == {
            "architecture": "unet",
            "n_rois": 50,
            "n_contrasts": 47,
            "depth": 1,
            "width": 64,
            "convs_per_block": 1,
            "activation": "relu",
            "norm": "batch",
        }

    @pytest.mark.parametrize(
        ("norm", "layer"), [("batch", nn.BatchNorm3d), ("instance", nn.InstanceNorm3d), ("none", nn.ReLU)]
    )
    def test_norm_follows_every_convolution_of_a_block(self, norm, layer):
        network = build(SMALL | {"norm": norm, "convs_per_block": 2})
        assert isinstance(network.in_block.conv[1], layer)
        assert torch.isfinite(network(torch.randn(2, 3, 9, 8, 9))).all()

    @pytest.mark.parametrize(("activation", "at_minus_one"), [("relu", 0), ("leaky_relu", -0.01), ("elu", -0.632121)])
    def test_activation_ends_every_block(self, activation, at_minus_one):
        last = build(SMALL | {"activation": activation}).bottleneck.conv[-1]
        assert last(torch.tensor([-1.0, 2.0])).tolist() == pytest.approx([at_minus_one, 2])


class TestErrors:
    @pytest.mark.parametrize(
        ("change", "message"),
        [
            (
                {"architecture": "transformer"},
                "got architecture 'transformer', expected one of attention_unet, unet, .*, resunet, vnet",
            ),
            ({"activation": "gelu"}, "got activation 'gelu', expected one of relu, leaky_relu, elu"),
            ({"norm": "layer"}, "expected one of batch, instance, none"),
            ({"norm": ["batch"]}, "expected one of batch, instance, none"),
            ({"dropout": 0.5}, r"unknown keys \['dropout'\].*expected architecture, n_rois"),
            ({"width": 0}, "got width 0, expected a whole number of at least 1"),
            ({"depth": -1}, "got depth -1, expected a whole number of at least 0"),
            ({"width": 1.5}, "got width 1.5"),
            ({"depth": True}, "got depth True"),
        ],
    )
    def test_a_config_that_cannot_be_names_the_choices(self, change, message):
        with pytest.raises(ModelError, match=message):
            build(SMALL | change)

    def test_missing_keys_are_named(self):
        with pytest.raises(ModelError, match=r"without the keys \['n_contrasts'\]"):
            build({"architecture": "unet", "n_rois": 3})

    @pytest.mark.parametrize("shape", [(1, 4, 8, 8, 8), (1, 3, 8, 3, 8), (3, 8, 8, 8)])
    def test_an_input_that_does_not_fit_says_what_would(self, shape):
        network = build(SMALL)
        with pytest.raises(ValueError, match=r"expected \(N, 3, X, Y, Z\) with X, Y, Z of at least 4 for depth 1"):
            network(torch.zeros(shape))

    def test_weights_that_do_not_fit_name_the_first(self):
        weights = build(SMALL | {"n_contrasts": 5}).state_dict()
        with pytest.raises(
            ModelError, match=r"file: got 2 weights .* out_block.1.bias of shape \(5,\), expected \(2,\)"
        ):
            load_weights(build(SMALL), weights, "file")


class TestAttentionGate:
    def test_it_weights_the_projected_skip(self):
        gate = AttentionGate(4, 3).double()
        up, skip = torch.randn(1, 4, 2, 3, 2).double(), torch.randn(1, 3, 2, 3, 2).double()

        def pointwise(layer, x):
            return torch.einsum("oi,nixyz->noxyz", layer.weight[:, :, 0, 0, 0], x) + layer.bias.view(1, -1, 1, 1, 1)

        g, s = pointwise(gate.W_g, up), pointwise(gate.W_x, skip)
        psi = 1 / (1 + torch.exp(-pointwise(gate.psi[0], (g + s).clamp(min=0))))
        torch.testing.assert_close(gate(up, skip), s * psi)


def test_importing_the_package_does_not_load_torch():
    code = "import sys, dtg_ray.models; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
