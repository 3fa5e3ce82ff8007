"""What in a connectome drives a number that a network makes of it: integrated gradients and SmoothGrad.

Attributions have the shape of the connectome, ROIs by voxels, so that they say through which ROI a voxel counts. Maps
made of a layer's activations, such as Grad-CAM's, have no axis of ROIs left.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dtg_ray.models import activation_values
from dtg_ray.models.artifact import NetworkModel
from dtg_ray.models.inference import LARGEST_BATCH
from dtg_ray.models.unet import channels_last

Scalar = Callable[[Tensor], Tensor]
"""Connectomes (N, K, V) -> (N,) numbers, each of its own connectome alone."""
BATCH_BYTES = 2 * 2**30
"""What a batch may take: a fixed number, since on another number of connectomes at once rounding is another one."""


def readout(model: NetworkModel, direction: NDArray[np.floating], device: str = "cpu") -> Scalar:
    """The inner product of a network's maps with fixed ones, as a function that has gradients.

    `sum_cv direction[c, v] map[c, v]`, computed in float32 and summed in float64: the expression of a contrast for a
    map of unit norm, the predicted phenotype (less a constant) for the weights of a linear model of the maps.

    Parameters
    ----------
    model : NetworkModel
        Its network is copied, in float32. Voxels outside its input mask are 0 to it, and get no attribution.
    direction : (C, V) float
    device : str
        A torch device.

    Raises
    ------
    ValueError
        When the direction is not of the model's contrasts and voxels, or not finite.
    """
    expected = (len(model.network_contrasts), model.grid.n_voxels)
    if direction.shape != expected or not np.isfinite(direction).all():
        raise ValueError(f"got a direction of shape {direction.shape}, expected finite numbers (C, V) {expected}")
    network = channels_last(copy.deepcopy(model.network).to(device).float().requires_grad_(False).eval())
    voxels = torch.from_numpy(model.grid.flat_index).to(device)  # (V,)
    weights = torch.from_numpy(np.array(direction, dtype=np.float32)).to(device)  # (C, V)
    outside = None if model.input_mask is None else torch.from_numpy(~model.input_mask).to(device)  # (V,)
    shape, size = model.grid.shape, model.grid.mask.size

    def scalar_of(connectomes: Tensor) -> Tensor:
        seen = connectomes if outside is None else connectomes.masked_fill(outside, 0)
        boxes = seen.new_zeros((*seen.shape[:2], size)).index_copy(2, voxels, seen)  # (N, K, X * Y * Z)
        boxes = boxes.unflatten(2, shape).contiguous(memory_format=torch.channels_last_3d)
        maps = network(boxes).flatten(2)[:, :, voxels]  # (N, C, V)
        return (maps * weights).sum(dim=(1, 2), dtype=torch.float64)  # (N,)

    return scalar_of


def gradients(scalar_of: Scalar, connectomes: Tensor) -> Tensor:
    """Derivatives of a scalar of each of some connectomes with respect to it.

    Parameters
    ----------
    scalar_of : callable
        (N, K, V) -> (N,).
    connectomes : (N, K, V) float

    Returns
    -------
    (N, K, V) of the dtype of the connectomes

    Raises
    ------
    ValueError
        When the function does not make one number of each.
    """
    inputs = connectomes.detach().requires_grad_()
    with torch.enable_grad():
        scalars = scalar_of(inputs)
        if scalars.shape != inputs.shape[:1]:
            raise ValueError(f"got scalars of shape {tuple(scalars.shape)}, expected ({len(inputs)},)")
        (found,) = torch.autograd.grad(scalars.sum(), inputs)
    return found


def integrated_gradients(
    scalar_of: Scalar, connectome: Tensor, baseline: Tensor, steps: int, *, batch: int = 1
) -> Tensor:
    """Attributions that add up to the difference of a scalar between a connectome and a baseline.

    Sundararajan et al. 2017 (arXiv 1703.01365), equation 1: `(x - b) * integral_0^1 grad F(b + a (x - b)) da`. The
    integral is the mean over the middles of `steps` equal parts: networks are piecewise smooth, where rules of a
    higher order have no advantage. How far the sum is from F(x) - F(b) says how good that is, see `difference`.

    Parameters
    ----------
    scalar_of : callable
        (N, K, V) -> (N,).
    connectome, baseline : (K, V) float
        Correlations.
    steps : int
        Points on the straight line between them.
    batch : int
        Points at once; changes rounding only.

    Returns
    -------
    (K, V) float64
        In units of the scalar.

    Raises
    ------
    ValueError
        When shapes differ, or a number is less than 1.
    """
    _check_pair(connectome, baseline)
    way = connectome - baseline  # (K, V)
    total = torch.zeros_like(connectome, dtype=torch.float64)
    for numbers in _batches(steps, batch, "steps"):
        places = torch.tensor([(number + 0.5) / steps for number in numbers], dtype=torch.float64)
        points = baseline + places.to(connectome)[:, None, None] * way  # (n, K, V)
        total += gradients(scalar_of, points).sum(dim=0, dtype=torch.float64)
    return total / steps * way


def difference(scalar_of: Scalar, connectome: Tensor, baseline: Tensor) -> float:
    """F(connectome) - F(baseline), both (K, V): what `integrated_gradients` should add up to.

    Raises
    ------
    ValueError
        When shapes differ.
    """
    _check_pair(connectome, baseline)
    with torch.no_grad():
        return float(scalar_of(connectome[None])[0]) - float(scalar_of(baseline[None])[0])


def smooth_grad(
    scalar_of: Scalar, connectome: Tensor, noise: float, samples: int, seed: Sequence[int], *, batch: int = 1
) -> Tensor:
    """The mean gradient over noisy copies of a connectome.

    Smilkov et al. 2017 (arXiv 1706.03825), section 3: `1/n sum_k grad F(x + N(0, s^2))`, with s a share of the range
    of x. As there it is the gradient, not its product with the input: how much the scalar would change with the
    connectome, also where there is no connectivity; it adds up to nothing.

    Parameters
    ----------
    scalar_of : callable
        (N, K, V) -> (N,).
    connectome : (K, V) float
        Correlations.
    noise : float
        Standard deviation of the noise, as a share of the largest less the smallest correlation; Smilkov: 0.1 to 0.2.
    samples : int
        Noisy copies.
    seed : sequence of int
        The noise of copy k depends on it and k alone.
    batch : int
        Copies at once; changes rounding only.

    Returns
    -------
    (K, V) float64
        Units of the scalar per unit of correlation.

    Raises
    ------
    ValueError
        When the noise is negative, or a number is less than 1.
    """
    if not noise >= 0:
        raise ValueError(f"got noise {noise}, expected a share of the range, at least 0")
    scale = noise * float(connectome.max() - connectome.min())
    total = torch.zeros_like(connectome, dtype=torch.float64)
    for numbers in _batches(samples, batch, "samples"):
        drawn = np.stack([_normal((*seed, number), tuple(connectome.shape)) for number in numbers])  # (n, K, V)
        noisy = connectome + scale * torch.from_numpy(drawn).to(connectome)
        total += gradients(scalar_of, noisy).sum(dim=0, dtype=torch.float64)
    return total / samples


def bytes_per_connectome(config: Mapping[str, Any], shape: tuple[int, int, int]) -> int:
    """What the gradient of a network takes for one connectome: all its layers' outputs, and copies of the input.

    Parameters
    ----------
    config : mapping
        See `dtg_ray.models.complete_config`.
    shape : (X, Y, Z)
        Of the box.
    """
    kept, largest = activation_values(config, shape)
    return 4 * (kept + 3 * largest + 5 * int(config["n_rois"]) * math.prod(shape))


def batch_within(config: Mapping[str, Any], shape: tuple[int, int, int], limit: int = BATCH_BYTES) -> int:
    """How many connectomes at once stay within a limit of bytes: at least one, at most `LARGEST_BATCH`."""
    return min(max(limit // bytes_per_connectome(config, shape), 1), LARGEST_BATCH)


def _normal(seed: Sequence[int], shape: tuple[int, ...]) -> NDArray[np.float32]:
    return np.random.default_rng(seed).standard_normal(shape, dtype=np.float32)


def _batches(count: int, batch: int, what: str) -> Iterator[range]:
    """The numbers below `count`, `batch` at a time."""
    if count < 1 or batch < 1:
        raise ValueError(f"got {count} {what}, {batch} at once, expected at least 1 of both")
    for start in range(0, count, batch):
        yield range(start, min(start + batch, count))


def _check_pair(connectome: Tensor, baseline: Tensor) -> None:
    if connectome.ndim != 2 or connectome.shape != baseline.shape:
        raise ValueError(
            f"got a connectome of shape {tuple(connectome.shape)} and a baseline of {tuple(baseline.shape)}, "
            "expected (K, V) of both"
        )
