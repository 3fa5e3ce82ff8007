"""The V-Net: residual blocks of 5x5x5 convolutions between strided ones.

Milletari, Navab & Ahmadi 2016, doi 10.1109/3DV.2016.79, with the changes of Serin et al. 2025: batch normalization,
and a last convolution of 5x5x5. Module names follow the published code.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch
from torch import Tensor, nn

from dtg_ray.models.unet import ACTIVATIONS, Activation, ConvBlock, Norm, check_box, resize

KERNEL = 5


class InputStage(nn.Module):
    """One convolution; where the input's channels fit into the output's a whole number of times, they are added.

    Parameters
    ----------
    channels_in, channels_out : int
    block : callable
        Makes a `ConvBlock` from numbers of input and output channels and `convs`.
    activation : callable
        Makes an activation.
    """

    def __init__(
        self,
        channels_in: int,
        channels_out: int,
        *,
        block: Callable[..., nn.Module],
        activation: Callable[[], nn.Module],
    ) -> None:
        super().__init__()
        self.conv = block(channels_in, channels_out, convs=1)
        self.activation = activation()
        fits = channels_in < channels_out and channels_out % channels_in == 0
        self.repeats = channels_out // channels_in if fits else 0

    def forward(self, x: Tensor) -> Tensor:
        """(N, channels_in, X, Y, Z) -> (N, channels_out, X, Y, Z)."""
        y: Tensor = self.conv(x)
        if self.repeats:
            y = self.activation(y + x.repeat(1, self.repeats, 1, 1, 1))
        return y


class Down(nn.Module):
    """A convolution 2x2x2 of stride 2, then a residual block: `activation(conv(x) + x)`.

    Parameters
    ----------
    channels_in, channels_out : int
    convs : int
        Convolutions of the residual block.
    block, activation : callable
        See `InputStage`.
    """

    def __init__(
        self,
        channels_in: int,
        channels_out: int,
        *,
        convs: int,
        block: Callable[..., nn.Module],
        activation: Callable[[], nn.Module],
    ) -> None:
        super().__init__()
        self.down_conv = block(channels_in, channels_out, convs=1, kernel=2, stride=2)
        self.conv = block(channels_out, channels_out, convs=convs)
        self.activation = activation()

    def forward(self, x: Tensor) -> Tensor:
        """(N, channels_in, X, Y, Z) -> (N, channels_out, X // 2 + 1, Y // 2 + 1, Z // 2 + 1)."""
        x = self.down_conv(x)
        y: Tensor = self.activation(self.conv(x) + x)
        return y


class Up(nn.Module):
    """A transposed convolution 2x2x2, concatenation with the skip, then a residual block over both.

    Parameters
    ----------
    channels_in, channels_out : int
        Half of `channels_out` are made by the transposed convolution, the other half are those of the skip.
    convs : int
        Convolutions of the residual block.
    block, activation : callable
        See `InputStage`.
    """

    def __init__(
        self,
        channels_in: int,
        channels_out: int,
        *,
        convs: int,
        block: Callable[..., nn.Module],
        activation: Callable[[], nn.Module],
    ) -> None:
        super().__init__()
        self.up_conv = nn.ConvTranspose3d(channels_in, channels_out // 2, kernel_size=2, stride=2)
        self.conv = block(channels_out, channels_out, convs=convs)
        self.activation = activation()

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        """(N, channels_in, x, y, z) and skip (N, channels_out / 2, X, Y, Z) -> (N, channels_out, X, Y, Z)."""
        x = resize(self.activation(self.up_conv(x)), skip)
        x = torch.cat([x, skip], dim=1)
        y: Tensor = self.activation(self.conv(x) + x)
        return y


class OutputStage(nn.Module):
    """The convolution that makes the maps.

    Parameters
    ----------
    channels_in, channels_out : int
    """

    def __init__(self, channels_in: int, channels_out: int) -> None:
        super().__init__()
        self.conv = nn.Conv3d(channels_in, channels_out, KERNEL, padding=KERNEL // 2)

    def forward(self, x: Tensor) -> Tensor:
        """(N, channels_in, X, Y, Z) -> (N, channels_out, X, Y, Z)."""
        y: Tensor = self.conv(x)
        return y


class VNet(nn.Module):
    """Encoder and decoder of residual blocks; the output has the spatial size of the input.

    Level `i` of `0 .. depth + 1` has `width * 2**i` channels; the decoder comes out with those of level 1.

    Parameters
    ----------
    n_rois : int
        Input channels, K.
    n_contrasts : int
        Output channels, C.
    depth : int
        As in `dtg_ray.models.unet.UNet`: the box is halved `depth + 1` times.
    width : int
        Channels of the first level.
    convs : int
        Convolutions of a residual block, at most: the block that enters or leaves level `i` has
        `min(i + 1, convs)`. With 3 that is Milletari's 1, 2, 3, 3, ... of the encoder.
    activation : "relu", "leaky_relu" or "elu"
    norm : "batch", "instance" or "none"
        After every convolution of a block and every strided one, not after the transposed ones.
    """

    output_layer = "out_layer.conv"

    def __init__(
        self,
        n_rois: int,
        n_contrasts: int,
        *,
        depth: int,
        width: int,
        convs: int,
        activation: Activation,
        norm: Norm,
    ) -> None:
        super().__init__()
        self.n_rois, self.n_contrasts, self.depth = n_rois, n_contrasts, depth

        lowest = depth + 1
        features = [width * 2**level for level in range(lowest + 1)]
        block = functools.partial(ConvBlock, activation=activation, norm=norm, kernel=KERNEL)
        make_activation = functools.partial(ACTIVATIONS[activation], inplace=True)
        self.input_layer = InputStage(n_rois, width, block=block, activation=make_activation)
        self.downs = nn.ModuleList(
            Down(
                features[level - 1],
                features[level],
                convs=min(level + 1, convs),
                block=block,
                activation=make_activation,
            )
            for level in range(1, lowest + 1)
        )
        self.ups = nn.ModuleList(
            Up(
                features[min(level + 1, lowest)],  # what comes up has the channels of the step below
                features[level],
                convs=min(level + 1, convs),
                block=block,
                activation=make_activation,
            )
            for level in range(lowest, 0, -1)
        )
        self.out_layer = OutputStage(features[1], n_contrasts)

    def forward(self, x: Tensor) -> Tensor:
        """Connectomes to contrast maps.

        Parameters
        ----------
        x : (N, K, X, Y, Z) float

        Returns
        -------
        (N, C, X, Y, Z) float

        Raises
        ------
        ValueError
            When the channels are not the ROIs or the box is too small to be halved `depth + 1` times.
        """
        check_box(x, self.n_rois, self.depth)
        x = self.input_layer(x)
        skips = []
        for down in self.downs:
            skips.append(x)
            x = down(x)
        for up in self.ups:
            x = up(x, skips.pop())  # frees the deepest one early at inference
        y: Tensor = self.out_layer(x)
        return y
