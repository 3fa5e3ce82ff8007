"""3-D U-Nets, with or without attention gates: connectomes in, contrast maps out.

Serin et al. 2025, doi 10.1038/s42003-025-09158-6. Module names follow the published code, so that
its checkpoints load as they are.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor, nn

from dtg_ray.errors import ModelError

Activation = Literal["relu", "leaky_relu", "elu"]
Norm = Literal["batch", "instance", "none"]
Upsampling = Literal["transposed", "transposed_cropped", "trilinear"]

ACTIVATIONS: dict[str, type[nn.ReLU | nn.LeakyReLU | nn.ELU]] = {
    "relu": nn.ReLU,
    "leaky_relu": nn.LeakyReLU,
    "elu": nn.ELU,
}


class ConvBlock(nn.Module):
    """A few times convolution, normalization, activation; with the defaults it keeps the spatial size.

    Parameters
    ----------
    channels_in, channels_out : int
    convs : int
        Number of convolutions; all but the first keep the channels.
    activation : "relu", "leaky_relu" or "elu"
    norm : "batch", "instance" or "none"
    kernel : int
        Edge of the convolutions, in voxels; `kernel // 2` voxels of zeros are put around the box.
    stride : int
    """

    def __init__(
        self,
        channels_in: int,
        channels_out: int,
        *,
        convs: int,
        activation: Activation,
        norm: Norm,
        kernel: int = 3,
        stride: int = 1,
    ) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for first, last in pairwise([channels_in, *[channels_out] * convs]):
            layers.append(nn.Conv3d(first, last, kernel, stride, padding=kernel // 2))
            layers.extend(norm_layers(norm, last))
            layers.append(ACTIVATIONS[activation](inplace=True))
        self.conv = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        """(N, channels_in, X, Y, Z) -> (N, channels_out, X, Y, Z)."""
        y: Tensor = self.conv(x)
        return y


class AttentionGate(nn.Module):
    """Additive attention on a skip connection (Oktay et al. 2018, arXiv 1804.03999).

    `s * sigmoid(psi(relu(W_g g + s)))` with `s = W_x skip`: as in the published code, and unlike in Oktay's
    paper, it is the *projected* skip that is weighted.

    Parameters
    ----------
    channels_gate, channels_skip : int
        Channels of the gating signal and of the skip connection; the output has those of the skip.
    """

    def __init__(self, channels_gate: int, channels_skip: int) -> None:
        super().__init__()
        self.W_g = nn.Conv3d(channels_gate, channels_skip, kernel_size=1)
        self.W_x = nn.Conv3d(channels_skip, channels_skip, kernel_size=1)
        self.psi = nn.Sequential(nn.Conv3d(channels_skip, 1, kernel_size=1), nn.Sigmoid())

    def forward(self, gate: Tensor, skip: Tensor) -> Tensor:
        """Gate (N, G, X, Y, Z) and skip (N, S, X, Y, Z) of the same spatial size -> (N, S, X, Y, Z)."""
        projected: Tensor = self.W_x(skip)
        weight: Tensor = self.psi(torch.relu_(self.W_g(gate).add_(projected)))  # (N, 1, X, Y, Z)
        return projected * weight


class UNet(nn.Module):
    """Encoder, bottleneck, decoder with skip connections; the output has the spatial size of the input.

    Level `i` of `0 .. depth` has `width * 2**i` channels, the bottleneck twice those of the last level.

    Parameters
    ----------
    n_rois : int
        Input channels, K.
    n_contrasts : int
        Output channels, C.
    depth : int
        Levels below the first one, without the bottleneck: there are `depth + 1` halvings of the box.
    width : int
        Channels of the first level.
    block : callable
        Makes a block of convolutions from its numbers of input and output channels.
    attention : bool
        Put an attention gate on every skip connection.
    upsampling : "transposed", "transposed_cropped" or "trilinear"
        How the decoder doubles the box: a transposed convolution that also halves the channels, as it is
        (2n + 1 voxels) or without its border (2n - 1, the residual network), or interpolation, without
        parameters, that keeps them (the "minimal" networks). The rest to the box of the skip is interpolation.
    """

    output_layer = "out_block.1"

    def __init__(
        self,
        n_rois: int,
        n_contrasts: int,
        *,
        depth: int,
        width: int,
        block: Callable[[int, int], nn.Module],
        attention: bool,
        upsampling: Upsampling,
    ) -> None:
        super().__init__()
        self.n_rois, self.n_contrasts, self.depth = n_rois, n_contrasts, depth

        features = [width * 2**level for level in range(depth + 1)]
        self.in_block = block(n_rois, width)
        self.pool = nn.MaxPool3d(2, 2)
        self.downs = nn.ModuleList(block(above, below) for above, below in pairwise(features))
        self.bottleneck = block(features[-1], 2 * features[-1])

        skips = features[::-1]  # the decoder climbs from the lowest level
        trilinear, border = upsampling == "trilinear", int(upsampling == "transposed_cropped")
        carried = [2 * skip if trilinear else skip for skip in skips]  # channels after upsampling
        self.upscale = nn.ModuleList(
            nn.Upsample(scale_factor=2, mode="trilinear", align_corners=True)
            if trilinear
            else nn.ConvTranspose3d(2 * skip, skip, kernel_size=3, stride=2, padding=border)
            for skip in skips
        )
        merges = [block(up + skip, skip) for up, skip in zip(carried, skips, strict=True)]
        self.ups = nn.ModuleList(nn.Sequential(merge) if trilinear else merge for merge in merges[:-1])
        self.out_block = nn.Sequential(merges[-1], nn.Conv3d(width, n_contrasts, kernel_size=1))
        if attention:
            self.attention_gates = nn.ModuleList(map(AttentionGate, carried, skips))
        self.attention = attention

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
        skips = [self.in_block(x)]
        for down in self.downs:
            skips.append(down(self.pool(skips[-1])))
        x = self.bottleneck(self.pool(skips[-1]))
        for level, (upscale, merge) in enumerate(zip(self.upscale, [*self.ups, self.out_block], strict=True)):
            skip = skips.pop()  # frees the deepest one early at inference
            x = resize(upscale(x), skip)
            x = merge(torch.cat([x, self.attention_gates[level](x, skip) if self.attention else skip], dim=1))
        return x


def check_box(x: Tensor, n_rois: int, depth: int) -> None:
    """Raise ValueError unless `x` is (N, n_rois, X, Y, Z) and can be halved `depth + 1` times."""
    smallest = 2 ** (depth + 1)
    if x.ndim != 5 or x.shape[1] != n_rois or min(x.shape[2:]) < smallest:
        raise ValueError(
            f"got an input of shape {tuple(x.shape)}, expected (N, {n_rois}, X, Y, Z) "
            f"with X, Y, Z of at least {smallest} for depth {depth}"
        )


def norm_layers(norm: Norm, channels: int) -> list[nn.Module]:
    """Make the normalization layer of a block, if it has one."""
    if norm == "none":
        return []
    return [nn.BatchNorm3d(channels) if norm == "batch" else nn.InstanceNorm3d(channels, affine=True)]


def resize(x: Tensor, like: Tensor) -> Tensor:
    """Trilinear interpolation to the spatial size of another tensor."""
    if x.shape[2:] == like.shape[2:]:
        return x
    return nn.functional.interpolate(x, size=like.shape[2:], mode="trilinear")


def channels_last(network: nn.Module) -> nn.Module:
    """Lay the weights out for 3-D convolutions, in place: about twice as fast on a CPU."""
    return network.to(memory_format=torch.channels_last_3d)  # type: ignore[call-overload]  # missing in torch's stub


def load_weights(network: nn.Module, weights: Mapping[str, Tensor], source: str) -> None:
    """Copy weights into a network; every name and shape has to agree.

    Parameters
    ----------
    network : torch.nn.Module
    weights : mapping of str to tensor
        A `state_dict`.
    source : str
        Where they are from, for the message.

    Raises
    ------
    ModelError
        When they do not fit.
    """
    expected = {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}
    found = {name: tuple(getattr(tensor, "shape", ())) for name, tensor in weights.items()}
    wrong = [name for name in sorted(expected.keys() | found.keys()) if expected.get(name) != found.get(name)]
    if wrong:
        name = wrong[0]
        raise ModelError(
            f"{source}: got {len(wrong)} weights that do not fit the network, first {name} of shape "
            f"{found.get(name, 'missing')}, expected {expected.get(name, 'no such weights')}"
        )
    network.load_state_dict(dict(weights))
