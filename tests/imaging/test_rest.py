"""Rest runs: what is refused and how it is called, quality figures, and a real image against plain numpy."""

import nibabel as nib
import numpy as np
import pytest
from nilearn.image import resample_to_img

from cohort_files import GRID, TR, image_bytes, rest_run, roi_maps, task_map, write_bytes, write_image
from dtg_ray.errors import CorruptFileError, MissingFileError, ShapeError, TooShortError, ValueRangeError
from dtg_ray.imaging.connectome import connectome, roi_connectome, roi_timeseries
from dtg_ray.imaging.grid import Grid
from dtg_ray.imaging.rest import Run, read_run, run_connectomes
from dtg_ray.imaging.rois import load_rois, natural_order
from reference import DATA, needs_data

ROIS = roi_maps()[GRID.mask].T


def with_value(value, voxel=40, volume=7):
    """A run with one other value inside the mask."""
    data = rest_run()
    data[(*np.argwhere(GRID.mask)[voxel], volume)] = value
    return data


class TestRun:
    def test_is_the_masked_voxels_of_every_volume(self, tmp_path):
        run = read_run(write_image(tmp_path / "run.nii.gz", rest_run()), GRID)
        np.testing.assert_array_equal(run.bold, rest_run()[GRID.mask].T)
        assert (run.tr, run.coverage) == (TR, 1)

    def test_repetition_time_can_be_given_where_the_header_is_wrong(self, tmp_path):
        path = write_image(tmp_path / "run.nii.gz", rest_run(), tr=1.0)
        assert read_run(path, GRID).tr == 1.0
        assert read_run(path, GRID, tr=2.4).tr == 2.4

    def test_limits_can_be_set(self, tmp_path):
        path = write_image(tmp_path / "run.nii", rest_run(volumes=12)[:, :5])
        run = read_run(path, GRID, minimum_volumes=12, minimum_coverage=0.1)
        assert run.bold.shape == (12, GRID.n_voxels)
        assert run.coverage == (np.argwhere(GRID.mask)[:, 1] < 5).mean()

    def test_interpolation_can_be_chosen(self, tmp_path):
        moved = GRID.affine.copy()
        moved[:3, 3] += 2
        path = write_image(tmp_path / "run.nii", rest_run(), moved)
        nearest = read_run(path, GRID, interpolation="nearest").bold
        assert set(nearest[0]) <= {0, *rest_run()[..., 0].ravel()}
        assert not np.array_equal(nearest, read_run(path, GRID).bold)


class TestRefused:
    """Each in its own way, with the file's name; receipts are made of these messages."""

    def refuse(self, path, kind, message):
        with pytest.raises(kind, match=message) as caught:
            read_run(path, GRID)
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
        self.refuse(path, ShapeError, r"got an image of shape \(10, 5, 10, 32\) that covers \d+% of the mask")

    def test_missing(self, tmp_path):
        self.refuse(str(tmp_path / "none.nii.gz"), MissingFileError, "got no file")

    def test_truncated(self, tmp_path):
        path = write_bytes(tmp_path / "run.nii", image_bytes(rest_run())[:-5000])
        self.refuse(path, CorruptFileError, "ends in volume 31")


class TestQuality:
    def test_figures_are_those_of_numpy(self):
        bold = rest_run()[GRID.mask].T
        figures = Run(bold, 2.4, 0.9).quality()
        expected = np.median(bold.astype(float).mean(axis=0) / bold.astype(float).std(axis=0))
        assert figures["tsnr"] == pytest.approx(expected, rel=1e-4)
        assert {key: value for key, value in figures.items() if key != "tsnr"} == {
            "volumes": 32,
            "tr": 2.4,
            "coverage": 0.9,
            "constant_voxels": 0,
        }
        assert all(type(value) is float for value in figures.values())

    @pytest.mark.parametrize("level", [0.0, 1000.1, 0.1])
    def test_constant_voxels_are_counted_and_not_averaged(self, level):
        bold = rest_run(volumes=200)[GRID.mask].T.copy()
        expected = Run(bold[:, 300:], 2, 1).quality()["tsnr"]
        bold[:, :300] = level
        figures = Run(bold, 2, 1).quality()
        assert figures["constant_voxels"] == 300
        assert figures["tsnr"] == pytest.approx(expected, rel=1e-6)


class TestConnectomes:
    def test_windows_are_cut_from_the_series_of_the_whole_run(self):
        run = Run(rest_run(volumes=41)[GRID.mask].T, TR, 1)
        series = roi_timeseries(run.bold, ROIS)
        values, edges = run_connectomes(run, ROIS, 4)
        assert values.shape == (4, len(ROIS), GRID.n_voxels)
        for number in range(4):
            part = slice(number * 10, number * 10 + 10)
            np.testing.assert_array_equal(values[number], connectome(run.bold[part], series[part]))
        np.testing.assert_array_equal(edges, roi_connectome(series))


@needs_data
def test_a_real_run_gives_the_connectome_of_plain_nibabel_and_numpy():
    folder = DATA / "bold"
    bold_path, mask_path = (folder / f"real_data_vol_4_regions_{name}.nii.gz" for name in ("BOLD", "mask"))
    roi_paths = natural_order([str(path) for path in (DATA / "ica32").glob("*.nii.gz")])

    mask = nib.load(mask_path)
    run = read_run(str(bold_path), Grid.from_mask(mask), tr=2.4)
    values, edges = run_connectomes(run, load_rois(roi_paths, Grid.from_mask(mask)), 1)
    assert (run.tr, run.bold.shape, values.shape) == (2.4, (128, 6443), (1, 32, 6443))
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
    np.testing.assert_allclose(values[0], expected, atol=1e-4)
    np.testing.assert_allclose(edges, np.corrcoef(series.T)[np.triu_indices(32, 1)], atol=1e-4)
