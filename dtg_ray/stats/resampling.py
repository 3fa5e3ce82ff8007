"""How sure a mean over subjects is: bootstrap intervals, and paired tests of two ways on the same subjects."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.stats import t as student

Float = NDArray[np.float64]
BATCH = 256
"""Resamples drawn at a time."""


@dataclass(frozen=True, eq=False)
class Interval:
    """Means and their percentile bootstrap intervals.

    Parameters
    ----------
    mean, low, high : (F,) float64
        NaN for a figure without a value; `low` and `high` also where fewer than two groups have one.
    """

    mean: Float
    low: Float
    high: Float


def bootstrap_mean(
    values: ArrayLike,
    n_resamples: int,
    seed: int,
    groups: ArrayLike | None = None,
    level: float = 0.95,
) -> Interval:
    """Means over subjects with percentile bootstrap intervals (Efron and Tibshirani 1993, chapter 13).

    Subjects are drawn with replacement, those of a group (a family) together: a cluster bootstrap (Field and Welsh
    2007, doi 10.1111/j.1467-9868.2007.00593.x). Resample k depends on the seed and the groups alone.

    Parameters
    ----------
    values : (n, F) float
        Figures of each subject; NaN where there is none, which is left out of that figure's mean.
    n_resamples : int
    seed : int
    groups : (n,) any type, optional
    level : float
        Share of resamples that the interval holds.

    Returns
    -------
    Interval

    Raises
    ------
    ValueError
        When there is no subject, or groups are not one for each.
    """
    x = np.asarray(values, dtype=np.float64)
    labels = np.arange(len(x)) if groups is None else np.asarray(groups)
    if x.ndim != 2 or not len(x) or labels.shape != (len(x),):
        raise ValueError(f"got values of shape {x.shape} and groups of shape {labels.shape}, expected (n, F) and (n,)")
    codes = np.unique(labels, return_inverse=True)[1]
    known = np.isfinite(x)
    totals, counts = (_by_group(part, codes) for part in (np.where(known, x, 0), known.astype(np.float64)))  # (G, F)
    means = _ratio(totals.sum(axis=0), counts.sum(axis=0))
    generator, drawn = np.random.default_rng(seed), []
    for start in range(0, n_resamples, BATCH):
        n_groups = len(totals)
        times = generator.multinomial(n_groups, np.full(n_groups, 1 / n_groups), min(BATCH, n_resamples - start))
        drawn.append(_ratio(times @ totals, times @ counts))  # (b, F)
    few = (counts > 0).sum(axis=0) < 2
    if not drawn or few.all():
        return Interval(means, np.full_like(means, np.nan), np.full_like(means, np.nan))
    tails = [(1 - level) / 2, (1 + level) / 2]
    resampled = np.vstack(drawn)
    resampled[:, few] = 0
    low, high = np.nanquantile(resampled, tails, axis=0)
    return Interval(means, np.where(few, np.nan, low), np.where(few, np.nan, high))


def _by_group(values: Float, codes: NDArray[np.intp]) -> Float:
    """Sums of (n, F) values over the members of each group, (G, F)."""
    sums = np.zeros((codes.max() + 1, values.shape[1]))
    np.add.at(sums, codes, values)
    return sums


def _ratio(totals: Float, counts: Float) -> Float:
    return np.divide(totals, counts, out=np.full(totals.shape, np.nan), where=counts > 0)


@dataclass(frozen=True)
class Paired:
    """A paired t test.

    Parameters
    ----------
    subjects : int
        With both values.
    difference : float
        Mean of first less second.
    t, p : float
        Two-sided, with n - 1 degrees of freedom; NaN for fewer than two subjects.
    d : float
        Cohen's d_z: the mean difference in standard deviations of differences (Lakens 2013, doi
        10.3389/fpsyg.2013.00863, eq. 6).
    """

    subjects: int
    difference: float
    t: float
    p: float
    d: float


def paired_t(first: ArrayLike, second: ArrayLike) -> Paired:
    """Paired t test of two ways on the same subjects, those with both values.

    Parameters
    ----------
    first, second : (n,) float

    Raises
    ------
    ValueError
        When the shapes differ.
    """
    a, b = np.asarray(first, dtype=np.float64), np.asarray(second, dtype=np.float64)
    if a.ndim != 1 or a.shape != b.shape:
        raise ValueError(f"got values of shapes {a.shape} and {b.shape}, expected the same (n,)")
    differences = (a - b)[np.isfinite(a) & np.isfinite(b)]
    n = len(differences)
    if n < 2:
        return Paired(n, float(differences.mean()) if n else np.nan, np.nan, np.nan, np.nan)
    mean, spread = float(differences.mean()), float(differences.std(ddof=1))
    if spread <= 1e-12 * max(abs(mean), float(np.abs(a).max()) * 1e-3):
        same = mean == 0
        t = 0.0 if same else float(np.copysign(np.inf, mean))
        return Paired(n, mean, t, 1.0 if same else 0.0, t)
    t = mean / spread * np.sqrt(n)
    return Paired(n, mean, t, float(2 * student.sf(abs(t), n - 1)), mean / spread)
