"""Mean and spread of maps that come in parts, against numpy on all of them at once."""

import numpy as np
import pytest

from dtg_ray.stats.moments import Moments, merge, moments, pooled

MAPS = np.random.default_rng(0).normal(size=(23, 40)) + 3


def parts(maps, *borders):
    return np.split(maps, borders)


class TestPooled:
    @pytest.mark.parametrize("borders", [(), (1,), (4, 8, 12, 16, 20), (0, 0, 23), tuple(range(1, 23))])
    def test_are_those_of_numpy_however_the_maps_are_cut(self, borders):
        together = pooled(parts(MAPS, *borders), 40)
        assert together.count == 23
        np.testing.assert_allclose(together.mean, MAPS.mean(axis=0), rtol=1e-14)
        np.testing.assert_allclose(together.deviation, MAPS.std(axis=0, ddof=1), rtol=1e-13)

    def test_of_float16_are_computed_in_double_precision(self):
        maps = (MAPS * 1000).astype(np.float16)
        exact = maps.astype(np.float64)
        together = pooled(parts(maps, 7, 11), 40)
        np.testing.assert_allclose(together.mean, exact.mean(axis=0), rtol=1e-14)
        np.testing.assert_allclose(together.deviation, exact.std(axis=0, ddof=1), rtol=1e-13)

    def test_keep_a_small_spread_around_a_large_mean(self):
        maps = MAPS + 1e8
        together = pooled(parts(maps, 5, 15), 40)
        np.testing.assert_allclose(together.deviation, maps.std(axis=0, ddof=1), rtol=1e-7)

    def test_in_the_same_order_are_the_same_bits(self):
        first, again = (pooled(parts(MAPS, 3, 9), 40) for _ in range(2))
        assert first.mean.tobytes() == again.mean.tobytes()
        assert first.deviation.tobytes() == again.deviation.tobytes()

    def test_rows_of_nan_are_nobody(self):
        maps = np.insert(MAPS, [0, 5, 23], np.nan, axis=0)
        together = pooled(parts(maps, 1, 9), 40)
        assert together.count == 23
        np.testing.assert_allclose(together.mean, MAPS.mean(axis=0), rtol=1e-14)
        np.testing.assert_allclose(together.deviation, MAPS.std(axis=0, ddof=1), rtol=1e-13)

    def test_a_row_that_is_partly_nan_is_not_hidden(self):
        maps = MAPS.copy()
        maps[3, 7] = np.nan
        assert np.isnan(pooled([maps], 40).mean).tolist() == [voxel == 7 for voxel in range(40)]

    def test_of_one_map_are_itself_without_a_deviation(self):
        one = pooled([MAPS[:1]], 40)
        np.testing.assert_array_equal(one.mean, MAPS[0])
        assert (one.squares == 0).all()
        assert np.isnan(one.deviation).all()

    @pytest.mark.parametrize("nothing", [[], [np.empty((0, 40))], [np.full((2, 40), np.nan)]])
    def test_of_nobody_are_empty(self, nothing):
        empty = pooled(nothing, 40)
        assert empty.count == 0
        assert np.isnan(empty.deviation).all()
        np.testing.assert_allclose(merge(empty, moments(MAPS)).mean, MAPS.mean(axis=0), rtol=1e-14)
        np.testing.assert_allclose(merge(moments(MAPS), empty).mean, MAPS.mean(axis=0), rtol=1e-14)


def test_maps_of_other_voxels_are_refused():
    with pytest.raises(ValueError, match=r"got maps of \(3,\) voxels, expected \(40,\)"):
        merge(moments(MAPS), Moments(1, np.zeros(3), np.zeros(3)))
