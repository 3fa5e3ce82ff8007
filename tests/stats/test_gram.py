"""Sums of inner products, piece by piece."""

import numpy as np
import pytest

from dtg_ray.stats.gram import LINES, Gram, GramSum, gram, mirror


def features(n=30, p=50, dtype=np.float32, seed=0):
    return (np.random.default_rng(seed).normal(size=(n, p)) + 4).astype(dtype)


def products(X):
    centred = X.astype(np.float64) - X.astype(np.float64).mean(axis=0)
    return centred @ centred.T


class TestSums:
    @pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
    def test_are_the_products_of_all_pieces_centred(self, dtype):
        X, total = features(dtype=dtype), GramSum(30)
        for start in (0, 7, 8):
            total.add(X[:, start : {0: 7, 7: 8, 8: 50}[start]].copy())
        found = total.gram()
        assert found.n_features == 50
        np.testing.assert_allclose(found.matrix, products(X), atol=1e-10 if dtype == np.float64 else 2e-5)
        np.testing.assert_array_equal(found.matrix, found.matrix.T)

    def test_merged_are_those_of_all_features(self):
        X = features()
        parts = [GramSum(30), GramSum(30)]
        parts[0].add(X[:, :20].copy())
        parts[1].add(X[:, 20:].copy())
        merged = GramSum(30).merge(parts[0]).merge(parts[1]).gram()
        assert merged.n_features == 50
        np.testing.assert_allclose(merged.matrix, products(X), atol=2e-5)

    @pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
    @pytest.mark.parametrize("n", [LINES - 1, LINES, LINES + 1, 2 * LINES + 3])
    def test_of_more_people_than_are_added_at_a_time(self, n, dtype):
        X, total = features(n, 6, dtype), GramSum(n)
        total.add(X[:, :2].copy())
        total.add(X[:, 2:].copy())
        np.testing.assert_allclose(total.gram().matrix, products(X), atol=1e-10 if dtype == np.float64 else 2e-5)

    def test_taken_from_elsewhere_are_added_by_their_lower_triangle(self):
        X = features(dtype=np.float64)
        lower = np.tril(products(X[:, :20])) + np.triu(np.full((30, 30), 99.0), 1)
        total = GramSum(30)
        total.add(X[:, 20:].copy())
        found = total.take(lower, 20).gram()
        assert found.n_features == 50
        np.testing.assert_allclose(found.matrix, products(X), atol=1e-10)

    def test_of_single_precision_are_added_in_double(self):
        """A thousand small products beside a large one: single precision would lose them all."""
        total, large, small = GramSum(2), np.array([[3e4], [-3e4]], np.float32), np.array([[1.0], [-1.0]], np.float32)
        total.add(large.copy())
        for _ in range(1000):
            total.add(small.copy())
        assert total.gram().matrix[0, 0] == 9e8 + 1000

    @pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
    @pytest.mark.parametrize("values", [[np.nan, np.nan], [np.inf, np.inf], [np.inf, -np.inf]])
    def test_refuse_missing_and_infinite_values_by_row(self, dtype, values):
        X = features(dtype=dtype)
        X[[3, 8], 5] = values
        with pytest.raises(ValueError, match=r"got NaN or infinite values in rows \[3 8\] of the features"):
            GramSum(30).add(X)

    def test_do_not_depend_on_the_pieces_but_for_rounding(self):
        X = features(p=3000)
        one, many = gram(X, 3000).matrix, gram(X, 11).matrix
        np.testing.assert_allclose(one, many, atol=1e-6 * one.max())


@pytest.mark.parametrize("n", [1, 5, LINES - 1, LINES, LINES + 1, 2 * LINES + 3])
def test_the_lower_triangle_is_mirrored(n):
    rng = np.random.default_rng(0)
    matrix = rng.normal(size=(n, n))
    expected = np.tril(matrix) + np.tril(matrix, -1).T
    mirror(matrix)
    np.testing.assert_array_equal(matrix, expected)


@pytest.mark.parametrize("rows", [np.arange(30)[::-1], np.array([4, 2, 9]), np.arange(30) % 3 == 1])
def test_some_people_are_kept_in_the_order_they_are_asked_for(rows):
    X = features(dtype=np.float64)
    found = Gram(X @ X.T, 50).subset(rows)
    assert found.n_features == 50
    np.testing.assert_allclose(found.matrix, X[rows] @ X[rows].T)
