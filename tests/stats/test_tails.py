"""p values from fewer permutations."""

import numpy as np
import pytest
from scipy import stats

from dtg_ray.stats.permutation import p_value
from dtg_ray.stats.tails import generalised_pareto_p, negative_binomial_p, stopping_point

NULL = np.array([0.1, 0.9, 0.3, 0.5, 0.7, 0.2])


class TestStopping:
    @pytest.mark.parametrize(("exceedances", "expected"), [(1, 2), (2, 4), (3, 5), (4, None)])
    def test_is_at_the_permutation_that_makes_the_number_full(self, exceedances, expected):
        assert stopping_point(0.5, NULL, exceedances) == expected

    def test_p_is_the_share_until_then_and_the_plain_count_without(self):
        assert negative_binomial_p(0.5, NULL, 2) == 2 / 4
        assert negative_binomial_p(0.5, NULL, 4) == p_value(0.5, NULL) == 4 / 7
        assert negative_binomial_p(2.0, NULL, 2) == 1 / 7

    def test_what_comes_after_does_not_matter(self):
        assert negative_binomial_p(0.5, NULL[:4], 2) == negative_binomial_p(0.5, NULL, 2)

    def test_a_constant_prediction_stops_at_once(self):
        assert stopping_point(np.nan, NULL, 2) == 2
        assert negative_binomial_p(np.nan, NULL, 2) == 1

    def test_p_is_valid_under_the_null(self):
        """P(p <= level) is at most the level, whatever it is."""
        rng = np.random.default_rng(0)
        p = [negative_binomial_p(rng.normal(), rng.normal(size=200), 10) for _ in range(3000)]
        for level in (0.05, 0.1, 0.3, 0.7):
            assert np.mean(np.array(p) <= level) <= stats.binom.ppf(0.999, 3000, level) / 3000


class TestTail:
    @pytest.mark.parametrize(
        "distribution", [stats.expon(), stats.t(8), stats.norm(), stats.gamma(3)], ids=lambda one: one.dist.name
    )
    @pytest.mark.parametrize("p", [1e-4, 1e-5])
    def test_is_near_that_of_the_distribution_in_the_median_and_never_far_below(self, distribution, p):
        observed = float(distribution.isf(p))
        found = [
            generalised_pareto_p(observed, distribution.rvs(size=1000, random_state=seed), seed) for seed in range(30)
        ]
        known = np.array([one for one in found if one is not None])
        assert len(known) >= 15
        assert p / 4 < np.median(known) < 40 * p
        assert known.min() > p / 300

    def test_of_a_distribution_that_ends_is_not_nothing(self):
        null = np.random.default_rng(0).uniform(size=2000)
        assert 1e-7 < generalised_pareto_p(1.02, null) < 1e-3

    @pytest.mark.parametrize("shape", [0.0, 0.2])
    def test_of_a_generalised_pareto_distribution_is_its_own(self, shape):
        distribution = stats.genpareto(shape)
        observed = distribution.isf(1e-4)
        found = [generalised_pareto_p(observed, distribution.rvs(size=5000, random_state=one)) for one in range(40)]
        known = [one for one in found if one is not None]
        assert len(known) >= 30
        assert 0.7e-4 < np.median(known) < 1.5e-4

    @pytest.mark.parametrize(
        "distribution", [stats.uniform(), stats.beta(9, 9), stats.norm()], ids=lambda one: one.dist.name
    )
    def test_is_valid_where_the_tail_is_light(self, distribution):
        """Such as that of a correlation, whose null distribution with n subjects is a beta."""
        rng, p = np.random.default_rng(0), []
        for seed in range(8000):
            observed, null = distribution.rvs(random_state=rng), distribution.rvs(size=400, random_state=rng)
            small = generalised_pareto_p(observed, null, seed)
            p.append(p_value(observed, null) if small is None else small)
        for level in (0.02, 0.005, 0.001, 1e-4):
            assert (np.array(p) <= level).sum() <= stats.binom.ppf(0.999, 8000, level)

    def test_is_asked_for_below_ten_exceedances_only(self):
        null = np.random.default_rng(3).normal(size=1000)
        tenth, ninth = np.sort(null)[[-10, -9]]
        assert generalised_pareto_p(tenth, null) is None
        assert generalised_pareto_p(ninth, null) == pytest.approx(9 / 1000, rel=0.3)

    def test_is_the_same_again(self):
        nulls = np.random.default_rng(0).standard_t(3, size=(40, 400))
        first, second = ([generalised_pareto_p(12.0, null, 5) for null in nulls] for _ in range(2))
        assert first == second

    def test_is_smaller_than_the_plain_count_where_that_can_say_no_more(self):
        null = np.random.default_rng(1).normal(size=1000)
        small = generalised_pareto_p(6.0, null)
        assert small < p_value(6.0, null) / 3
        assert generalised_pareto_p(7.0, null) < small

    def test_does_not_depend_on_the_order(self):
        null = np.random.default_rng(1).normal(size=1000)
        assert generalised_pareto_p(5.0, null[::-1]) == generalised_pareto_p(5.0, null)

    @pytest.mark.parametrize(
        ("observed", "null"),
        [
            (0.0, np.random.default_rng(0).normal(size=1000)),  # the plain count is good enough
            (9.0, np.random.default_rng(0).normal(size=60)),  # the tail is too short
            (9.0, np.zeros(1000)),  # there is none
            (np.nan, np.random.default_rng(0).normal(size=1000)),
            (9.0, np.full(1000, np.nan)),
        ],
    )
    def test_is_left_alone_where_it_is_not_needed_or_not_there(self, observed, null):
        assert generalised_pareto_p(observed, null) is None
