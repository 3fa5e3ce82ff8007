"""Many tests at once."""

import numpy as np
import pytest
from scipy.stats import false_discovery_control

from dtg_ray.stats.family import false_discovery_rate, family_wise_p

NAN = np.nan


class TestFamilyWise:
    def test_is_the_rank_of_each_among_the_largest_of_every_permutation(self):
        rng = np.random.default_rng(0)
        observed = np.array([2.5, 0.1, 40.0])
        null = rng.normal(size=(3, 99)) * [[1], [1], [20]]
        both = np.column_stack([observed, null])
        scaled = (both - both.mean(axis=1, keepdims=True)) / both.std(axis=1, keepdims=True)
        largest = [max(scaled[test, number] for test in range(3)) for number in range(1, 100)]
        expected = [(1 + sum(one >= scaled[test, 0] for one in largest)) / 100 for test in range(3)]
        np.testing.assert_allclose(family_wise_p(observed, null), expected)

    def test_is_that_rank_where_figures_are_missing(self):
        rng = np.random.default_rng(4)
        observed, null = np.array([2.0, 9.0, NAN]), rng.normal(size=(3, 99)) * [[1], [4], [1]] + [[0], [7], [0]]
        null[rng.random((3, 99)) < 0.2] = NAN
        scaled = []
        for test in range(2):
            row = [observed[test], *null[test]]
            lowest = min(value for value in row if not np.isnan(value))
            row = np.array([lowest if np.isnan(value) else value for value in row])
            scaled.append((row - row.mean()) / row.std())
        largest = [max(scaled[0][number], scaled[1][number]) for number in range(1, 100)]
        expected = [(1 + sum(one >= row[0] for one in largest)) / 100 for row in scaled]
        np.testing.assert_allclose(family_wise_p(observed, null), [*expected, NAN])

    def test_a_figure_that_never_varies_changes_nothing(self):
        null = np.random.default_rng(5).normal(size=(1, 99))
        both = family_wise_p([2.0, 0.5], np.vstack([null, np.full((1, 99), 0.5)]))
        assert both[0] == family_wise_p([2.0], null)[0]
        assert both[1] > 0.5

    def test_of_one_test_is_its_own_p(self):
        null = np.arange(99.0)
        assert family_wise_p([90.0], null[None]) == pytest.approx((1 + 9) / 100)

    def test_units_do_not_matter(self):
        rng = np.random.default_rng(1)
        observed, null = rng.normal(size=4) + 2, rng.normal(size=(4, 200))
        units, centre = np.array([1, 100, 1e-3, 5]), np.array([0, 3, 70, -1])
        np.testing.assert_allclose(
            family_wise_p(observed * units + centre, null * units[:, None] + centre[:, None]),
            family_wise_p(observed, null),
        )

    def test_the_same_test_twice_costs_nothing(self):
        rng = np.random.default_rng(2)
        null = rng.normal(size=(1, 200))
        once = family_wise_p([2.0], null)
        np.testing.assert_array_equal(family_wise_p([2.0, 2.0], np.vstack([null, null])), [once[0], once[0]])

    def test_a_test_without_a_figure_takes_no_part(self):
        rng = np.random.default_rng(3)
        null = rng.normal(size=(2, 100))
        with_it = family_wise_p([2.0, NAN, 1.0], np.vstack([null[:1], np.full((1, 100), 50.0), null[1:]]))
        assert np.isnan(with_it[1])
        np.testing.assert_array_equal(with_it[[0, 2]], family_wise_p([2.0, 1.0], null))
        assert np.isnan(family_wise_p([NAN], null[:1])).all()

    def test_a_permutation_without_a_figure_is_as_bad_as_the_worst(self):
        null = np.array([[0.0, NAN, 1.0, 3.0]])
        np.testing.assert_array_equal(family_wise_p([2.0], null), [2 / 5])

    @pytest.mark.parametrize(("observed", "null"), [([1.0], [1.0]), ([1.0], [[1.0], [2.0]]), ([1.0], [[]])])
    def test_of_other_shapes_are_refused(self, observed, null):
        with pytest.raises(ValueError, match=r"got statistics of shape .* expected .* at least one permutation"):
            family_wise_p(observed, null)


class TestFalseDiscoveryRate:
    def test_is_that_of_benjamini_and_hochberg(self):
        np.testing.assert_allclose(false_discovery_rate([0.01, 0.04, 0.03, 0.5]), [0.04, 0.16 / 3, 0.16 / 3, 0.5])

    def test_nan_takes_no_part(self):
        found = false_discovery_rate([0.01, NAN, 0.04])
        assert np.isnan(found[1])
        np.testing.assert_array_equal(found[[0, 2]], false_discovery_control([0.01, 0.04]))
        assert np.isnan(false_discovery_rate([NAN])).all()
