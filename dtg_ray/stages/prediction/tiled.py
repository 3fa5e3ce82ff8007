"""Ridge for more people than the inner products of one machine hold: Gram matrix and inverses in tiles.

`TiledGram` and `TiledInverses` stand in the place of `stats.gram.Gram` and `stats.solvers.Inverses`; what follows from
them is the same, to the rounding.
"""

from __future__ import annotations

import hashlib
import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import dask
import numpy as np
from numpy.typing import NDArray
from scipy.linalg import LinAlgError

from dtg_ray.config import fingerprint
from dtg_ray.stages.prediction.features import Features, Piece
from dtg_ray.stages.prediction.scratch import Float, Scratch, Tiled, tile_name
from dtg_ray.stages.prediction.sweep import Block, Compute, Inversion, invert, products, single_thread
from dtg_ray.stats.adjustment import Adjustment
from dtg_ray.stats.solvers import not_positive
from dtg_ray.stats.tiles import edges_of, edges_within, mean_terms, slices
from dtg_ray.study import Study

CENTRE = "centre"
"""What all features are less of, so that a large common mean does not take the digits: the mean of the first tile."""
WIDTH = 2
"""Columns that are read at once, in tiles' sides."""
LAST = 12
"""Sets of folds that are kept, and products of inverses: more than there are repeats by default."""
FEW = 64
"""Columns that are few: targets and confounds, not permutations."""


@dataclass(eq=False)
class TiledGram:
    """Inner products of all pairs of subjects, in tiles.

    Parameters
    ----------
    matrix : Tiled
    n_features : int
    scratch : Scratch
        Where what is made of it is put.
    compute : callable
    tile : int
    last : Scratch, optional
        What was made of the last subjects.
    """

    matrix: Tiled
    n_features: int
    scratch: Scratch
    compute: Compute
    tile: int
    last: Scratch | None = None

    def of(self, rows: NDArray[np.int64]) -> TiledInverses:
        """The inverses of some subjects, (s,) ascending numbers; those of the last ones are removed."""
        before, self.last = self.last, self.scratch.below(f"of-{fingerprint(rows.tolist())}")
        if before and before != self.last:
            before.remove()
        return TiledInverses(self, rows, self.last)


def tiled_gram(
    features: Features, feature: str, tile: int, dtype: type[np.floating], scratch: Scratch, compute: Compute
) -> TiledGram:
    """Add up the inner products of all pairs of tiles; what is there is not made again.

    Parameters
    ----------
    features : Features
        Of n subjects.
    feature : str
        Their name.
    tile : int
        Rows.
    dtype : float32 or float64
        Of the products; sums are float64.
    scratch : Scratch
    compute : callable
    """
    matrix = Tiled(scratch.below("gram"), edges_of(len(features.subjects), tile))
    there = matrix.scratch.names()
    people = [features.subjects[rows] for rows in slices(matrix.edges)]
    reading = Reading(features.study.uri, feature, tile, np.dtype(dtype).name)
    centre = dask.delayed(write_centre, pure=False)(reading, people[0], matrix) if CENTRE not in there else None
    compute(
        [
            dask.delayed(gram_tile, pure=False)(reading, people[i], people[j], matrix, i, j, centre)
            for i, j in matrix.lower
            if tile_name(i, j) not in there
        ]
    )
    return TiledGram(matrix, features.n_features, scratch, compute, tile)


@dataclass(frozen=True)
class Reading:
    """What is read of a feature set, and how.

    Parameters
    ----------
    uri : str
        Of the study.
    feature : str
    tile : int
    dtype : str
        Of products.
    """

    uri: str
    feature: str
    tile: int
    dtype: str

    def features(self, people: list[str]) -> Features:
        """Of some people."""
        return Features(Study(self.uri), self.feature, people)

    def blocks(self, features: Features) -> Iterator[tuple[NDArray[np.int64], NDArray[np.floating]]]:
        """Numbers of some columns (w,) and their values (n, w), the same columns for all people."""
        for _, columns, X in features.blocks(_pieces(features, self.tile), self.tile):
            yield columns, X.astype(self.dtype, copy=False)


def _pieces(features: Features, tile: int) -> list[Piece]:
    return features.pieces(WIDTH * tile)


def write_centre(reading: Reading, people: list[str], matrix: Tiled) -> None:
    """The mean of some people."""
    blocks = reading.blocks(reading.features(people))
    matrix.scratch.save(CENTRE, np.concatenate([X.mean(axis=0, dtype=np.float64) for _, X in blocks])[None])


def gram_tile(
    reading: Reading, of_rows: list[str], of_columns: list[str], matrix: Tiled, i: int, j: int, _: object = None
) -> None:
    """Inner products of the people of two tiles, all features being read piece by piece."""
    first, second = reading.features(of_rows), reading.features(of_columns)
    centre = matrix.scratch.load(CENTRE, (1, first.n_features))[0].astype(reading.dtype)
    total, start = np.zeros((matrix.size(i), matrix.size(j))), 0
    others = reading.blocks(second) if i != j else None
    with single_thread():
        for columns, X in reading.blocks(first):
            mean = centre[start : start + len(columns)]
            rows = X - mean  # (a, w)
            total += rows @ (rows if others is None else next(others)[1] - mean).T
            start += len(columns)
        matrix.save(i, j, total)


def memory_in_tiles(features: Features, tile: int) -> int:
    """Bytes that a task takes: five tiles, and what is read of two."""
    widest = max(len(piece.columns) for piece in _pieces(features, tile))
    return 2**28 + 40 * tile**2 + 12 * tile * widest


class TiledInverses:
    """(K + alpha I)^-1 of some subjects, for each alpha that is asked for, in tiles: see `solvers.Factorised`.

    Parameters
    ----------
    gram : TiledGram
    rows : (s,) int64
        Ascending.
    scratch : Scratch
        Of these subjects.
    """

    def __init__(self, gram: TiledGram, rows: NDArray[np.int64], scratch: Scratch) -> None:
        self._gram, self._rows, self.scratch = gram, rows, scratch
        self.n, self.n_features = len(rows), gram.n_features
        self._terms: tuple[Float, Float] | None = None
        self._made: dict[float, Tiled] = {}
        self._known: dict[str, Float] = {}
        self._folds: list[str] = []

    def of(self, alpha: float) -> Tiled:
        """The inverse for an alpha."""
        if alpha not in self._made:
            block = Block(self._gram.matrix, self._rows, self._rows, *self._centring(), alpha)
            made = self.invert({f"inverse-{alpha!r}": block}, alpha)
            self._made[alpha] = made[0]
        return self._made[alpha]

    def invert(self, blocks: Mapping[str, Block], alpha: float) -> list[Tiled]:
        """Invert parts of matrices side by side, by the names of their folders."""
        tile = self._gram.tile
        jobs = [
            Inversion(self.scratch.below(name), edges_within(block.rows, block.source.edges, tile), block)
            for name, block in blocks.items()
        ]
        try:
            return invert(jobs, self._gram.compute)
        except LinAlgError as error:
            raise not_positive(alpha) from error

    def _centring(self) -> tuple[Float, Float]:
        """What is taken from inner products for those of rows less the mean of these subjects."""
        if self._terms is None:
            who = np.zeros((self._gram.matrix.n, 1))
            who[self._rows] = 1 / self.n
            self._terms = mean_terms(self.products([(self._gram.matrix, who)])[0][self._rows, 0])
        return self._terms

    def products(self, pairs: Sequence[tuple[Tiled, Float]]) -> list[Float]:
        """Products of matrices with columns, side by side."""
        return products(pairs, self._gram.scratch.below(f"columns-{uuid.uuid4().hex}"), self._gram.compute)

    def times(self, alpha: float, columns: Float) -> Float:
        """The inverse for an alpha times columns, (n, B); a few columns are those of the next folds as well."""
        if columns.shape[1] > FEW:
            return self.products([(self.of(alpha), columns)])[0]
        key = f"{alpha!r} {hashlib.sha256(columns.tobytes()).hexdigest()}"
        if key not in self._known:
            self._known = dict([*self._known.items()][1 - LAST :])
            self._known[key] = self.products([(self.of(alpha), columns)])[0]
        return self._known[key]

    def solver(self, adjustment: Adjustment, alphas: Sequence[float]) -> TiledHoldOut:
        """What features add to the predictions of folds, of which the last `LAST` sets are kept."""
        return TiledHoldOut(self, adjustment, alphas)

    def keep_folds(self, folder: str) -> None:
        """Remove the oldest folds, but not the last ones: other targets of the same people may have them again."""
        self._folds = [*(one for one in self._folds if one != folder), folder]
        while len(self._folds) > LAST:
            self.scratch.below(self._folds.pop(0)).remove()


class TiledHoldOut:
    """`solvers.HoldOut` in tiles: the (S_TT)^-1 of all folds are inverted side by side, as M is.

    Parameters
    ----------
    inverses : TiledInverses
    adjustment : Adjustment
        Confounds and folds, of the same subjects; nobody is in no fold.
    alphas : sequence of float
        Of each fold.
    """

    def __init__(self, inverses: TiledInverses, adjustment: Adjustment, alphas: Sequence[float]) -> None:
        self._inverses, self._adjustment, self._alphas = inverses, adjustment, alphas
        self._tests = [np.sort(part.test) for part in adjustment.parts]
        if any(len(part.train) + len(part.test) < inverses.n for part in adjustment.parts):
            raise ValueError("got a fold that leaves somebody out, expected everybody in its training or test rows")
        basis = adjustment.basis  # (n, q)
        self._weighted = {alpha: inverses.times(alpha, basis) for alpha in dict.fromkeys(alphas)}  # (n, q)
        self._of_confounds: dict[float, Float] = {
            alpha: np.asarray(np.linalg.solve(basis.T @ weighted, weighted.T), dtype=np.float64)
            for alpha, weighted in self._weighted.items()
        }  # (q, n)
        self._folds = self._inverted(
            fingerprint([basis.tobytes().hex(), list(alphas), [t.tolist() for t in self._tests]])
        )

    def _inverted(self, digest: str) -> list[Tiled]:
        self._inverses.keep_folds(f"folds-{digest}")
        wanted = {}
        for number, (test, alpha) in enumerate(zip(self._tests, self._alphas, strict=True)):
            weighted, of_confounds = self._weighted[alpha][test], self._of_confounds[alpha][:, test].T  # (t, q)
            wanted[f"folds-{digest}/{number}"] = Block(self._inverses.of(alpha), test, test, weighted, of_confounds)
        return self._inverses.invert(wanted, min(self._alphas))

    def __call__(self, targets: Float) -> Float:
        """What the features add, see `solvers.Solver`."""
        explained, result = self._adjustment.explained(targets), np.full(targets.shape, np.nan)
        known = {
            alpha: self._inverses.times(alpha, targets) - weighted @ (self._of_confounds[alpha] @ targets)
            for alpha, weighted in self._weighted.items()
        }  # S y, (n, B)
        right = [known[alpha][test] for alpha, test in zip(self._alphas, self._tests, strict=True)]
        residuals = self._inverses.products(list(zip(self._folds, right, strict=True)))
        for test, residual in zip(self._tests, residuals, strict=True):
            result[test] = targets[test] - explained[test] - residual
        return result
