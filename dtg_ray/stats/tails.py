"""p values from fewer permutations: stopping where there is no hope, and a model of the tail where there is much.

Both are approximations of the plain count, and are marked as such wherever they are used.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from dtg_ray.stats.permutation import exceeding

Float = NDArray[np.float64]
FEW = 10
"""Exceedances from which on the plain count is good enough (Knijnenburg et al. 2009)."""
TAIL = 0.25
"""Share of the null distribution that the tail begins with."""
SMALLEST_TAIL = 20
SHRINK = 0.8
"""What is left of the tail after it did not fit."""
EXPONENTIAL = 1e-9
"""Shape below which the distribution is exponential."""
SIMULATED = 400
"""Samples that say how well a tail fits that is one."""


def stopping_point(observed: float, null: ArrayLike, exceedances: int) -> int | None:
    """How many permutations it takes to see so many values as high as observed; None when there are not as many.

    Parameters
    ----------
    observed : float
    null : (P,) float
        In the order of the permutations.
    exceedances : int
    """
    numbers = np.flatnonzero(exceeding(observed, np.asarray(null, dtype=np.float64)))
    return int(numbers[exceedances - 1]) + 1 if len(numbers) >= exceedances else None


def negative_binomial_p(observed: float, null: ArrayLike, exceedances: int) -> float:
    """P value of a test that stops at a number of exceedances (Besag and Clifford 1991, doi 10.1093/biomet/78.2.301).

    h / l when the h-th exceedance came with permutation l; otherwise (1 + #{null >= observed}) / (1 + P). Values after
    the stop do not matter.

    Parameters
    ----------
    observed : float
    null : (P,) float
    exceedances : int
        h.
    """
    if (stop := stopping_point(observed, null, exceedances)) is not None:
        return exceedances / stop
    values = np.asarray(null, dtype=np.float64)
    return float((1 + exceeding(observed, values).sum()) / (1 + len(values)))


def generalised_pareto_p(observed: float, null: ArrayLike, seed: int = 0) -> float | None:
    """P value from a generalised Pareto distribution of the tail.

    The upper quarter of the null distribution is fitted (Knijnenburg et al. 2009, doi 10.1093/bioinformatics/btp211)
    by its moments (Hosking and Wallis 1987, doi 10.1080/00401706.1987.10488243); where an Anderson-Darling test against
    simulated samples of the fit rejects it at 5%, the tail is shortened by a fifth. A distribution that ends would
    give p values far too small, down to 0, so a shape below 0 counts as 0, an exponential tail: p is rather too large.

    Parameters
    ----------
    observed : float
    null : (P,) float
    seed : int
        Of the simulated samples.

    Returns
    -------
    float or None
        None where the plain count is good enough (at least 10 exceedances), the tail is too short, or does not fit.
    """
    values = np.sort(np.asarray(null, dtype=np.float64))
    if not np.isfinite(observed) or not np.isfinite(values).all() or exceeding(observed, values).sum() >= FEW:
        return None
    n = len(values)
    length = int(TAIL * n)
    while length >= SMALLEST_TAIL:
        threshold = (values[n - length - 1] + values[n - length]) / 2
        excess = values[n - length :] - threshold
        shape, scale = _moments(excess[None])
        if excess[-1] > 0 and _fits(excess, shape[0], scale[0], seed):
            survival = _survival(np.array([[observed - threshold]]), shape, scale)[0, 0]
            return float(survival * length / n)
        length = int(SHRINK * length)
    return None


def _moments(excess: Float) -> tuple[Float, Float]:
    """Shape, at least 0, and scale of samples (B, m), each (B,): mean^2 / variance = 1 - 2 shape."""
    mean, variance = excess.mean(axis=1), excess.var(axis=1, ddof=1)
    ratio = np.minimum(mean**2 / np.maximum(variance, np.finfo(float).tiny), 1)
    return (1 - ratio) / 2, mean * (1 + ratio) / 2


def _survival(excess: Float, shape: Float, scale: Float) -> Float:
    """Share of the distribution beyond each value (B, m) above the threshold."""
    scaled, k = np.maximum(excess, 0) / scale[:, None], shape[:, None]
    exponential = k < EXPONENTIAL
    return np.where(exponential, np.exp(-scaled), np.power(1 + k * scaled, -1 / np.where(exponential, 1, k)))


def _fits(excess: Float, shape: float, scale: float, seed: int) -> bool:
    """Whether a sample (m,) is like those of the distribution fitted to it, each fitted again."""
    generator = np.random.default_rng([seed, len(excess)])
    uniform = generator.random((SIMULATED, len(excess)))
    drawn = scale * (-np.log(uniform) if shape < EXPONENTIAL else (uniform**-shape - 1) / shape)
    simulated = _anderson_darling(np.sort(drawn, axis=1))
    return bool(_anderson_darling(np.sort(excess)[None])[0] <= np.quantile(simulated, 0.95))


def _anderson_darling(excess: Float) -> Float:
    """Distance of ascending samples (B, m) from the distribution fitted to each, (B,)."""
    m = excess.shape[1]
    survival = np.clip(_survival(excess, *_moments(excess)), 1e-12, 1 - 1e-12)
    weights = (2 * np.arange(1, m + 1) - 1) / m
    return np.asarray(-m - (np.log1p(-survival) + np.log(survival[:, ::-1])) @ weights)
