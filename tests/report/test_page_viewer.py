"""The slice viewer in a browser: it moves, it says the numbers of the maps, and left is left."""

import re

import numpy as np
import pytest

from dtg_ray.imaging.grid import Grid
from dtg_ray.report.page import Viewer
from page_samples import hot_voxel, sample_viewer

PICTURES = "(all) => all.map((one) => one.toDataURL())"
READOUT = re.compile(r"x (\S+), y (\S+), z (\S+) mm: (.*) (\S+); (.*) (\S+) \(z\)")
HOT = """(canvas, sign) => {
    const { width, height } = canvas;
    const pixels = canvas.getContext("2d").getImageData(0, 0, width, height).data;
    let [sum, x, y] = [0, 0, 0];
    for (let place = 0; place < width * height; place++) {
        const [red, , blue] = pixels.slice(4 * place, 4 * place + 3);
        if (sign * (red - blue) > 60) {
            sum += 1;
            x += place % width;
            y += Math.floor(place / width);
        }
    }
    const frame = canvas.getBoundingClientRect();
    const at = (share, start, size) => start + (share / sum) * size;
    return sum && [at(x / width, frame.left, frame.width), at(y / height, frame.top, frame.height)];
}"""


@pytest.fixture
def viewer(open_page, page_of, maps):
    """The viewer of four maps."""
    return open_page(page_of(maps)).page.locator("[data-viewer]")


@pytest.fixture(scope="module")
def maps():
    """Four maps of the whole brain at 2 mm."""
    return sample_viewer(4)


def readout(viewer):
    """Coordinates in mm, and the values of both maps."""
    found = READOUT.fullmatch(viewer.locator("[data-readout]").inner_text().replace("−", "-"))
    *place, _, first, _, second = found.groups()
    return np.array(place, float), first, second


def slide(viewer, axis, millimetres):
    viewer.locator(f"[data-axis='{axis}']").fill(str(millimetres))


def hot(open_page, page_of, where_mm, axis, elsewhere):
    """A viewer whose slices go through the one hot voxel, the cross moved along one axis from it."""
    viewer = open_page(page_of(hot_voxel(where_mm))).page.locator("[data-viewer]")
    viewer.get_by_role("button", name="Peak").first.click()
    slide(viewer, axis, elsewhere)
    return viewer


def canvas(viewer, plane, pane=0):
    return viewer.locator(f"[data-plane='{plane}'] canvas").nth(pane)


def test_a_key_on_a_slider_moves_the_slices_of_both_panes(viewer):
    before = viewer.locator(".slice canvas").evaluate_all(PICTURES)
    place, *_ = readout(viewer)
    viewer.locator("[data-axis='2']").press("ArrowRight")
    after = viewer.locator(".slice canvas").evaluate_all(PICTURES)
    assert readout(viewer)[0].tolist() == (place + np.array([0, 0, 2])).tolist()
    assert all(one != other for one, other in zip(before, after, strict=True))  # a slice or a line of the cross each
    assert len(before) == 6


def test_a_click_moves_to_what_was_clicked(viewer):
    before = viewer.locator(".slice canvas").evaluate_all(PICTURES)
    box = canvas(viewer, "axial").bounding_box()
    x, y, z = readout(viewer)[0]
    canvas(viewer, "axial").click(position={"x": box["width"] * 19.5 / 76, "y": box["height"] * 30.5 / 93})
    moved = readout(viewer)[0]
    # the box of 76 x 93 voxels of 2 mm begins at x -74 and y -108; rows count from the top
    assert moved.tolist() == [-74 + 2 * 19, -108 + 2 * (92 - 30), z]
    assert moved.tolist() != [x, y, z]
    assert viewer.locator(".slice canvas").evaluate_all(PICTURES) != before


def test_dragging_goes_on_moving_and_letting_go_ends_it(viewer):
    page = viewer.page
    canvas(viewer, "sagittal", 1).scroll_into_view_if_needed()
    box = canvas(viewer, "sagittal", 1).bounding_box()
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    page.mouse.down()
    started = readout(viewer)[0]
    page.mouse.move(box["x"] + box["width"] * 0.7, box["y"] + box["height"] * 0.3)
    dragged = readout(viewer)[0]
    assert dragged[1] > started[1]
    assert dragged[2] > started[2]
    page.mouse.move(box["x"] + 2 * box["width"], box["y"] - 40)  # beyond the edge: the last voxel
    assert readout(viewer)[0].tolist()[1:] == [76, 82]
    page.mouse.up()
    page.mouse.move(box["x"] + 10, box["y"] + 10)
    assert readout(viewer)[0].tolist()[1:] == [76, 82]


@pytest.mark.parametrize("place", [(-40, -20, 10), (36, 22, 48), (0, -60, -20)])
def test_the_values_are_those_of_the_maps_at_that_place(viewer, maps, place):
    for axis, millimetres in enumerate(place):
        slide(viewer, axis, millimetres)
    viewer.locator("select").nth(1).select_option(index=3)
    shown, first, second = readout(viewer)
    assert shown.tolist() == list(place)
    voxel = int(np.abs(maps.grid.coordinates - place).sum(axis=1).argmin())
    values = list(maps.maps.values())
    step = float(np.abs(values).max()) / 127
    for text, expected in ((first, values[0][voxel]), (second, values[3][voxel])):
        assert float(text) == pytest.approx(expected, abs=step / 2 + 0.5 / 10 ** len(text.partition(".")[2]))
    assert viewer.locator("[data-value]").all_inner_texts() == [first.replace("-", "−"), second.replace("-", "−")]


def test_a_mask_full_of_holes_has_every_value_at_its_place(open_page, page_of):
    rng = np.random.default_rng(0)
    grid = Grid(np.diag([-3.0, 3, 3, 1]), rng.random((5, 6, 7)) > 0.5)
    vector = np.linspace(-127, 127, grid.n_voxels)
    viewer = open_page(page_of(Viewer("v", "", "", grid, {"up": vector, "down": -vector}))).page.locator(
        "[data-viewer]"
    )
    box = grid.volume(vector, fill=np.nan)
    for voxel in rng.choice(np.argwhere(np.ones(grid.shape)), 20, replace=False):
        for axis, millimetres in enumerate(voxel * [-3, 3, 3]):
            slide(viewer, axis, millimetres)
        _, first, _ = readout(viewer)
        assert first == "outside" if np.isnan(box[tuple(voxel)]) else abs(float(first) - box[tuple(voxel)]) <= 1


def test_outside_of_the_brain_there_is_no_value(viewer):
    for axis, millimetres in enumerate((-74, -108, -72)):
        slide(viewer, axis, millimetres)
    assert readout(viewer)[1:] == ("outside", "outside")


def test_what_is_no_number_is_said_to_have_no_value(open_page, page_of):
    grid = Grid(np.diag([3.0, 3, 3, 1]), np.ones((5, 5, 5), bool))
    maps = {"none": np.full(125, np.nan), "some": np.arange(125.0)}
    opened = open_page(page_of(Viewer("v", "", "", grid, maps)))
    _, first, second = readout(opened.page.locator("[data-viewer]"))
    assert "value" in first
    assert float(second) >= 0
    assert opened.problems == []


@pytest.mark.parametrize(("side", "label", "other"), [(-1, "start", "end"), (1, "end", "start")])
@pytest.mark.parametrize("plane", ["axial", "coronal"])
def test_left_and_right_are_where_the_labels_say(open_page, page_of, side, label, other, plane):
    viewer = hot(open_page, page_of, (side * 40, -20, 12), 0, side * -40)
    across, _ = canvas(viewer, plane).evaluate(HOT, 1)
    slice_ = viewer.locator(f"[data-plane='{plane}']").first
    edges = {name: slice_.locator(f".edge.{name}") for name in ("start", "end")}
    assert [edges[name].inner_text() for name in ("start", "end")] == ["L", "R"]
    middle = {name: edge.bounding_box()["x"] + edge.bounding_box()["width"] / 2 for name, edge in edges.items()}
    assert middle["start"] + 100 < middle["end"]
    assert abs(across - middle[label]) < abs(across - middle[other])


@pytest.mark.parametrize(("plane", "across"), [("axial", False), ("coronal", False), ("sagittal", True)])
def test_front_and_top_are_where_they_belong(open_page, page_of, plane, across):
    """A voxel in front and high up: on the side of the A in a sagittal slice, in the upper half of the others."""
    viewer = hot(open_page, page_of, (20, 44, 28), 1 if across else 0, -60)
    x, y = canvas(viewer, plane).evaluate(HOT, 1)
    box = canvas(viewer, plane).bounding_box()
    assert y < box["y"] + box["height"] / 2
    if across:
        assert x > box["x"] + box["width"] / 2
        assert viewer.locator("[data-plane='sagittal'] .edge.end").first.inner_text() == "A"


def test_both_panes_have_one_scale_of_red_above_and_blue_below(open_page, page_of):
    viewer = hot(open_page, page_of, (-40, -20, 12), 0, 40)
    assert canvas(viewer, "axial", 0).evaluate(HOT, 1)
    assert not canvas(viewer, "axial", 0).evaluate(HOT, -1)
    assert not canvas(viewer, "axial", 1).evaluate(HOT, 1)
    assert canvas(viewer, "axial", 1).evaluate(HOT, -1)
    low, high = viewer.locator("[data-limit]").all_inner_texts()
    assert low.replace("−", "") == high


def test_the_threshold_hides_what_is_smaller(open_page, page_of):
    viewer = hot(open_page, page_of, (-40, -20, 12), 0, 40)
    viewer.locator("[data-threshold]").fill("60")  # of 5: the other map's -2.5 is hidden
    assert canvas(viewer, "axial", 0).evaluate(HOT, 1)
    assert not canvas(viewer, "axial", 1).evaluate(HOT, -1)
    assert viewer.locator("[data-threshold] + span").inner_text() == "3.00 z"


@pytest.mark.parametrize("pane", [0, 1])
def test_it_goes_to_the_largest_value(open_page, page_of, pane):
    viewer = open_page(page_of(hot_voxel((-40, -20, 12)))).page.locator("[data-viewer]")
    assert readout(viewer)[0].tolist() != [-40, -20, 12]
    viewer.get_by_role("button", name="Peak").nth(pane).press("Enter")
    assert readout(viewer)[0].tolist() == [-40, -20, 12]


def test_choosing_a_map_by_keys_draws_it(viewer):
    before = canvas(viewer, "axial").evaluate("(one) => one.toDataURL()")
    viewer.locator("select").first.press("ArrowDown")
    assert viewer.locator("select").first.input_value() == "1"
    assert canvas(viewer, "axial").evaluate("(one) => one.toDataURL()") != before


def test_one_map_has_one_pane(open_page, page_of):
    grid = Grid(np.diag([3.0, 3, 3, 1]), np.ones((5, 5, 5), bool))
    opened = open_page(page_of(Viewer("v", "", "", grid, {"alone": np.arange(125.0)}, background=np.arange(125.0))))
    assert opened.page.locator(".pane").count() == 1
    assert opened.problems == []


def test_values_are_told_while_they_change(viewer):
    live = viewer.locator("[data-readout]")
    assert live.get_attribute("aria-live") == "polite"
    assert live.get_attribute("role") == "status"
