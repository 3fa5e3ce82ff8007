"""Voxel-to-ROI connectomes against numpy, against the published outputs, and what they must not depend on."""

import nibabel as nib
import numpy as np
import pytest

from dtg_ray.imaging.connectome import (
    CrossProducts,
    connectome,
    demean,
    extract,
    mean_weights,
    regression_weights,
    roi_connectome,
    roi_timeseries,
)
from dtg_ray.imaging.windows import cut
from reference import PUBLISHED, needs_published

SHAPES = [(2, 5, 1), (10, 1, 3), (40, 300, 6), (300, 50, 20), (7, 400, 12)]


def bold_of(volumes, voxels, seed=0, dtype=np.float64):
    """(T, V) noise on a level of about 100."""
    return (np.random.default_rng(seed).normal(size=(volumes, voxels)) + 100).astype(dtype)


def normal(*shape, seed=1):
    return np.random.default_rng(seed).normal(size=shape)


class TestROITimeseries:
    @pytest.mark.parametrize(("volumes", "voxels", "rois"), [(12, 50, 4), (3, 200, 15), (60, 30, 30), (20, 10, 14)])
    def test_is_the_least_squares_fit(self, volumes, voxels, rois):
        bold, maps = bold_of(volumes, voxels), normal(rois, voxels)
        centred_maps = maps - maps.mean(axis=1, keepdims=True)
        expected = np.linalg.lstsq(centred_maps.T, (bold - bold.mean(axis=0)).T)[0].T
        np.testing.assert_allclose(roi_timeseries(bold, maps), expected, atol=1e-10)

    def test_finds_the_series_that_made_the_bold(self):
        maps, series = normal(5, 80), normal(30, 5, seed=2)
        maps -= maps.mean(axis=1, keepdims=True)
        np.testing.assert_allclose(roi_timeseries(series @ maps, maps), series - series.mean(axis=0), atol=1e-12)

    def test_does_not_depend_on_levels_of_voxels_and_maps(self):
        bold, maps = bold_of(30, 80), normal(5, 80)
        moved = roi_timeseries(bold + normal(80, seed=3), maps + normal(5, 1, seed=4))
        np.testing.assert_allclose(moved, roi_timeseries(bold, maps), atol=1e-10)

    def test_every_series_has_mean_zero(self):
        np.testing.assert_allclose(roi_timeseries(bold_of(30, 80), normal(5, 80)).mean(axis=0), 0, atol=1e-12)

    def test_float32_stays_float32_and_agrees(self):
        bold, maps = bold_of(30, 80), normal(5, 80)
        series = roi_timeseries(bold.astype(np.float32), maps.astype(np.float32))
        assert series.dtype == np.float32
        np.testing.assert_allclose(series, roi_timeseries(bold, maps), atol=1e-4)

    @pytest.mark.parametrize(("bold", "rois"), [((4, 5), (2, 6)), ((4, 5, 1), (2, 5)), ((4, 5), (5,))])
    def test_other_voxels_are_refused(self, bold, rois):
        with pytest.raises(ValueError, match=r"got BOLD of shape .* expected \(T, V\) and \(K, V\)"):
            roi_timeseries(np.zeros(bold), np.zeros(rois))


class TestConnectome:
    @pytest.mark.parametrize(("volumes", "voxels", "rois"), SHAPES)
    @pytest.mark.parametrize("dtype", [np.float32, np.float64])
    def test_is_the_correlation_of_every_pair(self, volumes, voxels, rois, dtype):
        bold, series = bold_of(volumes, voxels, dtype=dtype), normal(volumes, rois).astype(dtype)
        expected = np.corrcoef(series.T.astype(float), bold.T.astype(float))[:rois, rois:]
        values = connectome(bold, series)
        assert values.dtype == np.float32
        np.testing.assert_allclose(values, expected, atol=1e-5)

    def test_knows_no_scale_and_no_level(self):
        bold, series = bold_of(40, 60), normal(40, 4)
        scales, levels = np.random.default_rng(5).uniform(0.1, 50, 60), normal(60, seed=6) * 1000
        expected = connectome(bold, series)
        np.testing.assert_allclose(connectome(bold * scales + levels, series * 7 - 3), expected, atol=1e-6)
        np.testing.assert_allclose(connectome(-bold, series), -expected, atol=1e-6)

    def test_a_series_correlates_fully_with_itself_and_never_more(self):
        series = normal(40, 6)
        values = connectome(series.astype(np.float32), series)
        np.testing.assert_allclose(np.diag(values), 1, atol=1e-6)
        assert np.abs(values).max() <= 1

    @pytest.mark.parametrize("level", [0.0, 0.1, 1000.1, -3e4, 1e-12])
    @pytest.mark.parametrize("dtype", [np.float32, np.float64])
    def test_a_constant_voxel_gives_zero(self, level, dtype):
        bold = bold_of(490, 6, dtype=dtype)
        bold[:, 2] = level
        values = connectome(bold, normal(490, 4))
        assert (values[:, 2] == 0).all()
        assert (values[:, [0, 1, 3, 4, 5]] != 0).all()

    def test_a_voxel_that_only_flickers_in_its_last_bit_gives_zero(self):
        bold = bold_of(490, 6, dtype=np.float32)
        bold[:, 2] = np.nextafter(np.float32(1000.1), (2000 * (np.arange(490) % 2)).astype(np.float32))
        assert np.ptp(bold[:, 2]) > 0
        assert (connectome(bold, normal(490, 4))[:, 2] == 0).all()

    @pytest.mark.parametrize("level", [0.0, 0.1, 0.3, 1000.1])
    def test_a_constant_roi_gives_zero(self, level):
        series = normal(97, 3)
        series[:, 1] = level
        values = connectome(bold_of(97, 50), series)
        assert (values[1] == 0).all()
        assert (values[[0, 2]] != 0).all()

    def test_a_weak_signal_on_a_high_level_is_no_constant(self):
        bold = bold_of(200, 5) * 1e-2 + 1000
        series = normal(200, 2)
        expected = np.corrcoef(series.T, bold.T)[:2, 2:]
        np.testing.assert_allclose(connectome(bold, series), expected, atol=1e-5)

    def test_inputs_are_left_alone(self):
        bold, series = bold_of(20, 5), normal(20, 2)
        copies = bold.copy(), series.copy()
        connectome(bold, series)
        np.testing.assert_array_equal(bold, copies[0])
        np.testing.assert_array_equal(series, copies[1])

    @pytest.mark.parametrize(("bold", "series"), [(10, 9), (1, 1), (0, 0)])
    def test_volumes_that_do_not_match_or_are_too_few_are_refused(self, bold, series):
        with pytest.raises(ValueError, match=f"got {bold} volumes of BOLD and {series} of ROI series"):
            connectome(np.ones((bold, 3)), np.ones((series, 2)))


class TestROIConnectome:
    @pytest.mark.parametrize("rois", [2, 3, 9])
    def test_is_the_upper_triangle_row_by_row(self, rois):
        series = normal(50, rois)
        full = np.corrcoef(series.T)
        expected = [full[i, j] for i in range(rois) for j in range(i + 1, rois)]
        np.testing.assert_allclose(roi_connectome(series), expected, atol=1e-6)

    def test_two_constant_rois_do_not_correlate(self):
        series = normal(97, 3)
        series[:, 0], series[:, 1] = 0.1, 0.3
        np.testing.assert_array_equal(roi_connectome(series), 0)

    def test_is_what_the_connectome_says_of_the_same_series(self):
        series = normal(50, 5)
        np.testing.assert_allclose(roi_connectome(series), connectome(series, series)[np.triu_indices(5, 1)], atol=1e-6)

    def test_of_several_pieces_is_that_of_their_demeaned_concatenation(self):
        pieces = [normal(40, 4) + 5, normal(70, 4, seed=8) - 3]
        joined = np.concatenate([piece - piece.mean(axis=0) for piece in pieces])
        np.testing.assert_allclose(roi_connectome(*pieces), roi_connectome(joined), atol=1e-6)


class TestCrossProducts:
    @pytest.mark.parametrize("known", [True, False])
    def test_pieces_give_the_correlation_of_their_demeaned_concatenation(self, known):
        bolds = [bold_of(40, 30, dtype=np.float32), 3 * bold_of(75, 30, seed=2, dtype=np.float32)]
        series = [normal(40, 4) + 1, normal(75, 4, seed=3) - 9]
        products = CrossProducts(4, 30)
        for bold, rois in zip(bolds, series, strict=True):
            squares = demean(bold)[1] if known else None
            products.add(bold, rois, squares)
        together = [np.concatenate([part - part.mean(axis=0) for part in parts]) for parts in (bolds, series)]
        np.testing.assert_allclose(products.correlations(), connectome(*together), atol=1e-6)

    def test_a_voxel_that_is_constant_in_one_piece_keeps_the_others(self):
        bold, series = bold_of(50, 3, dtype=np.float32), normal(50, 2)
        products = CrossProducts(2, 3)
        products.add(bold, series)
        products.add(np.full((50, 3), 7, dtype=np.float32), np.zeros((50, 2)))
        np.testing.assert_allclose(products.correlations(), connectome(bold, series), atol=1e-6)

    def test_blocks_of_voxels_change_nothing(self, monkeypatch):
        bold, series = bold_of(40, 500, dtype=np.float32), normal(40, 4)
        expected = connectome(bold, series)
        monkeypatch.setattr("dtg_ray.imaging.connectome.CACHED", 40 * 64)
        np.testing.assert_allclose(connectome(bold, series), expected, atol=1e-6)


class TestDemean:
    def test_takes_out_the_mean_and_tells_the_sum_of_squares(self):
        bold = bold_of(200, 70, dtype=np.float32) * 100
        exact = bold.astype(float)
        mean, squares = demean(bold)
        np.testing.assert_allclose(bold, exact - exact.mean(axis=0), atol=2e-3)
        np.testing.assert_allclose(bold.mean(axis=0, dtype=float), 0, atol=1e-4)
        np.testing.assert_allclose(mean, exact.mean(axis=0), rtol=1e-6)
        np.testing.assert_allclose(squares, exact.var(axis=0) * 200, rtol=1e-5)

    @pytest.mark.parametrize("level", [0.0, 0.1, 1000.1, -3e4])
    def test_constant_voxels_become_exactly_zero(self, level):
        bold = bold_of(490, 4, dtype=np.float32)
        bold[:, 1] = level
        _, squares = demean(bold)
        assert (bold[:, 1] == 0).all()
        assert squares[1] == 0
        assert (squares[[0, 2, 3]] > 0).all()


class TestLabels:
    def test_series_are_the_means_of_their_voxels(self):
        bold, labels = bold_of(30, 12), np.repeat(np.eye(3), 4, axis=1)
        expected = bold.reshape(30, 3, 4).mean(axis=2)
        np.testing.assert_allclose(extract(bold, mean_weights(labels)), expected - expected.mean(axis=0), atol=1e-10)

    def test_soft_maps_are_regressed_and_not_averaged(self):
        bold, labels = bold_of(30, 12), np.repeat(np.eye(3), 4, axis=1)[:2]
        regressed = extract(bold, regression_weights(labels))
        np.testing.assert_allclose(regressed, roi_timeseries(bold, labels), atol=1e-12)
        assert np.abs(regressed - extract(bold, mean_weights(labels))).max() > 0.01


@needs_published
class TestPublished:
    @pytest.fixture
    def inputs(self):
        bold, rois, mask = (
            np.asanyarray(nib.load(PUBLISHED / f"connectome_{name}.nii.gz").dataobj)
            for name in ("bold", "rois", "mask")
        )
        inside = mask != 0
        return bold[inside].T.astype(np.float32), rois[inside].T.astype(np.float32), inside

    @pytest.fixture
    def expected(self):
        with np.load(PUBLISHED / "connectome_expected.npz") as file:
            return dict(file)

    def test_roi_series(self, inputs, expected):
        bold, rois, _ = inputs
        series = expected["roi_timeseries"]
        scale = np.abs(series).max()  # computed in float32 there
        np.testing.assert_allclose(roi_timeseries(bold.astype(float), rois), series, atol=1e-6 * scale)
        np.testing.assert_allclose(roi_timeseries(bold, rois), series, atol=1e-5 * scale)

    def test_connectomes_of_the_windows(self, inputs, expected):
        bold, rois, inside = inputs
        series = roi_timeseries(bold, rois)
        for part, values in zip(cut(len(bold), 4), expected["connectome"], strict=True):
            np.testing.assert_allclose(connectome(bold[part], series[part]), values[:, inside], atol=1e-5)

    def test_the_constant_voxel_is_zero_in_both(self, inputs, expected):
        bold, rois, inside = inputs
        constant = np.ptp(bold, axis=0) == 0
        assert constant.sum() == 1
        assert (connectome(bold, roi_timeseries(bold, rois))[:, constant] == 0).all()
        assert (expected["connectome"][:, :, inside][..., constant] == 0).all()

    def test_roi_connectome(self, inputs, expected):
        bold, rois, _ = inputs
        np.testing.assert_allclose(roi_connectome(roi_timeseries(bold, rois)), expected["netmat_edges"], atol=1e-5)
