"""Rest runs: what is refused and how it is called, quality figures, and a real image against plain numpy."""

import nibabel as nib
import numpy as np
import pytest
from nilearn.image import resample_to_img

from cohort_files import GRID, TR, image_bytes, patched, rest_run, roi_maps, task_map, write_bytes, write_image
from dtg_ray.errors import (
    CorruptFileError,
    GeometryError,
    MissingFileError,
    ShapeError,
    SpaceError,
    TableError,
    TooLargeError,
    TooShortError,
    ValueRangeError,
)
from dtg_ray.imaging.connectome import connectome, regression_weights, roi_connectome, roi_timeseries
from dtg_ray.imaging.grid import Grid
from dtg_ray.imaging.rest import Recipe, Workspace, read_run, subject_connectomes
from dtg_ray.imaging.rois import load_rois, natural_order
from dtg_ray.imaging.scan import Scan
from reference import DATA, needs_data

ROIS = roi_maps()[GRID.mask].T
PLAIN = Recipe()


def with_value(value, voxel=40, volume=7):
    """A run with one other value inside the mask."""
    data = rest_run()
    data[(*np.argwhere(GRID.mask)[voxel], volume)] = value
    return data


def fill(scans, recipe=PLAIN):
    """Connectomes (W, K, V), edges and figures of some runs."""
    out = np.full((recipe.windows, len(ROIS), GRID.n_voxels), np.nan, dtype=np.float16)
    weights = regression_weights(ROIS).astype(np.float32)
    edges, figures = subject_connectomes(scans, GRID, weights, recipe, out)
    return out, edges, figures


def write_runs(folder, *volumes, tr=TR):
    """Runs of different lengths; their scans and their (T, V) values."""
    scans, values = [], []
    for number, count in enumerate(volumes):
        data = rest_run(number, count)
        scans.append(Scan(write_image(folder / f"{number}.nii.gz", data, tr=tr)))
        values.append(data[GRID.mask].T)
    return scans, values


class TestRun:
    def test_is_the_demeaned_masked_voxels_of_every_volume(self, tmp_path):
        run = read_run(Scan(write_image(tmp_path / "run.nii.gz", rest_run())), GRID, Recipe())
        values = rest_run()[GRID.mask].T.astype(float)
        np.testing.assert_allclose(run.bold, values - values.mean(axis=0), atol=1e-4)
        np.testing.assert_allclose(run.squares, values.var(axis=0) * len(values), rtol=1e-5)

    def test_repetition_time_can_be_given_where_the_header_is_wrong(self, tmp_path):
        scan = Scan(write_image(tmp_path / "run.nii.gz", rest_run(), tr=1.0))
        assert read_run(scan, GRID, Recipe()).quality.tr == 1.0
        assert read_run(scan, GRID, Recipe(tr=2.4)).quality.tr == 2.4

    def test_limits_can_be_set(self, tmp_path):
        scan = Scan(write_image(tmp_path / "run.nii", rest_run(volumes=12)[:, :5]))
        run = read_run(scan, GRID, Recipe(minimum_volumes=12, minimum_coverage=0.1))
        assert run.bold.shape == (12, GRID.n_voxels)
        assert run.quality.coverage == (np.argwhere(GRID.mask)[:, 1] < 5).mean()

    def test_interpolation_can_be_chosen(self, tmp_path):
        moved = GRID.affine.copy()
        moved[:3, 3] += 2
        scan = Scan(write_image(tmp_path / "run.nii", rest_run(), moved))
        nearest, linear = (read_run(scan, GRID, Recipe(interpolation=kind)) for kind in ("nearest", "linear"))
        assert linear.squares.mean() < 0.9 * nearest.squares.mean()  # interpolation averages noise

    def test_memory_is_used_again(self, tmp_path):
        workspace = Workspace()
        long, short = (read_run(scan, GRID, Recipe(), workspace).bold for scan in write_runs(tmp_path, 64, 40)[0])
        assert np.shares_memory(long, short)
        assert short.shape == (40, GRID.n_voxels)

    def test_nothing_outside_a_mask_comes_in_not_even_nan(self, tmp_path):
        data, inside = rest_run(), np.zeros(GRID.shape, dtype=np.uint8)
        inside[:, :7] = 1
        data[:, 7:] = np.nan
        moved = GRID.affine.copy()
        moved[:3, 3] += [3, 4, -5]
        mask = write_image(tmp_path / "mask.nii.gz", inside, moved)
        run = read_run(Scan(write_image(tmp_path / "run.nii", data, moved), mask=mask), GRID, Recipe())
        assert np.isfinite(run.bold).all()
        assert 0.5 < run.quality.coverage < 1

    def test_a_mask_of_the_image_takes_voxels_out(self, tmp_path):
        data = np.zeros(GRID.shape, dtype=np.uint8)
        data[:, :7] = 1
        mask = write_image(tmp_path / "mask.nii.gz", data)
        run = read_run(Scan(write_image(tmp_path / "run.nii", rest_run()), mask=mask), GRID, Recipe())
        outside = np.argwhere(GRID.mask)[:, 1] >= 7
        assert (run.bold[:, outside] == 0).all()
        assert run.quality.coverage == 1 - outside.mean() == pytest.approx(1 - run.quality.constant)


class TestRefused:
    """Each in its own way, with the file's name; receipts are made of these messages."""

    def refuse(self, path, kind, message):
        with pytest.raises(kind, match=message) as caught:
            read_run(Scan(path), GRID, Recipe())
        assert type(caught.value) is kind
        assert str(caught.value).startswith(f"{path}: got ")

    def test_five_volumes(self, tmp_path):
        path = write_image(tmp_path / "run.nii", rest_run(volumes=5))
        self.refuse(path, TooShortError, "got 5 volumes, expected at least 30")

    def test_nan(self, tmp_path):
        path = write_image(tmp_path / "run.nii", np.full((*GRID.shape, 32), np.nan, dtype=np.float32))
        count = 32 * GRID.n_voxels
        self.refuse(path, ValueRangeError, rf"got {count} NaN or infinite values .*\(100.0%\), first in volume 1,")

    @pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
    def test_a_single_value_that_is_no_number(self, tmp_path, value):
        path = write_image(tmp_path / "run.nii", with_value(value))
        self.refuse(path, ValueRangeError, "got 1 NaN or infinite values inside the mask .*first in volume 8")

    @pytest.mark.parametrize("slope", [1e25, 1e33])
    def test_values_that_are_no_signal_any_more(self, tmp_path, slope):
        path = write_image(tmp_path / "run.nii", rest_run(), scale=(slope, 0))
        self.refuse(path, ValueRangeError, "got values whose squares are beyond float32")

    def test_nothing_but_a_constant(self, tmp_path):
        path = write_image(tmp_path / "run.nii", np.repeat(task_map()[..., None], 32, axis=3))
        self.refuse(path, ValueRangeError, "got a series that never changes inside the mask")

    def test_three_dimensions(self, tmp_path):
        path = write_image(tmp_path / "run.nii", task_map())
        self.refuse(path, ShapeError, r"got an image of shape \(10, 12, 10\), expected a 4-D series")

    def test_five_dimensions(self, tmp_path):
        path = write_image(tmp_path / "run.nii", np.stack([rest_run(volumes=3)] * 2, axis=-1))
        self.refuse(path, ShapeError, "expected three or four dimensions")

    def test_little_overlap(self, tmp_path):
        path = write_image(tmp_path / "run.nii", rest_run()[:, :5])
        self.refuse(path, SpaceError, r"got an image of shape \(10, 5, 10, 32\) that covers \d+% of the mask")

    def test_no_overlap(self, tmp_path):
        far = GRID.affine.copy()
        far[0, 3] += 500
        self.refuse(write_image(tmp_path / "run.nii", rest_run(), far), SpaceError, "covers 0% of the mask")

    @pytest.mark.parametrize("companion", ["premat", "reference"])
    def test_companions_of_a_warp_without_one(self, tmp_path, companion):
        path = write_image(tmp_path / "run.nii", rest_run())
        with pytest.raises(TableError, match=f"got a {companion} without a warp, expected both"):
            read_run(Scan(path, **{companion: "x.mat"}), GRID, Recipe())

    def test_a_mask_stored_the_other_way_round(self, tmp_path):
        turn = np.diag([-1.0, 1, 1, 1])
        turn[0, 3] = GRID.shape[0] - 1
        data = np.zeros(GRID.shape, dtype=np.uint8)
        data[:6] = 1
        path = write_image(tmp_path / "run.nii", rest_run())
        mask = write_image(tmp_path / "mask.nii", data[::-1], GRID.affine @ turn)
        with pytest.raises(SpaceError, match=r"mask.nii: got a mask that lies elsewhere, or the other way round"):
            read_run(Scan(path, mask=mask), GRID, Recipe())

    def test_an_empty_mask(self, tmp_path):
        path = write_image(tmp_path / "run.nii", rest_run())
        mask = write_image(tmp_path / "mask.nii", np.zeros(GRID.shape, dtype=np.uint8))
        with pytest.raises(SpaceError, match=r"mask.nii: got a mask without a single voxel"):
            read_run(Scan(path, mask=mask), GRID, Recipe())

    def test_a_header_that_does_not_say_where_the_image_lies(self, tmp_path):
        raw = patched(image_bytes(rest_run()), sform_code=0, qform_code=0)
        self.refuse(write_bytes(tmp_path / "run.nii", raw), GeometryError, "got a header with neither sform nor qform")

    def test_more_bytes_than_allowed(self, tmp_path):
        scan = Scan(write_image(tmp_path / "run.nii.gz", rest_run()))
        with pytest.raises(TooLargeError, match="got a header that promises 153952 bytes, expected at most 100000"):
            read_run(scan, GRID, Recipe(maximum_bytes=100_000))

    def test_a_series_that_would_be_too_large_on_the_grid(self, tmp_path):
        """A box of a few large voxels may unpack to little and still cover a grid of many."""
        data = np.random.default_rng(0).integers(0, 99, (2, 2, 2, 200)).astype(np.int8)
        affine = np.diag([-100.0, 120, 100, 1])
        affine[:3, 3] = [50, -60, -40]
        scan = Scan(write_image(tmp_path / "run.nii.gz", data, affine))
        with pytest.raises(TooLargeError, match=r"got 200 volumes, \d+ bytes on the grid, expected at most 100000"):
            read_run(scan, GRID, Recipe(maximum_bytes=100_000, minimum_coverage=0.01))

    def test_missing(self, tmp_path):
        self.refuse(str(tmp_path / "none.nii.gz"), MissingFileError, "got no file")

    def test_truncated(self, tmp_path):
        path = write_bytes(tmp_path / "run.nii", image_bytes(rest_run())[:-5000])
        self.refuse(path, CorruptFileError, "ends in volume 31")

    def test_no_repetition_time_where_one_is_needed(self, tmp_path):
        scan = Scan(write_image(tmp_path / "run.nii", rest_run(), tr=0))
        with pytest.raises(ValueRangeError, match="got a header without a repetition time"):
            fill([scan], recipe=Recipe(window_minutes=1))
        fill([scan], recipe=Recipe(window_minutes=1, tr=2.0))


class TestQuality:
    def test_figures_are_those_of_numpy(self, tmp_path):
        data = rest_run()
        data[(*np.argwhere(GRID.mask)[7], ...)] = 1000.1
        figures = read_run(Scan(write_image(tmp_path / "run.nii", data, tr=2.4)), GRID, Recipe()).quality
        bold = np.delete(data[GRID.mask].T.astype(float), 7, axis=1)
        assert figures.tsnr == pytest.approx(np.median(bold.mean(axis=0) / bold.std(axis=0)), rel=1e-4)
        assert figures.constant == pytest.approx(1 / GRID.n_voxels)
        assert (figures.volumes, figures.used, figures.tr, figures.coverage) == (32, 32, pytest.approx(2.4), 1)
        assert np.isnan(figures.motion)

    def test_motion_is_told_where_it_is_known(self, tmp_path):
        path = write_image(tmp_path / "run.nii", rest_run())
        (tmp_path / "mean.rms").write_text("0.125 \n")
        (tmp_path / "empty.rms").write_text("\n")
        for companions in ({"motion": "no.rms"}, {"motion": "empty.rms"}, {"confounds": "no.tsv"}):
            scan = Scan(path, **{key: str(tmp_path / name) for key, name in companions.items()})
            assert np.isnan(read_run(scan, GRID, Recipe()).quality.motion)
        (tmp_path / "confounds.tsv").write_text("framewise_displacement\nn/a\n" + "0.1\n0.3\n" * 15 + "0.2\n")
        for companions, expected in (({"motion": "mean.rms"}, 0.125), ({"confounds": "confounds.tsv"}, 0.2)):
            scan = Scan(path, **{key: str(tmp_path / name) for key, name in companions.items()})
            assert read_run(scan, GRID, Recipe()).quality.motion == pytest.approx(expected)
            assert fill([scan])[2]["motion"] == pytest.approx(expected)

    def test_motion_that_is_no_number_names_its_file(self, tmp_path):
        (tmp_path / "mean.rms").write_text("not found")
        scan = Scan(write_image(tmp_path / "run.nii", rest_run()), motion=str(tmp_path / "mean.rms"))
        with pytest.raises(TableError, match=r"mean.rms: got a file of displacements with .* expected numbers"):
            read_run(scan, GRID, Recipe())

    def test_of_a_subject_in_its_receipt(self, tmp_path):
        values, _, figures = fill(write_runs(tmp_path, 40, 60)[0], recipe=Recipe(windows=3))
        assert figures["mean_abs_r"] == pytest.approx(np.abs(values.astype(float)).mean(), rel=1e-3)
        assert {key: figures[key] for key in ("runs", "volumes", "windows", "minutes", "coverage")} == {
            "runs": 2,
            "volumes": 100,
            "windows": 3,
            "minutes": pytest.approx(100 * TR / 60),
            "coverage": 1,
        }


class TestConnectomes:
    def test_windows_are_cut_from_the_series_of_the_whole_run(self, tmp_path):
        scans, (bold,) = write_runs(tmp_path, 41)
        series = roi_timeseries(bold, ROIS)
        values, edges, _ = fill(scans, recipe=Recipe(windows=4, minimum_volumes=10))
        for number in range(4):
            part = slice(number * 10, number * 10 + 10)
            np.testing.assert_allclose(values[number], connectome(bold[part], series[part]), atol=1e-3)
        np.testing.assert_allclose(edges, roi_connectome(series), atol=1e-4)

    def test_windows_never_cross_the_border_of_a_run(self, tmp_path):
        scans, bolds = write_runs(tmp_path, 40, 80)
        values, edges, _ = fill(scans, recipe=Recipe(windows=3))
        pieces = [(bolds[0], slice(0, 40)), (bolds[1], slice(0, 40)), (bolds[1], slice(40, 80))]
        for window, (bold, part) in zip(values, pieces, strict=True):
            series = roi_timeseries(bold, ROIS)
            np.testing.assert_allclose(window, connectome(bold[part], series[part]), atol=1e-3)
        both = [roi_timeseries(bold, ROIS) for bold in bolds]
        np.testing.assert_allclose(edges, roi_connectome(*both), atol=1e-4)

    def test_with_fewer_windows_than_runs_each_run_is_demeaned_and_then_joined(self, tmp_path):
        scans, bolds = write_runs(tmp_path, 40, 80, 50)
        bolds = [bold - bold.mean(axis=0) for bold in bolds]
        series = [roi_timeseries(bold, ROIS) for bold in bolds]
        (one,), _, _ = fill(scans)
        np.testing.assert_allclose(one, connectome(np.concatenate(bolds), np.concatenate(series)), atol=1e-3)
        (first, second), _, figures = fill(scans, recipe=Recipe(windows=2))
        np.testing.assert_allclose(first, connectome(np.concatenate(bolds[:2]), np.concatenate(series[:2])), atol=1e-3)
        np.testing.assert_allclose(second, connectome(bolds[2], series[2]), atol=1e-3)
        assert figures["windows"] == 2

    def test_windows_of_some_minutes_with_different_repetition_times_side_by_side(self, tmp_path):
        slow, fast = rest_run(1, 64), rest_run(2, 170)
        scans = [
            Scan(write_image(tmp_path / "slow.nii", slow, tr=2.0)),
            Scan(write_image(tmp_path / "fast.nii", fast, tr=0.8)),
        ]
        values, _, figures = fill(scans, recipe=Recipe(windows=6, window_minutes=1))
        pieces = [(slow, slice(0, 30)), (slow, slice(30, 60)), (fast, slice(0, 75)), (fast, slice(75, 150))]
        for window, (data, part) in zip(values, pieces, strict=False):
            bold = data[GRID.mask].T
            series = roi_timeseries(bold, ROIS)
            np.testing.assert_allclose(window, connectome(bold[part], series[part]), atol=1e-3)
        assert np.isnan(values[4:]).all()
        assert figures["windows"] == 4

    def test_no_more_windows_of_some_minutes_than_asked_for(self, tmp_path):
        values, _, figures = fill(write_runs(tmp_path, 90, 90)[0], recipe=Recipe(windows=2, window_minutes=1))
        assert np.isfinite(values).all()
        assert figures["windows"] == 2

    def test_runs_too_short_for_any_window_are_refused(self, tmp_path):
        with pytest.raises(TooShortError, match="got no run of 5 minutes"):
            fill(write_runs(tmp_path, 40)[0], recipe=Recipe(windows=2, window_minutes=5))
        with pytest.raises(TooShortError, match=r"got windows of 20 volumes .2 in 40., expected at least 30 in each"):
            fill(write_runs(tmp_path, 40)[0], recipe=Recipe(windows=2))
        with pytest.raises(TooShortError, match="got windows of 0 volumes"):
            fill(write_runs(tmp_path, 40)[0], recipe=Recipe(windows=2, window_minutes=0.01))


@needs_data
def test_a_real_run_gives_the_connectome_of_plain_nibabel_and_numpy():
    folder = DATA / "bold"
    bold_path, mask_path = (folder / f"real_data_vol_4_regions_{name}.nii.gz" for name in ("BOLD", "mask"))
    roi_paths = natural_order([str(path) for path in (DATA / "ica32").glob("*.nii.gz")])

    mask = nib.load(mask_path)
    grid = Grid.from_mask(mask)
    values = np.empty((1, 32, grid.n_voxels), dtype=np.float16)
    edges, figures = subject_connectomes(
        [Scan(str(bold_path))], grid, load_rois(roi_paths, grid).weights, Recipe(tr=2.4), values
    )
    assert (figures["tr"], figures["volumes"], grid.n_voxels) == (2.4, 128, 6443)
    assert np.isfinite(values).all()

    inside = np.asanyarray(mask.dataobj) != 0
    bold = np.asanyarray(nib.load(bold_path).dataobj)[inside].T.astype(float)  # (T, V)
    resampled = (
        resample_to_img(path, mask, interpolation="linear", force_resample=True, copy_header=True) for path in roi_paths
    )
    rois = np.stack([np.asanyarray(image.dataobj)[inside] for image in resampled]).astype(float)  # (K, V)
    bold -= bold.mean(axis=0)
    rois -= rois.mean(axis=1, keepdims=True)
    series = np.linalg.lstsq(rois.T, bold.T)[0].T  # (T, K)
    varying = bold.std(axis=0) > 0
    expected = np.zeros((32, 6443))
    expected[:, varying] = np.corrcoef(series.T, bold.T[varying])[:32, 32:]
    np.testing.assert_allclose(values[0], expected, atol=1e-3)  # float16
    np.testing.assert_allclose(edges, np.corrcoef(series.T)[np.triu_indices(32, 1)], atol=1e-4)
