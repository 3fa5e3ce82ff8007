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
    totals, counts = _sums(x, groups)
    few = (counts > 0).sum(axis=0) < 2
    return _interval(
        _ratio(totals.sum(axis=0), counts.sum(axis=0)), _means(totals, counts, n_resamples, seed), few, level
    )


def bootstrap_ratio(
    first: ArrayLike,
    second: ArrayLike,
    n_resamples: int,
    seed: int,
    groups: ArrayLike | None = None,
    level: float = 0.95,
) -> Interval:
    """Ratios of two means over the same subjects, with percentile bootstrap intervals, as `bootstrap_mean`.

    Where the interval of the second mean reaches 0, a ratio means nothing: it is NaN.

    Parameters
    ----------
    first, second : (n, F) float
        Figures of each subject; who lacks one of two is left out of both.
    n_resamples, seed, groups, level
        As of `bootstrap_mean`.
    """
    a, b = np.asarray(first, dtype=np.float64), np.asarray(second, dtype=np.float64)
    both = np.isfinite(a) & np.isfinite(b)
    parts = [_sums(np.where(both, one, np.nan), groups) for one in (a, b)]
    over, under = (_means(*part, n_resamples, seed) for part in parts)  # of the same resamples
    few = (parts[0][1] > 0).sum(axis=0) < 2
    means = [_ratio(totals.sum(axis=0), counts.sum(axis=0)) for totals, counts in parts]
    lowest = _interval(means[1], under, few, level).low
    meaningless = ~((means[1] > 0) & ((lowest > 0) | np.isnan(lowest)))
    found = _interval(_ratio(means[0], means[1]), _ratio(over, under), few | meaningless, level)
    return Interval(np.where(meaningless, np.nan, found.mean), found.low, found.high)


def _sums(x: Float, groups: ArrayLike | None) -> tuple[Float, Float]:
    """Sums and counts of the values of each group, (G, F)."""
    labels = np.arange(len(x)) if groups is None else np.asarray(groups)
    if x.ndim != 2 or not len(x) or labels.shape != (len(x),):
        raise ValueError(f"got values of shape {x.shape} and groups of shape {labels.shape}, expected (n, F) and (n,)")
    codes, known = np.unique(labels, return_inverse=True)[1], np.isfinite(x)
    return _by_group(np.where(known, x, 0), codes), _by_group(known.astype(np.float64), codes)


def _means(totals: Float, counts: Float, n_resamples: int, seed: int) -> Float:
    """Means of resampled groups, (R, F)."""
    generator, n_groups, drawn = np.random.default_rng(seed), len(totals), []
    for start in range(0, n_resamples, BATCH):
        times = generator.multinomial(n_groups, np.full(n_groups, 1 / n_groups), min(BATCH, n_resamples - start))
        drawn.append(_ratio(times @ totals, times @ counts))  # (b, F)
    return np.vstack(drawn) if drawn else np.empty((0, totals.shape[1]))


def _interval(mean: Float, resampled: Float, unknown: NDArray[np.bool_], level: float) -> Interval:
    """The percentiles of resampled figures; none where there is nothing to resample."""
    if not len(resampled) or unknown.all():
        return Interval(mean, np.full_like(mean, np.nan), np.full_like(mean, np.nan))
    known = np.where(unknown, 0, resampled)
    low, high = np.nanquantile(known, [(1 - level) / 2, (1 + level) / 2], axis=0)
    return Interval(mean, np.where(unknown, np.nan, low), np.where(unknown, np.nan, high))


def _by_group(values: Float, codes: NDArray[np.intp]) -> Float:
    """Sums of (n, F) values over the members of each group, (G, F)."""
    sums = np.zeros((codes.max() + 1, values.shape[1]))
    np.add.at(sums, codes, values)
    return sums


def _ratio(totals: Float, counts: Float) -> Float:
    return np.divide(totals, counts, out=np.full(totals.shape, np.nan), where=counts != 0)


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
        Two-sided, with one degree of freedom less than there are groups; NaN for fewer than two of them.
    d : float
        Cohen's d_z: the mean difference in standard deviations of differences (Lakens 2013, doi
        10.3389/fpsyg.2013.00863, eq. 6).
    """

    subjects: int
    difference: float
    t: float
    p: float
    d: float


def paired_t(first: ArrayLike, second: ArrayLike, groups: ArrayLike | None = None) -> Paired:
    """Paired t test of two ways on the same subjects, those with both values.

    Members of a group (a family) are not independent: their mean difference counts as one.

    Parameters
    ----------
    first, second : (n,) float
    groups : (n,) any type, optional

    Raises
    ------
    ValueError
        When the shapes differ.
    """
    a, b = np.asarray(first, dtype=np.float64), np.asarray(second, dtype=np.float64)
    labels = np.arange(len(a)) if groups is None else np.asarray(groups)
    if a.ndim != 1 or a.shape != b.shape or labels.shape != a.shape:
        raise ValueError(
            f"got values of shapes {a.shape} and {b.shape}, groups of {labels.shape}, expected the same (n,)"
        )
    both = np.isfinite(a) & np.isfinite(b)
    differences = (a - b)[both]
    n = len(differences)
    if not n:
        return Paired(n, np.nan, np.nan, np.nan, np.nan)
    codes = np.unique(labels[both], return_inverse=True)[1]
    of_groups = np.bincount(codes, differences) / np.bincount(codes)
    mean = float(of_groups.mean())
    if len(of_groups) < 2:
        return Paired(n, float(differences.mean()), np.nan, np.nan, np.nan)
    spread = float(of_groups.std(ddof=1))
    if spread <= 1e-12 * max(abs(mean), float(np.abs(a[both]).max()) * 1e-3):
        same = mean == 0
        t = 0.0 if same else float(np.copysign(np.inf, mean))
        return Paired(n, float(differences.mean()), t, 1.0 if same else 0.0, t)
    t = mean / spread * np.sqrt(len(of_groups))
    p = float(2 * student.sf(abs(t), len(of_groups) - 1))
    return Paired(n, float(differences.mean()), float(t), p, float(differences.mean() / differences.std(ddof=1)))
