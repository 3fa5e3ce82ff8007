"""Weights of the features, and the patterns that go with them."""

import numpy as np
import pytest
from sklearn.linear_model import LinearRegression, Ridge

from dtg_ray.stats.gram import Gram, gram
from dtg_ray.stats.weights import final_fit


def simulate(n, p, seed=0):
    rng = np.random.default_rng(seed)
    Z = rng.normal(size=(n, 2)) + 5
    X = rng.normal(size=(n, p)) + Z @ rng.normal(size=(2, p)) + 3
    y = np.column_stack([50 + X[:, :3].sum(axis=1) + Z.sum(axis=1), rng.normal(size=n)])
    return X, y, Z


def without(values, Z):
    return values - LinearRegression().fit(Z, values).predict(Z)


@pytest.mark.parametrize("confounds", [False, True])
@pytest.mark.parametrize("as_gram", [False, True])
@pytest.mark.parametrize(("n", "p"), [(40, 90), (60, 7)])
class TestFinalFit:
    def test_has_the_weights_of_scikit_learn(self, n, p, as_gram, confounds):
        X, y, Z = simulate(n, p)
        fit = final_fit(gram(X) if as_gram else X, y, 2.0, Z if confounds else None)
        features, targets = (without(X, Z), without(y, Z)) if confounds else (X, y)
        model = Ridge(alpha=2.0).fit(features, targets)
        np.testing.assert_allclose(X.T @ fit.dual, model.coef_.T, atol=1e-8)
        expected = model.predict(features) - targets.mean(axis=0)
        np.testing.assert_allclose(fit.fitted, expected, atol=1e-8)

    def test_has_the_patterns_of_haufe(self, n, p, as_gram, confounds):
        """cov(x, fitted) / var(fitted), of features less confounds."""
        X, y, Z = simulate(n, p)
        fit = final_fit(gram(X) if as_gram else X, y, 2.0, Z if confounds else None)
        features = without(X, Z) if confounds else X - X.mean(axis=0)
        expected = [features.T @ fitted / (fitted @ fitted) for fitted in fit.fitted.T]
        np.testing.assert_allclose(X.T @ fit.pattern, np.transpose(expected), atol=1e-8)


@pytest.mark.parametrize("confounds", [False, True])
def test_products_of_features_that_are_not_centred_do_as_well(confounds):
    X, y, Z = simulate(30, 50)
    Z = Z if confounds else None
    raw, expected = final_fit(Gram(X @ X.T, 50), y, 2.0, Z), final_fit(gram(X), y, 2.0, Z)
    np.testing.assert_allclose(raw.dual, expected.dual, atol=1e-8)
    np.testing.assert_allclose(raw.fitted, expected.fitted, atol=1e-8)


def test_the_pattern_of_nothing_is_nothing():
    X, y, _ = simulate(20, 30)
    fit = final_fit(gram(X), np.zeros_like(y), 1.0)
    assert not fit.pattern.any()


def test_the_pattern_is_that_of_the_data_where_the_weights_are_not():
    """The example of Haufe et al.: a feature of noise alone gets a weight, since it takes the noise out of another."""
    rng = np.random.default_rng(0)
    signal, noise = rng.normal(size=(2, 500))
    X = np.column_stack([signal + noise, noise])
    fit = final_fit(X, signal[:, None], 1e-3)
    weights, pattern = (X.T @ fit.dual)[:, 0], (X.T @ fit.pattern)[:, 0]
    assert weights == pytest.approx([1, -1], abs=0.01)
    assert pattern == pytest.approx([1, 0], abs=0.1)


@pytest.mark.parametrize("X", [Gram(-np.eye(20), 5), np.zeros((20, 3))])
def test_what_cannot_be_factorised_is_refused(X):
    targets = np.random.default_rng(0).normal(size=(20, 1))
    with pytest.raises(ValueError, match=r"got a Gram matrix that alpha .* does not make positive definite"):
        final_fit(X, targets, 1e-9 if isinstance(X, Gram) else -1.0)
