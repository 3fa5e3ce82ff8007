"""The residual U-Net: its unit against its definition, its size against its description."""

import pytest
import torch
from torch import nn

from dtg_ray.models import CHOICES, build
from dtg_ray.models.resunet import ResidualUnit


def unit(channels_in, channels_out, *, convs=2, activation="relu", norm="batch"):
    return ResidualUnit(channels_in, channels_out, convs=convs, activation=activation, norm=norm).eval()


def expected_count(rois, contrasts, *, depth, width, convs):
    """Parameters, counted from the description, with batch normalization."""

    def block(first, last):
        inner = sum(2 * c + 27 * c * last + last for c in [first, *[last] * (convs - 1)])
        return inner + (first * last + last if first != last else 0)

    features = [width * 2**level for level in range(depth + 1)]
    total = block(rois, width) + width * contrasts + contrasts + block(features[-1], 2 * features[-1])
    total += sum(block(f // 2, f) for f in features[1:])
    return total + sum(27 * 2 * f * f + f + block(2 * f, f) for f in features)


@pytest.mark.parametrize(("depth", "convs"), [(0, 1), (1, 2), (2, 1), (2, 3)])
@pytest.mark.parametrize("rois", [3, 4])
def test_parameters_are_those_of_the_description(rois, depth, convs):
    config = {"architecture": "resunet", "n_rois": rois, "n_contrasts": 2}
    network = build(config | {"depth": depth, "width": 4, "convs_per_block": convs})
    found = sum(parameter.numel() for parameter in network.parameters())
    assert found == expected_count(rois, 2, depth=depth, width=4, convs=convs)


class TestResidualUnit:
    @pytest.mark.parametrize("norm", CHOICES["norm"])
    @pytest.mark.parametrize("activation", CHOICES["activation"])
    def test_with_zeroed_convolutions_the_input_passes_through(self, norm, activation):
        made = unit(4, 4, norm=norm, activation=activation)
        for module in made.conv:
            if isinstance(module, nn.Conv3d):
                nn.init.zeros_(module.weight)
                nn.init.zeros_(module.bias)
        x = torch.randn(2, 4, 3, 4, 5)
        assert torch.equal(made(x.clone()), x)

    def test_the_shortcut_to_another_width_is_a_pointwise_convolution(self):
        made = unit(3, 5)
        for module in made.conv:
            if isinstance(module, nn.Conv3d):
                nn.init.zeros_(module.weight)
                nn.init.zeros_(module.bias)
        x = torch.randn(1, 3, 3, 4, 5)
        weight, bias = made.skip[0].weight[:, :, 0, 0, 0], made.skip[0].bias
        expected = torch.einsum("oi,nixyz->noxyz", weight, x) + bias.view(1, -1, 1, 1, 1)
        torch.testing.assert_close(made(x), expected)

    @pytest.mark.parametrize("activation", CHOICES["activation"])
    @pytest.mark.parametrize("norm", CHOICES["norm"])
    def test_the_input_is_not_overwritten(self, norm, activation):
        x = torch.randn(1, 4, 3, 4, 5)
        given = x.clone()
        unit(4, 4, norm=norm, activation=activation)(x)
        assert torch.equal(x, given)

    def test_normalization_and_activation_come_before_the_convolution(self):
        assert [type(layer) for layer in unit(3, 4, convs=2).conv] == 2 * [nn.BatchNorm3d, nn.ReLU, nn.Conv3d]
        # a positive output of relu(norm(x)) only: a constant negative input leaves the bias and the shortcut
        made = unit(4, 4, convs=1)
        y = made(torch.full((1, 4, 3, 3, 3), -1.0))
        torch.testing.assert_close(y, (made.conv[2].bias - 1).view(1, 4, 1, 1, 1).expand_as(y))
