"""Permutation tests: reproducible orders of subjects, and p values from a null distribution."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

TIE = 100 * float(np.finfo(np.float64).eps)
"""Relative difference up to which a null value equals the observed one.

The same order of subjects can give figures that differ in their last bits, and a tie that rounding hides
would make p too small; scipy.stats.permutation_test does the same.
"""


@dataclass(frozen=True, eq=False)
class Exchangeability:
    """Who may take whose place when there is no effect (Winkler et al. 2015, doi 10.1016/j.neuroimage.2015.05.092).

    Parameters
    ----------
    n : int
        Number of subjects.
    seed : int
        Not negative.
    within : (n,) any type, optional
        Blocks whose members change places among themselves alone: sites, say.
    whole : (n,) any type, optional
        Blocks that change places as wholes, with others of as many members, which stay in their order: families, say.
        With `within` as well, whole blocks change places inside those.

    Raises
    ------
    ValueError
        When a number is negative, there is no subject, labels are not one for each, or a whole block is in two blocks
        of `within`.
    """

    n: int
    seed: int
    within: NDArray[Any] | None = None
    whole: NDArray[Any] | None = None

    def __post_init__(self) -> None:
        """Check the labels."""
        if self.n < 1 or self.seed < 0:
            raise ValueError(f"got n={self.n}, seed={self.seed}, expected at least 1 and 0")
        for name, labels in (("within", self.within), ("whole", self.whole)):
            if labels is not None and np.shape(labels) != (self.n,):
                raise ValueError(f"got {name} blocks of shape {np.shape(labels)}, expected ({self.n},)")
        if self.whole is not None and self.within is not None:
            inside = _codes(self.within)
            for block, rows in enumerate(_members(_codes(self.whole))):
                if len(np.unique(inside[rows])) > 1:
                    name = np.asarray(self.whole)[_members(_codes(self.whole))[block][0]]
                    raise ValueError(f"got block {name} in two blocks of `within`, or in two folds, expected it in one")

    def orders(self, start: int, stop: int, rows: NDArray[np.integer] | None = None) -> NDArray[np.int64]:
        """Orders of some subjects, numbers `start` to `stop` of endlessly many.

        Order k is drawn once for everybody, from `seed` and k alone. Subjects who are missing are passed over: whose
        place a subject takes is found by following the order until it comes to somebody who is not missing. This is
        again a random order, each as likely as any other (the cycles of a random permutation less some elements are
        those of a random permutation), and tests of different subjects stay as dependent as their data are, which
        the family-wise error needs.

        Parameters
        ----------
        start, stop : int
        rows : (m,) int, optional
            Who is not missing, ascending; by default everybody.

        Returns
        -------
        (stop - start, m) int64
            Numbers within `rows`.
        """
        chosen = np.arange(self.n) if rows is None else np.asarray(rows)
        place = np.full(self.n, -1)
        place[chosen] = np.arange(len(chosen))
        draw = self._rows if self.whole is None else _Whole(self, chosen).draw
        orders = np.empty((stop - start, len(chosen)), dtype=np.int64)
        for number, order in enumerate(orders, start):
            order[:] = place[draw(number, chosen)]
        return orders

    def inside(self, rows: NDArray[np.integer], labels: NDArray[Any]) -> Exchangeability:
        """Of some subjects, who change places inside further blocks alone.

        Folds in which the target has equal shares follow from the target, so that others would not fit a permuted one:
        only orders that leave everybody in the own fold leave the folds as they are.

        Parameters
        ----------
        rows : (m,) int
        labels : (m,) any type

        Raises
        ------
        ValueError
            When a whole block is in two of them.
        """
        codes = _codes(labels)
        if self.within is not None:
            codes = codes + (codes.max() + 1) * _codes(np.asarray(self.within)[rows])
        whole = None if self.whole is None else np.asarray(self.whole)[rows]
        return Exchangeability(len(rows), self.seed, codes, whole)

    def _rows(self, number: int, chosen: NDArray[np.int64]) -> NDArray[np.int64]:
        """Whose place each of some subjects takes."""
        generator = np.random.default_rng([self.seed, number])
        if self.within is None:
            return _first_return(generator.permutation(self.n), chosen)
        return _first_return(_shuffled(_codes(self.within), generator), chosen)


class _Whole:
    """Whole blocks that change places, of some subjects."""

    def __init__(self, exchange: Exchangeability, chosen: NDArray[np.int64]) -> None:
        blocks = _codes(exchange.whole)
        everybody = _members(blocks)
        self.seed = exchange.seed
        first = np.array([rows[0] for rows in everybody])
        self.inside = (
            np.zeros(len(first), dtype=np.int64) if exchange.within is None else _codes(exchange.within)[first]
        )
        by_size: dict[int, list[int]] = {}
        self.rows: dict[int, NDArray[np.int64]] = {}
        kept = np.isin(np.arange(exchange.n), chosen)
        for block, rows in enumerate(everybody):
            if len(there := rows[kept[rows]]):
                by_size.setdefault(len(there), []).append(block)
                self.rows[block] = there
        self.sizes = {size: np.array(of_size) for size, of_size in by_size.items()}

    def draw(self, number: int, chosen: NDArray[np.int64]) -> NDArray[np.int64]:
        """Whose place each of some subjects takes."""
        taken = np.full(chosen.max() + 1, -1)
        for size, blocks in self.sizes.items():
            # a generator for each size: what is left of an order over blocks of one size is independent of the others
            order = _shuffled(self.inside, np.random.default_rng([self.seed, number, size]))
            for block, other in zip(blocks, _first_return(order, blocks), strict=True):
                taken[self.rows[block]] = self.rows[other]
        return taken[chosen]


def _shuffled(codes: NDArray[np.int64], generator: np.random.Generator) -> NDArray[np.int64]:
    """A random order that keeps everybody inside the own block."""
    order = np.empty_like(codes)
    order[np.argsort(codes, kind="stable")] = np.lexsort((generator.random(len(codes)), codes))
    return order


def _first_return(order: NDArray[np.int64], chosen: NDArray[np.int64]) -> NDArray[np.int64]:
    """Follow an order from some elements until it comes back to one of them."""
    there = np.zeros(len(order), dtype=bool)
    there[chosen] = True
    reached = order[chosen]
    while len(away := np.flatnonzero(~there[reached])):
        reached[away] = order[reached[away]]
    return reached


def _codes(labels: Any) -> NDArray[np.int64]:
    return np.unique(np.asarray(labels), return_inverse=True)[1].astype(np.int64)


def _members(codes: NDArray[np.int64]) -> list[NDArray[np.int64]]:
    """The rows of each block, ascending."""
    return np.split(np.argsort(codes, kind="stable"), np.cumsum(np.bincount(codes))[:-1])


def permutation_indices(n: int, n_permutations: int, seed: int) -> NDArray[np.int64]:
    """Random orders of n subjects who may all take each other's place.

    Parameters
    ----------
    n : int
        Number of subjects.
    n_permutations : int
        Number of orders, P.
    seed : int
        Not negative.

    Returns
    -------
    (P, n) int64
        Row k depends on `seed`, k and n only, so the first rows are the same however many are asked for. The
        observed order is not put among them: `p_value` counts it.

    Raises
    ------
    ValueError
        When a number is negative or there is no subject.
    """
    if n < 1 or n_permutations < 0 or seed < 0:
        raise ValueError(f"got n={n}, n_permutations={n_permutations}, seed={seed}, expected at least 1, 0 and 0")
    return Exchangeability(n, seed).orders(0, n_permutations)


def p_value(observed: ArrayLike, null: NDArray[Any]) -> NDArray[np.float64]:
    """One-sided p value of a statistic that is large when there is an effect.

    p = (1 + #{null >= observed}) / (1 + P): the observed value counts as one of its own null values, so p is
    never 0 and the test is exact (Phipson & Smyth 2010, doi 10.2202/1544-6115.1585).

    NaN, the correlation of a constant prediction, ranks below every number: a NaN in the null does not
    exceed a number, and an observed NaN has p = 1. The rule is the same for all orders, so the test stays
    exact. For an error, where small is good, give the negative of both.

    Parameters
    ----------
    observed : (...) float
        A statistic of each test.
    null : (..., P) float
        Its values under P permutations.

    Returns
    -------
    (...) float64
        Between 1 / (1 + P) and 1.

    Raises
    ------
    ValueError
        When the leading axes of `null` are not those of `observed`, or without a permutation.
    """
    statistic, distribution = np.asarray(observed, dtype=np.float64), np.asarray(null, dtype=np.float64)
    if distribution.ndim < 1 or distribution.shape[:-1] != statistic.shape or distribution.shape[-1] == 0:
        raise ValueError(
            f"got observed values of shape {statistic.shape} and null values of shape {distribution.shape}, "
            "expected (...) and (..., P) with at least one permutation"
        )
    exceeds = exceeding(statistic, distribution)  # (..., P)
    return np.asarray((1 + exceeds.sum(axis=-1)) / (1 + distribution.shape[-1]), dtype=np.float64)


def exceeding(observed: ArrayLike, null: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Which values (..., P) are at least as high as observed (...), but for rounding; NaN ranks below every number."""
    statistic = np.asarray(observed, dtype=np.float64)
    finite = np.where(np.isfinite(statistic), statistic, 0)
    threshold = statistic - TIE * np.abs(finite)
    return np.asarray((null >= threshold[..., None]) | np.isnan(statistic)[..., None])
