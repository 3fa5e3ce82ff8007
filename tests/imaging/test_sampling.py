"""From an image's voxels to the grid's: against scipy and nilearn, and what interpolation must leave alone."""

import nibabel as nib
import numpy as np
import pytest
import scipy.ndimage
from nilearn.image import resample_to_img

from cohort_files import GRID, task_map, write_image
from dtg_ray.imaging.grid import Grid
from dtg_ray.imaging.sampling import Sampler
from dtg_ray.imaging.series import open_series
from dtg_ray.imaging.space import read_masked
from reference import DATA, needs_data

BOX = (13, 15, 12)


def sample(data, affine, grid=GRID, interpolation="linear"):
    """The grid's vector of an image, and the sampler."""
    sampler = Sampler.affine(data.shape, affine, grid, interpolation)
    out = np.full(grid.n_voxels, np.nan, dtype=np.float32)
    assert sampler(data.ravel(order="F"), out=out) is out
    return out, sampler


def turned(degrees=20.0, voxel=10.0):
    """An affine at an angle to all axes; its box covers the middle of the grid."""
    a, b = np.deg2rad([degrees, degrees / 2])
    about_z = np.array([[np.cos(a), -np.sin(a), 0], [np.sin(a), np.cos(a), 0], [0, 0, 1]])
    about_x = np.array([[1, 0, 0], [0, np.cos(b), -np.sin(b)], [0, np.sin(b), np.cos(b)]])
    affine = np.eye(4)
    affine[:3, :3] = about_z @ about_x * voxel
    centre = GRID.coordinates.mean(axis=0)
    affine[:3, 3] = centre - affine[:3, :3] @ ((np.array(BOX) - 1) / 2)
    return affine


def positions(affine, grid=GRID):
    """Where the grid's voxels lie in an image, (V, 3)."""
    return nib.affines.apply_affine(np.linalg.inv(affine) @ grid.affine, np.argwhere(grid.mask))


def image(seed=0, shape=BOX):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


class TestSameLattice:
    """Images on the grid's voxels are indexed: not a bit changes."""

    @pytest.mark.parametrize("interpolation", ["linear", "nearest"])
    def test_the_grid_itself(self, interpolation):
        vector, sampler = sample(task_map(), GRID.affine, interpolation=interpolation)
        assert sampler.matrix is None
        assert sampler.coverage == 1
        np.testing.assert_array_equal(vector, GRID.vectorize(task_map()))

    def test_a_larger_box(self):
        padded = np.pad(task_map(), 2, constant_values=9)
        affine = GRID.affine.copy()
        affine[:3, 3] -= GRID.affine[:3, :3] @ [2, 2, 2]
        vector, sampler = sample(padded, affine)
        assert sampler.matrix is None
        np.testing.assert_array_equal(vector, GRID.vectorize(task_map()))

    def test_a_smaller_box_gives_zero_outside(self):
        first = np.array([1, 2, 3])
        affine = GRID.affine.copy()
        affine[:3, 3] += GRID.affine[:3, :3] @ first
        vector, sampler = sample(task_map()[1:, 2:9, 3:], affine)
        voxels = np.argwhere(GRID.mask)
        inside = (voxels >= first).all(axis=1) & (voxels[:, 1] < 9)
        np.testing.assert_array_equal(sampler.inside, inside)
        assert sampler.coverage == inside.mean()
        np.testing.assert_array_equal(vector, np.where(inside, GRID.vectorize(task_map()), 0))

    @pytest.mark.parametrize("axis", [0, 1, 2])
    def test_a_flipped_axis(self, axis):
        flip = np.eye(4)
        flip[axis, axis], flip[axis, 3] = -1, GRID.shape[axis] - 1
        vector, sampler = sample(np.flip(task_map(), axis), GRID.affine @ flip)
        assert sampler.matrix is None
        np.testing.assert_array_equal(vector, GRID.vectorize(task_map()))

    def test_exchanged_axes(self):
        vector, sampler = sample(task_map().transpose(2, 0, 1), GRID.affine[:, [2, 0, 1, 3]])
        assert sampler.matrix is None
        np.testing.assert_array_equal(vector, GRID.vectorize(task_map()))

    def test_rounding_of_an_affine_in_a_file_does_not_matter(self):
        vector, sampler = sample(task_map(), GRID.affine.astype(np.float32) * (1 + 1e-7))
        assert sampler.matrix is None
        np.testing.assert_array_equal(vector, GRID.vectorize(task_map()))


class TestLinear:
    @pytest.mark.parametrize("degrees", [0, 7, 20, 90, 200])
    def test_is_that_of_scipy(self, degrees):
        data, affine = image(), turned(degrees)
        places = positions(affine)
        vector, sampler = sample(data, affine)
        expected = scipy.ndimage.map_coordinates(data.astype(float), places.T, order=1, mode="nearest")
        inside = ((places >= -0.5) & (places <= np.array(BOX) - 0.5)).all(axis=1)
        assert 0.4 < inside.mean() < 1
        np.testing.assert_array_equal(sampler.inside, inside)
        np.testing.assert_allclose(vector, np.where(inside, expected, 0), atol=1e-5)

    @pytest.mark.parametrize("degrees", [0, 7, 20])
    def test_is_that_of_nilearn_away_from_the_border(self, degrees):
        data, affine = image(), turned(degrees)
        vector, _ = sample(data, affine)
        target = nib.Nifti1Image(GRID.mask.astype(np.uint8), GRID.affine)
        resampled = resample_to_img(
            nib.Nifti1Image(data, affine), target, interpolation="linear", force_resample=True, copy_header=True
        )
        places = positions(affine)
        well_inside = ((places >= 0) & (places <= np.array(BOX) - 1)).all(axis=1)
        assert well_inside.mean() > 0.3
        expected = resampled.get_fdata()[GRID.mask]
        np.testing.assert_allclose(vector[well_inside], expected[well_inside], atol=1e-5)

    @pytest.mark.parametrize("degrees", [0, 7, 20])
    def test_correlates_fully_with_nilearn_wherever_both_see_the_image(self, degrees):
        data, affine = scipy.ndimage.gaussian_filter(image(), 1), turned(degrees)
        vector, sampler = sample(data, affine)
        target = nib.Nifti1Image(GRID.mask.astype(np.uint8), GRID.affine)
        resampled = resample_to_img(
            nib.Nifti1Image(data, affine), target, interpolation="linear", force_resample=True, copy_header=True
        ).get_fdata()[GRID.mask]
        both = sampler.inside & (resampled != 0)
        assert both.mean() > 0.4
        assert np.corrcoef(vector[both], resampled[both])[0, 1] > 0.9999

    def test_a_linear_field_is_reproduced(self):
        affine, slope = turned(), np.array([0.5, -0.2, 0.1])
        places = nib.affines.apply_affine(affine, np.indices(BOX).reshape(3, -1).T)
        vector, _ = sample((places @ slope + 3).reshape(BOX).astype(np.float32), affine)
        well_inside = ((positions(affine) >= 0) & (positions(affine) <= np.array(BOX) - 1)).all(axis=1)
        np.testing.assert_allclose(vector[well_inside], (GRID.coordinates @ slope + 3)[well_inside], atol=1e-4)

    def test_a_constant_stays_constant_up_to_the_border(self):
        vector, sampler = sample(np.full(BOX, 7, dtype=np.int16), turned())
        np.testing.assert_allclose(vector[sampler.inside], 7, rtol=1e-6)
        assert (vector[~sampler.inside] == 0).all()

    def test_nan_touches_only_its_neighbours(self):
        data, affine = image(), turned()
        data[6, 7, 6] = np.nan
        vector, _ = sample(data, affine)
        near = (np.abs(positions(affine) - [6, 7, 6]) < 1).all(axis=1)
        assert near.any()
        np.testing.assert_array_equal(np.isnan(vector), near)

    def test_an_image_of_one_slice(self):
        affine = GRID.affine.copy()
        affine[:3, 3] += GRID.affine[:3, :3] @ [0.3, 0, 4.2]
        data = image(shape=(10, 12, 1))
        vector, sampler = sample(data, affine)
        voxels = np.argwhere(GRID.mask)
        np.testing.assert_array_equal(sampler.inside, voxels[:, 2] == 4)
        expected = scipy.ndimage.map_coordinates(data.astype(float), positions(affine).T, order=1, mode="nearest")
        np.testing.assert_allclose(vector[sampler.inside], expected[sampler.inside], atol=1e-6)


class TestNearest:
    def test_takes_the_nearest_voxel(self):
        data, affine = image(), turned()
        vector, sampler = sample(data, affine, interpolation="nearest")
        assert sampler.matrix is None
        nearest = np.clip(np.rint(positions(affine)).astype(int), 0, np.array(BOX) - 1)
        expected = np.where(sampler.inside, data[tuple(nearest.T)], 0)
        np.testing.assert_array_equal(vector, expected)


class TestMask:
    @pytest.mark.parametrize("interpolation", ["linear", "nearest"])
    def test_voxels_outside_a_mask_are_outside_the_field_of_view(self, interpolation):
        data, affine = image(), turned()
        sampler = Sampler.affine(BOX, affine, GRID, interpolation)
        mask = np.zeros(BOX)
        mask[:7], mask[3, 4, 5] = 1, np.nan
        part = sampler.masked(mask.ravel(order="F"))
        nearest = np.clip(np.rint(positions(affine)).astype(int), 0, np.array(BOX) - 1)
        inside = sampler.inside & (np.nan_to_num(mask[tuple(nearest.T)]) == 1)
        np.testing.assert_array_equal(part.inside, inside)
        values = part(data.ravel(order="F"), out=np.empty(GRID.n_voxels, np.float32))
        assert (values[~inside] == 0).all()
        known = np.nan_to_num(mask)
        order = 1 if interpolation == "linear" else 0
        places = np.clip(positions(affine), 0, np.array(BOX) - 1).T[:, inside]
        sums, weights = (
            scipy.ndimage.map_coordinates(image_, places, order=order, mode="nearest")
            for image_ in (data * known, known)
        )
        np.testing.assert_allclose(values[inside], sums / weights, atol=1e-5)


def test_places_that_are_nowhere_are_outside():
    places = positions(turned())
    places[:50] = np.nan
    sampler = Sampler.at(places, BOX)
    assert not sampler.inside[:50].any()
    assert (sampler(image().ravel(), out=np.full(GRID.n_voxels, 5, np.float32))[:50] == 0).all()


def test_an_image_elsewhere_covers_nothing():
    affine = GRID.affine.copy()
    affine[:3, 3] += 900
    for interpolation in ("linear", "nearest"):
        vector, sampler = sample(task_map(), affine, interpolation=interpolation)
        assert sampler.coverage == 0
        assert (vector == 0).all()


def test_unknown_interpolation_is_refused():
    with pytest.raises(ValueError, match="got interpolation 'cubic', expected 'linear' or 'nearest'"):
        Sampler.affine(BOX, turned(), GRID, "cubic")


@needs_data
def test_a_real_image_stored_with_its_x_axis_the_other_way_gives_the_same_vector(tmp_path):
    path = DATA / "orientation" / "tpl-MNI152NLin6Asym_res-02_desc-brain_mask.nii.gz"
    grid, original = Grid.mni152(2), nib.load(path)
    assert nib.aff2axcodes(original.affine) == ("R", "A", "S")
    flip = np.diag([-1.0, 1, 1, 1])
    flip[0, 3] = original.shape[0] - 1
    data = np.asanyarray(original.dataobj)
    flipped = write_image(tmp_path / "flipped.nii.gz", data[::-1], original.affine @ flip)
    vectors = []
    for name in (str(path), flipped):
        with open_series(name) as series:
            vectors.append(read_masked(series, grid)[0][0])
    np.testing.assert_array_equal(*vectors)
    # both lattices hold whole even millimetres: brain is where brain is, left is not right
    assert (vectors[0] > 0).mean() > 0.95
    x, y, z = np.rint(nib.affines.apply_affine(np.linalg.inv(original.affine), grid.coordinates)).astype(int).T
    np.testing.assert_array_equal(vectors[0], data[x, y, z])
