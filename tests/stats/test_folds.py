"""Folds against scikit-learn."""

import numpy as np
import pytest
from sklearn.model_selection import KFold

from dtg_ray.stats.folds import check_groups, fold_indices, folds_of


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


class TestGroups:
    def groups(self, n=60, seed=0):
        """Families of one to five."""
        return np.repeat(np.arange(n), np.random.default_rng(seed).integers(1, 6, n))[:n]

    def test_nobody_of_a_group_is_in_two_folds(self):
        groups = self.groups()
        folds = fold_indices(60, 5, 1, groups=groups)
        check_groups(folds, groups)
        tested = np.sort(np.concatenate([test for _, test in folds]))
        np.testing.assert_array_equal(tested, np.arange(60))
        sizes = [len(test) for _, test in folds]
        assert max(sizes) - min(sizes) <= 5

    def test_are_dealt_by_the_seed_whatever_their_names(self):
        groups = self.groups()
        names = np.array([f"family {chr(65 + number)}" for number in groups])
        by_name = [test.tolist() for _, test in fold_indices(60, 5, 1, groups=names)]
        assert by_name != [test.tolist() for _, test in fold_indices(60, 5, 2, groups=names)]
        check_groups(fold_indices(60, 5, 1, groups=names), names)

    def test_strata_are_in_equal_shares(self):
        strata = np.array(["ill"] * 13 + ["well"] * 47)
        for _, test in fold_indices(60, 5, 3, strata=strata):
            assert (strata[test] == "ill").sum() in {2, 3}
            assert len(test) == 12

    @pytest.mark.parametrize("seed", range(20))
    def test_each_of_many_strata_is_in_shares_that_differ_by_one_at_most(self, seed):
        strata = np.repeat(np.arange(5), [7, 9, 13, 31, 54])
        folds = fold_indices(114, 4, seed, strata=strata)
        shares = np.array([np.bincount(strata[test], minlength=5) for _, test in folds])
        assert np.ptp(shares, axis=0).max() <= 1
        assert np.ptp(shares.sum(axis=1)) <= 2

    @pytest.mark.parametrize("seed", range(10))
    def test_the_largest_is_dealt_first_so_that_small_ones_fill_up(self, seed):
        folds = fold_indices(20, 2, seed, groups=np.repeat(np.arange(11), [1] * 10 + [10]))
        assert [len(test) for _, test in folds] == [10, 10]

    def test_of_a_size_are_dealt_in_random_order(self):
        groups = np.repeat(np.arange(12), 2)
        dealt = {tuple(fold_indices(24, 2, seed, groups=groups)[0][1].tolist()) for seed in range(20)}
        assert len(dealt) > 10

    @pytest.mark.parametrize("seed", range(10))
    def test_a_rare_stratum_counts_as_much_as_a_common_one(self, seed):
        """One person is ill in every fourth of 48 families of one to six."""
        sizes = np.repeat(np.arange(1, 7), 8)
        groups = np.repeat(np.arange(48), sizes)
        ill = np.isin(np.arange(168), (np.cumsum(sizes) - sizes)[::4])
        assert [ill[test].sum() for _, test in fold_indices(168, 4, seed, groups=groups, strata=ill)] == [3, 3, 3, 3]

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"groups": np.arange(20) // 7}, "got 3 groups for 4 folds, expected at least as many"),
            ({"strata": np.arange(20) < 3}, "got a stratum of 3 subjects for 4 folds, expected at least as many"),
            ({"groups": np.arange(19)}, r"got groups of shape \(19,\), expected \(20,\)"),
            ({"strata": np.zeros((20, 2))}, r"got strata of shape \(20, 2\), expected \(20,\)"),
        ],
    )
    def test_too_few_or_of_others_are_refused(self, options, message):
        with pytest.raises(ValueError, match=message):
            fold_indices(20, 4, 0, **options)

    def test_in_two_folds_is_refused_by_name(self):
        folds = folds_of(np.array(["a", "b", "a", "b"]))
        check_groups(folds, ["x", "y", "x", "z"])
        with pytest.raises(ValueError, match="got group x in fold 0 and in another one, expected each in one fold"):
            check_groups(folds, ["x", "y", "w", "x"])


class TestGivenFolds:
    def test_are_those_of_the_labels(self):
        (train, test), *others = folds_of(np.array([2, 9, 2, 5]))
        assert (train.tolist(), test.tolist()) == ([1, 3], [0, 2])
        assert [test.tolist() for _, test in others] == [[3], [1]]

    def test_of_one_label_are_refused(self):
        with pytest.raises(ValueError, match=r"got the folds \['a'\], expected at least two"):
            folds_of(np.array(["a", "a"]))
