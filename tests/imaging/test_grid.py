"""The common space: the MNI152 grid against nilearn, vectors and volumes."""

import nibabel as nib
import numpy as np
import pytest
from nilearn.datasets import load_mni152_brain_mask, load_mni152_gm_mask
from nilearn.image import resample_img

from dtg_ray.imaging.grid import Grid

SMALL = Grid(np.diag([3.0, 3.0, 4.0, 1.0]), np.random.default_rng(0).random((5, 6, 7)) < 0.4)


def resampled(mask, grid):
    """A mask on the box of a grid, by nilearn."""
    image = resample_img(
        mask,
        target_affine=grid.affine,
        target_shape=grid.shape,
        interpolation="nearest",
        force_resample=True,
        copy_header=True,
    )
    return np.asanyarray(image.dataobj) != 0


class TestMNI152:
    def test_at_2_mm_it_is_the_grid_of_deeptaskgen(self):
        grid = Grid.mni152()
        assert grid.shape == (76, 93, 78)
        assert grid.n_voxels == 235_375
        np.testing.assert_array_equal(grid.affine, [[-2, 0, 0, 76], [0, 2, 0, -108], [0, 0, 2, -72], [0, 0, 0, 1]])

    @pytest.mark.parametrize("resolution", [2, 4, 4.33, 5, 16])
    def test_mask_is_what_nilearn_resamples(self, resolution):
        grid = Grid.mni152(resolution)
        np.testing.assert_array_equal(grid.mask, resampled(load_mni152_brain_mask(resolution=1), grid))

    @pytest.mark.parametrize(
        ("resolution", "shape"),
        [(3, (51, 62, 52)), (4, (38, 47, 39)), (1.6, (94, 116, 97)), (2.5, (61, 74, 62)), (20, (8, 10, 8))],
    )
    def test_other_resolutions_fill_the_same_box_from_the_same_corner(self, resolution, shape):
        grid = Grid.mni152(resolution)
        assert grid.shape == shape
        np.testing.assert_array_equal(np.abs(np.diag(grid.affine)[:3]), resolution)
        np.testing.assert_array_equal(grid.affine[:3, 3], [76, -108, -72])

    def test_grey_matter_is_what_nilearn_resamples(self):
        grid = Grid.mni152(4)
        grey = grid.grey_matter()
        np.testing.assert_array_equal(grey, resampled(load_mni152_gm_mask(resolution=1), grid)[grid.mask])
        assert 0.3 < grey.mean() < 0.9

    def test_a_grid_elsewhere_has_no_grey_matter(self):
        affine = np.diag([2.0, 2, 2, 1])
        affine[:3, 3] = 500
        assert not Grid(affine, np.ones((3, 3, 3), dtype=bool)).grey_matter().any()


class TestVectors:
    @pytest.mark.parametrize("leading", [(), (3,), (2, 4)])
    @pytest.mark.parametrize("dtype", [np.float16, np.float32, np.int16, bool])
    def test_round_trip_keeps_values_and_dtype(self, leading, dtype):
        vectors = (np.random.default_rng(1).normal(size=(*leading, SMALL.n_voxels)) * 9).astype(dtype)
        volumes = SMALL.volume(vectors)
        assert volumes.shape == (*leading, 5, 6, 7)
        assert volumes.dtype == dtype
        np.testing.assert_array_equal(SMALL.vectorize(volumes), vectors)
        assert SMALL.vectorize(volumes).dtype == dtype

    def test_order_is_that_of_numpy_indexing_by_the_mask(self):
        volume = np.arange(5 * 6 * 7).reshape(5, 6, 7)
        np.testing.assert_array_equal(SMALL.vectorize(volume), volume[SMALL.mask])
        np.testing.assert_array_equal(SMALL.vectorize(np.asfortranarray(volume)), volume[SMALL.mask])

    def test_outside_the_mask_is_the_fill(self):
        vector = np.ones(SMALL.n_voxels, dtype=np.float32)
        assert (SMALL.volume(vector)[~SMALL.mask] == 0).all()
        assert np.isnan(SMALL.volume(vector, fill=np.nan)[~SMALL.mask]).all()
        assert SMALL.volume(vector, fill=np.nan)[SMALL.mask].sum() == SMALL.n_voxels

    def test_image_lies_on_the_grid(self):
        vector = np.arange(SMALL.n_voxels, dtype=np.float16)
        image = SMALL.image(vector)
        assert image.get_data_dtype() == np.float32
        np.testing.assert_array_equal(image.affine, SMALL.affine)
        np.testing.assert_array_equal(image.get_fdata()[SMALL.mask], vector)

    def test_coordinates_are_the_voxel_centres_in_mm(self):
        grid = Grid.mni152(16)
        expected = nib.affines.apply_affine(grid.affine, np.argwhere(grid.mask))
        np.testing.assert_allclose(grid.coordinates, expected)
        assert grid.coordinates.dtype == np.float32

    @pytest.mark.parametrize("shape", [(5, 6), (5, 7, 6), (6, 5, 6, 8), (SMALL.n_voxels,)])
    def test_volumes_of_another_box_are_refused(self, shape):
        with pytest.raises(ValueError, match=r"got a volume of shape .* expected \(\.\.\., \(5, 6, 7\)\)"):
            SMALL.vectorize(np.zeros(shape))

    @pytest.mark.parametrize("shape", [(), (SMALL.n_voxels + 1,), (5, 6, 7), (SMALL.n_voxels, 1)])
    def test_vectors_of_another_length_are_refused(self, shape):
        with pytest.raises(ValueError, match=rf"expected \(\.\.\., {SMALL.n_voxels}\)"):
            SMALL.volume(np.zeros(shape))


class TestMaking:
    def test_from_a_mask_image(self):
        grid = Grid.from_mask(nib.Nifti1Image(SMALL.mask.astype(np.uint8) * 7, SMALL.affine))
        np.testing.assert_array_equal(grid.mask, SMALL.mask)
        np.testing.assert_array_equal(grid.affine, SMALL.affine)
        assert grid.fingerprint == SMALL.fingerprint

    def test_nan_is_not_in_the_mask(self):
        data = np.where(SMALL.mask, 0.5, np.nan).astype(np.float32)
        np.testing.assert_array_equal(Grid.from_mask(nib.Nifti1Image(data, SMALL.affine)).mask, SMALL.mask)

    def test_arrays_are_frozen_copies(self):
        mask, affine = SMALL.mask.copy(), SMALL.affine.copy()
        grid = Grid(affine, mask)
        mask[:], affine[:] = False, 0
        assert grid.fingerprint == SMALL.fingerprint
        with pytest.raises(ValueError, match="read-only"):
            grid.mask[0, 0, 0] = True
        with pytest.raises(ValueError, match="read-only"):
            grid.affine[0, 0] = 1

    def test_fingerprint_tells_affine_box_and_mask_apart(self):
        moved = SMALL.affine + np.array([[0, 0, 0, 1e-3]] + [[0] * 4] * 3)
        other_mask = SMALL.mask.copy()
        other_mask[0, 0, 0] ^= True
        turned = SMALL.mask.reshape(5, 7, 6)
        grids = [SMALL, Grid(moved, SMALL.mask), Grid(SMALL.affine, other_mask), Grid(SMALL.affine, turned)]
        assert len({grid.fingerprint for grid in grids}) == 4
        # differences below a nanometre come from writing an affine to a file and reading it again
        assert Grid(SMALL.affine + 1e-9, SMALL.mask).fingerprint == SMALL.fingerprint

    @pytest.mark.parametrize(
        ("affine", "mask", "message"),
        [
            (np.eye(4), np.ones((2, 2)), r"got a mask of shape \(2, 2\)"),
            (np.eye(4), np.ones((2, 2, 2, 1)), r"got a mask of shape \(2, 2, 2, 1\)"),
            (np.eye(3), np.ones((2, 2, 2)), r"an affine of shape \(3, 3\)"),
            (np.eye(4), np.zeros((2, 2, 2)), "got a mask without a single voxel"),
        ],
    )
    def test_what_is_not_a_grid_is_refused(self, affine, mask, message):
        with pytest.raises(ValueError, match=message):
            Grid(affine, mask)
