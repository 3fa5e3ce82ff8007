"""Folds against scikit-learn."""

import numpy as np
import pytest
from sklearn.model_selection import KFold

from dtg_ray.stats.folds import fold_indices


@pytest.mark.parametrize(("n", "n_folds", "seed"), [(131, 5, 42), (10, 10, 0), (11, 3, 7), (2067, 5, 1), (2, 2, 3)])
def test_folds_are_exactly_those_of_scikit_learn(n, n_folds, seed):
    expected = list(KFold(n_folds, shuffle=True, random_state=seed).split(np.zeros(n)))
    folds = fold_indices(n, n_folds, seed)
    assert len(folds) == n_folds
    for (train, test), (expected_train, expected_test) in zip(folds, expected, strict=True):
        np.testing.assert_array_equal(train, expected_train)
        np.testing.assert_array_equal(test, expected_test)


def test_every_row_is_tested_once_and_never_trained_on_then():
    folds = fold_indices(23, 4, 0)
    np.testing.assert_array_equal(np.sort(np.concatenate([test for _, test in folds])), np.arange(23))
    for train, test in folds:
        np.testing.assert_array_equal(np.union1d(train, test), np.arange(23))
        assert len(train) + len(test) == 23


@pytest.mark.parametrize(("n", "n_folds"), [(10, 1), (10, 0), (3, 4)])
def test_too_few_or_too_many_folds_are_refused(n, n_folds):
    with pytest.raises(ValueError, match=f"got {n_folds} folds of {n} subjects, expected from 2 to {n}"):
        fold_indices(n, n_folds, 0)
