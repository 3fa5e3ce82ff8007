"""The inverse of a symmetric positive definite matrix in tiles, of which only a few are in memory at a time.

A matrix A is cut along the same edges in rows and columns, and its tiles (i, j), i >= j, are kept. Gauss-Jordan
elimination without pivoting (the sweep operator: Goodnight 1979, doi 10.1080/00031305.1979.10482685) takes one block k
after the other: with the Cholesky factor A_kk = L L',

    F_i = A_ik L'^-1 for i != k,    F_k = -L'^-1,    A_ij <- A_ij - F_i F_j',

where row and column k of the A on the right count as 0. After all blocks -A^-1 is in A's place. That takes n^3
operations, as many as a Cholesky factorisation and the inverse from it, but in a step all tiles are independent of each
other. Every A_kk is a Schur complement, so it is positive definite where A is.
"""

from __future__ import annotations

from itertools import pairwise

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import LinAlgError, solve_triangular
from scipy.linalg.blas import dgemm
from scipy.linalg.lapack import dtrtri

from dtg_ray.stats.gram import check_size

Float = NDArray[np.float64]
Edges = tuple[int, ...]
"""Where tiles begin, and the size of the matrix at the end."""


def edges_of(n: int, tile: int) -> Edges:
    """Cut n rows into tiles of as many rows, the last one of what is left."""
    check_size(n, "number of rows")
    check_size(tile, "tile")
    return (*range(0, n, tile), n)


def edges_within(rows: NDArray[np.integer], edges: Edges, tile: int) -> Edges:
    """Cut some rows (s,), ascending numbers, where the whole is cut, so that a tile comes from few tiles.

    Small neighbours are joined to tiles of at most `tile` rows.
    """
    sizes = np.diff(np.searchsorted(rows, edges))
    cuts = [0]
    for size in sizes[sizes > 0]:
        if len(cuts) > 1 and cuts[-1] - cuts[-2] + size <= tile:
            cuts[-1] += int(size)
        else:
            cuts.append(cuts[-1] + int(size))
    return tuple(cuts)


def slices(edges: Edges) -> list[slice]:
    """The rows of each tile."""
    return [slice(first, last) for first, last in pairwise(edges)]


def pivot(tile: Float) -> tuple[Float, Float]:
    """The Cholesky factor L of a diagonal tile (b, b), of which the lower triangle counts, and F = -L'^-1.

    Raises
    ------
    LinAlgError
        When it is not positive definite.
    """
    if not np.isfinite(tile).all():
        raise LinAlgError("got NaN or infinite values, expected numbers")
    L: Float = np.linalg.cholesky(tile).astype(np.float64, copy=False)
    inverse, _ = dtrtri(L.T, lower=0)  # the transpose of a C-ordered matrix is one in LAPACK's order
    return L, -inverse


def strip(tile: Float, L: Float) -> Float:
    """F = A L'^-1 of a tile (a, b) beside the diagonal."""
    return np.asarray(solve_triangular(L, tile.T, lower=True, check_finite=False).T, order="C")


def update(tile: Float | None, F: Float, G: Float) -> Float:
    """A - F G' of a tile (a, b), F (a, c) and G (b, c); without a tile, one of row or column k, -F G'.

    A tile is overwritten.
    """
    if tile is None:
        return np.asarray(-(F @ G.T))
    if F is G:  # symmetric to the last bit
        tile -= F @ F.T
        return tile
    # the transpose of a C-ordered matrix is one in BLAS's order: (A - F G')' = A' - G F', without a copy
    return np.asarray(dgemm(-1.0, G.T, F.T, beta=1.0, c=tile.T, trans_a=1, overwrite_c=1).T)


def mirrored(tile: Float) -> Float:
    """A diagonal tile whose upper triangle is the lower one."""
    return np.asarray(np.tril(tile) + np.tril(tile, -1).T)


def mean_terms(means: Float) -> tuple[Float, Float]:
    """U and V (n, 2) of K - U V', the inner products of rows less their mean, from the means of K's columns (n,).

    (a - c)(b - c) = ab - ac - cb + cc.
    """
    half, one = means - means.mean() / 2, np.ones(len(means))
    return np.column_stack([half, one]), np.column_stack([one, half])
