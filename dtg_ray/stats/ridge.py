"""Cross-validated ridge regression and its permutation test from one factorisation per fold.

Ridge predictions depend on the features through their inner products only, and a permutation of the target
changes nothing but the right-hand side. So the Gram matrix is computed once, centred on the training rows
of each fold without touching the features again, factorised once, and all permutations are solved together:

    K_c = H K H,  H = I - 1 1' / m;   prediction = mean(y) + k_c (K_c + alpha I)^-1 (y - mean(y))

with m training rows and k_c the equally centred products of test and training rows (Saunders et al. 1998,
"Ridge regression learning algorithm in dual variables"; Schoelkopf et al. 1998, doi
10.1162/089976698300017467, for the centring).
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import LinAlgError, cho_factor, cho_solve

from dtg_ray.stats.folds import Fold

Float = NDArray[np.floating]
Rows = NDArray[np.int64]
Predictor = Callable[[NDArray[np.float64]], NDArray[np.float64]]
"""Centred training targets (m, B) -> centred predictions of the test rows (t, B)."""


@dataclass(frozen=True, eq=False)
class Gram:
    """Inner products of all pairs of subjects, in place of their features.

    Parameters
    ----------
    matrix : (n, n) float
        `X @ X.T`, or that of X less any one vector from all its rows: every fold is centred anyway.
    n_features : int
        Number of columns of X, which `alpha="features/samples"` needs.

    Raises
    ------
    ValueError
        When the matrix is not square or holds NaN or infinite values, or without a feature.
    """

    matrix: Float
    n_features: int

    def __post_init__(self) -> None:
        """Check the matrix."""
        if self.matrix.ndim != 2 or self.matrix.shape[0] != self.matrix.shape[1] or self.n_features < 1:
            raise ValueError(
                f"got a Gram matrix of shape {self.matrix.shape} of {self.n_features} features, "
                "expected (n, n) of at least one"
            )
        _check_finite(self.matrix, "the Gram matrix")

    def subset(self, rows: NDArray[Any]) -> Gram:
        """Keep some subjects, given as (s,) indices or an (n,) mask: those whose target is known."""
        index = np.arange(len(self.matrix))[rows]
        return Gram(self.matrix[np.ix_(index, index)], self.n_features)


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


def gram(X: Float, block: int = 4096) -> Gram:
    """Gram matrix of the column-centred features.

    Columns are centred over all rows first, which changes no fold but keeps the digits that a large common
    mean would take. Products of a block of columns have the precision of X (at least float32) and are
    summed in float64.

    Parameters
    ----------
    X : (n, p) float
        Subjects by features.
    block : int
        Columns per product; the memory needed beyond X is about `5 n block + 12 n n` bytes for float32.

    Returns
    -------
    Gram
        Matrix (n, n) float64.

    Raises
    ------
    ValueError
        When X is not a matrix or holds NaN or infinite values, or the block is empty.
    """
    n, p = _shape(X)
    _check_size(block, "block")
    dtype = np.result_type(X, np.float32)
    matrix = np.zeros((n, n))
    for start in range(0, p, block):
        columns = X[:, start : start + block].astype(dtype, copy=False)  # (n, block)
        _check_finite(columns, "the features")
        columns = columns - columns.mean(axis=0, dtype=np.float64).astype(dtype)
        matrix += columns @ columns.T  # (n, n)
    return Gram(matrix, p)


def cross_validated_ridge(
    X: Float | Gram,
    y: NDArray[Any],
    folds: Sequence[Fold],
    alpha: float | str = "features/samples",
    permutations: NDArray[np.integer] | None = None,
    batch: int = 1024,
) -> RidgePredictions:
    """Out-of-fold ridge predictions of a target and of its permutations.

    Every fold minimises `||y - X w - b||^2 + alpha ||w||^2` on its training rows, the intercept b
    unpenalised, as scikit-learn's `Ridge` does. For `RidgeClassifier` give targets of -1 and +1: the
    predictions are its decision values, their signs its classes. X is never permuted.

    Features fewer than the training rows are solved through their (p, p) covariance, others through the
    Gram matrix.

    Parameters
    ----------
    X : (n, p) float or Gram
        Features, or their Gram matrix.
    y : (n,) float, int or bool
        Target without missing values; see `Gram.subset`.
    folds : list of (train, test)
        Row numbers, as of `folds.fold_indices`.
    alpha : float or "features/samples"
        Penalty, greater than 0; or p / m for m training rows, as published.
    permutations : (P, n) int, optional
        Row k orders the target: row i of X gets `y[permutations[k, i]]`.
    batch : int
        Targets solved at a time; the memory for them is about `24 n batch` bytes.

    Returns
    -------
    RidgePredictions
        `predictions` (n,) and `permuted_predictions` (P, n), P = 0 without permutations.

    Raises
    ------
    ValueError
        When shapes disagree, a value is missing, a row is in train and test of a fold or tested twice, an
        index is out of range, a permutation repeats a row, alpha is not greater than 0 or too small for the
        rounding of the Gram matrix.
    """
    _check_size(batch, "batch")
    n, p = (len(X.matrix), X.n_features) if isinstance(X, Gram) else _shape(X)
    target = _check_target(y, n)
    checked_folds = _check_folds(folds, n)
    orders = _check_permutations(permutations, n)
    penalties = [_penalty(alpha, p, len(train)) for train, _ in checked_folds]

    targets = np.vstack([target, target[orders]])  # (1 + P, n)
    predictions = np.full(targets.shape, np.nan)
    fit = _solver(X, min(len(train) for train, _ in checked_folds))
    for (train, test), penalty in zip(checked_folds, penalties, strict=True):
        predict = fit(train, test, penalty)
        for start in range(0, len(targets), batch):
            rows = slice(start, start + batch)
            right = targets[rows, train].T  # (m, B)
            mean = right.mean(axis=0)  # (B,)
            predictions[rows, test] = (predict(right - mean) + mean).T  # (B, t)
    return RidgePredictions(predictions[0], predictions[1:])


def _solver(X: Float | Gram, n_train: int) -> Callable[[Rows, Rows, float], Predictor]:
    """Choose the smaller system: covariance of the features or Gram matrix of the subjects."""
    if isinstance(X, Gram):
        return functools.partial(_dual, X.matrix)
    if X.shape[1] >= n_train:
        return functools.partial(_dual, gram(X).matrix)
    _check_finite(X, "the features")
    return functools.partial(_primal, X.astype(np.float64, copy=False))


def _dual(K: Float, train: Rows, test: Rows, alpha: float) -> Predictor:
    """Predict test rows through the Gram matrix of the training rows."""
    kernel = K[np.ix_(train, train)].astype(np.float64, copy=False)  # (m, m)
    cross = K[np.ix_(test, train)].astype(np.float64, copy=False)  # (t, m)
    mean = kernel.mean(axis=0)  # (m,)
    # products of rows less the training mean, written out: (a - c)(b - c) = ab - ac - cb + cc
    cross -= cross.mean(axis=1, keepdims=True)
    cross -= mean - mean.mean()
    kernel -= mean[:, None]
    kernel -= mean - mean.mean()
    factor = _cholesky(kernel, alpha)
    return lambda targets: np.asarray(cross @ cho_solve(factor, targets, check_finite=False))


def _primal(X: NDArray[np.float64], train: Rows, test: Rows, alpha: float) -> Predictor:
    """Predict test rows through the covariance of the features."""
    mean = X[train].mean(axis=0)  # (p,)
    fitted, tested = X[train] - mean, X[test] - mean  # (m, p), (t, p)
    factor = _cholesky(fitted.T @ fitted, alpha)  # (p, p)
    return lambda targets: np.asarray(tested @ cho_solve(factor, fitted.T @ targets, check_finite=False))


def _cholesky(matrix: NDArray[np.float64], alpha: float) -> tuple[NDArray[np.float64], bool]:
    """Factor of a symmetric matrix plus alpha on its diagonal; the matrix is overwritten."""
    matrix.flat[:: len(matrix) + 1] += alpha
    try:
        # the transpose of a symmetric C-ordered matrix is itself in LAPACK's order: no copy
        return cho_factor(matrix.T, lower=True, overwrite_a=True, check_finite=False)
    except LinAlgError as error:
        raise ValueError(
            f"got a Gram matrix that alpha {alpha:.3g} does not make positive definite, "
            "expected inner products and a larger alpha"
        ) from error


def _penalty(alpha: float | str, n_features: int, n_train: int) -> float:
    if alpha == "features/samples":
        return n_features / n_train
    if isinstance(alpha, str) or not 0 < alpha < np.inf:
        raise ValueError(f"got alpha {alpha!r}, expected a number greater than 0 or 'features/samples'")
    return float(alpha)


def _shape(X: Float) -> tuple[int, int]:
    if X.ndim != 2 or X.shape[1] < 1:
        raise ValueError(f"got features of shape {X.shape}, expected (n, p) with at least one feature")
    return X.shape[0], X.shape[1]


def _check_size(size: int, name: str) -> None:
    if size < 1:
        raise ValueError(f"got a {name} of {size}, expected at least 1")


def _check_target(y: NDArray[Any], n: int) -> NDArray[np.float64]:
    target = np.asarray(y, dtype=np.float64)
    if target.shape != (n,):
        raise ValueError(f"got a target of shape {target.shape}, expected ({n},), a value for each row of X")
    _check_finite(target, "the target")
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


def _check_finite(values: NDArray[Any], name: str) -> None:
    bad = ~np.isfinite(values)
    if bad.any():
        rows = np.flatnonzero(bad.reshape(len(values), -1).any(axis=1))
        raise ValueError(f"got NaN or infinite values in rows {rows[:5]} of {name}, expected finite numbers")
