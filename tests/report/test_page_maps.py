"""Maps of the slice viewer: every voxel at its place in mm, whatever the axes of the grid."""

import base64
import itertools

import numpy as np
import pytest

from dtg_ray.imaging.grid import Grid
from dtg_ray.report.page_maps import viewer_data

SHAPE = (4, 5, 6)


def axis_aligned():
    """Every order and direction of the axes, with spacings of 2, 3 and 4 mm."""
    for order, signs in itertools.product(itertools.permutations(range(3)), itertools.product([-1, 1], repeat=3)):
        affine = np.eye(4)
        affine[:3, :3] = np.diag([2.0, 3.0, 4.0])[:, order] * np.array(signs)
        affine[:3, 3] = (-7.5, 11, 3)
        yield affine


def decoded(data):
    """Coordinates in mm (V, 3), and codes of the maps (n, V), as the script of the page reads them."""
    bits = np.unpackbits(np.frombuffer(base64.b64decode(data["mask"]), np.uint8))[: np.prod(data["shape"])]
    voxels = np.argwhere(bits.reshape(data["shape"]))
    codes = np.stack([np.frombuffer(base64.b64decode(text), np.int8) for text in data["maps"]])
    return voxels * data["spacing"] + data["origin"], codes


@pytest.mark.parametrize("affine", list(axis_aligned()), ids=lambda affine: str(affine[:3, :3].astype(int).tolist()))
def test_every_value_stays_at_its_place_in_mm(affine):
    rng = np.random.default_rng(0)
    grid = Grid(affine, rng.random(SHAPE) > 0.3)
    vector = rng.standard_normal(grid.n_voxels)
    data = viewer_data(grid, {"map": vector}, "z", None)["data"]
    coordinates, codes = decoded(data)
    assert min(data["spacing"]) > 0
    values = dict(zip(map(tuple, np.round(grid.coordinates, 3).tolist()), vector, strict=True))
    expected = [values[tuple(place)] for place in np.round(coordinates, 3).tolist()]
    np.testing.assert_allclose(codes[0] * data["step"], expected, atol=data["step"] / 2 + 1e-6)


def test_all_maps_have_one_scale_which_reaches_the_largest_value():
    grid = Grid(np.eye(4), np.ones(SHAPE, bool))
    small, large = np.linspace(-1, 1, grid.n_voxels), np.linspace(-8, 4, grid.n_voxels)
    data = viewer_data(grid, {"small": small, "large": large}, "z", None)["data"]
    assert data["step"] == pytest.approx(8 / 127)
    _, codes = decoded(data)
    assert codes.min() == -127
    np.testing.assert_allclose(codes * data["step"], [small, large], atol=data["step"] / 2 + 1e-6)
    assert 4 < data["limit"] < 8


def test_what_is_no_number_has_no_value():
    grid = Grid(np.eye(4), np.ones(SHAPE, bool))
    vector = np.ones(grid.n_voxels)
    vector[[3, 7, 9]] = np.nan, np.inf, -np.inf
    _, codes = decoded(viewer_data(grid, {"map": vector}, "z", None)["data"])
    assert np.flatnonzero(codes[0] == -128).tolist() == [3, 7, 9]
    assert set(codes[0]) == {-128, 127}


@pytest.mark.parametrize("value", [0.0, np.nan])
def test_maps_without_any_size_have_a_scale_all_the_same(value):
    grid = Grid(np.eye(4), np.ones(SHAPE, bool))
    data = viewer_data(grid, {"map": np.full(grid.n_voxels, value)}, "z", None)["data"]
    assert data["limit"] > 0
    assert data["step"] > 0


def test_the_background_is_grey_from_dark_to_light():
    grid = Grid(np.diag([-1.0, 1, 1, 1]), np.ones(SHAPE, bool))
    background = np.arange(grid.n_voxels, dtype=float)
    data = viewer_data(grid, {"map": background}, "z", background)["data"]
    shades = np.frombuffer(base64.b64decode(data["background"]), np.uint8).reshape(SHAPE)
    assert shades.min() == 0
    assert shades.max() == 255
    assert (np.diff(shades.astype(int), axis=0) < 0).all()  # the first axis of the grid runs to the left


@pytest.mark.parametrize("linear", [[[1, 0.2, 0], [-0.2, 1, 0], [0, 0, 1]], [[1, 0, 0], [1, 0, 0], [0, 0, 1]]])
def test_a_rotated_grid_is_refused(linear):
    affine = np.eye(4)
    affine[:3, :3] = linear
    grid = Grid(affine, np.ones(SHAPE, bool))
    with pytest.raises(ValueError, match=r"rotated or sheared affine \[\[1\.0.*expected voxel axes that run along"):
        viewer_data(grid, {"map": np.zeros(grid.n_voxels)}, "z", None)
