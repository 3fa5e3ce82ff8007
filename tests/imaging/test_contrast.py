"""Task-contrast maps from files."""

import numpy as np
import pytest

from cohort_files import GRID, image_bytes, patched, task_map, write_bytes, write_image
from dtg_ray.errors import CorruptFileError, MissingFileError, ShapeError, TooLargeError, ValueRangeError
from dtg_ray.imaging.contrast import LARGEST, read_contrast
from dtg_ray.imaging.scan import Scan


def with_value(value, voxel=40):
    """A map with one other value inside the mask."""
    data = task_map()
    data[tuple(np.argwhere(GRID.mask)[voxel])] = value
    return data


@pytest.mark.parametrize("data", [task_map(), task_map()[..., None], task_map()[..., None, None]])
def test_a_map_is_read_with_or_without_an_axis_for_its_one_volume(tmp_path, data):
    vector = read_contrast(Scan(write_image(tmp_path / "map.nii.gz", data)), GRID)
    assert vector.dtype == np.float32
    np.testing.assert_array_equal(vector, GRID.vectorize(task_map()))


def test_voxels_outside_the_field_of_view_are_zero(tmp_path):
    vector = read_contrast(Scan(write_image(tmp_path / "map.nii", task_map()[:, :8])), GRID)
    outside = np.argwhere(GRID.mask)[:, 1] >= 8
    assert (vector[outside] == 0).all()
    assert (vector[~outside] != 0).all()


def test_nan_outside_the_mask_does_no_harm(tmp_path):
    data = np.where(GRID.mask, task_map(), np.nan)
    np.testing.assert_array_equal(
        read_contrast(Scan(write_image(tmp_path / "map.nii", data)), GRID), GRID.vectorize(task_map())
    )


def test_the_largest_number_that_float16_can_hold_is_read(tmp_path):
    vector = read_contrast(Scan(write_image(tmp_path / "map.nii", with_value(-LARGEST))), GRID)
    assert vector.min() == -65504
    assert np.isfinite(vector.astype(np.float16)).all()


def test_nan_counts_as_outside_the_field_of_view_as_spm_means_it(tmp_path):
    vector = read_contrast(Scan(write_image(tmp_path / "map.nii", with_value(np.nan))), GRID)
    assert vector[40] == 0
    rest = np.arange(GRID.n_voxels) != 40
    np.testing.assert_array_equal(vector[rest], GRID.vectorize(task_map())[rest])


class TestRefused:
    """Each with its own message, which names the file."""

    def refuse(self, path, kind, message):
        with pytest.raises(kind, match=message) as caught:
            read_contrast(Scan(path), GRID)
        assert caught.value.path == path
        assert path in str(caught.value)

    def test_several_volumes(self, tmp_path):
        path = write_image(tmp_path / "run.nii", np.stack([task_map()] * 2, axis=-1))
        self.refuse(path, ShapeError, r"got an image of shape \(10, 12, 10, 2\), expected a 3-D map")

    @pytest.mark.parametrize("value", [np.inf, -np.inf, 1e6, -65600])
    def test_values_that_float16_cannot_hold(self, tmp_path, value):
        path = write_image(tmp_path / "map.nii", with_value(value))
        self.refuse(path, ValueRangeError, "got 1 values that are not finite or beyond 65504, expected none")

    def test_all_nan(self, tmp_path):
        path = write_image(tmp_path / "map.nii", np.full(GRID.shape, np.nan))
        self.refuse(path, ValueRangeError, f"got {GRID.n_voxels} values")

    def test_nan_in_more_than_half_of_the_mask(self, tmp_path):
        data = task_map()
        data[:, 4:] = np.nan
        self.refuse(write_image(tmp_path / "map.nii", data), ValueRangeError, r"got \d+ values that are not finite")

    @pytest.mark.parametrize("value", [0, 2.5])
    def test_a_constant(self, tmp_path, value):
        path = write_image(tmp_path / "map.nii", np.full(GRID.shape, value))
        self.refuse(path, ValueRangeError, "got a map that is constant inside the mask")

    def test_too_little_overlap(self, tmp_path):
        path = write_image(tmp_path / "map.nii", task_map()[:, :4])
        self.refuse(path, ShapeError, r"got an image of shape \(10, 4, 10\) that covers \d+% of the mask")

    def test_missing(self, tmp_path):
        self.refuse(str(tmp_path / "none.nii"), MissingFileError, "got no file")

    def test_truncated(self, tmp_path):
        path = write_bytes(tmp_path / "map.nii", image_bytes(task_map())[:-1])
        self.refuse(path, CorruptFileError, "ends in volume 1")

    def test_promising_more_than_it_holds(self, tmp_path):
        path = write_bytes(
            tmp_path / "map.nii", patched(image_bytes(task_map()), dim=[3, 30_000, 30_000, 300] + [1] * 4)
        )
        self.refuse(path, TooLargeError, "at most")


def test_less_overlap_can_be_allowed(tmp_path):
    path = write_image(tmp_path / "map.nii", task_map()[:, :4])
    assert (read_contrast(Scan(path), GRID, minimum_coverage=0.01) != 0).any()
