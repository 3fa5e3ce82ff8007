"""Identification and overlap against the published outputs, numpy and plain loops."""

import numpy as np
import pytest
from sklearn.metrics import f1_score

from dtg_ray.stats.reconstruction import (
    diagonality_index,
    dice,
    dice_auc,
    identification_accuracy,
    identified,
    normalized_diagonality_index,
    subject_correlation,
    subject_diagonality,
)
from reference import PUBLISHED, needs_published


def maps(n=7, n_voxels=1003, noise=1.0, seed=0, dtype=np.float32):
    """Maps that share a group pattern, and predictions of them."""
    rng = np.random.default_rng(seed)
    actual = rng.normal(size=n_voxels) + rng.normal(size=(n, n_voxels))
    predicted = 4 + actual + noise * rng.normal(size=(n, n_voxels))
    return actual.astype(dtype), predicted.astype(dtype)


def plain_dice(a, b, top):
    """The definition, written with a sort."""
    k = int(top * len(a))
    kept = [set(np.flatnonzero(np.abs(x) > np.sort(np.abs(x))[::-1][k - 1])) for x in (a, b)]
    return 2 * len(kept[0] & kept[1]) / (len(kept[0]) + len(kept[1]))


@pytest.fixture(scope="module")
def evaluation():
    with np.load(PUBLISHED / "evaluation.npz") as file:
        return dict(file)


@needs_published
class TestPublished:
    def test_correlation(self, evaluation):
        matrix = subject_correlation(evaluation["actual"], evaluation["predicted"])
        np.testing.assert_allclose(matrix, evaluation["expected_corr_actual_by_predicted"], rtol=0, atol=1e-6)

    def test_dice_exactly(self, evaluation):
        overlap = dice(evaluation["predicted"], evaluation["actual"], top=0.25)
        np.testing.assert_array_equal(overlap, evaluation["expected_dice_top25"])

    def test_dice_auc(self, evaluation):
        area = dice_auc(evaluation["predicted"], evaluation["actual"])
        np.testing.assert_allclose(area, evaluation["expected_dice_auc"], rtol=1e-12)

    def test_diagonality_index_over_all_contrasts_and_masked_voxels(self):
        with np.load(PUBLISHED / "losses.npz") as file:
            mask = file["mask"] != 0
            actual, predicted = (file[name][:, :, mask].reshape(4, -1) for name in ("target", "prediction"))
            index, logged = (float(file[f"expected_diag_index_{name}mask"]) for name in ("", "norm_"))
        matrix = subject_correlation(actual, predicted)
        assert diagonality_index(matrix) == pytest.approx(index, abs=1e-6)
        # the published code logs the index times the mean diagonal; its paper and we divide
        assert index * np.diagonal(matrix).mean() == pytest.approx(logged, abs=1e-6)


class TestSubjectCorrelation:
    @pytest.mark.parametrize("block", [1, 100, 1003, 5000])
    @pytest.mark.parametrize(("dtype", "tolerance"), [(np.float16, 1e-6), (np.float32, 1e-6), (float, 1e-12)])
    def test_equals_numpy_with_the_actual_maps_in_rows(self, block, dtype, tolerance):
        actual, predicted = maps(dtype=dtype)
        matrix = subject_correlation(actual, predicted, block=block)
        expected = np.corrcoef(actual.astype(float), predicted.astype(float))[:7, 7:]
        np.testing.assert_allclose(matrix, expected, rtol=0, atol=tolerance)
        assert np.abs(matrix - matrix.T).max() > 0.01

    def test_exchanging_the_sides_transposes(self):
        actual, predicted = maps()
        np.testing.assert_allclose(
            subject_correlation(actual, predicted), subject_correlation(predicted, actual).T, atol=1e-7
        )

    def test_neither_scale_nor_a_large_offset_matters(self):
        actual, predicted = maps(dtype=float)
        expected = subject_correlation(actual, predicted)
        np.testing.assert_allclose(subject_correlation(actual, 1e-6 * predicted + 50), expected, rtol=0, atol=1e-7)

    @pytest.mark.parametrize("value", [0.0, 0.1, np.pi])
    @pytest.mark.parametrize("dtype", [np.float16, float])
    def test_a_constant_map_correlates_with_nothing(self, value, dtype):
        actual, predicted = maps(dtype=dtype)
        predicted[2] = value
        matrix = subject_correlation(actual, predicted)
        np.testing.assert_array_equal(matrix[:, 2], 0)
        assert np.abs(np.delete(matrix, 2, axis=1)).min() > 0

    @pytest.mark.parametrize("bad", [np.nan, np.inf])
    @pytest.mark.parametrize("side", [0, 1])
    def test_a_map_with_missing_voxels_is_refused_by_row(self, bad, side):
        pair = maps()
        pair[side][[3, 5], 10] = bad
        with pytest.raises(ValueError, match=r"got NaN or infinite values in the maps of rows \[3, 5\]"):
            subject_correlation(*pair)

    @pytest.mark.parametrize(("one", "other"), [((3, 4), (3, 5)), ((3, 4), (2, 4)), ((4,), (4,)), ((0, 4), (0, 4))])
    def test_maps_of_different_shape_are_refused(self, one, other):
        with pytest.raises(ValueError, match=r"got maps of shapes .* expected the same \(n, V\)"):
            subject_correlation(np.zeros(one), np.zeros(other))

    def test_an_empty_block_is_refused(self):
        with pytest.raises(ValueError, match="got a block of -1 voxels, expected at least 1"):
            subject_correlation(*maps(), block=-1)


class TestDiagonalityIndex:
    def test_equals_a_loop(self):
        matrix = np.random.default_rng(0).uniform(-1, 1, size=(6, 6))
        own = [matrix[i, j] for i in range(6) for j in range(6) if i == j]
        others = [matrix[i, j] for i in range(6) for j in range(6) if i != j]
        index = np.mean(own) - np.mean(others)
        assert diagonality_index(matrix) == pytest.approx(index, abs=1e-14)
        assert diagonality_index(matrix.astype(np.float32)) == pytest.approx(index, abs=1e-6)

    def test_normalized_divides_by_the_mean_diagonal(self):
        matrix = np.array([[0.5, 0.1], [0.3, 0.3]])
        assert diagonality_index(matrix) == pytest.approx(0.2)
        assert normalized_diagonality_index(matrix) == pytest.approx(0.5)
        assert normalized_diagonality_index(np.eye(4)) == pytest.approx(1)

    @pytest.mark.parametrize("own", [0.0, -0.2])
    def test_normalized_is_nan_without_a_positive_diagonal(self, own):
        assert np.isnan(normalized_diagonality_index(np.array([[own, 0.1], [0.3, own]])))

    def test_a_group_mean_has_none(self):
        actual, _ = maps(n=37)
        same = np.tile(actual.mean(axis=0), (37, 1))
        assert diagonality_index(subject_correlation(actual, same)) == pytest.approx(0, abs=1e-6)


class TestIdentificationAccuracy:
    def test_looks_for_the_best_prediction_of_each_actual_map(self):
        matrix = np.array([[0.5, 0.6, 0.1], [0.2, 0.3, 0.1], [0.6, 0.2, 0.7]])
        assert identification_accuracy(matrix) == pytest.approx(2 / 3)
        assert identification_accuracy(matrix.T) == pytest.approx(1 / 3)

    def test_good_predictions_identify_everybody(self):
        assert identification_accuracy(subject_correlation(*maps(noise=0.3))) == 1

    def test_predictions_that_tie_share_the_point(self):
        assert identification_accuracy(np.array([[0.5, 0.5], [0.1, 0.4]])) == pytest.approx(0.75)
        assert identification_accuracy(np.array([[0.5, 0.5 + 1e-8], [0.1, 0.4]])) == pytest.approx(0.75)
        assert identification_accuracy(np.array([[0.5, 0.5 + 1e-4], [0.1, 0.4]])) == pytest.approx(0.5)

    @pytest.mark.parametrize("n", [2, 37])
    def test_the_same_prediction_for_everybody_scores_chance(self, n):
        actual, _ = maps(n=n)
        same = np.tile(actual.mean(axis=0), (n, 1))
        assert identification_accuracy(subject_correlation(actual, same)) == pytest.approx(1 / n, rel=1e-12)


@pytest.mark.parametrize("figure", [diagonality_index, normalized_diagonality_index, identification_accuracy])
class TestMatrixErrors:
    @pytest.mark.parametrize("shape", [(2, 3), (4,), (1, 1)])
    def test_a_matrix_that_is_not_square_is_refused(self, figure, shape):
        with pytest.raises(ValueError, match=r"got a matrix of shape .* expected \(n, n\) of at least 2"):
            figure(np.zeros(shape))

    def test_missing_values_are_refused(self, figure):
        with pytest.raises(ValueError, match="got NaN or infinite values in the matrix"):
            figure(np.array([[1.0, np.nan], [0.0, 1.0]]))


class TestDice:
    @pytest.mark.parametrize("top", [0.01, 0.1, 0.25, 0.5, 0.9])
    @pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
    def test_equals_the_definition_by_sorting(self, top, dtype):
        predicted, actual = maps(dtype=dtype)
        expected = [plain_dice(a, b, top) for a, b in zip(predicted, actual, strict=True)]
        np.testing.assert_array_equal(dice(predicted, actual, top=top), expected)

    def test_keeps_what_is_above_the_kth_largest_absolute_value(self):
        predicted = np.array([[8.0, -7.0, 6.0, 5.0, 0.1, 0.2, 0.3, 0.4]])
        actual = np.array([[-9.0, 0.0, 8.0, 0.5, 0.4, 7.0, 0.2, 0.1]])
        # k = 4: predicted keeps voxels 0, 1, 2; actual keeps 0, 2, 5
        assert dice(predicted, actual, top=0.5) == pytest.approx(2 * 2 / 6)

    def test_is_one_for_itself_and_its_negative_and_symmetric(self):
        predicted, actual = maps()
        np.testing.assert_array_equal(dice(actual, -actual), 1)
        np.testing.assert_array_equal(dice(predicted, actual), dice(actual, predicted))

    def test_a_constant_map_overlaps_with_nothing(self):
        actual, _ = maps(n=2)
        flat = np.zeros_like(actual)
        np.testing.assert_array_equal(dice(flat, actual), 0)
        np.testing.assert_array_equal(dice(flat, flat), 0)
        np.testing.assert_array_equal(dice_auc(flat, flat), 0)

    def test_area_is_the_trapezoid_over_ten_thresholds(self):
        predicted, actual = maps()
        curve = np.stack([dice(predicted, actual, top=percent / 100) for percent in range(5, 55, 5)])
        expected = 0.05 * (curve.sum(axis=0) - (curve[0] + curve[-1]) / 2)
        np.testing.assert_allclose(dice_auc(predicted, actual), expected, rtol=1e-12)
        np.testing.assert_allclose(dice_auc(actual, actual), 0.45, rtol=1e-12)

    @pytest.mark.parametrize("top", [0.0, -0.1, 1.0, 1.5, 0.0005])
    def test_a_share_that_keeps_nothing_or_everything_is_refused(self, top):
        with pytest.raises(ValueError, match=r"got the top .* of 1003 voxels, expected to keep from 1 to 1002"):
            dice(*maps(), top=top)

    @pytest.mark.parametrize("figure", [dice, dice_auc])
    def test_bad_maps_are_refused(self, figure):
        predicted, actual = maps()
        with pytest.raises(ValueError, match=r"expected the same \(n, V\)"):
            figure(predicted, actual[:, :-1])
        predicted[1, 2] = np.nan
        with pytest.raises(ValueError, match=r"maps of rows \[1\], expected finite numbers"):
            figure(predicted, actual)


class TestOfEachSubject:
    @pytest.fixture
    def matrix(self):
        return np.random.default_rng(0).uniform(-1, 1, size=(7, 7)) + np.eye(7)

    def test_diagonality_is_own_match_less_that_of_others(self, matrix):
        found = subject_diagonality(matrix)
        for row in range(7):
            assert found[row] == pytest.approx(matrix[row, row] - np.delete(matrix[row], row).mean())
        assert found.mean() == pytest.approx(diagonality_index(matrix))

    def test_identified_is_who_is_matched_best_by_the_own_map(self, matrix):
        np.testing.assert_array_equal(identified(matrix), matrix.argmax(axis=1) == np.arange(7))
        assert identified(np.ones((4, 4))).tolist() == [0.25] * 4, "ties share the point"


class TestHalfPrecision:
    @pytest.mark.parametrize("ties", [False, True])
    def test_overlap_is_that_of_the_same_numbers_in_single_precision(self, ties):
        actual, predicted = maps(n=5)
        if ties:
            actual, predicted = np.round(actual), np.round(predicted - 4)
        halves = [one.astype(np.float16) for one in (predicted, actual)]
        singles = [one.astype(np.float32) for one in halves]
        np.testing.assert_array_equal(dice(*halves), dice(*singles))
        np.testing.assert_array_equal(dice_auc(*halves), dice_auc(*singles))
        for subject in range(5):
            expected = plain_dice(*(np.abs(one[subject]) for one in singles), 0.25)
            assert dice(*halves)[subject] == pytest.approx(expected)

    def test_a_map_of_zeros_keeps_nothing(self):
        zeros = np.zeros((1, 50), dtype=np.float16)
        assert dice(zeros, zeros).tolist() == [0]


def test_dice_is_the_f1_score_of_scikit_learn():
    actual, predicted = maps(n=4)
    kept = [np.abs(one) > np.sort(np.abs(one), axis=1)[:, [-int(0.25 * one.shape[1])]] for one in (actual, predicted)]
    expected = [f1_score(a, p) for a, p in zip(*kept, strict=True)]
    np.testing.assert_allclose(dice(predicted, actual), expected)
