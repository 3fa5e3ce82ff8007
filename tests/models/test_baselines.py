"""Group mean and linear model against scikit-learn and the published code."""

import numpy as np
import pytest
from sklearn.linear_model import LinearRegression
from sklearn.preprocessing import StandardScaler

from dtg_ray.errors import ModelError
from dtg_ray.imaging.grid import Grid
from dtg_ray.models.baselines import (
    GroupMean,
    Linear,
    RunningMean,
    fit_linear_subject,
    parcels_from_rois,
)
from reference import PUBLISHED, needs_published


@pytest.fixture
def grid():
    return Grid(np.eye(4), np.ones((5, 4, 6), dtype=bool))


def subject(seed=0, *, rois=3, contrasts=2, voxels=120):
    """Connectome (K, V) and maps (C, V), float32."""
    rng = np.random.default_rng(seed)
    return (
        rng.standard_normal((rois, voxels)).astype(np.float32),
        rng.standard_normal((contrasts, voxels)).astype(np.float32),
    )


@pytest.fixture
def parcels():
    """Four parcels and 20 voxels in none."""
    return np.random.default_rng(5).permutation(np.repeat([-1, 0, 1, 2, 3], [20, 40, 30, 20, 10]))


class TestFitLinearSubject:
    def test_agrees_with_scikit_learn(self, parcels):
        rest, maps = subject()
        coefficients = fit_linear_subject(rest, maps, parcels)
        assert coefficients.shape == (2, 4, 4)
        assert coefficients.dtype == np.float64
        for parcel in range(4):
            X = StandardScaler().fit_transform(rest[:, parcels == parcel].T.astype(np.float64))
            model = LinearRegression().fit(X, maps[:, parcels == parcel].T.astype(np.float64))
            np.testing.assert_allclose(coefficients[:, parcel, 0], model.intercept_, atol=1e-12)
            np.testing.assert_allclose(coefficients[:, parcel, 1:], model.coef_, atol=1e-12)

    def test_a_linear_map_is_recovered(self, grid, parcels):
        rest, _ = subject()
        truth = np.random.default_rng(1).standard_normal((2, 4, 4))
        maps = Linear(truth, parcels, ("a", "b"), grid).predict(rest[None])[0]
        np.testing.assert_allclose(fit_linear_subject(rest, maps, parcels), truth, atol=1e-5)

    def test_a_missing_map_gives_nan_and_leaves_the_others_alone(self, parcels):
        rest, maps = subject()
        expected = fit_linear_subject(rest, maps, parcels)
        maps[1] = np.nan
        coefficients = fit_linear_subject(rest, maps, parcels)
        assert np.isnan(coefficients[1]).all()
        np.testing.assert_allclose(coefficients[0], expected[0], atol=1e-14)

    def test_a_single_nan_costs_its_parcel_only(self, parcels):
        rest, maps = subject()
        maps[0, np.flatnonzero(parcels == 2)[3]] = np.nan
        missing = np.isnan(fit_linear_subject(rest, maps, parcels)).all(axis=2)
        assert missing.tolist() == [[False, False, True, False], [False] * 4]

    def test_all_maps_missing(self, parcels):
        rest, maps = subject()
        assert np.isnan(fit_linear_subject(rest, np.full_like(maps, np.nan), parcels)).all()

    @pytest.mark.parametrize("noise", [0, 6e-8])  # none, and the last bit of float32
    def test_a_constant_feature_gets_the_coefficient_0(self, parcels, noise):
        rest, maps = subject()
        without = fit_linear_subject(rest[[0, 2]], maps, parcels)
        rest[1] = 1 - noise * (np.arange(120) % 2)
        assert (rest[1].std() > 0) == (noise > 0)
        coefficients = fit_linear_subject(rest, maps, parcels)
        np.testing.assert_allclose(coefficients[:, :, 2], 0, atol=1e-15)
        np.testing.assert_allclose(coefficients[:, :, [0, 1, 3]], without, atol=1e-12)

    def test_fewer_voxels_than_features_fit_exactly(self, grid):
        rest, maps = subject(rois=3)
        few = np.full(120, 1)
        few[:2] = 0  # two voxels, four features
        few[2] = 3  # one voxel; parcel 2 has none
        coefficients = fit_linear_subject(rest, maps, few)
        predicted = Linear(coefficients, few, ("a", "b"), grid).predict(rest[None])[0]
        np.testing.assert_allclose(predicted[:, :3], maps[:, :3], atol=1e-5)
        assert (coefficients[:, 2] == 0).all()

    def test_voxels_have_to_agree(self, parcels):
        rest, maps = subject()
        with pytest.raises(ValueError, match=r"got a connectome of shape \(3, 119\).*expected \(K, V\), \(C, V\)"):
            fit_linear_subject(rest[:, 1:], maps, parcels)


class TestLinear:
    def test_predicts_0_outside_the_parcels(self, grid, parcels):
        model = Linear(np.ones((2, 4, 4)), parcels, ("a", "b"), grid)
        maps = model.predict(np.stack([subject(seed)[0] for seed in range(3)]))
        assert maps.shape == (3, 2, 120)
        assert maps.dtype == np.float32
        assert (maps[..., parcels == -1] == 0).all()
        assert (maps[..., parcels >= 0] != 0).all()

    def test_subjects_do_not_touch_each_other(self, grid, parcels):
        model = Linear(np.random.default_rng(0).standard_normal((2, 4, 4)), parcels, ("a", "b"), grid)
        rest = np.stack([subject(seed)[0] for seed in range(3)])
        np.testing.assert_array_equal(model.predict(rest)[1], model.predict(rest[1:2])[0])

    def test_scale_and_offset_of_the_connectome_do_not_count(self, grid, parcels):
        model = Linear(np.random.default_rng(0).standard_normal((2, 4, 4)), parcels, ("a", "b"), grid)
        rest, _ = subject()
        np.testing.assert_allclose(model.predict(3 * rest[None] + 2), model.predict(rest[None]), atol=1e-5)

    @pytest.mark.parametrize("shape", [(3, 120), (1, 2, 120), (1, 3, 119)])
    def test_an_input_that_does_not_fit(self, grid, parcels, shape):
        model = Linear(np.ones((2, 4, 4)), parcels, ("a", "b"), grid)
        with pytest.raises(ValueError, match=r"got connectomes of shape \(.*\), expected \(N, 3, 120\)"):
            model.predict(np.zeros(shape, dtype=np.float32))

    def test_arrays_that_do_not_fit(self, grid, parcels):
        with pytest.raises(ModelError, match=r"expected \(1, P, K \+ 1\)"):
            Linear(np.ones((2, 4, 4)), parcels, ("a",), grid)
        with pytest.raises(ModelError, match="got a parcel 3, expected parcels below 3"):
            Linear(np.ones((2, 3, 4)), parcels, ("a", "b"), grid)


class TestGroupMean:
    def test_predicts_the_same_for_everybody(self, grid):
        maps = subject()[1]
        predicted = GroupMean(maps, ("a", "b"), grid, 3).predict(np.zeros((4, 3, 120), dtype=np.float32))
        np.testing.assert_array_equal(predicted, np.stack([maps] * 4))
        predicted[0] = 0
        np.testing.assert_array_equal(predicted[1], maps)

    def test_shapes_are_checked(self, grid):
        maps = subject()[1]
        with pytest.raises(ModelError, match=r"got mean maps of shape \(2, 120\), expected \(3, 120\)"):
            GroupMean(maps, ("a", "b", "c"), grid, 3)
        with pytest.raises(ValueError, match=r"expected \(N, 3, 120\)"):
            GroupMean(maps, ("a", "b"), grid, 3).predict(np.zeros((1, 4, 120), dtype=np.float32))


class TestRunningMean:
    def test_is_the_nanmean(self):
        values = np.random.default_rng(0).standard_normal((6, 3, 4)).astype(np.float32)
        values[2:, 1, 1] = np.nan
        running = RunningMean((3, 4))
        for value in values:
            running.add(value)
        np.testing.assert_allclose(running.mean(), np.nanmean(values.astype(np.float64), axis=0), rtol=1e-14)

    def test_what_nobody_has_is_nan(self):
        running = RunningMean((2,))
        running.add(np.array([np.nan, 1.0]))
        np.testing.assert_array_equal(running.mean(), [np.nan, 1])

    def test_shapes_have_to_agree(self):
        with pytest.raises(ValueError, match=r"got an array of shape \(1,\), expected \(2,\)"):
            RunningMean((2,)).add(np.zeros(1))


def test_parcels_are_the_strongest_rois():
    rois = np.array([[0.0, 3, 1, 0], [2, 1, 1, 0], [1, 2, 0.5, 0]])
    assert parcels_from_rois(rois).tolist() == [1, 0, 0, 0]


@needs_published
def test_published_coefficients_and_prediction():
    with np.load(PUBLISHED / "linear.npz") as file:
        published = dict(file)
    parcels = published["parcels"].ravel() - 1  # 0 is no parcel there
    running = RunningMean(published["expected_coefficients"].shape)
    for rest, task in zip(published["rest"], published["task"], strict=True):
        running.add(fit_linear_subject(rest.reshape(6, -1), task.reshape(3, -1), parcels))
    np.testing.assert_allclose(running.mean(), published["expected_coefficients"], atol=1e-7)

    grid = Grid(np.eye(4), np.ones(published["parcels"].shape, dtype=bool))
    model = Linear(running.mean(), parcels, ("a", "b", "c"), grid)
    maps = model.predict(published["new_rest"].reshape(1, 6, -1))[0]
    np.testing.assert_allclose(maps, published["expected_prediction"].reshape(3, -1), atol=1e-6)
