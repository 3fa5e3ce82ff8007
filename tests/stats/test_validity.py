"""Whether the tests keep what they promise: p values are uniform where nothing has an effect."""

import numpy as np
import pytest
from scipy import stats

from dtg_ray.stats.classification import auc
from dtg_ray.stats.family import family_wise_p
from dtg_ray.stats.folds import fold_indices
from dtg_ray.stats.metrics import pearson
from dtg_ray.stats.permutation import Exchangeability, p_value
from dtg_ray.stats.ridge import OutOfFold

NULLS, PERMUTATIONS = 500, 99


def simulated_p(simulate, exchange_of, confounds=False, n_folds=3, groups=None):
    """P values of many data sets without an effect, each tested as `dtg predict` does it."""
    p = []
    for number in range(NULLS):
        X, y, Z = simulate(np.random.default_rng(number))
        folds = fold_indices(len(y), n_folds, number, groups=groups)
        engine = OutOfFold(X, folds, 5.0, Z if confounds else None)
        orders = np.vstack([np.arange(len(y)), exchange_of(len(y), number).orders(0, PERMUTATIONS)])
        if confounds:
            targets = engine.residual(y[None])[0][orders]
            figures = pearson(engine.adjusted(targets), engine.added(targets))
        else:
            figures = pearson(y[orders], engine.predict(y[orders]))
        p.append(float(p_value(figures[0], figures[1:])))
    return np.array(p)


def everybody(n, seed):
    return Exchangeability(n, seed)


def uniform(p):
    return stats.kstest(p, "uniform").pvalue > 0.01


class TestUniform:
    @pytest.mark.parametrize("p", [4, 40])
    def test_without_an_effect(self, p):
        def simulate(rng):
            return rng.normal(size=(24, p)), rng.normal(size=24), None

        assert uniform(simulated_p(simulate, everybody))

    def test_of_heavy_tails(self):
        def simulate(rng):
            return rng.normal(size=(24, 30)), rng.standard_t(1.5, size=24), None

        assert uniform(simulated_p(simulate, everybody))

    @pytest.mark.parametrize("inside", [True, False])
    def test_of_classes_in_equal_shares_only_where_nobody_leaves_the_own_fold(self, inside):
        p = []
        for number in range(NULLS):
            rng = np.random.default_rng(number)
            X, ill = rng.normal(size=(30, 40)), rng.permutation(np.arange(30) % 3 == 0).astype(int)
            engine = OutOfFold(X, fold_indices(30, 3, number, strata=ill), 5.0)
            fold = np.empty(30)
            for one, (_, test) in enumerate(engine.folds):
                fold[test] = one
            exchange = Exchangeability(30, number)
            exchange = exchange.inside(np.arange(30), fold) if inside else exchange
            classes = ill[np.vstack([np.arange(30), exchange.orders(0, PERMUTATIONS)])]
            decisions = engine.predict(2.0 * classes - 1)
            figures = auc(classes, np.stack([-decisions, decisions], axis=-1))
            p.append(float(p_value(figures[0], figures[1:])))
        assert uniform(p) == inside


class TestConfounds:
    """Age drives features and target, which have nothing else in common."""

    def simulate(self, rng):
        age = rng.normal(size=(40, 1))
        return rng.normal(size=(40, 50)) + age, 2 * age[:, 0] + rng.normal(size=40), age

    def test_regressed_out_leave_uniform_p(self):
        assert uniform(simulated_p(self.simulate, everybody, confounds=True))

    def test_left_in_do_not(self):
        p = simulated_p(self.simulate, everybody)
        assert (p <= 0.05).mean() > 0.9


class TestFamilies:
    """Members of a family are alike in features and target; nothing else connects these."""

    FAMILIES = np.repeat(np.arange(24), [4] * 6 + [3] * 6 + [2] * 12)

    def simulate(self, rng):
        n = len(self.FAMILIES)
        shared = rng.normal(size=(24, 31))[self.FAMILIES]
        own = rng.normal(size=(n, 31))
        both = shared + 0.3 * own
        return both[:, :30], both[:, 30], None

    def whole(self, _, seed):
        return Exchangeability(len(self.FAMILIES), seed, whole=self.FAMILIES)

    @pytest.mark.parametrize("grouped", [False, True])
    def test_that_change_places_as_wholes_leave_uniform_p(self, grouped):
        assert uniform(simulated_p(self.simulate, self.whole, groups=self.FAMILIES if grouped else None))

    def test_whose_members_change_places_with_anybody_do_not(self):
        p = simulated_p(self.simulate, everybody)
        assert (p <= 0.05).mean() > 0.15

    def test_with_confounds(self):
        """Sex differs within families, and in what is measured."""

        def simulate(rng):
            X, y, _ = self.simulate(rng)
            sex = rng.integers(0, 2, (len(y), 1)).astype(float)
            return X + sex, y + 2 * sex[:, 0], sex

        assert uniform(simulated_p(simulate, self.whole, confounds=True, groups=self.FAMILIES))


class TestSites:
    def test_inside_which_people_change_places_leave_uniform_p(self):
        """Sites differ in features and target."""
        sites = np.arange(36) % 3

        def simulate(rng):
            level = 3 * rng.normal(size=(3, 21))[sites]
            both = level + rng.normal(size=(36, 21))
            return both[:, :20], both[:, 20], None

        def within(n, seed):
            return Exchangeability(n, seed, within=sites)

        assert uniform(simulated_p(simulate, within))
        assert (simulated_p(simulate, everybody) <= 0.05).mean() > 0.15


def test_the_error_of_a_family_of_tests_is_that_of_one():
    """Targets that have much in common, two feature sets, some people missing in some tests."""
    lowest = []
    for number in range(NULLS):
        rng = np.random.default_rng(number)
        exchange = Exchangeability(30, number)
        targets = rng.normal(size=(3, 30)) + 2 * rng.normal(size=30)
        observed, null = [], []
        for X in (rng.normal(size=(30, 40)), rng.normal(size=(30, 3))):
            for one, y in enumerate(targets):
                there = np.delete(np.arange(30), np.arange(one))
                engine = OutOfFold(X[there], fold_indices(len(there), 3, 0), 5.0)
                orders = np.vstack([np.arange(len(there)), exchange.orders(0, PERMUTATIONS, there)])
                permuted = y[there][orders]
                figures = pearson(permuted, engine.predict(permuted))
                observed.append(figures[0])
                null.append(figures[1:])
        lowest.append(family_wise_p(observed, np.array(null)).min())
    errors = int((np.array(lowest) <= 0.05).sum())
    assert stats.binom.ppf(0.0005, NULLS, 0.05) <= errors <= stats.binom.ppf(0.9995, NULLS, 0.05)
