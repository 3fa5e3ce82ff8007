"""Orders of subjects and p values."""

import numpy as np
import pytest
import scipy.stats

from dtg_ray.stats.folds import fold_indices
from dtg_ray.stats.metrics import pearson
from dtg_ray.stats.permutation import p_value, permutation_indices
from dtg_ray.stats.ridge import cross_validated_ridge


class TestPermutationIndices:
    def test_every_row_is_an_order_of_all_subjects(self):
        orders = permutation_indices(17, 50, 3)
        assert orders.shape == (50, 17)
        assert orders.dtype == np.int64
        np.testing.assert_array_equal(np.sort(orders, axis=1), np.tile(np.arange(17), (50, 1)))
        assert len(np.unique(orders, axis=0)) == 50

    def test_a_row_does_not_depend_on_how_many_are_asked_for(self):
        np.testing.assert_array_equal(permutation_indices(17, 5, 3), permutation_indices(17, 50, 3)[:5])

    def test_the_orders_are_those_recorded_once(self):
        np.testing.assert_array_equal(
            permutation_indices(8, 2, 42), [[3, 4, 2, 7, 6, 1, 5, 0], [0, 4, 6, 1, 2, 7, 3, 5]]
        )

    def test_another_seed_gives_other_orders(self):
        assert not (permutation_indices(17, 5, 3) == permutation_indices(17, 5, 4)).all(axis=1).any()

    def test_every_subject_comes_to_every_place_equally_often(self):
        orders = permutation_indices(5, 4000, 0)
        counts = np.stack([np.bincount(orders[:, place], minlength=5) for place in range(5)])
        assert np.abs(counts - 800).max() < 5 * np.sqrt(4000 * 0.2 * 0.8)

    def test_no_permutations_are_an_empty_table(self):
        assert permutation_indices(4, 0, 0).shape == (0, 4)

    @pytest.mark.parametrize(("n", "n_permutations", "seed"), [(0, 1, 0), (3, -1, 0), (3, 1, -1)])
    def test_negative_numbers_are_refused(self, n, n_permutations, seed):
        with pytest.raises(ValueError, match=f"got n={n}, .*seed={seed}, expected at least 1, 0 and 0"):
            permutation_indices(n, n_permutations, seed)


class TestPValue:
    def test_counts_the_observed_value_and_ties(self):
        assert p_value(2.0, np.array([1.0, 2.0, 3.0, -5.0])) == pytest.approx(3 / 5)
        assert p_value(10.0, np.zeros(999)) == pytest.approx(1 / 1000)
        assert p_value(-10.0, np.zeros(999)) == pytest.approx(1)

    def test_equals_a_loop_over_the_leading_axes(self):
        rng = np.random.default_rng(0)
        observed, null = rng.normal(size=(4, 3)), rng.normal(size=(4, 3, 50))
        p = p_value(observed, null)
        assert p.shape == (4, 3)
        for index in np.ndindex(4, 3):
            assert p[index] == (1 + sum(value >= observed[index] for value in null[index])) / 51

    @pytest.mark.parametrize("observed", [0.1 + 0.2, -(0.1 + 0.2)])
    def test_a_tie_hidden_by_rounding_is_a_tie(self, observed):
        almost = np.nextafter(observed, -1)
        assert almost < observed
        assert p_value(observed, np.array([almost])) == 1
        assert p_value(observed, np.array([observed - 1e-9])) == 0.5

    def test_nan_ranks_below_every_number_on_both_sides(self):
        assert p_value(-0.5, np.array([np.nan, np.nan, 0.0])) == 2 / 4
        assert p_value(np.nan, np.array([np.nan, -1.0, 0.0])) == 1
        np.testing.assert_array_equal(
            p_value([-np.inf, np.inf, -np.inf], np.array([[np.nan], [5.0], [-np.inf]])), [0.5, 0.5, 1]
        )

    @pytest.mark.parametrize(("observed", "null"), [((), ()), ((2,), (3, 5)), ((2,), (5,)), ((), (0,)), ((5,), (5,))])
    def test_axes_that_do_not_agree_are_refused(self, observed, null):
        with pytest.raises(ValueError, match=r"got observed values of shape .* expected \(\.\.\.\) and"):
            p_value(np.zeros(observed), np.zeros(null))

    def test_is_uniform_without_and_small_with_an_effect(self):
        rng = np.random.default_rng(11)
        n, n_permutations, repeats = 24, 39, 200
        folds, orders = fold_indices(n, 4, 0), permutation_indices(n, n_permutations, 0)

        def test(effect):
            X = rng.normal(size=(n, 30))
            y = effect * X[:, :5].sum(axis=1) + rng.normal(size=n)
            result = cross_validated_ridge(X, y, folds, permutations=orders)
            null = pearson(y[orders], result.permuted_predictions)
            return float(p_value(pearson(y, result.predictions), null))

        p = [test(0) for _ in range(repeats)]
        # p takes 40 values; half a step is taken off so that they lie around a uniform distribution
        assert scipy.stats.kstest(np.array(p) - 0.5 / 40, "uniform").pvalue > 0.05
        assert np.mean(np.array(p) <= 0.05) < 0.1
        assert np.mean([test(2) for _ in range(20)]) < 0.1
