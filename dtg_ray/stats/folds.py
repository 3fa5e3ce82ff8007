"""Cross-validation folds: as published, by groups, by strata, or as a table says."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

Fold = tuple[NDArray[np.integer], NDArray[np.integer]]
"""Row numbers of the training and of the test subjects."""


def fold_indices(
    n: int, n_folds: int, seed: int, groups: ArrayLike | None = None, strata: ArrayLike | None = None
) -> list[Fold]:
    """Shuffled folds.

    Without groups and strata they are exactly those of scikit-learn's `KFold(n_folds, shuffle=True,
    random_state=seed)`, as published. With groups (families, sites) nobody of a group is tested by a model that
    was trained on others of it: groups, the largest first and in random order where they are equally large, go
    to the fold that has the fewest of their strata, then the fewest subjects. With strata (classes) every fold
    has nearly the same share of each.

    Parameters
    ----------
    n : int
        Number of subjects.
    n_folds : int
        From 2 to n, and to the number of groups.
    seed : int
        From 0 to 2^32 - 1.
    groups, strata : (n,) any type, optional
        What each subject belongs to.

    Returns
    -------
    list of (train, test)
        Row numbers, int64, ascending. Every row is tested once; without groups, test sets differ by at most one in how
        many of each stratum they have, and without strata as well in size.

    Raises
    ------
    ValueError
        When there are fewer than two folds, or more than subjects or groups; when a stratum has fewer subjects than
        there are folds.
    """
    if not 2 <= n_folds <= n:
        raise ValueError(f"got {n_folds} folds of {n} subjects, expected from 2 to {n}")
    if groups is None and strata is None:
        order = np.arange(n)
        # the generator of the published splits
        np.random.RandomState(seed).shuffle(order)
        fold_of_row = np.empty(n, dtype=np.int64)
        for number, rows in enumerate(np.array_split(order, n_folds)):
            fold_of_row[rows] = number
        return folds_of(fold_of_row)
    group_of_row = _codes(np.arange(n) if groups is None else groups, n, "groups")
    stratum_of_row = _codes(np.zeros(n, dtype=int) if strata is None else strata, n, "strata")
    return folds_of(_deal(group_of_row, stratum_of_row, n_folds, seed))


def folds_of(fold_of_row: ArrayLike) -> list[Fold]:
    """Folds from the fold in which each subject is tested, (n,) of any type, in its sorted order.

    Raises
    ------
    ValueError
        When there are fewer than two.
    """
    labels = np.asarray(fold_of_row)
    names = np.unique(labels)
    if len(names) < 2:
        raise ValueError(f"got the folds {names.tolist()}, expected at least two")
    return [(np.flatnonzero(labels != name), np.flatnonzero(labels == name)) for name in names]


def check_groups(folds: Sequence[Fold], groups: ArrayLike) -> None:
    """Refuse folds that test somebody by a model trained on others of the same group.

    Raises
    ------
    ValueError
        Naming a group that is in two folds.
    """
    labels = np.asarray(groups)
    for number, (train, test) in enumerate(folds):
        if len(both := np.intersect1d(labels[train], labels[test])):
            raise ValueError(f"got group {both[0]} in fold {number} and in another one, expected each in one fold")


def _codes(labels: ArrayLike, n: int, name: str) -> NDArray[np.int64]:
    values = np.asarray(labels)
    if values.shape != (n,):
        raise ValueError(f"got {name} of shape {values.shape}, expected ({n},)")
    return np.unique(values, return_inverse=True)[1].astype(np.int64)


def _deal(groups: NDArray[np.int64], strata: NDArray[np.int64], n_folds: int, seed: int) -> NDArray[np.int64]:
    """The fold of each row: one group after the other to where its strata are fewest."""
    counts: NDArray[Any] = np.zeros((groups.max() + 1, strata.max() + 1), dtype=np.int64)
    np.add.at(counts, (groups, strata), 1)  # (groups, strata)
    if len(counts) < n_folds:
        raise ValueError(f"got {len(counts)} groups for {n_folds} folds, expected at least as many")
    members = counts.sum(axis=0)
    if counts.shape[1] > 1 and members.min() < n_folds:
        raise ValueError(f"got a stratum of {members.min()} subjects for {n_folds} folds, expected at least as many")
    shuffled = np.random.default_rng(seed).permutation(len(counts))
    order = shuffled[np.argsort(-counts[shuffled].sum(axis=1), kind="stable")]
    filled = np.zeros((n_folds, counts.shape[1]), dtype=np.int64)
    fold_of_group = np.empty(len(counts), dtype=np.int64)
    for group in order:
        here = counts[group] > 0
        crowding = (filled[:, here] / members[here]) @ counts[group, here]  # (folds,)
        best = np.lexsort((filled.sum(axis=1), np.round(crowding, 12)))[0]
        fold_of_group[group] = best
        filled[best] += counts[group]
    return fold_of_group[groups]
