"""Slices of maps of the same people side by side, and figures against sizes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from dtg_ray.imaging.grid import Grid
from dtg_ray.report.page_maps import Box
from dtg_ray.report.style import COLOURS, MARKERS, canvas

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure as Drawing

CUTS_MM = (-20, 0, 20, 40, 55)


def side_by_side(maps: Mapping[str, NDArray[np.floating]], titles: Sequence[str], grid: Grid) -> Drawing:
    """Axial slices of several people (columns) as measured and as predicted by several models (rows).

    Parameters
    ----------
    maps : mapping of str to (n, V) float
        Row title to one map per person.
    titles : sequence of str
        n of them, of columns.
    grid : Grid

    Raises
    ------
    ValueError
        When the grid is rotated.

    Returns
    -------
    Figure
        Positive values are red, negative blue, on one symmetric scale: the 99.5th percentile of |z|.
    """
    import matplotlib as mpl

    limit = float(np.percentile(np.abs(np.concatenate(list(maps.values()))), 99.5))
    with canvas(5.6 * len(titles) + 0.6, 1.2 * len(maps) + 0.4) as drawing:
        axes = drawing.subplots(len(maps), len(titles), squeeze=False)
        for row, (name, vectors) in enumerate(maps.items()):
            for column, title in enumerate(titles):
                _slices(axes[row][column], grid, vectors[column], limit)
                if row == 0:
                    axes[row][column].set_title(title)
            axes[row][0].set_ylabel(name, fontsize=10)
        scale = mpl.cm.ScalarMappable(mpl.colors.Normalize(-limit, limit), "RdBu_r")
        drawing.colorbar(scale, ax=axes, label="z", fraction=0.02, pad=0.01)
    return drawing


def _slices(axes: Axes, grid: Grid, vector: NDArray[np.floating], limit: float) -> None:
    """Draw axial slices next to each other, seen from above, the left of the brain on the left; white outside."""
    box = Box.of(grid)
    volume = box.turn(grid.volume(vector.astype(np.float32), fill=np.nan))
    heights = box.origin[2] + np.abs(box.spacing[2]) * np.arange(volume.shape[2])
    slices = [volume[:, :, int(np.abs(heights - cut).argmin())] for cut in CUTS_MM]
    axes.imshow(
        np.concatenate(slices).T, origin="lower", cmap="RdBu_r", vmin=-limit, vmax=limit, interpolation="nearest"
    )
    axes.set(xticks=[], yticks=[], facecolor="white")
    for spine in axes.spines.values():
        spine.set_visible(False)


def curves(table: pd.DataFrame, figures: Sequence[str], x_label: str) -> Drawing:
    """Figures against the number of subjects: a panel each, a line per `way`, mean and standard deviation over seeds.

    Parameters
    ----------
    table : DataFrame
        way, subjects, seed, and the figures.
    figures : sequence of str
    x_label : str
    """
    with canvas(4.2 * len(figures), 3.4) as drawing:
        for axes, name in zip(drawing.subplots(1, len(figures), squeeze=False)[0], figures, strict=True):
            for number, (way, rows) in enumerate(table.groupby("way")):
                by_size = rows.groupby("subjects")[name].agg(["mean", "std"]).fillna(0)
                how = {"color": COLOURS[number], "marker": MARKERS[number], "capsize": 3, "label": str(way)}
                axes.errorbar(by_size.index, by_size["mean"], by_size["std"], **how)
            sizes = sorted(table["subjects"].unique())
            axes.set_xscale("log")
            axes.set_xticks(sizes, [str(size) for size in sizes])
            axes.minorticks_off()
            axes.set(xlabel=x_label, ylabel=name)
        drawing.axes[0].legend()
    return drawing
