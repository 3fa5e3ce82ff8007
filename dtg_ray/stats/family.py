"""Many tests at once: family-wise error by the maximum statistic, and the false discovery rate."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.stats import false_discovery_control

from dtg_ray.stats.permutation import p_value


def family_wise_p(observed: ArrayLike, null: ArrayLike) -> NDArray[np.float64]:
    """P values that are below a level in any of the tests with at most that probability when nothing has an effect.

    Each test's statistic is put in units of its own distribution, the observed value among it (so that the rule is the
    same for all orders, and the test exact); the largest over the tests makes the null distribution (Westfall and
    Young 1993, "Resampling-based multiple testing"; Nichols and Holmes 2002, doi 10.1002/hbm.1058). Permutation k has
    to be the same order of subjects in all tests.

    Parameters
    ----------
    observed : (C,) float
        A statistic of each test that is large when there is an effect, of any kind; NaN for one that takes no part.
    null : (C, P) float
        Its values under the same P permutations.

    Returns
    -------
    (C,) float64
        NaN for a test that takes no part.

    Raises
    ------
    ValueError
        When the shapes disagree, or without a permutation.
    """
    statistic, distribution = np.asarray(observed, dtype=np.float64), np.asarray(null, dtype=np.float64)
    if distribution.ndim != 2 or statistic.shape != distribution.shape[:1] or not distribution.shape[1]:
        raise ValueError(
            f"got statistics of shape {statistic.shape} and null values of shape {distribution.shape}, "
            "expected (C,) and (C, P) with at least one permutation"
        )
    result = np.full(len(statistic), np.nan)
    tested = np.isfinite(statistic)
    if not tested.any():
        return result
    values = np.column_stack([statistic, distribution])[tested]  # (C, 1 + P)
    lowest = np.nanmin(np.where(np.isfinite(values), values, np.nan), axis=1, keepdims=True)
    values = np.where(np.isfinite(values), values, lowest)  # a constant prediction is as bad as the worst one
    spread = values.std(axis=1, keepdims=True)
    scaled = (values - values.mean(axis=1, keepdims=True)) / np.where(spread > 0, spread, 1)
    largest = scaled[:, 1:].max(axis=0)  # (P,)
    result[tested] = p_value(scaled[:, 0], np.broadcast_to(largest, (len(scaled), len(largest))))
    return result


def false_discovery_rate(p: ArrayLike) -> NDArray[np.float64]:
    """Benjamini and Hochberg's adjusted p values, (C,); NaN takes no part."""
    values = np.asarray(p, dtype=np.float64)
    result = np.full(values.shape, np.nan)
    known = np.isfinite(values)
    if known.any():
        result[known] = false_discovery_control(values[known], method="bh")
    return result
