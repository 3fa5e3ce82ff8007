"""Whether one set of features predicts better than another."""

import itertools

import numpy as np
import pytest
from scipy import stats

from dtg_ray.stats.comparison import corrected_resampled_t, paired_permutation
from dtg_ray.stats.metrics import pearson


class TestCorrectedT:
    def test_is_the_t_test_with_a_variance_for_shared_training_subjects(self):
        d = np.random.default_rng(0).normal(0.2, 1, 50)
        t, p = corrected_resampled_t(d, 80, 20)
        plain = stats.ttest_1samp(d, 0)
        assert t == pytest.approx(plain.statistic * np.sqrt((1 / 50) / (1 / 50 + 20 / 80)))
        assert p == pytest.approx(2 * stats.t.sf(abs(t), 49))
        assert p > plain.pvalue

    def test_is_the_formula_of_nadeau_and_bengio(self):
        """Mean 2 and variance 1 of three folds, half as many tested as trained on: 2 / sqrt(1/3 + 1/2)."""
        t, p = corrected_resampled_t([1.0, 2.0, 3.0], 20, 10)
        assert t == pytest.approx(2 / np.sqrt(5 / 6))
        assert p == pytest.approx(1 - t / np.sqrt(2 + t**2))  # of two degrees of freedom

    def test_is_symmetric(self):
        d = np.random.default_rng(0).normal(0.2, 1, 10)
        (t, p), (minus_t, same_p) = corrected_resampled_t(d, 8, 2), corrected_resampled_t(-d, 8, 2)
        assert (minus_t, same_p) == (-t, p)

    def test_of_equal_figures_is_nothing(self):
        assert corrected_resampled_t(np.zeros(10), 8, 2) == (0.0, 1.0)
        assert corrected_resampled_t(np.full(10, 0.1), 8, 2) == (np.inf, 0.0)

    def test_of_a_fold_without_a_figure_is_not_known(self):
        assert np.isnan(corrected_resampled_t([0.1, np.nan, 0.3], 8, 2)).all()

    @pytest.mark.parametrize("d", [[0.1], [[0.1, 0.2]]])
    def test_needs_two_folds(self, d):
        with pytest.raises(ValueError, match=r"expected .* of at least two folds"):
            corrected_resampled_t(d, 8, 2)


def mean_product(y):
    return lambda predicted: (predicted * y).mean(axis=-1)


class TestPairedPermutation:
    def test_agrees_with_all_exchanges_there_are(self):
        rng = np.random.default_rng(0)
        y, first, second = rng.normal(size=(3, 8))
        first = first + 0.5 * y
        figure = mean_product(y)
        observed = figure(first) - figure(second)
        null = [
            figure(np.where(coins, second, first)) - figure(np.where(coins, first, second))
            for coins in itertools.product([False, True], repeat=8)
        ]
        expected = np.mean(np.abs(null) >= abs(observed) - 1e-12)
        difference, p = paired_permutation(figure, first, second, 5000, 1)
        assert difference == pytest.approx(observed)
        assert p == pytest.approx(expected, abs=4 * np.sqrt(expected * (1 - expected) / 5000))

    def test_exchanges_the_predictions_of_a_block_together(self):
        """Of two blocks there are two differences: any exchange gives the observed size or the other one."""
        rng = np.random.default_rng(0)
        y, first, second = rng.normal(size=(3, 8))
        blocks = np.array(["a"] * 3 + ["b"] * 5)
        parts = [(y * (first - second))[blocks == name].sum() / 8 for name in "ab"]
        observed, other = abs(parts[0] + parts[1]), abs(parts[0] - parts[1])
        difference, p = paired_permutation(mean_product(y), first, second, 2000, 1, blocks)
        assert abs(difference) == pytest.approx(observed)
        assert p == pytest.approx(1 if other >= observed else 0.5, abs=0.05)

    def test_is_drawn_from_the_seed(self):
        y, first, second = np.random.default_rng(0).normal(size=(3, 20))
        found = [paired_permutation(mean_product(y), first, second, 300, seed) for seed in (0, 0, *range(1, 9))]
        assert found[0] == found[1]
        assert len({p for _, p in found}) > 2

    def test_the_same_predictions_do_not_differ(self):
        y = np.random.default_rng(0).normal(size=20)
        difference, p = paired_permutation(lambda predicted: pearson(y, predicted), y, y.copy(), 100, 0)
        assert (difference, p) == (0, 1)

    def test_is_symmetric_and_batches_do_not_matter(self):
        rng = np.random.default_rng(0)
        y, first, second = rng.normal(size=(3, 20))
        found = [
            paired_permutation(lambda predicted: pearson(y, predicted), *pair, 300, 0, batch=batch)
            for pair, batch in (((first, second), 128), ((first, second), 7), ((second, first), 128))
        ]
        assert found[0] == pytest.approx(found[1])
        assert found[2] == pytest.approx((-found[0][0], found[0][1]))

    def test_takes_decision_values_of_several_classes(self):
        rng = np.random.default_rng(0)
        first, second = rng.normal(size=(2, 20, 3))
        difference, p = paired_permutation(lambda d: d[..., 0].mean(axis=-1), first, second, 200, 0)
        assert difference == pytest.approx(first[:, 0].mean() - second[:, 0].mean())
        assert 1 / 201 <= p <= 1

    def test_without_permutations_says_the_difference_alone(self):
        difference, p = paired_permutation(lambda d: d.mean(axis=-1), np.ones(4), np.zeros(4), 0, 0)
        assert difference == 1
        assert np.isnan(p)

    def test_p_is_uniform_where_nothing_differs(self):
        rng = np.random.default_rng(0)
        p = []
        for number in range(300):
            y, first, second = rng.normal(size=(3, 30))
            first, second = first + y, second + y
            p.append(paired_permutation(lambda d, y=y: pearson(y, d), first, second, 199, number)[1])
        assert stats.kstest(p, "uniform").pvalue > 0.01
