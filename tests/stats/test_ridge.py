"""Cross-validated ridge against scikit-learn, the published outputs and itself."""

import numpy as np
import pytest
from sklearn.linear_model import Ridge, RidgeClassifier

from dtg_ray.stats.folds import fold_indices
from dtg_ray.stats.gram import Gram, gram
from dtg_ray.stats.permutation import permutation_indices
from dtg_ray.stats.ridge import cross_validated_ridge
from reference import PUBLISHED, needs_published


def simulate(n, p, seed=0, offset=0.0):
    rng = np.random.default_rng(seed)
    X = rng.normal(size=(n, p)) + offset
    y = 50 + X[:, : min(p, 3)].sum(axis=1) + rng.normal(size=n)
    return X, y


def refit(estimator, X, y, folds, method="predict"):
    """Fit a scikit-learn estimator in every fold; `estimator` gets the number of training rows."""
    predictions = np.full(len(y), np.nan)
    for train, test in folds:
        model = estimator(len(train)).fit(X[train], y[train])
        predictions[test] = getattr(model, method)(X[test])
    return predictions


@pytest.fixture(scope="module")
def published():
    with np.load(PUBLISHED / "phenotype.npz") as file:
        return dict(file)


@needs_published
class TestPublished:
    def test_regression_agrees_with_the_published_predictions(self, published):
        X, y = published["X"], published["y_regression"]
        result = cross_validated_ridge(X, y, fold_indices(len(y), 5, 42), alpha="features/samples")
        np.testing.assert_allclose(result.predictions, published["expected_regression_prediction"], rtol=0, atol=1e-9)

    def test_permuted_regression_agrees_with_the_published_predictions(self, published):
        X, y, permutations = published["X"], published["y_regression"], published["permutations"]
        result = cross_validated_ridge(X, y, fold_indices(len(y), 5, 42), permutations=permutations)
        expected = published["expected_permuted_regression_prediction"]
        np.testing.assert_allclose(result.permuted_predictions, expected, rtol=0, atol=1e-9)

    def test_targets_of_plus_and_minus_one_give_the_published_decision_values(self, published):
        X, permutations = published["X"], published["permutations"]
        y = 2 * published["y_classification"] - 1
        result = cross_validated_ridge(X, y, fold_indices(len(y), 5, 42), permutations=permutations)
        decision, permuted = (published[f"expected_{name}classification_decision"] for name in ("", "permuted_"))
        np.testing.assert_allclose(result.predictions, decision, rtol=0, atol=1e-9)
        np.testing.assert_allclose(result.permuted_predictions, permuted, rtol=0, atol=1e-9)
        np.testing.assert_array_equal(result.predictions > 0, published["expected_classification_prediction"] == 1)

    def test_single_precision_features_cost_a_millionth_of_the_spread(self, published):
        X, y = published["X"], published["y_regression"]
        result = cross_validated_ridge(X.astype(np.float32), y, fold_indices(len(y), 5, 42))
        expected = published["expected_regression_prediction"]
        np.testing.assert_allclose(result.predictions, expected, rtol=0, atol=2e-6 * y.std())


class TestAgainstScikitLearn:
    @pytest.mark.parametrize(("n", "p"), [(40, 200), (60, 7), (50, 40), (51, 41), (30, 1)])
    @pytest.mark.parametrize("alpha", [1e-2, 1.0, 300.0, "features/samples"])
    @pytest.mark.parametrize("as_gram", [False, True])
    def test_every_fold_and_permutation_equals_a_refit(self, n, p, alpha, as_gram):
        X, y = simulate(n, p, offset=3)
        folds = fold_indices(n, 4, 1)
        permutations = permutation_indices(n, 3, 5)
        features = Gram(matrix=X @ X.T, n_features=p) if as_gram else X

        def ridge(m):
            return Ridge(alpha=p / m if alpha == "features/samples" else alpha)

        result = cross_validated_ridge(features, y, folds, alpha=alpha, permutations=permutations)
        np.testing.assert_allclose(result.predictions, refit(ridge, X, y, folds), rtol=1e-8)
        assert result.permuted_predictions.shape == (3, n)
        for order, predictions in zip(permutations, result.permuted_predictions, strict=True):
            np.testing.assert_allclose(predictions, refit(ridge, X, y[order], folds), rtol=1e-8)

    @pytest.mark.parametrize(("n", "p"), [(40, 90), (80, 9)])
    def test_targets_of_plus_and_minus_one_are_the_ridge_classifier(self, n, p):
        X, y = simulate(n, p)
        labels = (y > np.median(y) + 0.7).astype(int)
        folds = fold_indices(n, 5, 0)
        expected = refit(lambda _: RidgeClassifier(alpha=2.0), X, labels, folds, "decision_function")
        result = cross_validated_ridge(X, 2 * labels - 1, folds, alpha=2.0)
        np.testing.assert_allclose(result.predictions, expected, rtol=0, atol=1e-10)


class TestIdentities:
    def test_gram_and_features_give_the_same_predictions(self):
        X, y = simulate(60, 300)
        folds, permutations = fold_indices(60, 5, 0), permutation_indices(60, 4, 0)
        from_features = cross_validated_ridge(X, y, folds, alpha=7.0, permutations=permutations)
        from_gram = cross_validated_ridge(gram(X), y, folds, alpha=7.0, permutations=permutations)
        np.testing.assert_allclose(from_gram.predictions, from_features.predictions, rtol=1e-12)
        np.testing.assert_allclose(from_gram.permuted_predictions, from_features.permuted_predictions, rtol=1e-12)

    @pytest.mark.parametrize("p", [5, 80])
    def test_a_constant_added_to_the_target_is_added_to_the_predictions(self, p):
        X, y = simulate(40, p)
        folds = fold_indices(40, 4, 0)
        # so large a constant and so small a penalty would eat the digits if the target were not centred first
        plain, shifted = (cross_validated_ridge(X, values, folds, alpha=1e-4).predictions for values in (y, y + 1e8))
        np.testing.assert_allclose(shifted - 1e8, plain, rtol=0, atol=1e-5)

    @pytest.mark.parametrize("p", [5, 80])
    def test_the_identity_permutation_gives_the_observed_predictions(self, p):
        X, y = simulate(40, p)
        permutations = np.vstack([np.arange(40), permutation_indices(40, 2, 0)])
        result = cross_validated_ridge(X, y, fold_indices(40, 4, 0), alpha=2.0, permutations=permutations)
        np.testing.assert_allclose(result.permuted_predictions[0], result.predictions, rtol=1e-13)
        assert np.abs(result.permuted_predictions[1] - result.predictions).max() > 0.1

    def test_an_enormous_penalty_predicts_the_training_mean(self):
        X, y = simulate(30, 60)
        folds = fold_indices(30, 3, 0)
        predictions = cross_validated_ridge(X, y, folds, alpha=1e12).predictions
        for train, test in folds:
            np.testing.assert_allclose(predictions[test], y[train].mean(), rtol=1e-9)

    @pytest.mark.parametrize("batch", [1, 3, 4, 11])
    def test_the_size_of_a_batch_does_not_matter(self, batch):
        X, y = simulate(40, 80)
        folds, permutations = fold_indices(40, 4, 0), permutation_indices(40, 10, 0)
        whole = cross_validated_ridge(X, y, folds, permutations=permutations)
        batched = cross_validated_ridge(X, y, folds, permutations=permutations, batch=batch)
        np.testing.assert_allclose(batched.permuted_predictions, whole.permuted_predictions, rtol=1e-12)
        np.testing.assert_allclose(batched.predictions, whole.predictions, rtol=1e-12)

    def test_a_test_row_does_not_influence_its_own_prediction(self):
        X, y = simulate(30, 50)
        folds = fold_indices(30, 3, 0)
        before = cross_validated_ridge(X, y, folds, alpha=1.0).predictions
        row = folds[0][1][0]
        y[row] += 100
        after = cross_validated_ridge(X, y, folds, alpha=1.0).predictions
        np.testing.assert_allclose(after[folds[0][1]], before[folds[0][1]], rtol=1e-12)
        assert np.abs(after[folds[1][1]] - before[folds[1][1]]).min() > 0

    def test_inputs_are_left_as_they_were(self):
        X, y = simulate(30, 50)
        kernel = Gram(X @ X.T, 50)
        copies = X.copy(), y.copy(), kernel.matrix.copy()
        cross_validated_ridge(X, y, fold_indices(30, 3, 0))
        cross_validated_ridge(kernel, y, fold_indices(30, 3, 0))
        cross_validated_ridge(X[:, :4], y, fold_indices(30, 3, 0))
        for now, copy in zip((X, y, kernel.matrix), copies, strict=True):
            np.testing.assert_array_equal(now, copy)

    def test_rows_that_no_fold_tests_are_nan(self):
        X, y = simulate(20, 30)
        result = cross_validated_ridge(X, y, [(np.arange(10), np.arange(15, 20))], permutations=[np.arange(20)])
        np.testing.assert_array_equal(np.isnan(result.predictions), np.arange(20) < 15)
        np.testing.assert_array_equal(np.isnan(result.permuted_predictions[0]), np.arange(20) < 15)

    def test_without_permutations_there_are_no_permuted_predictions(self):
        X, y = simulate(20, 30)
        assert cross_validated_ridge(X, y, fold_indices(20, 4, 0)).permuted_predictions.shape == (0, 20)


class TestGram:
    @pytest.mark.parametrize("block", [1, 7, 50, 1000])
    def test_equals_the_products_of_centred_features(self, block):
        X, _ = simulate(12, 50, offset=2)
        kernel = gram(X, block=block)
        centred = X - X.mean(axis=0)
        np.testing.assert_allclose(kernel.matrix, centred @ centred.T, rtol=0, atol=1e-11)
        assert kernel.n_features == 50
        assert kernel.matrix.dtype == np.float64

    @pytest.mark.parametrize("dtype", [np.float16, np.float32])
    def test_a_large_common_mean_costs_no_digits(self, dtype):
        X = simulate(20, 5000, offset=200)[0].astype(dtype)
        expected = X.astype(np.float64) - X.mean(axis=0, dtype=np.float64)
        expected = expected @ expected.T
        # products of the features as they are would reach 2e8, and single precision ends at the eighth digit
        np.testing.assert_allclose(gram(X).matrix, expected, atol=1e-6 * np.abs(expected).max())

    @pytest.mark.parametrize("rows", [np.array([4, 0, 7]), np.arange(10) % 3 == 0])
    def test_a_subset_equals_the_features_of_the_subset(self, rows):
        X, _ = simulate(10, 30)
        subset = Gram(X @ X.T, 30).subset(rows)
        np.testing.assert_allclose(subset.matrix, X[rows] @ X[rows].T, rtol=1e-12)
        assert subset.n_features == 30

    def test_a_target_with_missing_values_is_a_subset(self):
        X, y = simulate(40, 90)
        known = np.arange(40) % 5 != 0
        folds = fold_indices(int(known.sum()), 4, 0)
        from_subset = cross_validated_ridge(gram(X).subset(known), y[known], folds)
        from_features = cross_validated_ridge(X[known], y[known], folds)
        np.testing.assert_allclose(from_subset.predictions, from_features.predictions, rtol=1e-10)

    @pytest.mark.parametrize(("shape", "p"), [((3, 4), 5), ((3,), 5), ((3, 3), 0)])
    def test_a_matrix_of_the_wrong_shape_is_refused(self, shape, p):
        with pytest.raises(ValueError, match=r"got a Gram matrix of shape .* expected \(n, n\)"):
            Gram(np.ones(shape), p)

    def test_missing_values_are_refused(self):
        with pytest.raises(ValueError, match=r"rows \[1\] of the Gram matrix"):
            Gram(np.array([[1.0, 2.0], [np.nan, 1.0]]), 5)
        X, _ = simulate(5, 9)
        X[3, 8] = np.inf
        with pytest.raises(ValueError, match=r"rows \[3\] of the features, expected finite"):
            gram(X, block=4)

    @pytest.mark.parametrize("shape", [(5,), (5, 0), (2, 3, 4)])
    def test_features_that_are_no_matrix_are_refused(self, shape):
        with pytest.raises(ValueError, match=r"got features of shape .*, expected \(n, p\)"):
            gram(np.ones(shape))

    @pytest.mark.parametrize("block", [0, -1])
    def test_an_empty_block_is_refused(self, block):
        with pytest.raises(ValueError, match=f"got a block of {block}, expected at least 1"):
            gram(np.ones((2, 3)), block=block)


class TestErrors:
    @pytest.fixture
    def data(self):
        X, y = simulate(12, 20)
        return X, y, fold_indices(12, 3, 0)

    @pytest.mark.parametrize("alpha", [0, -1.0, np.nan, np.inf, "samples/features"])
    def test_a_penalty_that_is_not_positive(self, data, alpha):
        X, y, folds = data
        with pytest.raises(ValueError, match=r"got alpha .* expected a number greater than 0"):
            cross_validated_ridge(X, y, folds, alpha=alpha)

    def test_a_missing_target(self, data):
        X, y, folds = data
        y[[2, 5]] = np.nan
        with pytest.raises(ValueError, match=r"rows \[2 5\] of the target, expected finite"):
            cross_validated_ridge(X, y, folds)

    @pytest.mark.parametrize("y", [np.zeros(11), np.zeros((12, 1))])
    def test_a_target_of_another_length(self, data, y):
        X, _, folds = data
        with pytest.raises(ValueError, match=r"got a target of shape .* expected \(12,\)"):
            cross_validated_ridge(X, y, folds)

    def test_features_that_are_no_matrix(self, data):
        _, y, folds = data
        with pytest.raises(ValueError, match=r"got features of shape \(12,\), expected \(n, p\)"):
            cross_validated_ridge(y, y, folds)

    @pytest.mark.parametrize("p", [2, 20])
    def test_missing_features(self, data, p):
        X, y, folds = data
        X[7, 1] = np.nan
        with pytest.raises(ValueError, match=r"rows \[7\] of the features, expected finite"):
            cross_validated_ridge(X[:, :p], y, folds)

    def test_a_row_in_train_and_test(self, data):
        X, y, _ = data
        with pytest.raises(ValueError, match=r"got rows \[3\] in train and test of fold 1, expected none"):
            cross_validated_ridge(X, y, [(np.array([0, 1]), np.array([2])), (np.array([3, 4]), np.array([3, 5]))])

    def test_a_row_tested_twice(self, data):
        X, y, folds = data
        with pytest.raises(ValueError, match="tested more than once, expected at most once"):
            cross_validated_ridge(X, y, [folds[0], folds[0]])

    @pytest.mark.parametrize("folds", [[], [(np.array([], dtype=int), np.array([0]))]])
    def test_nothing_to_train_on(self, data, folds):
        X, y, _ = data
        with pytest.raises(ValueError, match="training rows, expected one or more"):
            cross_validated_ridge(X, y, folds)

    @pytest.mark.parametrize("rows", [[-1, 2], [3, 12]])
    def test_a_fold_row_out_of_range(self, data, rows):
        X, y, _ = data
        with pytest.raises(ValueError, match=f"got fold rows from {rows[0]} to {rows[1]}, expected 0 to 11"):
            cross_validated_ridge(X, y, [(np.array([0, 1]), np.array(rows))])

    def test_a_mask_as_fold(self, data):
        X, y, _ = data
        with pytest.raises(ValueError, match=r"type bool, expected .* integers"):
            cross_validated_ridge(X, y, [(np.arange(12) < 6, np.arange(12) >= 6)])

    @pytest.mark.parametrize("permutations", [np.arange(12), np.zeros((2, 11), int), np.zeros((2, 12))])
    def test_permutations_of_another_shape_or_type(self, data, permutations):
        X, y, folds = data
        with pytest.raises(ValueError, match=r"got permutations of shape .* expected \(P, 12\) integers"):
            cross_validated_ridge(X, y, folds, permutations=permutations)

    @pytest.mark.parametrize("wrong", [3, -1, 12])
    def test_a_permutation_that_is_none(self, data, wrong):
        X, y, folds = data
        permutations = permutation_indices(12, 3, 0)
        permutations[1, permutations[1] == 4] = wrong
        with pytest.raises(ValueError, match="got permutation 1 with repeated or unknown rows, expected each"):
            cross_validated_ridge(X, y, folds, permutations=permutations)

    def test_a_matrix_that_is_no_gram_matrix(self, data):
        _, y, folds = data
        with pytest.raises(ValueError, match=r"got a Gram matrix that alpha 0.1 does not make positive definite"):
            cross_validated_ridge(Gram(-np.eye(12), 5), y, folds, alpha=0.1)

    def test_an_empty_batch(self, data):
        X, y, folds = data
        with pytest.raises(ValueError, match="got a batch of 0, expected at least 1"):
            cross_validated_ridge(X, y, folds, batch=0)
