"""Slices and box plots drawn from what studies really have: turned grids, names with a dollar, many people."""

import nibabel as nib
import numpy as np
import pandas as pd
import pytest

from dtg_ray.imaging.grid import Grid
from dtg_ray.report import charts
from dtg_ray.report.page import Viewer
from dtg_ray.report.pictures import side_by_side
from dtg_ray.report.style import colours, markers, svg

AFFINE = np.array([[-4.0, 0, 0, 40], [0, 4, 0, -60], [0, 0, 4, -40], [0, 0, 0, 1]])
SHAPE = (20, 26, 22)


def same_world(order, flip):
    """The grid of AFFINE with its axes in another order, some of them backwards, and a map of one side's hot spot."""
    mask = np.zeros(SHAPE, dtype=np.uint8)
    mask[2:-2, 3:-3, 1:-1] = 1
    values = np.zeros(SHAPE, dtype=np.float32)
    values[4:7, 15:20, 8:14] = 5
    image = nib.Nifti1Image(mask, AFFINE)
    orientation = np.column_stack([order, flip])
    turned, hot = (one.as_reoriented(orientation) for one in (image, nib.Nifti1Image(values, AFFINE)))
    grid = Grid.from_mask(turned)
    return grid, grid.vectorize(hot.get_fdata().astype(np.float32))


def drawn(grid, vector):
    figure = side_by_side({"measured": vector[None]}, ["somebody"], grid)
    return np.ma.filled(figure.axes[0].images[0].get_array(), np.nan)


@pytest.mark.parametrize(
    ("order", "flip"), [((0, 1, 2), (-1, 1, 1)), ((1, 2, 0), (1, -1, 1)), ((2, 0, 1), (-1, -1, -1))]
)
def test_slices_are_the_same_however_the_grid_is_turned(order, flip):
    expected = drawn(*same_world((0, 1, 2), (1, 1, 1)))
    assert np.nanmax(expected) == 5
    np.testing.assert_array_equal(drawn(*same_world(order, flip)), expected)


def test_of_a_rotated_grid_there_are_no_slices_and_no_viewer():
    turn = np.eye(4)
    turn[:2, :2] = [[0.8, -0.6], [0.6, 0.8]]
    grid = Grid(turn @ AFFINE, np.ones(SHAPE, dtype=bool))
    vector = np.ones(grid.n_voxels, dtype=np.float32)
    with pytest.raises(ValueError, match="rotated"):
        side_by_side({"measured": vector[None]}, ["somebody"], grid)
    with pytest.raises(ValueError, match="rotated"):
        Viewer("slices", "Slices", "", grid, {"a": vector})


def people(n_subjects, contrasts=("WM_2BK", "rew$_lose$")):
    rng = np.random.default_rng(0)
    lines = [
        {"model": model, "contrast": contrast, "subject": who, "r": rng.standard_t(2)}
        for model in ("linear", "unet")
        for contrast in contrasts
        for who in range(n_subjects)
    ]
    return pd.DataFrame(lines)


def test_names_may_have_any_characters():
    drawing = svg(charts.boxes(people(9, ("rew$_lose$", "a_{b}^2 \\x", "<b>&")), "r", ["linear", "unet"]))
    assert b"<svg" in drawing


def test_of_very_many_people_no_single_points_are_drawn(monkeypatch):
    table = people(3000)
    few = svg(charts.boxes(table, "r", ["linear", "unet"]))
    monkeypatch.setattr(charts, "MOST_POINTS", 100)
    assert len(svg(charts.boxes(table, "r", ["linear", "unet"]))) < 0.6 * len(few)


def test_fifty_names_look_different():
    names = [f"set-{number}" for number in range(50)]
    looks = {(colours(names)[name], markers(names)[name]) for name in names}
    assert len(looks) == 50
