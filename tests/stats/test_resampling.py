"""Bootstrap intervals against scipy and their coverage, and paired tests against scipy."""

import numpy as np
import pytest
from scipy import stats

from dtg_ray.stats.resampling import bootstrap_mean, bootstrap_ratio, paired_t


class TestBootstrap:
    def test_is_that_of_scipy(self):
        x = np.random.default_rng(0).gamma(2.0, size=200)
        ours = bootstrap_mean(x[:, None], 20_000, 0)
        theirs = stats.bootstrap((x,), np.mean, method="percentile", n_resamples=20_000, rng=0).confidence_interval
        assert ours.mean[0] == pytest.approx(x.mean())
        width = theirs.high - theirs.low
        assert ours.low[0] == pytest.approx(theirs.low, abs=0.03 * width)
        assert ours.high[0] == pytest.approx(theirs.high, abs=0.03 * width)

    def test_families_are_drawn_together(self):
        """Ten families of ten equal people say as much as ten people."""
        of_family = np.random.default_rng(0).normal(size=10)
        x, families = np.repeat(of_family, 10)[:, None], np.repeat(np.arange(10), 10)
        together, alone = bootstrap_mean(x, 4000, 0, families), bootstrap_mean(of_family[:, None], 4000, 0)
        np.testing.assert_allclose([together.low, together.high], [alone.low, alone.high])
        as_if_many = bootstrap_mean(x, 4000, 0)
        assert (together.high - together.low)[0] > 2.5 * (as_if_many.high - as_if_many.low)[0]

    def test_holds_the_mean_as_often_as_it_says(self):
        rng, inside = np.random.default_rng(0), 0
        for _ in range(400):
            found = bootstrap_mean(rng.normal(1.0, size=(50, 1)), 400, 0)
            inside += int(found.low[0] <= 1.0 <= found.high[0])
        assert 0.9 < inside / 400 < 0.98

    def test_missing_values_are_left_out_of_their_figure(self):
        x = np.random.default_rng(0).normal(size=(40, 3))
        x[5:25, 1], x[1:, 2] = np.nan, np.nan
        found = bootstrap_mean(x, 1000, 0)
        assert found.mean[1] == pytest.approx(np.nanmean(x[:, 1]))
        assert found.low[1] < found.mean[1] < found.high[1]
        assert found.mean[2] == x[0, 2]
        assert np.isnan([found.low[2], found.high[2]]).all(), "of one person nothing can be said"

    def test_resamples_are_the_same_whatever_is_asked_beside_them(self):
        x = np.random.default_rng(0).normal(size=(30, 2))
        both, one = bootstrap_mean(x, 500, 7), bootstrap_mean(x[:, :1], 500, 7)
        assert both.low[0] == pytest.approx(one.low[0], rel=1e-12)

    def test_no_resamples_give_no_interval(self):
        found = bootstrap_mean(np.ones((4, 2)), 0, 0)
        np.testing.assert_array_equal(found.mean, 1)
        assert np.isnan(found.low).all()

    @pytest.mark.parametrize(
        ("values", "groups"), [(np.ones(3), None), (np.ones((0, 2)), None), (np.ones((3, 1)), [1])]
    )
    def test_shapes_are_checked(self, values, groups):
        with pytest.raises(ValueError, match="expected \\(n, F\\) and \\(n,\\)"):
            bootstrap_mean(values, 10, 0, groups)


class TestRatio:
    def test_is_that_of_the_means_with_the_interval_of_scipy(self):
        rng = np.random.default_rng(0)
        b = rng.normal(1.0, 0.2, size=150)
        a = 1.3 * b + rng.normal(0, 0.1, size=150)
        found = bootstrap_ratio(a[:, None], b[:, None], 10_000, 0)
        theirs = stats.bootstrap(
            (a, b), lambda x, y, axis: x.mean(axis) / y.mean(axis), paired=True, method="percentile", n_resamples=10_000
        ).confidence_interval
        assert found.mean[0] == pytest.approx(a.mean() / b.mean())
        width = theirs.high - theirs.low
        assert found.low[0] == pytest.approx(theirs.low, abs=0.05 * width)
        assert found.high[0] == pytest.approx(theirs.high, abs=0.05 * width)

    def test_is_over_who_has_both(self):
        a, b = np.array([[1.0], [2.0], [np.nan], [3.0]]), np.array([[1.0], [1.0], [1.0], [np.nan]])
        assert bootstrap_ratio(a, b, 100, 0).mean[0] == 1.5

    @pytest.mark.parametrize("shift", [0.0, -1.0])
    def test_of_what_may_be_nothing_is_none(self, shift):
        b = np.random.default_rng(0).normal(shift + 0.001, 1, size=(50, 1))
        found = bootstrap_ratio(np.ones((50, 1)), b, 500, 0)
        assert np.isnan([found.mean[0], found.low[0], found.high[0]]).all()


class TestPaired:
    def test_is_that_of_scipy(self):
        rng = np.random.default_rng(0)
        a, b = rng.normal(size=(2, 40)) + np.array([[0.4], [0]])
        a[3], b[7] = np.nan, np.nan
        found, theirs = paired_t(a, b), stats.ttest_rel(a, b, nan_policy="omit")
        assert found.subjects == 38
        assert found.t == pytest.approx(theirs.statistic)
        assert found.p == pytest.approx(theirs.pvalue)
        assert found.d == pytest.approx(found.t / np.sqrt(38))

    def test_families_count_as_one(self):
        """Ten families of ten equal people say as much as ten people."""
        rng = np.random.default_rng(0)
        a, b = rng.normal(size=(2, 10)) + np.array([[0.5], [0]])
        families = np.repeat(np.arange(10), 10)
        found = paired_t(a.repeat(10), b.repeat(10), families)
        assert found.subjects == 100
        assert found.p == pytest.approx(stats.ttest_rel(a, b).pvalue)

    def test_of_what_is_the_same_is_no_difference(self):
        a = np.random.default_rng(0).normal(size=20)
        assert paired_t(a, a).p == 1
        assert paired_t(a + 0.25, a + 0.125).p < 1e-6

    def test_of_one_person_is_none(self):
        found = paired_t([1.0, np.nan], [0.5, 1.0])
        assert (found.subjects, found.difference) == (1, 0.5)
        assert np.isnan(found.p)
        assert paired_t([np.nan], [1.0]).subjects == 0

    def test_shapes_are_checked(self):
        with pytest.raises(ValueError, match="expected the same"):
            paired_t([1.0, 2.0], [1.0])
