"""Cross-validated ridge regression and its permutation test from one factorisation.

Ridge predictions depend on the features through their inner products only (Saunders et al. 1998, "Ridge regression
learning algorithm in dual variables"), they are linear in the target, and a permutation of the target changes nothing
but the right-hand side. So the Gram matrix is computed once, factorised once, and all folds, targets and permutations
are solved together: see `solvers`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dtg_ray.stats.adjustment import Adjustment
from dtg_ray.stats.folds import Fold
from dtg_ray.stats.gram import Float, Gram, check_finite, check_size, gram, shape_of
from dtg_ray.stats.solvers import Factorised, Inverses, Nested, Primal, Solver

FEATURES_PER_SAMPLE = "features/samples"
Rows = NDArray[np.int64]
Alpha = float | str | Sequence[float]
"""Penalty: a number; "features/samples", p / m for m training subjects, as published; or numbers to choose from."""


class OutOfFold:
    """Out-of-fold ridge predictions of any number of targets, for one set of subjects, folds and confounds.

    Every fold minimises `||y - Z b - X w||^2 + alpha ||w||^2` on its training rows, Z being the constant and the
    confounds, which are not penalised: the same as regressing features and target on the confounds in the training
    rows first. With confounds compare `added` with `adjusted`; without them `predict` with the target.

    Features fewer than the training rows are solved through their (p, p) covariance, others through the Gram matrix.

    Parameters
    ----------
    X : (n, p) float, Gram or Factorised
        Features, or their Gram matrix; `Inverses` of it shares factorisations with other folds and confounds.
    folds : list of (train, test)
        Row numbers, as of `folds.fold_indices`.
    alpha : float, "features/samples" or sequence of float
        Penalty, greater than 0; a sequence is chosen from by leave-one-out in each fold, for each target.
    confounds : (n, c) float, optional

    Raises
    ------
    ValueError
        When shapes disagree, a value is missing, a row is in train and test of a fold or tested twice, an index is out
        of range, a confound does not vary among the training rows of a fold, alpha is not greater than 0 or too
        small for the rounding of the Gram matrix.
    """

    def __init__(
        self,
        X: Float | Gram | Factorised,
        folds: Sequence[Fold],
        alpha: Alpha = FEATURES_PER_SAMPLE,
        confounds: NDArray[np.floating] | None = None,
    ) -> None:
        self.n, self.n_features = _size(X)
        self.folds = _check_folds(folds, self.n)
        self._adjustment = Adjustment(self.folds, self.n, confounds)
        self._solve, self._alphas = _solver(X, self._adjustment, alpha)

    def predict(self, targets: NDArray[Any]) -> NDArray[np.float64]:
        """Predictions (B, n) of targets (B, n): what the features add to the mean of the training rows.

        NaN for rows that no fold tests.
        """
        columns = np.asarray(targets, dtype=np.float64).T  # (n, B)
        return self.added(targets) + self._adjustment.means(columns).T

    def added(self, targets: NDArray[Any]) -> NDArray[np.float64]:
        """What the features add to the mean and the confounds, (B, n): the prediction of `adjusted`."""
        columns = np.asarray(targets, dtype=np.float64).T  # (n, B)
        return self._solve(columns - columns.mean(axis=0)).T

    def adjusted(self, targets: NDArray[Any]) -> NDArray[np.float64]:
        """Targets (B, n) less what the mean and the confounds explain, by a regression on the training rows."""
        return self._adjustment.adjusted(np.asarray(targets, dtype=np.float64).T).T

    def residual(self, targets: NDArray[Any]) -> NDArray[np.float64]:
        """Targets (B, n) less what confounds explain in all rows, around 0: what is permuted where there are confounds.

        Freedman and Lane (1983): confounds explain the same of a permuted target then, so its adjusted values are
        those of the permuted residuals.
        """
        return self._adjustment.residual(np.asarray(targets, dtype=np.float64).T).T

    def alphas(self, target: NDArray[Any]) -> NDArray[np.float64]:
        """The alpha of each fold, (folds,), for a target (n,), for which it was chosen where there was a choice."""
        if isinstance(self._alphas, list):
            return np.array(self._alphas)
        column = np.asarray(target, dtype=np.float64)[:, None]
        return self._alphas(column - column.mean())[:, 0]


@dataclass(frozen=True, eq=False)
class RidgePredictions:
    """What `cross_validated_ridge` returns.

    Parameters
    ----------
    predictions : (n,) float64
        Out of fold; NaN for rows that no fold tests.
    permuted_predictions : (P, n) float64
        Row k: the same with the target `y[permutations[k]]`.
    """

    predictions: NDArray[np.float64]
    permuted_predictions: NDArray[np.float64]


def cross_validated_ridge(
    X: Float | Gram,
    y: NDArray[Any],
    folds: Sequence[Fold],
    alpha: Alpha = FEATURES_PER_SAMPLE,
    permutations: NDArray[np.integer] | None = None,
    batch: int = 1024,
) -> RidgePredictions:
    """Out-of-fold ridge predictions of a target and of its permutations, as scikit-learn's `Ridge` refitted for each.

    For `RidgeClassifier` give targets of -1 and +1: the predictions are its decision values, their signs its
    classes. X is never permuted. For confounds and several targets see `OutOfFold`.

    Parameters
    ----------
    X : (n, p) float or Gram
        Features, or their Gram matrix.
    y : (n,) float, int or bool
        Target without missing values; see `Gram.subset`.
    folds : list of (train, test)
        Row numbers, as of `folds.fold_indices`.
    alpha : float, "features/samples" or sequence of float
        See `OutOfFold`.
    permutations : (P, n) int, optional
        Row k orders the target: row i of X gets `y[permutations[k, i]]`.
    batch : int
        Targets solved at a time; the memory for them is about `32 n batch` bytes.

    Returns
    -------
    RidgePredictions
        `predictions` (n,) and `permuted_predictions` (P, n), P = 0 without permutations.

    Raises
    ------
    ValueError
        As `OutOfFold`; when a value is missing, or a permutation repeats a row.
    """
    check_size(batch, "batch")
    n = _size(X)[0]
    target = _check_target(y, n)
    orders = _check_permutations(permutations, n)
    engine = OutOfFold(X, folds, alpha)
    permuted = np.full(orders.shape, np.nan)
    for start in range(0, len(orders), batch):
        rows = slice(start, start + batch)
        permuted[rows] = engine.predict(target[orders[rows]])
    return RidgePredictions(engine.predict(target[None])[0], permuted)


def _solver(
    X: Float | Gram | Factorised, adjustment: Adjustment, alpha: Alpha
) -> tuple[Solver, list[float] | Callable[[NDArray[np.float64]], NDArray[np.float64]]]:
    """Choose the smaller system: covariance of the features or inner products of the subjects; and the alphas."""
    p = _size(X)[1]
    sizes = [len(part.train) for part in adjustment.parts]
    features, known = np.empty((0, 0)), X if isinstance(X, Factorised) else None
    if isinstance(X, Gram):
        known = Inverses(X)
    elif not isinstance(X, Factorised) and p >= min(sizes):
        known = Inverses(gram(X))
    elif not isinstance(X, Factorised):
        check_finite(X, "the features")
        features = X.astype(np.float64, copy=False)
    if isinstance(alpha, Sequence) and not isinstance(alpha, str):
        if known and not isinstance(known, Inverses):
            raise ValueError(f"got {len(alpha)} alphas to choose from and a Gram matrix in tiles, expected one alpha")
        inner = known.gram if isinstance(known, Inverses) else features
        nested = Nested(inner, adjustment, [_number(one) for one in alpha])
        return nested, nested.chosen
    penalties = [p / m if alpha == FEATURES_PER_SAMPLE else _number(alpha) for m in sizes]
    if known:
        return known.solver(adjustment, penalties), penalties
    return Primal(features, adjustment, penalties), penalties


def _size(X: Float | Gram | Factorised) -> tuple[int, int]:
    """Subjects and features."""
    if isinstance(X, Factorised):
        return X.n, X.n_features
    return (len(X.matrix), X.n_features) if isinstance(X, Gram) else shape_of(X)


def _number(alpha: object) -> float:
    if not isinstance(alpha, int | float | np.number) or not 0 < alpha < np.inf:
        raise ValueError(f"got alpha {alpha!r}, expected a number greater than 0 or {FEATURES_PER_SAMPLE!r}")
    return float(alpha)


def _check_target(y: NDArray[Any], n: int) -> NDArray[np.float64]:
    target = np.asarray(y, dtype=np.float64)
    if target.shape != (n,):
        raise ValueError(f"got a target of shape {target.shape}, expected ({n},), a value for each row of X")
    check_finite(target, "the target")
    return target


def _check_folds(folds: Sequence[Fold], n: int) -> list[tuple[Rows, Rows]]:
    checked = [(_check_rows(train, n), _check_rows(test, n)) for train, test in folds]
    if not checked or any(not len(train) for train, _ in checked):
        raise ValueError(
            f"got folds of {[len(train) for train, _ in checked]} training rows, expected one or more of each"
        )
    for number, (train, test) in enumerate(checked):
        both = np.intersect1d(train, test)
        if len(both):
            raise ValueError(f"got rows {both[:5]} in train and test of fold {number}, expected none in both")
    times = np.bincount(np.concatenate([test for _, test in checked]), minlength=n)
    if (times > 1).any():
        raise ValueError(f"got rows {np.flatnonzero(times > 1)[:5]} tested more than once, expected at most once")
    return checked


def _check_rows(rows: NDArray[np.integer], n: int) -> Rows:
    index = np.asarray(rows)
    if index.ndim != 1 or (index.size and not np.issubdtype(index.dtype, np.integer)):
        raise ValueError(f"got fold rows of shape {index.shape} and type {index.dtype}, expected (m,) integers")
    if index.size and not 0 <= index.min() <= index.max() < n:
        raise ValueError(f"got fold rows from {index.min()} to {index.max()}, expected 0 to {n - 1}")
    return index.astype(np.int64)


def _check_permutations(permutations: NDArray[np.integer] | None, n: int) -> NDArray[np.integer]:
    if permutations is None:
        return np.empty((0, n), dtype=np.int64)
    orders = np.asarray(permutations)
    if orders.ndim != 2 or orders.shape[1] != n or not np.issubdtype(orders.dtype, np.integer):
        raise ValueError(
            f"got permutations of shape {orders.shape} and type {orders.dtype}, expected (P, {n}) integers"
        )
    everyone = np.arange(n)
    for number, order in enumerate(orders):
        if not np.array_equal(np.sort(order), everyone):
            raise ValueError(f"got permutation {number} with repeated or unknown rows, expected each of {n} once")
    return orders
