"""Whether one set of features predicts better than another, for the same subjects."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.stats import t as student

from dtg_ray.stats.permutation import p_value

Float = NDArray[np.float64]


def corrected_resampled_t(differences: ArrayLike, n_train: float, n_test: float) -> tuple[float, float]:
    """T test of differences between two predictions over the folds of repeated cross-validation.

    Folds share training subjects, so their differences vary less than independent ones would; the variance is
    therefore multiplied with 1/J + n_test / n_train instead of 1/J (Nadeau and Bengio 2003, doi
    10.1023/A:1024068626366; Bouckaert and Frank 2004 for repeats).

    Parameters
    ----------
    differences : (J,) float
        Of a figure, per fold and repeat.
    n_train, n_test : float
        Subjects trained on and tested in a fold.

    Returns
    -------
    t, p : float
        Two-sided, with J - 1 degrees of freedom; t = 0, p = 1 when all differences are 0, NaN when one of them is.

    Raises
    ------
    ValueError
        With fewer than two differences.
    """
    d = np.asarray(differences, dtype=np.float64)
    if d.ndim != 1 or len(d) < 2:
        raise ValueError(f"got differences of shape {d.shape}, expected (J,) of at least two folds")
    mean, variance = d.mean(), d.var(ddof=1)
    if not np.isfinite(mean):
        return float("nan"), float("nan")
    if variance <= 1e-24 * max(mean * mean, 1e-300):
        return (0.0, 1.0) if mean == 0 else (float(np.copysign(np.inf, mean)), 0.0)
    t = float(mean / np.sqrt(variance * (1 / len(d) + n_test / n_train)))
    return t, float(2 * student.sf(abs(t), len(d) - 1))


def paired_permutation(
    figure: Callable[[NDArray[Any]], Float],
    first: NDArray[Any],
    second: NDArray[Any],
    n_permutations: int,
    seed: int,
    blocks: ArrayLike | None = None,
    batch: int = 128,
) -> tuple[float, float]:
    """Permutation test of the difference between two predictions: nobody's two predictions differ but by chance.

    Under that hypothesis a subject's predictions may be exchanged; those of a block (a family) are exchanged together.

    Parameters
    ----------
    figure : callable
        Predictions (B, n, ...) -> (B,), such as their correlation with the target.
    first, second : (n, ...) float
        Two predictions of each subject.
    n_permutations : int
    seed : int
    blocks : (n,) any type, optional
    batch : int
        Permutations at a time.

    Returns
    -------
    difference, p : float
        Of the figures, first less second; two-sided.
    """
    n = len(first)
    codes = np.arange(n) if blocks is None else np.unique(np.asarray(blocks), return_inverse=True)[1]
    coins = _coins(int(codes.max()) + 1, n_permutations, seed)
    tail = (1,) * (first.ndim - 1)
    observed = float(figure(first[None])[0] - figure(second[None])[0])
    null = []
    for start in range(0, n_permutations, batch):
        swapped = coins[start : start + batch][:, codes].reshape(-1, n, *tail)
        null.append(figure(np.where(swapped, second, first)) - figure(np.where(swapped, first, second)))
    if not null:
        return observed, float("nan")
    return observed, float(p_value(abs(observed), np.abs(np.concatenate(null))))


@functools.lru_cache(8)
def _coins(n_blocks: int, n_permutations: int, seed: int) -> NDArray[np.bool_]:
    """Whether each block is exchanged, (P, n_blocks): the same for all comparisons of the same subjects."""
    coins = [np.random.default_rng([seed, number]).random(n_blocks) < 0.5 for number in range(n_permutations)]
    return np.array(coins, dtype=bool).reshape(n_permutations, n_blocks)
