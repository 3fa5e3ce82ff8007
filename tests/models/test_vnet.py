"""The V-Net: its stages against their definition, its size against its description."""

import functools

import pytest
import torch
from torch import nn

from dtg_ray.models import build
from dtg_ray.models.unet import ConvBlock
from dtg_ray.models.vnet import Down, InputStage, Up

PARTS = {
    "block": functools.partial(ConvBlock, activation="relu", norm="batch", kernel=5),
    "activation": nn.ReLU,
}


def zeroed(block):
    """The block with convolutions that give nothing."""
    for module in block.modules():
        if isinstance(module, nn.Conv3d):
            nn.init.zeros_(module.weight)
            nn.init.zeros_(module.bias)
    return block


def expected_count(rois, contrasts, *, depth, width, convs):
    """Parameters, counted from the description, with batch normalization."""

    def conv(first, last, kernel):
        return kernel**3 * first * last + last + 2 * last

    features = [width * 2**level for level in range(depth + 2)]
    total = conv(rois, width, 5) + 125 * features[1] * contrasts + contrasts
    for level, f in enumerate(features[1:], start=1):
        inner = min(level + 1, convs) * conv(f, f, 5)
        carried = 2 * f if level <= depth else f
        total += conv(f // 2, f, 2) + inner  # down
        total += 8 * carried * (f // 2) + f // 2 + inner  # up
    return total


@pytest.mark.parametrize(("depth", "convs"), [(0, 1), (0, 3), (1, 2), (2, 3)])
def test_parameters_are_those_of_the_description(depth, convs):
    config = {"architecture": "vnet", "n_rois": 3, "n_contrasts": 2}
    network = build(config | {"depth": depth, "width": 2, "convs_per_block": convs})
    found = sum(parameter.numel() for parameter in network.parameters())
    assert found == expected_count(3, 2, depth=depth, width=2, convs=convs)


def test_blocks_have_the_convolutions_of_their_level():
    config = {"architecture": "vnet", "n_rois": 3, "n_contrasts": 2, "depth": 2, "width": 1, "convs_per_block": 3}
    network = build(config)

    def convs(stage):
        return sum(isinstance(layer, nn.Conv3d) for layer in stage.conv.conv)

    assert convs(network.input_layer) == 1
    assert [convs(down) for down in network.downs] == [2, 3, 3]
    assert [convs(up) for up in network.ups] == [3, 3, 2]


class TestInputStage:
    def test_the_input_is_repeated_and_added(self):
        stage = zeroed(InputStage(2, 6, **PARTS).eval())
        x = torch.randn(2, 2, 3, 4, 5)
        y = stage(x)
        for channel in range(6):
            assert torch.equal(y[:, channel], x[:, channel % 2].clamp(min=0))

    @pytest.mark.parametrize(("rois", "width"), [(3, 4), (4, 4), (6, 3)])
    def test_an_input_that_does_not_fit_into_the_channels_is_not_added(self, rois, width):
        stage = zeroed(InputStage(rois, width, **PARTS).eval())
        assert torch.equal(stage(torch.randn(1, rois, 3, 4, 5)), torch.zeros(1, width, 3, 4, 5))


class TestDown:
    @pytest.mark.parametrize(("box", "half"), [((8, 9, 10), (5, 5, 6)), ((2, 3, 4), (2, 2, 3))])
    def test_the_box_is_halved(self, box, half):
        assert Down(3, 6, convs=2, **PARTS)(torch.randn(1, 3, *box)).shape == (1, 6, *half)

    def test_with_zeroed_convolutions_the_halved_input_passes_through(self):
        down = Down(3, 6, convs=2, **PARTS).eval()
        zeroed(down.conv)
        x = torch.randn(2, 3, 5, 6, 7)
        expected = down.down_conv(x)
        assert expected.abs().max() > 0
        assert torch.equal(down(x), expected)


class TestUp:
    def test_with_zeroed_convolutions_both_inputs_pass_through(self):
        up = Up(6, 8, convs=2, **PARTS).eval()
        zeroed(up.conv)
        x, skip = torch.randn(2, 6, 3, 2, 4), torch.randn(2, 4, 6, 4, 8)
        y = up(x, skip)
        torch.testing.assert_close(y[:, :4], up.up_conv(x).clamp(min=0))
        assert torch.equal(y[:, 4:], skip.clamp(min=0))

    def test_the_output_has_the_box_of_the_skip(self):
        up = Up(6, 8, convs=1, **PARTS)
        assert up(torch.randn(1, 6, 3, 3, 3), torch.randn(1, 4, 4, 5, 6)).shape == (1, 8, 4, 5, 6)
