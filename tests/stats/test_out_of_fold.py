"""Out-of-fold predictions against scikit-learn refitted for every fold, with and without confounds."""

import numpy as np
import pytest
from sklearn.linear_model import LinearRegression, Ridge, RidgeClassifier, RidgeCV

from dtg_ray.stats import solvers
from dtg_ray.stats.folds import fold_indices, folds_of
from dtg_ray.stats.gram import Gram, gram
from dtg_ray.stats.metrics import pearson
from dtg_ray.stats.permutation import permutation_indices
from dtg_ray.stats.ridge import OutOfFold
from dtg_ray.stats.solvers import Inverses

ALPHAS = [0.1, 3.0, 30.0, 300.0]
SHAPES = [(40, 120), (60, 7), (50, 40), (48, 33)]
"""Subjects and features: more features, fewer, between the training and all subjects, between two training sizes."""
AS = {"features": lambda X: X, "gram": gram, "inverses": lambda X: Inverses(gram(X))}


def simulate(n, p, c=2, seed=0):
    """Features and a target that depend on each other and on confounds, none of them around 0."""
    rng = np.random.default_rng(seed)
    Z = rng.normal(size=(n, c)) + 5
    X = rng.normal(size=(n, p)) + Z @ rng.normal(size=(c, p)) + 3
    y = 50 + X[:, : min(p, 3)].sum(axis=1) + 2 * Z.sum(axis=1) + 2 * rng.normal(size=n)
    return X, y, Z


def some_folds(kind, n):
    """Equal folds; folds of 3/6, 2/6 and 1/6 of all; of families; folds that neither train on nor test everybody."""
    rows = np.arange(n)
    return {
        "equal": fold_indices(n, 4, 1),
        "unequal": folds_of(np.array([0, 1, 0, 1, 0, 2])[rows % 6]),
        "grouped": fold_indices(n, 3, 0, groups=np.random.default_rng(2).integers(0, 10, n)),
        "partial": [(rows[:25], rows[25:31]), (rows[3:], rows[1:3]), (np.delete(rows, [0, 20]), rows[[20, 0]])],
    }[kind]


def outcomes(y, P=3):
    """A target and permutations of it."""
    return np.vstack([y, y[permutation_indices(len(y), P, 5)]])


def residualised(values, Z, train):
    """Values less what a regression on the confounds of the training rows says."""
    return values - LinearRegression().fit(Z[train], values[train]).predict(Z)


def penalty(alpha, p):
    return lambda m: p / m if alpha == "features/samples" else alpha


def by_scikit_learn(X, y, folds, alpha_of, Z=None):
    """Predictions around the training mean, and the target less what it and confounds explain; NaN where untested."""
    predicted, adjusted = np.full(len(y), np.nan), np.full(len(y), np.nan)
    for train, test in folds:
        features, target = X, y - y[train].mean()
        if Z is not None:
            features, target = residualised(X, Z, train), residualised(y, Z, train)
        model = Ridge(alpha=alpha_of(len(train))).fit(features[train], target[train])
        predicted[test], adjusted[test] = y[train].mean() + model.predict(features[test]), target[test]
    return predicted, adjusted


def joint_fit(X, y, Z, alpha):
    """Coefficients of the constant, the confounds and the features, of which only the last ones are penalised."""
    design = np.column_stack([np.ones(len(X)), Z, X])
    penalties = np.diag([0.0] * (1 + Z.shape[1]) + [alpha] * X.shape[1])
    return np.linalg.solve(design.T @ design + penalties, design.T @ y)


def best_by_leaving_one_out(X, y, Z, alphas):
    """The alpha whose joint fits to all others have the smallest squared errors."""
    errors = []
    for alpha in alphas:
        others = [np.delete(np.arange(len(y)), one) for one in range(len(y))]
        fits = [joint_fit(X[rows], y[rows], Z[rows], alpha) for rows in others]
        rows = np.column_stack([np.ones(len(X)), Z, X])
        errors.append(np.mean([(y[one] - rows[one] @ fit) ** 2 for one, fit in enumerate(fits)]))
    return alphas[int(np.argmin(errors))]


def close(got, expected, y, digits=8):
    np.testing.assert_allclose(got, expected, rtol=0, atol=10.0**-digits * np.std(y))


class TestAgainstScikitLearn:
    @pytest.mark.parametrize(("n", "p"), SHAPES)
    @pytest.mark.parametrize("form", AS)
    @pytest.mark.parametrize("alpha", [0.5, "features/samples"])
    @pytest.mark.parametrize("kind", ["equal", "unequal", "grouped", "partial"])
    @pytest.mark.parametrize("confounds", [0, 1, 3])
    def test_every_fold_of_every_target_equals_a_refit(self, n, p, form, alpha, kind, confounds):
        X, y, Z = simulate(n, p, max(confounds, 1))
        Z = Z if confounds else None
        folds, targets = some_folds(kind, n), outcomes(y)
        engine = OutOfFold(AS[form](X), folds, alpha, Z)
        predicted, added, adjusted = (method(targets) for method in (engine.predict, engine.added, engine.adjusted))
        assert predicted.shape == added.shape == adjusted.shape == targets.shape
        for target, prediction, sum_, known in zip(targets, predicted, added, adjusted, strict=True):
            expected, expected_known = by_scikit_learn(X, target, folds, penalty(alpha, p), Z)
            close(prediction, expected, y)
            close(known, expected_known, y)
            for train, test in folds:
                close(sum_[test], expected[test] - target[train].mean(), y)

    def test_the_folds_above_have_different_alphas(self):
        for kind in ("unequal", "grouped", "partial"):
            assert len({len(train) for train, _ in some_folds(kind, 60)}) > 1
        assert sum(len(train) > 33 for train, _ in some_folds("unequal", 48)) == 1  # a shape is between the two

    @pytest.mark.parametrize(("n", "p"), [(60, 150), (80, 9)])
    def test_targets_of_plus_and_minus_one_are_the_ridge_classifier_of_residual_features(self, n, p):
        X, y, Z = simulate(n, p)
        labels = (y > np.quantile(y, 0.6)).astype(int)
        folds = some_folds("unequal", n)
        decisions = OutOfFold(X, folds, 4.0, Z).predict(2.0 * labels[None] - 1)[0]
        for train, test in folds:
            features = residualised(X, Z, train)
            model = RidgeClassifier(alpha=4.0).fit(features[train], labels[train])
            close(decisions[test], model.decision_function(features[test]), [-1, 1])
            assert model.intercept_[0] == pytest.approx(2 * labels[train].mean() - 1)
            np.testing.assert_array_equal(decisions[test] > 0, model.predict(features[test]))

    @pytest.mark.parametrize(("n", "p"), [(40, 120), (60, 7)])
    def test_residuals_of_both_are_the_joint_fit_with_confounds_that_are_not_penalised(self, n, p):
        X, y, Z = simulate(n, p)
        folds = some_folds("unequal", n)
        engine = OutOfFold(X, folds, 2.0, Z)
        # the error of a prediction is that of the target itself, confounds and all
        errors = engine.adjusted(y[None])[0] - engine.added(y[None])[0]
        for train, test in folds:
            fit = joint_fit(X[train], y[train], Z[train], 2.0)
            close(errors[test], y[test] - np.column_stack([np.ones(len(test)), Z[test], X[test]]) @ fit, y)

    def test_single_precision_features_agree_to_five_digits(self):
        X, y, Z = simulate(50, 2000)
        folds = some_folds("equal", 50)
        expected = by_scikit_learn(X, y, folds, penalty("features/samples", 2000), Z)[0]
        close(OutOfFold(X.astype(np.float32), folds, confounds=Z).predict(y[None])[0], expected, y, digits=5)


class TestChoiceOfAlpha:
    @pytest.mark.parametrize(("n", "p"), SHAPES)
    @pytest.mark.parametrize("form", AS)
    @pytest.mark.parametrize("kind", ["unequal", "partial"])
    def test_is_that_of_ridge_cv_in_every_fold(self, n, p, form, kind):
        X, y, _ = simulate(n, p)
        folds, targets = some_folds(kind, n), outcomes(y, 2)
        engine = OutOfFold(AS[form](X), folds, ALPHAS)
        for target, prediction in zip(targets, engine.predict(targets), strict=True):
            models = [RidgeCV(ALPHAS, fit_intercept=True).fit(X[train], target[train]) for train, _ in folds]
            np.testing.assert_array_equal(engine.alphas(target), [model.alpha_ for model in models])
            for model, (_, test) in zip(models, folds, strict=True):
                close(prediction[test], model.predict(X[test]), y)

    @pytest.mark.parametrize(("n", "p"), [(30, 45), (36, 5)])
    @pytest.mark.parametrize("form", AS)
    def test_with_confounds_is_that_of_fits_to_all_others(self, n, p, form):
        X, y, Z = simulate(n, p)
        folds = some_folds("unequal", n)
        engine = OutOfFold(AS[form](X), folds, ALPHAS, Z)
        best = [best_by_leaving_one_out(X[train], y[train], Z[train], ALPHAS) for train, _ in folds]
        np.testing.assert_array_equal(engine.alphas(y), best)
        alpha_of = dict(zip([len(train) for train, _ in folds], best, strict=True)).get
        close(engine.predict(y[None])[0], by_scikit_learn(X, y, folds, alpha_of, Z)[0], y)

    def test_differs_between_targets_and_folds(self):
        X, y, _ = simulate(60, 7)
        noise = np.random.default_rng(1).normal(size=60)
        engine = OutOfFold(X, some_folds("equal", 60), ALPHAS)
        assert engine.alphas(noise).min() > engine.alphas(y).max()
        assert len({*engine.alphas(X[:, 0] + 2 * noise)}) > 1
        both = engine.predict(np.stack([y, noise]))
        close(both, [engine.predict(one[None])[0] for one in (y, noise)], y, digits=12)

    @pytest.mark.parametrize("p", [7, 120])
    def test_among_one_is_that_one(self, p):
        X, y, Z = simulate(40, p)
        folds = some_folds("unequal", 40)
        chosen, fixed = (OutOfFold(X, folds, alpha, Z) for alpha in ([3.0], 3.0))
        close(chosen.predict(outcomes(y)), fixed.predict(outcomes(y)), y)
        np.testing.assert_array_equal(chosen.alphas(y), [3.0, 3.0, 3.0])
        np.testing.assert_array_equal(fixed.alphas(y), chosen.alphas(y))

    @pytest.mark.parametrize("alphas", [[1.0, 0.0], [np.nan], ["features/samples"]])
    def test_has_to_be_among_numbers_greater_than_0(self, alphas):
        X, _, _ = simulate(20, 30)
        with pytest.raises(ValueError, match=r"got alpha .* expected a number greater than 0"):
            OutOfFold(X, fold_indices(20, 4, 0), alphas)


@pytest.mark.parametrize("p", [7, 120])
class TestConfounds:
    def test_all_indicators_of_a_category_are_all_but_one(self, p):
        X, y, Z = simulate(48, p)
        indicators = np.eye(4)[np.arange(48) % 4]
        folds = some_folds("equal", 48)
        whole, less = (OutOfFold(X, folds, 2.0, np.hstack([Z, some])) for some in (indicators, indicators[:, 1:]))
        close(whole.predict(outcomes(y)), less.predict(outcomes(y)), y)
        close(whole.adjusted(outcomes(y)), less.adjusted(outcomes(y)), y)

    def test_say_the_same_in_any_units_and_mixture_and_next_to_a_constant(self, p):
        X, y, Z = simulate(48, p)
        folds = some_folds("unequal", 48)
        mixed = Z @ np.array([[1e6, 2e-6], [0.0, 1e-3]]) + [3, -10]
        for other in (mixed, np.column_stack([np.full(48, 7.0), Z])):
            plain, changed = (OutOfFold(X, folds, 2.0, some) for some in (Z, other))
            close(changed.predict(outcomes(y)), plain.predict(outcomes(y)), y, digits=6)
            close(changed.adjusted(outcomes(y)), plain.adjusted(outcomes(y)), y, digits=6)

    def test_that_are_constant_or_none_adjust_nothing(self, p):
        X, y, _ = simulate(48, p)
        folds, targets = some_folds("equal", 48), outcomes(y)
        expected = OutOfFold(X, folds, 2.0).predict(targets)
        for none in (None, np.full((48, 2), 0.1), np.empty((48, 0))):
            engine = OutOfFold(X, folds, 2.0, none)
            close(engine.predict(targets), expected, y)
            for train, test in folds:
                close(
                    engine.adjusted(targets)[:, test],
                    (targets - targets[:, train].mean(axis=1, keepdims=True))[:, test],
                    y,
                )
            close(engine.residual(targets), targets - targets.mean(axis=1, keepdims=True), y)

    def test_leave_nothing_of_what_they_determine(self, p):
        X, y, Z = simulate(48, p)
        folds = some_folds("unequal", 48)
        linear = 7 + Z @ [2.0, -3.0]
        engine = OutOfFold(X, folds, 2.0, Z)
        for train, test in folds:
            close(engine.adjusted(linear[None])[0, test], 0, y)
            close(engine.predict(linear[None])[0, test], linear[train].mean(), y)
        close(engine.residual(linear[None]), 0, y)
        # features that are confounds in other words add nothing to them
        again = OutOfFold(Z @ np.ones((2, p)), folds, 2.0, Z).predict(y[None])[0]
        for train, test in folds:
            close(again[test], y[train].mean(), y)

    def test_that_vary_in_the_test_subjects_of_a_fold_alone_are_refused(self, p):
        X, _, Z = simulate(48, p)
        folds = some_folds("unequal", 48)
        site = np.isin(np.arange(48), folds[1][1]).astype(float)
        with pytest.raises(ValueError, match=r"constant or follows from others in all but .* fold 1, expected"):
            OutOfFold(X, folds, 2.0, site[:, None])
        # alone each of the two varies, but among the training subjects they are the same
        with pytest.raises(ValueError, match="fold 1, expected each to vary there: is there a site"):
            OutOfFold(X, folds, 2.0, np.column_stack([Z, Z[:, 0] + site]))

    def test_that_are_as_many_as_the_training_subjects_are_refused(self, p):
        X, _, Z = simulate(48, p, c=45)
        with pytest.raises(ValueError, match="got confounds of which one is constant or follows from others"):
            OutOfFold(X, some_folds("equal", 48), 2.0, Z)

    @pytest.mark.parametrize("missing", [np.nan, np.inf])
    def test_that_are_missing_are_refused(self, p, missing):
        X, _, Z = simulate(48, p)
        Z[[4, 9], 1] = missing
        with pytest.raises(ValueError, match=r"rows \[4 9\] of the confounds, expected finite"):
            OutOfFold(X, some_folds("equal", 48), 2.0, Z)

    @pytest.mark.parametrize("shape", [(48,), (47, 2), (2, 48)])
    def test_of_other_subjects_are_refused(self, p, shape):
        X, _, _ = simulate(48, p)
        with pytest.raises(ValueError, match=r"got confounds of shape .*, expected \(48, c\)"):
            OutOfFold(X, some_folds("equal", 48), 2.0, np.ones(shape))


class TestPermutedResiduals:
    """Freedman and Lane: residuals of all subjects change places, what confounds explain stays where it is."""

    def test_are_those_of_a_regression_on_all_subjects(self):
        X, y, Z = simulate(40, 60)
        engine = OutOfFold(X, some_folds("equal", 40), 2.0, Z)
        targets = outcomes(y)
        expected = [residualised(target, Z, np.arange(40)) for target in targets]
        close(engine.residual(targets), expected, y)

    @pytest.mark.parametrize("kind", ["equal", "unequal", "partial"])
    def test_have_the_errors_of_the_target_they_make_together_with_what_confounds_explain(self, kind):
        X, y, Z = simulate(60, 90)
        engine = OutOfFold(X, some_folds(kind, 60), 2.0, Z)
        residual = engine.residual(y[None])[0]
        permuted = residual[permutation_indices(60, 4, 1)]
        whole = y - residual + permuted
        errors, whole_errors = (engine.adjusted(one) - engine.added(one) for one in (permuted, whole))
        close(errors, whole_errors, y)

    @pytest.mark.parametrize("kind", ["equal", "unequal"])
    def test_have_the_figures_of_the_target_they_make_together_with_what_confounds_explain(self, kind):
        X, y, Z = simulate(60, 90)
        engine = OutOfFold(X, some_folds(kind, 60), 2.0, Z)
        residual = engine.residual(y[None])[0]
        permuted = residual[np.vstack([np.arange(60), permutation_indices(60, 4, 1)])]
        whole = y - residual + permuted  # the first one is y itself
        figure, whole_figure = (pearson(engine.adjusted(one), engine.added(one)) for one in (permuted, whole))
        np.testing.assert_allclose(figure, whole_figure, atol=1e-8)


@pytest.mark.parametrize("confounds", [False, True])
@pytest.mark.parametrize("alpha", [2.0, ALPHAS])
@pytest.mark.parametrize("p", [7, 120])
class TestTargets:
    def engine(self, p, alpha, confounds, kind="unequal"):
        X, y, Z = simulate(48, p)
        return OutOfFold(X, some_folds(kind, 48), alpha, Z if confounds else None), y

    def test_together_equal_one_by_one(self, p, alpha, confounds):
        engine, y = self.engine(p, alpha, confounds)
        targets = np.vstack([outcomes(y), np.random.default_rng(3).normal(size=(2, 48))])
        for method in (engine.predict, engine.added, engine.adjusted, engine.residual):
            close(method(targets), [method(target[None])[0] for target in targets], y, digits=11)

    def test_move_predictions_with_their_units(self, p, alpha, confounds):
        engine, y = self.engine(p, alpha, confounds)
        close(engine.predict(1000 - 5 * y[None]), 1000 - 5 * engine.predict(y[None]), y, digits=9)
        close(engine.adjusted(1000 - 5 * y[None]), -5 * engine.adjusted(y[None]), y, digits=9)

    def test_of_test_subjects_change_other_folds_alone(self, p, alpha, confounds):
        engine, y = self.engine(p, alpha, confounds)
        test = engine.folds[0][1]
        changed = y.copy()
        changed[test] += np.random.default_rng(4).normal(size=len(test))
        before, after = engine.predict(np.stack([y, changed]))
        close(after[test], before[test], y, digits=11)
        assert np.abs(after - before)[engine.folds[1][1]].max() > 1e-3

    def test_that_no_fold_tests_have_no_prediction(self, p, alpha, confounds):
        engine, y = self.engine(p, alpha, confounds, "partial")
        untested = ~np.isin(np.arange(48), np.concatenate([test for _, test in engine.folds]))
        assert untested.any()
        np.testing.assert_array_equal(np.isnan(engine.predict(outcomes(y))), np.tile(untested, (4, 1)))
        np.testing.assert_array_equal(np.isnan(engine.adjusted(y[None])[0]), untested)

    def test_whole_numbers_and_truth_values_are_numbers(self, p, alpha, confounds):
        engine, y = self.engine(p, alpha, confounds)
        above = y > np.median(y)
        np.testing.assert_array_equal(engine.predict(above[None]), engine.predict(above[None].astype(float)))


class TestInverses:
    def test_serve_all_folds_repeats_confounds_and_targets_from_one_factorisation(self):
        X, y, Z = simulate(60, 90)
        inverses = Inverses(gram(X))
        for seed in range(3):
            for confounds in (None, Z):
                folds = fold_indices(60, 4, seed)
                shared = OutOfFold(inverses, folds, confounds=confounds).predict(y[None])
                np.testing.assert_array_equal(shared, OutOfFold(X, folds, confounds=confounds).predict(y[None]))
        assert len(inverses.kept) == 1

    def test_are_one_for_each_alpha(self):
        X, y, _ = simulate(60, 90)
        inverses = Inverses(gram(X))
        folds = some_folds("unequal", 60)
        OutOfFold(inverses, folds).predict(y[None])
        assert len(inverses.kept) == len({len(train) for train, _ in folds}) == 3

    @pytest.mark.parametrize("cache", [0, 2**30])
    def test_of_many_alphas_are_not_kept_where_there_is_no_room(self, monkeypatch, cache):
        monkeypatch.setattr(solvers, "CACHE_BYTES", cache)
        X, y, Z = simulate(60, 90)
        inverses, sizes = Inverses(gram(X)), [4, 9, 6, 4, 20, 17]
        tests = np.split(np.random.default_rng(0).permutation(60), np.cumsum(sizes)[:-1])
        folds = [(np.setdiff1d(np.arange(60), test), test) for test in tests]
        predicted = OutOfFold(inverses, folds, confounds=Z).predict(y[None])
        assert len(inverses.kept) == (5 if cache else 2)
        for fold in folds:
            alone = OutOfFold(X, [fold], confounds=Z).predict(y[None])
            np.testing.assert_allclose(predicted[:, fold[1]], alone[:, fold[1]], rtol=1e-12)

    def test_are_those_of_numpy(self):
        X, _, _ = simulate(30, 50)
        centred = X - X.mean(axis=0)
        expected = np.linalg.inv(centred @ centred.T + 2 * np.eye(30))
        for kernel in (gram(X), Gram(X @ X.T, 50)):
            inverse = Inverses(kernel).of(2.0)
            np.testing.assert_allclose(inverse, expected, rtol=0, atol=1e-11 * np.abs(expected).max())
            np.testing.assert_array_equal(inverse, inverse.T)

    def test_leave_the_gram_matrix_as_it_was(self):
        X, y, Z = simulate(30, 50)
        kernel = gram(X)
        before = kernel.matrix.copy()
        some = [(np.arange(3, 20), np.arange(3))]
        for folds, alpha, confounds in ((some, 2.0, None), (fold_indices(30, 3, 0), ALPHAS, None), (some, 2.0, Z)):
            OutOfFold(kernel, folds, alpha, confounds).predict(y[None])
        np.testing.assert_array_equal(kernel.matrix, before)

    @pytest.mark.parametrize("confounds", [False, True])
    def test_of_what_is_no_gram_matrix_are_refused(self, confounds):
        _, _, Z = simulate(20, 30)
        with pytest.raises(ValueError, match=r"got a Gram matrix that alpha 0.1 does not make positive definite"):
            OutOfFold(Gram(-np.eye(20), 5), fold_indices(20, 4, 0), 0.1, Z if confounds else None)
