"""ROI maps from files."""

import random

import nibabel as nib
import numpy as np
import pytest

from cohort_files import GRID, roi_maps, task_map, write_bytes, write_image
from dtg_ray.errors import ConfigError
from dtg_ray.imaging.rois import load_rois, natural_order
from reference import DATA, needs_data


def test_a_4d_image_and_several_3d_ones_give_the_same_maps(tmp_path):
    maps = roi_maps(3)
    whole = write_image(tmp_path / "rois.nii.gz", maps)
    single = [write_image(tmp_path / f"{number}.nii", maps[..., number]) for number in range(3)]
    rois = load_rois([whole], GRID)
    assert (rois.kind, rois.maps.dtype) == ("maps", np.float32)
    assert rois.names == ("roi-001", "roi-002", "roi-003")
    np.testing.assert_array_equal(rois.maps, maps[GRID.mask].T)
    np.testing.assert_array_equal(load_rois(single, GRID).maps, rois.maps)
    assert load_rois(single[::-1], GRID).names == ("2", "1", "0")
    np.testing.assert_array_equal(load_rois(single[::-1], GRID).maps, rois.maps[::-1])


def test_maps_between_the_voxels_are_interpolated(tmp_path):
    moved = GRID.affine.copy()
    moved[:3, 3] += GRID.affine[:3, :3] @ [0.5, 0, 0]
    rois = load_rois([write_image(tmp_path / "rois.nii", roi_maps(), moved)], GRID).maps
    x, y, z = np.argwhere(GRID.mask).T
    expected = (roi_maps()[x, y, z] + roi_maps()[np.maximum(x - 1, 0), y, z]) / 2
    np.testing.assert_allclose(rois, expected.T, atol=1e-6)


def test_natural_order_counts():
    names = [f"/maps/component{number}.nii.gz" for number in (1, 2, 3, 9, 10, 11, 20, 100)]
    shuffled = random.Random(0).sample(names, len(names))
    assert natural_order(shuffled) == names
    assert natural_order(["b2", "10", "a", "9", "b10"]) == ["9", "10", "a", "b2", "b10"]


@needs_data
def test_real_maps_are_read_where_they_lie():
    paths = natural_order([str(path) for path in (DATA / "ica32").glob("*.nii.gz")])
    assert [path.rsplit("component")[1] for path in paths[:3]] == ["1.nii.gz", "2.nii.gz", "3.nii.gz"]
    rois = load_rois(paths[:2], GRID).maps
    for path, values in zip(paths, rois, strict=False):
        image = nib.load(path)
        x, y, z = np.rint(nib.affines.apply_affine(np.linalg.inv(image.affine), GRID.coordinates)).astype(int).T
        np.testing.assert_array_equal(values, np.asanyarray(image.dataobj)[x, y, z])


def atlas(labels=(3, 7, 12)):
    """A 3-D atlas: slabs of whole numbers, zero between them."""
    data = np.zeros(GRID.shape, dtype=np.int16)
    for number, label in enumerate(labels):
        data[:, 3 * number : 3 * number + 2] = label
    return data


class TestLabels:
    @pytest.mark.parametrize("kind", ["auto", "labels"])
    def test_one_3d_image_of_whole_numbers_is_an_atlas(self, tmp_path, kind):
        rois = load_rois([write_image(tmp_path / "atlas.nii.gz", atlas())], GRID, kind)
        assert (rois.kind, rois.names) == ("labels", ("label-3", "label-7", "label-12"))
        np.testing.assert_array_equal(rois.maps, [GRID.vectorize(atlas()) == label for label in (3, 7, 12)])

    def test_its_series_are_means(self, tmp_path):
        rois = load_rois([write_image(tmp_path / "atlas.nii.gz", atlas())], GRID)
        volume = task_map()
        expected = [volume[GRID.mask & (atlas() == label)].mean() for label in (3, 7, 12)]
        np.testing.assert_allclose(GRID.vectorize(volume) @ rois.weights, expected, rtol=1e-5)

    def test_labels_are_never_interpolated(self, tmp_path):
        moved = GRID.affine.copy()
        moved[:3, 3] += 3
        rois = load_rois([write_image(tmp_path / "atlas.nii.gz", atlas(), moved)], GRID)
        assert set(np.unique(rois.maps)) == {0, 1}
        assert rois.names == ("label-3", "label-7", "label-12")

    def test_a_region_that_the_grid_would_lose_is_named(self, tmp_path):
        data = np.kron(atlas(), np.ones((2, 2, 2), dtype=np.int16))
        where = 2 * np.argwhere(GRID.mask)[50] + 1
        data[tuple(where)] = 77
        fine = GRID.affine @ np.diag([0.5, 0.5, 0.5, 1])
        fine[:3, 3] = GRID.affine[:3, 3]
        with pytest.raises(ConfigError, match=r"labels \[77\] have no voxel on the grid"):
            load_rois([write_image(tmp_path / "atlas.nii.gz", data, fine)], GRID)

    def test_whole_numbers_can_be_meant_as_soft_maps(self, tmp_path):
        maps = np.stack([atlas((2, 1)), atlas((1, 1, 5))], axis=-1)
        assert load_rois([write_image(tmp_path / "maps.nii", maps)], GRID, "maps").kind == "maps"

    @pytest.mark.parametrize(
        ("data", "message"),
        [
            (atlas((5,)), "got 1 labels on the grid"),
            (atlas() / 2, "got 3 labels on the grid"),
            (np.stack([atlas(), atlas()], axis=-1), "got 2 volumes of labels, expected one"),
        ],
    )
    def test_what_is_no_atlas_is_refused_as_one(self, tmp_path, data, message):
        path = write_image(tmp_path / "atlas.nii", data)
        with pytest.raises(ConfigError, match=message):
            load_rois([path], GRID, "labels")


class TestRefused:
    def refuse(self, paths, message):
        with pytest.raises(ConfigError, match=message) as caught:
            load_rois(paths, GRID)
        return caught.value

    def test_no_maps(self):
        assert "--rois" in self.refuse([], "got no ROI maps, expected at least two").hint

    def test_one_map(self, tmp_path):
        path = write_image(tmp_path / "one.nii", task_map())
        self.refuse([path], "got 1 ROI map in .*one.nii, expected at least two")

    def test_missing_file(self, tmp_path):
        error = self.refuse([str(tmp_path / "none.nii")], "ROI maps: .*none.nii: got no file")
        assert "--rois" in error.hint

    def test_torn_file(self, tmp_path):
        self.refuse([write_bytes(tmp_path / "torn.nii", b"torn")], "ROI maps: .*torn.nii: got b'torn'")

    def test_no_overlap(self, tmp_path):
        far = GRID.affine.copy()
        far[0, 3] += 1000
        self.refuse([write_image(tmp_path / "far.nii", roi_maps(), far)], "far.nii: got an image .* covers 0%")

    @pytest.mark.parametrize("value", [0, 3, np.nan])
    def test_useless_maps_are_numbered_from_one(self, tmp_path, value):
        maps = roi_maps(4)
        maps[..., [1, 3]] = value
        path = write_image(tmp_path / "rois.nii", maps)
        self.refuse([path], r"ROI maps \[2, 4\] of 4 are constant or not finite on the grid")

    @pytest.mark.parametrize("value", [np.nan, np.inf])
    def test_one_bad_voxel_is_enough(self, tmp_path, value):
        maps = roi_maps(4)
        maps[(*np.argwhere(GRID.mask)[50], 2)] = value
        self.refuse([write_image(tmp_path / "rois.nii", maps)], r"ROI maps \[3\] of 4")

    def test_nan_outside_the_mask_does_no_harm(self, tmp_path):
        maps = roi_maps(4)
        maps[~GRID.mask] = np.nan
        assert np.isfinite(load_rois([write_image(tmp_path / "rois.nii", maps)], GRID).maps).all()
