"""Inner products of all pairs of subjects, which are all that ridge predictions need to know of the features."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.linalg.blas import dsyrk, ssyrk

Float = NDArray[np.floating]
LINES = 1024
"""Rows that are mirrored, centred or checked at a time: what lies between is small beside the matrix."""


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
        check_finite(self.matrix, "the Gram matrix")

    def subset(self, rows: NDArray[Any]) -> Gram:
        """Keep some subjects, given as (s,) indices or an (n,) mask: those whose target is known."""
        index = np.arange(len(self.matrix))[rows]
        if np.array_equal(index, np.arange(len(self.matrix))):
            return self
        return Gram(self.matrix[np.ix_(index, index)], self.n_features)


class GramSum:
    """A Gram matrix that is added up, one group of features after the other.

    Only the lower triangle is computed, which halves the work. Products have the precision of the features (at
    least float32), sums float64.

    Parameters
    ----------
    n : int
        Number of subjects. Memory: 8 n n bytes, and 4 n n more from the first single precision features on.
    """

    def __init__(self, n: int) -> None:
        self.n_features = 0
        self._sum = np.zeros((n, n))
        self._product = np.empty((0, 0), dtype=np.float32, order="F")

    def add(self, X: Float) -> None:
        """Add the products of (n, w) features less their mean; X is overwritten where it is float32 or float64.

        Raises
        ------
        ValueError
            When there is a NaN or infinite value among them.
        """
        n, width = X.shape
        columns = np.ascontiguousarray(X, dtype=np.result_type(X, np.float32))  # (n, w)
        with np.errstate(invalid="ignore"):  # of inf and -inf, which are refused below
            mean = columns.mean(axis=0, dtype=np.float64)  # (w,)
        if not np.isfinite(mean).all():
            check_finite(columns, "the features")
        columns -= mean.astype(columns.dtype)
        if columns.dtype == np.float32:
            if len(self._product) < n:
                self._product = np.zeros((n, n), dtype=np.float32, order="F")
            # the upper triangle of a Fortran-ordered matrix is the lower one of its transpose
            ssyrk(1.0, columns.T, beta=0.0, c=self._product, trans=1, lower=0, overwrite_c=1)
            for start in range(0, n, LINES):
                rows = slice(start, start + LINES)
                self._sum[rows, : start + LINES] += self._product.T[rows, : start + LINES]
        else:
            dsyrk(1.0, columns.T, beta=1.0, c=self._sum.T, trans=1, lower=0, overwrite_c=1)
        self.n_features += width

    def merge(self, other: GramSum) -> GramSum:
        """Add another sum, over other features of the same subjects."""
        return self.take(other._sum, other.n_features)

    def take(self, products: NDArray[np.float64], n_features: int) -> GramSum:
        """Add products (n, n) that were summed up elsewhere, of which the lower triangle counts."""
        self._sum += products
        self.n_features += n_features
        return self

    def __getstate__(self) -> dict[str, Any]:
        """What another process needs: not what the last products were put in."""
        return self.__dict__ | {"_product": np.empty((0, 0), dtype=np.float32)}

    def gram(self) -> Gram:
        """The whole matrix; nothing can be added afterwards."""
        matrix, self._sum, self._product = self._sum, np.empty((0, 0)), np.empty((0, 0), dtype=np.float32)
        mirror(matrix)
        return Gram(matrix, self.n_features)


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
        Columns per product; the memory needed beyond X is about `4 n block + 12 n n` bytes for float32.

    Returns
    -------
    Gram
        Matrix (n, n) float64.

    Raises
    ------
    ValueError
        When X is not a matrix or holds NaN or infinite values, or the block is empty.
    """
    n, p = shape_of(X)
    check_size(block, "block")
    total = GramSum(n)
    for start in range(0, p, block):
        total.add(X[:, start : start + block].astype(np.result_type(X, np.float32)))
    return total.gram()


def mirror(matrix: NDArray[np.float64]) -> None:
    """Copy the lower triangle of an (n, n) matrix to the upper one, in place."""
    for start in range(0, len(matrix), LINES):
        rows = slice(start, start + LINES)
        corner = matrix[rows, rows]
        corner[...] = np.tril(corner) + np.tril(corner, -1).T
        matrix[rows, start + LINES :] = matrix[start + LINES :, rows].T


def shape_of(X: Float) -> tuple[int, int]:
    """Rows and columns of features.

    Raises
    ------
    ValueError
        When they are no matrix, or there is none.
    """
    if X.ndim != 2 or X.shape[1] < 1:
        raise ValueError(f"got features of shape {X.shape}, expected (n, p) with at least one feature")
    return X.shape[0], X.shape[1]


def check_size(size: int, name: str) -> None:
    """Refuse a size below 1."""
    if size < 1:
        raise ValueError(f"got a {name} of {size}, expected at least 1")


def check_finite(values: NDArray[Any], name: str) -> None:
    """Refuse NaN and infinite values, naming their rows."""
    parts = (values[start : start + LINES] for start in range(0, len(values), LINES))
    finite = [np.isfinite(part).reshape(len(part), -1).all(axis=1) for part in parts]
    bad = np.flatnonzero(~np.concatenate([*finite, np.ones(0, dtype=bool)]))
    if len(bad):
        raise ValueError(f"got NaN or infinite values in rows {bad[:5]} of {name}, expected finite numbers")
