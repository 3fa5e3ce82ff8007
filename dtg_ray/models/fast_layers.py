"""Layers of a network, exchanged for others that compute the same maps in less time.

Every function changes a network in place; it has to be a copy, in eval mode.
"""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.functional import conv3d, max_pool3d, pad
from torch.nn.utils.fusion import fuse_conv_bn_eval

from dtg_ray.models import output_layer
from dtg_ray.models.vnet import VNet

TILE = (13, 31)
"""Voxels of a tile along x and y, at most: smaller ones follow the brain more closely, but each costs a call."""
WORTHWHILE = 0.9
"""Share of the box up to which tiles are faster than one convolution over all of it."""


def fold_batch_norms(network: nn.Module) -> None:
    """Fold batch normalizations into the convolutions right before them."""
    for module in network.modules():
        if isinstance(module, nn.Sequential):
            for index in range(len(module) - 1):
                convolution, norm = module[index], module[index + 1]
                if isinstance(convolution, nn.Conv3d) and isinstance(norm, nn.BatchNorm3d):
                    module[index] = fuse_conv_bn_eval(convolution, norm)
                    module[index + 1] = nn.Identity()


def keep_outputs(network: Any, rows: list[int]) -> None:
    """Let a network make only these of its maps, in this order."""
    layer: Any = output_layer(network)[1]
    layer.weight = nn.Parameter(layer.weight.detach()[rows])  # (C, F, kernel)
    layer.bias = nn.Parameter(layer.bias.detach()[rows])
    layer.out_channels = network.n_contrasts = len(rows)


def take_head(network: nn.Module) -> tuple[Tensor, Tensor] | None:
    """Take the output layer off a network, if it is pointwise: only masked voxels need it.

    Returns
    -------
    (C, F) weight and (C, 1) bias, or None
        With the features (F, V) that the network now returns, the maps are `weight @ features + bias`. None for an
        output layer that looks at neighbours; it stays.
    """
    name, layer = output_layer(network)
    if not isinstance(layer, nn.Conv3d) or layer.kernel_size != (1, 1, 1) or layer.bias is None:
        return None
    network.set_submodule(name, nn.Identity())
    return layer.weight.detach().flatten(1), layer.bias.detach()[:, None]


def split_upsampling(network: nn.Module) -> None:
    """Exchange transposed convolutions for `SplitTransposed`."""
    for name, module in list(network.named_modules()):
        if isinstance(module, nn.ConvTranspose3d):
            network.set_submodule(name, SplitTransposed(module))


def tile_convolutions(network: nn.Module, mask: NDArray[np.bool_]) -> None:
    """Spare the first and the last convolutions the voxels that nobody sees.

    The first one finds zeros outside the mask, which give its bias; of the last ones only the mask is wanted and
    what it depends on. Networks whose norm needs the statistics of the whole box stay as they are at the end.

    Parameters
    ----------
    network : torch.nn.Module
        Of `dtg_ray.models.build`; its input will be 0 outside the mask.
    mask : (X, Y, Z) bool
    """
    first, last = _at_the_ends(network)
    if first:
        _tile(network, first, grow(mask, _reach(network, first)))
    if any(isinstance(module, nn.InstanceNorm3d) for module in network.modules()):
        return
    needed = mask
    for name in reversed(last):
        reach = _reach(network, name)
        _tile(network, name, needed)
        needed = grow(needed, reach)


def grow(mask: NDArray[np.bool_], voxels: int) -> NDArray[np.bool_]:
    """A mask (X, Y, Z) and all voxels at most so far from it along every axis."""
    values = torch.from_numpy(mask[None, None].astype(np.float32))
    grown: NDArray[np.bool_] = (max_pool3d(values, 2 * voxels + 1, 1, voxels) > 0).numpy()[0, 0]
    return grown


class SplitTransposed(nn.Module):
    """A transposed convolution as ordinary ones, one for each residue of the output position modulo the stride.

    Output voxel `i * stride + r` depends on input voxels `i - j` through the weights at `r + j * stride`. On a CPU
    in bfloat16 this takes a fifth of the time.

    Parameters
    ----------
    layer : torch.nn.ConvTranspose3d
        With a bias, one stride and one kernel edge for all axes, and without output padding, dilation and groups.
    """

    def __init__(self, layer: nn.ConvTranspose3d) -> None:
        super().__init__()
        self.stride, self.border, self.kernel = layer.stride[0], int(layer.padding[0]), layer.kernel_size[0]
        self.bias = layer.bias
        self.residues = list(itertools.product(range(min(self.stride, self.kernel)), repeat=3))
        taps = [tuple(slice(start, None, self.stride) for start in residue) for residue in self.residues]
        weight = layer.weight.detach().transpose(0, 1)  # (out, in, k, k, k)
        self.weights = nn.ParameterList(_part(weight, three).flip(2, 3, 4).contiguous() for three in taps)

    def forward(self, x: Tensor) -> Tensor:
        """(N, channels_in, X, Y, Z) -> (N, channels_out, ...), as the transposed convolution."""
        shape = [(size - 1) * self.stride + self.kernel for size in x.shape[2:]]
        y = _empty_channels_last(x, len(self.weights[0]), shape)
        for residue, weight in zip(self.residues, self.weights, strict=True):
            where = tuple(slice(start, None, self.stride) for start in residue)
            padding = [size - 1 for size in weight.shape[2:]]
            _part(y, where).copy_(conv3d(x, weight, self.bias, padding=padding))
        inner = slice(self.border, -self.border or None)
        return y[..., inner, inner, inner]


class TiledConv(nn.Module):
    """A convolution that works out the voxels of some boxes only; all others get its bias.

    Parameters
    ----------
    layer : torch.nn.Conv3d
        That keeps the size of the box.
    tiles : list of three slices
    """

    def __init__(self, layer: nn.Conv3d, tiles: list[tuple[slice, ...]]) -> None:
        super().__init__()
        self.weight, self.bias = layer.weight, layer.bias
        self.reach = int(layer.padding[0])
        self.tiles = tiles

    def forward(self, x: Tensor) -> Tensor:
        """(N, channels_in, X, Y, Z) -> (N, channels_out, X, Y, Z)."""
        y = _empty_channels_last(x, len(self.weight), x.shape[2:])
        y[:] = 0 if self.bias is None else self.bias[:, None, None, None]
        for tile in self.tiles:
            seen = tuple(slice(max(cut.start - self.reach, 0), cut.stop + self.reach) for cut in tile)
            beyond = [
                max(voxels, 0)
                for cut, size in zip(reversed(tile), reversed(x.shape[2:]), strict=True)
                for voxels in (self.reach - cut.start, cut.stop + self.reach - size)
            ]
            part = _part(x, seen)
            part = pad(part, beyond) if any(beyond) else part
            _part(y, tile).copy_(conv3d(part, self.weight, self.bias))
        return y


def tiles_over(mask: NDArray[np.bool_]) -> list[tuple[slice, ...]]:
    """Boxes that cover a mask (X, Y, Z): columns of `TILE`, each cut to the voxels it has in the mask."""
    tiles = []
    for x, y in itertools.product(*(range(0, size, edge) for size, edge in zip(mask.shape, TILE, strict=False))):
        part = mask[x : x + TILE[0], y : y + TILE[1]]
        if part.any():
            inside = [np.flatnonzero(part.any(axis=axes)) for axes in ((1, 2), (0, 2), (0, 1))]
            starts = zip((x, y, 0), inside, strict=True)
            tiles.append(tuple(slice(int(start + found[0]), int(start + found[-1] + 1)) for start, found in starts))
    return tiles


def _tile(network: nn.Module, name: str, needed: NDArray[np.bool_]) -> None:
    """Exchange one convolution for a `TiledConv`, where that pays."""
    layer, tiles = network.get_submodule(name), tiles_over(needed)
    covered = sum(np.prod([cut.stop - cut.start for cut in tile]) for tile in tiles)
    if isinstance(layer, nn.Conv3d) and covered <= WORTHWHILE * needed.size:
        network.set_submodule(name, TiledConv(layer, tiles))


def _at_the_ends(network: Any) -> tuple[str | None, list[str]]:
    """Names of the convolution right at the input, if any, and of those after the last upsampling, in order."""
    wide = [
        name
        for name, module in network.named_modules()
        if isinstance(module, nn.Conv3d) and module.stride[0] == 1 and module.kernel_size[0] > 1
    ]
    if isinstance(network, VNet):
        ends = (f"ups.{len(network.ups) - 1}.", "out_layer.")
        return "input_layer.conv.conv.0", [name for name in wide if name.startswith(ends)]
    # a residual unit begins with a norm, after which zeros are none any more
    first = "in_block.conv.0"
    return first if first in wide else None, [name for name in wide if name.startswith("out_block.")]


def _reach(network: nn.Module, name: str) -> int:
    """How far a convolution looks, in voxels."""
    layer: Any = network.get_submodule(name)
    return int(layer.kernel_size[0] // 2)


def _part(x: Tensor, where: tuple[slice, ...]) -> Tensor:
    """View of a part of the box, of all channels."""
    return x[(slice(None), slice(None), *where)]


def _empty_channels_last(like: Tensor, channels: int, shape: Any) -> Tensor:
    """(N, channels, *shape), of the type and device of another tensor."""
    size = (len(like), channels, *shape)
    return torch.empty(size, dtype=like.dtype, device=like.device, memory_format=torch.channels_last_3d)
