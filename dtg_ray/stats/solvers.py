"""Three ways to the same out-of-fold predictions, each for a shape of the problem.

All of them minimise `||y - Z b - X w||^2 + alpha ||w||^2` over the training subjects, with Z the constant and the
confounds, whose coefficients are not penalised, and return for the test subjects what the features add to the
prediction: `(X - Z G) w`, G being the regression of the features on Z in the training subjects.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import LinAlgError, cho_factor, cho_solve, eigh
from scipy.linalg.lapack import dpotrf, dpotri

from dtg_ray.stats.adjustment import Adjustment, Part
from dtg_ray.stats.gram import LINES, Gram, mirror

Float = NDArray[np.float64]
CACHE_BYTES = 4 * 2**30
"""Inverses that are kept for the next folds or confounds of the same subjects."""
NOTHING = 1e-13
"""Eigenvalue relative to the largest below which a direction of the features counts as not there."""


class Solver(Protocol):
    """What the features add to predictions of the test subjects."""

    def __call__(self, targets: Float) -> Float:
        """Targets (n, B) of everybody -> (n, B) float64; NaN for rows that no fold tests."""


@runtime_checkable
class Factorised(Protocol):
    """Inner products K of n subjects, factorised once for each alpha: here (`Inverses`), or in tiles elsewhere."""

    n: int
    n_features: int

    def times(self, alpha: float, columns: Float) -> Float:
        """(K + alpha I)^-1 times columns, (n, B), of inner products less their mean."""

    def solver(self, adjustment: Adjustment, alphas: Sequence[float]) -> Solver:
        """What the features add to the predictions of folds, an alpha for each."""


class Inverses:
    """(K + alpha I)^-1 of all subjects, for each alpha that is asked for.

    Parameters
    ----------
    gram : Gram
    rows : (n,) int, optional
        Who of them; by default everybody. Memory: 8 n n bytes for each inverse, as many of which are kept as 4 GiB
        hold, at least two (folds of two sizes have two alphas), and as much again while one is made.
    """

    def __init__(self, gram: Gram, rows: NDArray[np.integer] | None = None) -> None:
        self._whole = gram
        self._rows = np.arange(len(gram.matrix)) if rows is None else rows
        self.n, self.n_features = len(self._rows), gram.n_features
        self.kept: dict[float, Float] = {}

    @property
    def gram(self) -> Gram:
        """Inner products of these subjects: made when they are asked for, where they are not everybody's."""
        return self._whole.subset(self._rows)

    def of(self, alpha: float) -> Float:
        """The inverse for an alpha, (n, n)."""
        if alpha not in self.kept:
            if len(self.kept) >= self.limit:
                del self.kept[next(iter(self.kept))]
            self.kept[alpha] = self._invert(alpha)
        return self.kept[alpha]

    def times(self, alpha: float, columns: Float) -> Float:
        """The inverse for an alpha times columns, (n, B)."""
        return np.asarray(self.of(alpha) @ columns)

    def solver(self, adjustment: Adjustment, alphas: Sequence[float]) -> HoldOut:
        """What the features add to the predictions of folds."""
        return HoldOut(self, adjustment, alphas)

    @property
    def limit(self) -> int:
        """How many inverses are kept."""
        return int(np.clip(CACHE_BYTES // (8 * self.n**2 + 1), 2, 64))

    def _invert(self, alpha: float) -> Float:
        """The inverse, (n, n), from one Cholesky factorisation."""
        gram = self.gram
        matrix = centred(gram.matrix, overwrite=gram is not self._whole)
        matrix.flat[:: len(matrix) + 1] += alpha
        # the transpose of a symmetric C-ordered matrix is itself in LAPACK's order: no copy
        _, failed = dpotrf(matrix.T, lower=0, overwrite_a=1, clean=0)
        if not failed:
            _, failed = dpotri(matrix.T, lower=0, overwrite_c=1)
        if failed:
            raise not_positive(alpha)
        mirror(matrix)
        return matrix


@dataclass(frozen=True, eq=False)
class _HeldOut:
    """One fold of `HoldOut`.

    Parameters
    ----------
    rows : slice or (n,) int64
        Who is in the fold at all.
    inverse : (n, n) or (t, n) float64
        M^-1, shared with other folds; or its rows of the tested alone, where folds have many alphas.
    at : (t,) int64 or slice
        Its rows of the tested.
    weighted, of_confounds : (t, q), (q, n) float64
        What takes the confounds out: S_T = M^-1_T - weighted of_confounds.
    factor
        Of S_TT.
    """

    rows: slice | NDArray[np.int64]
    inverse: Float
    at: slice | NDArray[np.int64]
    weighted: Float
    of_confounds: Float
    factor: tuple[Float, bool]

    def residual(self, targets: Float) -> Float:
        """What the fit to all others leaves of the test subjects' targets, (t, B)."""
        values = targets[self.rows]
        right = self.inverse[self.at] @ values - self.weighted @ (self.of_confounds @ values)
        return np.asarray(cho_solve(self.factor, right, overwrite_b=True, check_finite=False))


class HoldOut:
    """For more features than subjects: every fold from the inverse of everybody.

    With M = K + alpha I and S = M^-1 - M^-1 Z (Z' M^-1 Z)^-1 Z' M^-1, the residual of test subjects T in the fit to
    all others is (S_TT)^-1 (S y)_T. This is leave-one-out's e_i = (S y)_i / S_ii for whole folds (Cook and Weisberg
    1982, "Residuals and influence in regression", eq. 2.2.3, for the ordinary case). So one factorisation serves
    all folds, confounds and repeats of the same subjects and alpha, and a target costs one product with S.

    Parameters
    ----------
    inverses : Inverses
    adjustment : Adjustment
        Confounds and folds, of the same subjects.
    alphas : sequence of float
        Of each fold.
    """

    def __init__(self, inverses: Inverses, adjustment: Adjustment, alphas: Sequence[float]) -> None:
        self.adjustment = adjustment
        shared, folds = len(set(alphas)) <= inverses.limit, dict[int, _HeldOut]()
        for number in np.argsort(alphas, kind="stable"):  # those of one alpha after each other
            folds[number] = self._fold(inverses, adjustment.parts[number], alphas[number], shared)
        self._folds = [folds[number] for number in range(len(alphas))]

    def _fold(self, inverses: Inverses, part: Part, alpha: float, shared: bool) -> _HeldOut:
        basis = self.adjustment.basis
        rows, test = _members(part, len(basis))
        if not isinstance(rows, slice):
            basis, inverses, shared = basis[rows], Inverses(inverses.gram, rows), False
        inverse = inverses.of(alpha)
        weighted = inverse @ basis  # (n, q)
        of_confounds = np.asarray(np.linalg.solve(basis.T @ weighted, weighted.T), dtype=np.float64)  # (q, n)
        held_out = inverse[np.ix_(test, test)] - weighted[test] @ of_confounds[:, test]  # (t, t)
        try:
            factor = cho_factor(held_out, lower=True, overwrite_a=True, check_finite=False)
        except LinAlgError as error:
            raise not_positive(alpha) from error
        kept, at = (inverse, test) if shared else (inverse[test], slice(None))
        return _HeldOut(rows, kept, at, weighted[test], of_confounds, factor)

    def __call__(self, targets: Float) -> Float:
        """What the features add, see `Solver`."""
        result = np.full(targets.shape, np.nan)
        explained = self.adjustment.explained(targets)
        for part, fold in zip(self.adjustment.parts, self._folds, strict=True):
            result[part.test] = targets[part.test] - explained[part.test] - fold.residual(targets)
        return result


class Primal:
    """For fewer features than subjects: one factorisation of the features' covariance per fold.

    Parameters
    ----------
    X : (n, p) float64
    adjustment : Adjustment
    alphas : sequence of float
        Of each fold.
    """

    def __init__(self, X: Float, adjustment: Adjustment, alphas: Sequence[float]) -> None:
        self.X = X - X.mean(axis=0)
        self.adjustment = adjustment
        self._folds = [self._fold(part, alpha) for part, alpha in zip(adjustment.parts, alphas, strict=True)]

    def _fold(self, part: Part, alpha: float) -> tuple[Float, tuple[Float, bool]]:
        """The regression of the features on the confounds (q, p), and the factor of the (p, p) covariance."""
        features = self.X[part.train]  # (m, p)
        of_confounds = part.inverse @ features
        features -= part.of_train @ of_confounds
        covariance = features.T @ features
        covariance.flat[:: len(covariance) + 1] += alpha
        try:
            return of_confounds, cho_factor(covariance, lower=True, overwrite_a=True, check_finite=False)
        except LinAlgError as error:
            raise not_positive(alpha) from error

    def __call__(self, targets: Float) -> Float:
        """What the features add, see `Solver`."""
        result = np.full(targets.shape, np.nan)
        for part, (of_confounds, factor) in zip(self.adjustment.parts, self._folds, strict=True):
            right = self.X[part.train].T @ part.residual(targets[part.train])  # (p, B)
            weights = cho_solve(factor, right, check_finite=False)
            result[part.test] = self.X[part.test] @ weights - part.of_test @ (of_confounds @ weights)
        return result


class Nested:
    """Alpha chosen anew for every fold and target, by leave-one-out among the training subjects.

    One eigendecomposition per fold serves all alphas and targets. The criterion is the mean squared error, as in
    scikit-learn's `RidgeCV` and `RidgeClassifierCV`; the first of equally good alphas is taken.

    Parameters
    ----------
    X : Gram or (n, p) float64
    adjustment : Adjustment
    alphas : sequence of float
        To choose from.
    """

    def __init__(self, X: Gram | Float, adjustment: Adjustment, alphas: Sequence[float]) -> None:
        self.alphas = np.asarray(alphas, dtype=np.float64)
        self.adjustment = adjustment
        spectrum = _dual_spectrum if isinstance(X, Gram) else _primal_spectrum
        features = centred(X.matrix) if isinstance(X, Gram) else X - X.mean(axis=0)
        self._folds = [spectrum(features, part) for part in adjustment.parts]

    def __call__(self, targets: Float) -> Float:
        """What the features add, see `Solver`."""
        result = np.full(targets.shape, np.nan)
        for number, part in enumerate(self.adjustment.parts):
            _, values, test = self._folds[number]
            projected, best = self._choose(number, targets)  # (r, B), (B,)
            result[part.test] = test @ (projected / (values[:, None] + self.alphas[best]))
        return result

    def chosen(self, targets: Float) -> Float:
        """The alphas that are taken, (folds, B)."""
        return np.stack([self.alphas[self._choose(fold, targets)[1]] for fold in range(len(self._folds))])

    def _choose(self, number: int, targets: Float) -> tuple[Float, NDArray[np.intp]]:
        """Targets in the directions of the features, (r, B), and which alpha is best for each, (B,)."""
        part, (vectors, values, _) = self.adjustment.parts[number], self._folds[number]
        wanted = part.residual(targets[part.train])  # (m, B)
        projected = vectors.T @ wanted
        of_confounds = np.einsum("mq,qm->m", part.of_train, part.inverse)
        errors = []
        for alpha in self.alphas:
            kept = values / (values + alpha)  # (r,)
            leverage = of_confounds + np.square(vectors) @ kept  # (m,)
            left = wanted - vectors @ (kept[:, None] * projected)
            errors.append(np.square(left / (1 - leverage)[:, None]).mean(axis=0))
        return projected, np.argmin(errors, axis=0)


Spectrum = tuple[Float, Float, Float]
"""Of the training features less confounds: left vectors (m, r), squared singular values (r,); and the products of the
test features with the right vectors, times the singular values (t, r)."""


def _dual_spectrum(K: Float, part: Part) -> Spectrum:
    """From inner products, (n, n)."""
    train = K[np.ix_(part.train, part.train)]
    cross = K[np.ix_(part.test, part.train)] - part.of_test @ (part.inverse @ train)  # (t, m)
    train, cross = part.residual(part.residual(train).T), part.residual(cross.T).T
    values, vectors = eigh(train, overwrite_a=True, check_finite=False)
    kept = values > NOTHING * max(values[-1], 0) * len(values)
    return vectors[:, kept], values[kept], cross @ vectors[:, kept]


def _primal_spectrum(X: Float, part: Part) -> Spectrum:
    """From the features, (n, p)."""
    of_confounds = part.inverse @ X[part.train]
    train, test = X[part.train] - part.of_train @ of_confounds, X[part.test] - part.of_test @ of_confounds
    values, vectors = eigh(train.T @ train, check_finite=False)
    kept = values > NOTHING * max(values[-1], 0) * len(train)
    values, vectors = values[kept], vectors[:, kept]
    return train @ vectors / np.sqrt(values), values, test @ vectors * np.sqrt(values)


def _members(part: Part, n: int) -> tuple[NDArray[np.int64] | slice, NDArray[np.int64]]:
    """Who is in a fold at all, everybody as a slice; and where the test subjects are among them."""
    rows = np.sort(np.concatenate([part.train, part.test]))
    return (slice(None), part.test) if len(rows) == n else (rows, np.searchsorted(rows, part.test))


def centred(matrix: NDArray[np.floating], *, overwrite: bool = False) -> Float:
    """Inner products of rows less their mean, written out: (a - c)(b - c) = ab - ac - cb + cc; a copy by default."""
    means = matrix.mean(axis=0, dtype=np.float64)
    result = matrix.astype(np.float64, copy=not overwrite)
    for start in range(0, len(result), LINES):
        result[start : start + LINES] -= means + (means[start : start + LINES, None] - means.mean())
    return result


def not_positive(alpha: float) -> ValueError:
    """What to say of a matrix that cannot be factorised."""
    return ValueError(
        f"got a Gram matrix that alpha {alpha:.3g} does not make positive definite, "
        "expected inner products and a larger alpha"
    )
