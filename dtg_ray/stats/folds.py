"""Cross-validation folds."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Fold = tuple[NDArray[np.integer], NDArray[np.integer]]
"""Row numbers of the training and of the test subjects."""


def fold_indices(n: int, n_folds: int, seed: int) -> list[Fold]:
    """Shuffled folds, exactly those of scikit-learn's `KFold(n_folds, shuffle=True, random_state=seed)`.

    Parameters
    ----------
    n : int
        Number of subjects.
    n_folds : int
        From 2 to n.
    seed : int
        From 0 to 2^32 - 1.

    Returns
    -------
    list of (train, test)
        Row numbers, int64, ascending. Every row is tested once; test sets differ in size by at most one.

    Raises
    ------
    ValueError
        When there are fewer than two folds or more folds than subjects.
    """
    if not 2 <= n_folds <= n:
        raise ValueError(f"got {n_folds} folds of {n} subjects, expected from 2 to {n}")
    order = np.arange(n)
    # the generator of the published splits
    np.random.RandomState(seed).shuffle(order)
    fold_of_row = np.empty(n, dtype=np.int64)
    for number, rows in enumerate(np.array_split(order, n_folds)):
        fold_of_row[rows] = number
    return [(np.flatnonzero(fold_of_row != k), np.flatnonzero(fold_of_row == k)) for k in range(n_folds)]
