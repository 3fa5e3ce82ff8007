"""Losses between predicted and measured contrast maps; elements whose target is NaN are left out.

All take (N, C, V) tensors (subjects, contrasts, voxels), compute in float32 or better, and return a scalar.
The prediction's gradient is finite; an element whose target is NaN adds nothing to it.
"""

from __future__ import annotations

import torch
from torch import Tensor


def mse(prediction: Tensor, target: Tensor) -> Tensor:
    """Mean squared error over the elements with a target.

    Parameters
    ----------
    prediction, target : (N, C, V) float
        NaN in the target: not acquired.

    Returns
    -------
    scalar

    Raises
    ------
    ValueError
        When the shapes differ or there is no target at all.
    """
    return _masked_mean(*_errors(prediction, target, squared=True))


def mae(prediction: Tensor, target: Tensor) -> Tensor:
    """Mean absolute error over the elements with a target; parameters and errors as for `mse`."""
    return _masked_mean(*_errors(prediction, target, squared=False))


def contrastive(prediction: Tensor, target: Tensor) -> Tensor:
    """Mean squared error to the maps of others: mean over pairs i < j of MSE(prediction i, target j).

    The MSE of a pair is over the elements with a target; pairs without any are left out.

    All predictions before j meet target j at once: with m their mean and S their scatter (sum of squared
    deviations from m), `sum_i (p_i - t_j)^2 = j (m - t_j)^2 + S`. Both are updated from subject to subject
    (Welford 1962), so that time and memory grow with N, not with the number of pairs.

    Parameters
    ----------
    prediction, target : (N, C, V) float
        At least two subjects. NaN in the target: not acquired.

    Returns
    -------
    scalar

    Raises
    ------
    ValueError
        When the shapes differ, there are fewer than two subjects, or no pair has a target.
    """
    prediction, target = _prepare(prediction, target)
    if len(prediction) < 2:
        raise ValueError(f"got a batch of {len(prediction)} subject, expected at least 2 to contrast")
    valid = ~torch.isnan(target)
    mean, scatter = prediction[0], torch.zeros_like(prediction[0])  # (C, V)
    total, n_pairs = prediction.new_zeros(()), 0
    for j in range(1, len(prediction)):
        if valid[j].any():
            gap = torch.where(valid[j], mean - target[j], 0)
            total = total + _masked_mean(torch.where(valid[j], j * gap**2 + scatter, 0), valid[j])
            n_pairs += j
        step = prediction[j] - mean
        mean = mean + step / (j + 1)
        scatter = scatter + step**2 * (j / (j + 1))
    if n_pairs == 0:
        raise ValueError(f"got no target after the first of {len(prediction)} subjects, expected at least one")
    return total / n_pairs


def rc_loss(prediction: Tensor, target: Tensor, *, within_margin: float, between_margin: float) -> Tensor:
    """Reconstructive-contrastive loss: be close to the own map, closer than to the maps of others.

    `max(mse - within_margin, 0) + max(mse - contrastive + between_margin, 0)` (Ngo et al. 2022,
    doi 10.1016/j.neuroimage.2021.118849, as the published DeepTaskGen code has it).

    Parameters
    ----------
    prediction, target : (N, C, V) float
    within_margin : float
        Reconstruction error below which it no longer counts.
    between_margin : float
        By how much the maps of others should be further away than the own.

    Returns
    -------
    scalar

    Raises
    ------
    ValueError
        As `contrastive`.
    """
    contrast = contrastive(prediction, target)
    reconstruction = mse(prediction, target)
    return torch.relu(reconstruction - within_margin) + torch.relu(reconstruction - contrast + between_margin)


def crr_loss(prediction: Tensor, target: Tensor, *, margin: float, alpha: float) -> Tensor:
    """Contrastive-regularized reconstruction loss, the one DeepTaskGen is trained with (Serin et al. 2025).

    `mse + alpha * max(mse - contrastive + margin, 0)`.

    Parameters
    ----------
    prediction, target : (N, C, V) float
    margin : float
        By how much the maps of others should be further away than the own.
    alpha : float
        Weight of the contrastive term.

    Returns
    -------
    scalar

    Raises
    ------
    ValueError
        As `contrastive`.
    """
    contrast = contrastive(prediction, target)
    reconstruction = mse(prediction, target)
    return reconstruction + alpha * torch.relu(reconstruction - contrast + margin)


def _prepare(prediction: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Check the shapes and leave half precision, whose sums overflow."""
    if prediction.shape != target.shape or prediction.ndim < 2:
        raise ValueError(
            f"got predictions of shape {tuple(prediction.shape)} and targets of shape {tuple(target.shape)}, "
            "expected both (N, C, V)"
        )
    dtype = torch.promote_types(torch.promote_types(prediction.dtype, target.dtype), torch.float32)
    return prediction.to(dtype), target.to(dtype)


def _errors(prediction: Tensor, target: Tensor, *, squared: bool) -> tuple[Tensor, Tensor]:
    """Errors, 0 where there is no target, and where there is one."""
    prediction, target = _prepare(prediction, target)
    valid = ~torch.isnan(target)
    if not valid.any():
        raise ValueError(f"got {len(target)} subjects without a single target, expected at least one")
    # where() before the square: a NaN must not meet the gradient, not even times 0
    difference = torch.where(valid, prediction - target, 0)
    return difference**2 if squared else difference.abs(), valid


def _masked_mean(errors: Tensor, valid: Tensor) -> Tensor:
    """Mean over the valid elements of errors that are 0 elsewhere."""
    return errors.sum() / valid.sum()
