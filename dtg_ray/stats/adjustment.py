"""What is known of a target without the features: its mean among the training subjects, and what confounds explain."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dtg_ray.stats.folds import Fold
from dtg_ray.stats.gram import check_finite

COLLINEAR = 1e-8
"""Singular value relative to the largest below which a direction of the confounds counts as not there."""
Float = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Part:
    """The confounds of one fold.

    Parameters
    ----------
    train, test : (m,), (t,) int64
    of_train, of_test : (m, q), (t, q) float64
        Their confounds, the constant included.
    inverse : (q, m) float64
        Pseudo-inverse of `of_train`: the regression on the training subjects.
    """

    train: NDArray[np.int64]
    test: NDArray[np.int64]
    of_train: Float
    of_test: Float
    inverse: Float

    def residual(self, values: Float) -> Float:
        """What confounds do not explain of the training subjects' values (m, B)."""
        return np.asarray(values - self.of_train @ (self.inverse @ values))


class Adjustment:
    """Regression of targets on confounds in the training subjects of each fold.

    Parameters
    ----------
    folds : list of (train, test)
        Row numbers.
    n : int
        Number of subjects.
    confounds : (n, c) float, optional
        A constant is added to them in any case. Those that others determine (all of a set of indicators, say) are
        left out.

    Raises
    ------
    ValueError
        When a confound is missing, or is constant or determined by others among the training subjects of a fold but
        not in all subjects: what it explains in the test subjects cannot be known then.
    """

    def __init__(self, folds: Sequence[Fold], n: int, confounds: NDArray[np.floating] | None = None) -> None:
        self.basis = basis_of(n, confounds)
        self.parts = [self._part(number, *fold) for number, fold in enumerate(folds)]

    @property
    def tested(self) -> NDArray[np.int64]:
        """Rows that a fold tests."""
        return np.concatenate([part.test for part in self.parts])

    def _part(self, number: int, train: NDArray[np.integer], test: NDArray[np.integer]) -> Part:
        of_train = self.basis[train]
        singular = np.linalg.svd(of_train, compute_uv=False)
        if singular[-1] < COLLINEAR * singular[0] or len(train) < self.basis.shape[1]:
            raise ValueError(
                f"got confounds of which one is constant or follows from others in all but the test subjects of fold "
                f"{number}, expected each to vary there: is there a site whose people are all in one fold?"
            )
        return Part(
            np.asarray(train, np.int64),
            np.asarray(test, np.int64),
            of_train,
            self.basis[test],
            np.linalg.pinv(of_train),
        )

    def explained(self, targets: Float) -> Float:
        """What confounds and the mean foretell of the test subjects, (n, B); NaN for rows that no fold tests."""
        result = np.full(targets.shape, np.nan)
        for part in self.parts:
            result[part.test] = part.of_test @ (part.inverse @ targets[part.train])
        return result

    def means(self, targets: Float) -> Float:
        """Mean of the training subjects, for each test subject, (n, B); NaN for rows that no fold tests."""
        result = np.full(targets.shape, np.nan)
        for part in self.parts:
            result[part.test] = targets[part.train].mean(axis=0)
        return result

    def adjusted(self, targets: Float) -> Float:
        """Targets less what confounds and the mean foretell, (n, B)."""
        return np.asarray(targets - self.explained(targets))

    def residual(self, targets: Float) -> Float:
        """Targets (n, B) less what confounds explain in all subjects: what may be permuted (Freedman and Lane 1983)."""
        return np.asarray(targets - self.basis @ (self.basis.T @ targets))


def basis_of(n: int, confounds: NDArray[np.floating] | None) -> Float:
    """Orthonormal columns (n, q) that span the constant and the confounds."""
    constant = np.full((n, 1), 1 / np.sqrt(n))
    if confounds is None:
        return constant
    values = np.asarray(confounds, dtype=np.float64)
    if values.ndim != 2 or len(values) != n:
        raise ValueError(f"got confounds of shape {values.shape}, expected ({n}, c)")
    check_finite(values, "the confounds")
    centred = values - values.mean(axis=0)
    scale = np.linalg.norm(centred, axis=0)
    varying = scale > COLLINEAR * np.maximum(np.abs(values).max(axis=0), 1e-300)
    if not varying.any():
        return constant
    left, singular, _ = np.linalg.svd(centred[:, varying] / scale[varying], full_matrices=False)
    return np.hstack([constant, left[:, singular > COLLINEAR * singular[0]]])
