"""Figures of agreement against scipy, scikit-learn and the published outputs."""

import numpy as np
import pytest
import scipy.stats
import sklearn.metrics

from dtg_ray.stats.metrics import mae, mse, pearson, r2
from reference import PUBLISHED, needs_published

ALL = [pearson, r2, mae, mse]
REFERENCES = [
    (pearson, lambda actual, predicted: scipy.stats.pearsonr(actual, predicted).statistic),
    (r2, sklearn.metrics.r2_score),
    (mae, sklearn.metrics.mean_absolute_error),
    (mse, sklearn.metrics.mean_squared_error),
]


def rows(*shape, seed=0):
    return np.random.default_rng(seed).normal(loc=20, scale=3, size=shape)


@pytest.mark.parametrize(("metric", "reference"), REFERENCES)
def test_every_row_equals_the_reference(metric, reference):
    actual, predicted = rows(3, 4, 25), rows(3, 4, 25, seed=1)
    figures = metric(actual, predicted)
    assert figures.shape == (3, 4)
    assert figures.dtype == np.float64
    for index in np.ndindex(3, 4):
        assert figures[index] == pytest.approx(reference(actual[index], predicted[index]), rel=1e-10)


@pytest.mark.parametrize(("metric", "reference"), REFERENCES)
def test_one_target_is_compared_with_all_predictions_and_the_other_way_round(metric, reference):
    one, many = rows(25), rows(6, 25, seed=1)
    expected = [(reference(one, row), reference(row, one)) for row in many]
    np.testing.assert_allclose(metric(one, many), [pair[0] for pair in expected], rtol=1e-10)
    np.testing.assert_allclose(metric(many, one), [pair[1] for pair in expected], rtol=1e-10)


def test_pearson_knows_no_scale_and_is_one_for_itself():
    actual, predicted = rows(5, 25), rows(5, 25, seed=1)
    np.testing.assert_allclose(pearson(actual, 7 * predicted - 3), pearson(actual, predicted), rtol=1e-10)
    np.testing.assert_allclose(pearson(actual, -actual), -1, rtol=1e-14)
    assert pearson(actual, actual).max() <= 1


@pytest.mark.parametrize("constant", [0.0, 0.1, -1e9])
def test_a_constant_row_has_no_correlation_and_no_explained_variance(constant):
    varying, flat = rows(3, 25), np.full((3, 25), constant)
    flat[1] = varying[1]
    np.testing.assert_array_equal(np.isnan(pearson(varying, flat)), [True, False, True])
    np.testing.assert_array_equal(np.isnan(pearson(flat, varying)), [True, False, True])
    np.testing.assert_array_equal(np.isnan(r2(flat, varying)), [True, False, True])
    assert np.isfinite(r2(varying, flat)).all()


def test_a_constant_with_rounding_errors_is_constant():
    flat = 0.3 + np.array([0.0, 5e-17, -5e-17, 1e-16, 0.0])
    assert len(np.unique(flat)) > 1
    assert np.isnan(pearson(flat, np.arange(5)))


@pytest.mark.parametrize("metric", ALL)
def test_nan_stays_in_its_row(metric):
    actual, predicted = rows(3, 25), rows(3, 25, seed=1)
    predicted[1, 4] = np.nan
    np.testing.assert_array_equal(np.isnan(metric(actual, predicted)), [False, True, False])


def test_the_mean_explains_nothing_and_the_truth_everything():
    actual = rows(25)
    assert r2(actual, np.full(25, actual.mean())) == pytest.approx(0, abs=1e-12)
    assert r2(actual, actual) == 1
    assert mae(actual, actual + 2) == pytest.approx(2)
    assert mse(actual, actual - 2) == pytest.approx(4)


@pytest.mark.parametrize("metric", ALL)
@pytest.mark.parametrize(("one", "other"), [((4,), (5,)), ((1,), (1,)), ((), (4,)), ((3, 0), (3, 0))])
def test_rows_of_different_length_are_refused(metric, one, other):
    with pytest.raises(ValueError, match=r"got actual of shape .* expected \(\.\.\., n\) with the same n"):
        metric(np.zeros(one), np.zeros(other))


@pytest.mark.parametrize("metric", ALL)
def test_leading_axes_that_do_not_broadcast_are_refused(metric):
    with pytest.raises(ValueError, match="expected leading axes that broadcast"):
        metric(np.zeros((2, 5)), np.zeros((3, 5)))


@needs_published
@pytest.mark.parametrize("where", ["mask", "nomask"])
def test_agrees_with_the_published_figures_over_all_values(where):
    with np.load(PUBLISHED / "losses.npz") as file:
        mask = file["mask"] != 0 if where == "mask" else np.ones_like(file["mask"], dtype=bool)
        target, prediction = (file[name][:, :, mask].ravel() for name in ("target", "prediction"))
        for metric, name in ((pearson, "pearson_flat"), (r2, "r2_flat"), (mae, "mae"), (mse, "mse")):
            assert metric(target, prediction) == pytest.approx(file[f"expected_{name}_{where}"], abs=1e-6)
