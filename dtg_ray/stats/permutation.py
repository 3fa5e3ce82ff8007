"""Permutation tests: reproducible orders of subjects, and p values from a null distribution."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

TIE = 100 * float(np.finfo(np.float64).eps)
"""Relative difference up to which a null value equals the observed one.

The same order of subjects can give figures that differ in their last bits, and a tie that rounding hides
would make p too small; scipy.stats.permutation_test does the same.
"""


def permutation_indices(n: int, n_permutations: int, seed: int) -> NDArray[np.int64]:
    """Random orders of n subjects.

    Parameters
    ----------
    n : int
        Number of subjects.
    n_permutations : int
        Number of orders, P.
    seed : int
        Not negative.

    Returns
    -------
    (P, n) int64
        Row k depends on `seed`, k and n only, so the first rows are the same however many are asked for. The
        observed order is not put among them: `p_value` counts it.

    Raises
    ------
    ValueError
        When a number is negative or there is no subject.
    """
    if n < 1 or n_permutations < 0 or seed < 0:
        raise ValueError(f"got n={n}, n_permutations={n_permutations}, seed={seed}, expected at least 1, 0 and 0")
    orders = np.empty((n_permutations, n), dtype=np.int64)
    for number, order in enumerate(orders):
        order[:] = np.random.default_rng([seed, number]).permutation(n)
    return orders


def p_value(observed: ArrayLike, null: NDArray[Any]) -> NDArray[np.float64]:
    """One-sided p value of a statistic that is large when there is an effect.

    p = (1 + #{null >= observed}) / (1 + P): the observed value counts as one of its own null values, so p is
    never 0 and the test is exact (Phipson & Smyth 2010, doi 10.2202/1544-6115.1585).

    NaN, the correlation of a constant prediction, ranks below every number: a NaN in the null does not
    exceed a number, and an observed NaN has p = 1. The rule is the same for all orders, so the test stays
    exact. For an error, where small is good, give the negative of both.

    Parameters
    ----------
    observed : (...) float
        A statistic of each test.
    null : (..., P) float
        Its values under P permutations.

    Returns
    -------
    (...) float64
        Between 1 / (1 + P) and 1.

    Raises
    ------
    ValueError
        When the leading axes of `null` are not those of `observed`, or without a permutation.
    """
    statistic, distribution = np.asarray(observed, dtype=np.float64), np.asarray(null, dtype=np.float64)
    if distribution.ndim < 1 or distribution.shape[:-1] != statistic.shape or distribution.shape[-1] == 0:
        raise ValueError(
            f"got observed values of shape {statistic.shape} and null values of shape {distribution.shape}, "
            "expected (...) and (..., P) with at least one permutation"
        )
    finite = np.where(np.isfinite(statistic), statistic, 0)
    threshold = statistic - TIE * np.abs(finite)
    exceeds = (distribution >= threshold[..., None]) | np.isnan(statistic)[..., None]  # (..., P)
    return np.asarray((1 + exceeds.sum(axis=-1)) / (1 + distribution.shape[-1]), dtype=np.float64)
