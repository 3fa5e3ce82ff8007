"""Inverses in tiles against numpy's, and how matrices are cut."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.linalg import LinAlgError

from dtg_ray.stats.solvers import centred
from dtg_ray.stats.tiles import edges_of, edges_within, mean_terms, mirrored, pivot, slices, strip, update


def positive(n, seed=0, alpha=0.5):
    X = np.random.default_rng(seed).normal(size=(n, 2 * n))
    return X @ X.T + alpha * np.eye(n)


def inverted(A, edges):
    """The sweep of a whole matrix, by its tiles on and below the diagonal alone."""
    rows, N = slices(edges), len(edges) - 1
    kept = {(i, j): A[rows[i], rows[j]].copy() for i in range(N) for j in range(i + 1)}

    def tile(i, j):
        return kept[i, j] if i >= j else kept[j, i].T

    for k in range(N):
        L, F = pivot(kept[k, k])
        strips = [F if i == k else strip(tile(i, k), L) for i in range(N)]
        kept = {
            (i, j): update(None if k in {i, j} else kept[i, j].copy(), strips[i], strips[j])
            for i in range(N)
            for j in range(i + 1)
        }
    return -np.block([[tile(i, j) for j in range(N)] for i in range(N)])


class TestInverse:
    @pytest.mark.parametrize("tile", [1, 7, 20, 40, 41, 100])
    def test_is_that_of_numpy(self, tile):
        A = positive(41)
        np.testing.assert_allclose(inverted(A, edges_of(41, tile)), np.linalg.inv(A), rtol=1e-9, atol=1e-12)

    def test_times_the_matrix_is_the_identity_even_for_a_tiny_penalty(self):
        X = np.random.default_rng(0).normal(size=(60, 50)) + 10
        A = X @ X.T + 1e-3 * np.eye(60)  # condition 1e8
        reached = np.abs(A @ np.linalg.inv(A) - np.eye(60)).max()
        assert np.abs(A @ inverted(A, edges_of(60, 16)) - np.eye(60)).max() < 10 * reached

    def test_needs_nothing_above_the_diagonal(self):
        A = positive(20)
        np.testing.assert_array_equal(inverted(np.tril(A), edges_of(20, 6)), inverted(A, edges_of(20, 6)))

    def test_is_symmetric_to_the_last_bit(self):
        found = inverted(positive(30), (0, 3, 17, 30))
        np.testing.assert_array_equal(found, found.T)

    @pytest.mark.parametrize("A", [-np.eye(4), np.full((4, 4), np.nan), np.ones((4, 4))])
    def test_of_a_matrix_that_is_not_positive_definite_is_refused(self, A):
        with pytest.raises(LinAlgError):
            inverted(A, edges_of(4, 2))


class TestEdges:
    def test_leave_the_rest_to_the_last_tile(self):
        assert edges_of(10, 4) == (0, 4, 8, 10)
        assert edges_of(3, 4) == (0, 3)

    @pytest.mark.parametrize(("n", "tile"), [(0, 4), (4, 0)])
    def test_refuse_nothing(self, n, tile):
        with pytest.raises(ValueError, match="expected at least 1"):
            edges_of(n, tile)

    @given(st.integers(1, 60), st.integers(1, 20), st.randoms())
    def test_of_some_rows_are_edges_of_the_whole_and_tiles_are_not_larger(self, n, tile, random):
        rows = np.array(sorted(random.sample(range(n), random.randint(1, n))))
        edges = edges_of(n, tile)
        found = edges_within(rows, edges, tile)
        assert found[0] == 0
        assert found[-1] == len(rows)
        assert (np.diff(found) > 0).all()
        assert np.diff(found).max() <= tile
        assert set(found) <= set(np.searchsorted(rows, edges))
        assert all(first + second > tile for first, second in zip(np.diff(found), np.diff(found)[1:], strict=False))

    def test_of_everybody_are_those_of_the_whole(self):
        assert edges_within(np.arange(10), edges_of(10, 4), 4) == edges_of(10, 4)


def test_mean_terms_centre_inner_products():
    X = np.random.default_rng(0).normal(size=(12, 5)) + 4
    K = X @ X.T
    U, V = mean_terms(K.mean(axis=0))
    np.testing.assert_allclose(K - U @ V.T, centred(K), atol=1e-12)


def test_mirrored_takes_the_lower_triangle():
    np.testing.assert_array_equal(mirrored(np.array([[1.0, 9.0], [2.0, 3.0]])), [[1, 2], [2, 3]])
