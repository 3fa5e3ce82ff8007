"""The residual unit, with which `dtg_ray.models.unet.UNet` is a residual U-Net.

Zhang, Liu & Wang 2018, doi 10.1109/LGRS.2018.2802944, in 3-D, with max pooling instead of strided units, as in
Serin et al. 2025. Module names follow the published code.
"""

from __future__ import annotations

from itertools import pairwise

from torch import Tensor, nn

from dtg_ray.models.unet import ACTIVATIONS, Activation, Norm, norm_layers


class ResidualUnit(nn.Module):
    """`conv(x) + skip(x)`: normalization, activation, convolution 3x3x3 a few times, beside a shortcut.

    The activation comes before the convolution (He et al. 2016, arXiv 1603.05027): nothing follows the sum.

    Parameters
    ----------
    channels_in, channels_out : int
        Where they are equal the shortcut is the identity, else a pointwise convolution.
    convs : int
        Number of 3x3x3 convolutions; all but the first keep the channels.
    activation : "relu", "leaky_relu" or "elu"
    norm : "batch", "instance" or "none"
    """

    def __init__(self, channels_in: int, channels_out: int, *, convs: int, activation: Activation, norm: Norm) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for first, last in pairwise([channels_in, *[channels_out] * convs]):
            layers.extend(norm_layers(norm, first))
            # the first activation would otherwise overwrite the input, which the shortcut still needs
            layers.append(ACTIVATIONS[activation](inplace=bool(layers)))
            layers.append(nn.Conv3d(first, last, kernel_size=3, padding=1))
        self.conv = nn.Sequential(*layers)
        self.skip = nn.Sequential()
        if channels_in != channels_out:
            self.skip.append(nn.Conv3d(channels_in, channels_out, kernel_size=1))

    def forward(self, x: Tensor) -> Tensor:
        """(N, channels_in, X, Y, Z) -> (N, channels_out, X, Y, Z)."""
        y: Tensor = self.conv(x) + self.skip(x)
        return y
