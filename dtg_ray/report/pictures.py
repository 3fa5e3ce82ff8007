"""Pictures: measured and synthetic maps of the same people side by side, and figures against sizes."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from dtg_ray.imaging.grid import Grid

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes

CUTS_MM = (-20, 0, 20, 40, 55)
LINES = (("#0072B2", "o"), ("#D55E00", "s"), ("#009E73", "^"), ("#CC79A7", "D"))
"""Colour and marker of one line after the other."""


def side_by_side(maps: Mapping[str, NDArray[np.floating]], subjects: Sequence[str], grid: Grid, title: str) -> bytes:
    """Axial slices of several people (columns) as measured and as predicted by several models (rows).

    Parameters
    ----------
    maps : mapping of str to (n, V) float
        Row title to one map per subject.
    subjects : sequence of str
        n column titles.
    grid : Grid
    title : str

    Returns
    -------
    bytes
        PNG. Positive values are red, negative blue, on one symmetric scale: the 99.5th percentile of |z|.
    """
    import matplotlib as mpl
    from matplotlib.figure import Figure

    limit = float(np.percentile(np.abs(np.concatenate(list(maps.values()))), 99.5))
    with mpl.rc_context({"font.size": 9}):
        figure = Figure(figsize=(5.6 * len(subjects) + 0.6, 1.25 * len(maps) + 0.9), dpi=130)
        axes = figure.subplots(len(maps), len(subjects), squeeze=False)
        for row, (name, vectors) in enumerate(maps.items()):
            for column, subject in enumerate(subjects):
                _slices(axes[row][column], grid, vectors[column], limit)
                if row == 0:
                    axes[row][column].set_title(subject)
            axes[row][0].set_ylabel(name, fontsize=10)
        scale = mpl.cm.ScalarMappable(mpl.colors.Normalize(-limit, limit), "RdBu_r")
        figure.colorbar(scale, ax=axes, label="z", fraction=0.02, pad=0.01)
        figure.suptitle(title)
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png", bbox_inches="tight", metadata={"Software": None})
    return buffer.getvalue()


def _slices(axes: Axes, grid: Grid, vector: NDArray[np.floating], limit: float) -> None:
    """Draw axial slices next to each other, seen from above, the left of the brain on the left; white outside."""
    box = grid.volume(vector.astype(np.float32), fill=np.nan)
    heights = grid.affine[2, 2] * np.arange(grid.shape[2]) + grid.affine[2, 3]
    slices = [box[:, :, int(np.abs(heights - cut).argmin())] for cut in CUTS_MM]
    if grid.affine[0, 0] < 0:
        slices = [image[::-1] for image in slices]
    axes.imshow(
        np.concatenate(slices).T, origin="lower", cmap="RdBu_r", vmin=-limit, vmax=limit, interpolation="nearest"
    )
    axes.set(xticks=[], yticks=[], facecolor="white")
    for spine in axes.spines.values():
        spine.set_visible(False)


def curves(table: pd.DataFrame, figures: Sequence[str], x_label: str) -> bytes:
    """Figures against the number of subjects: a panel each, a line per `way`, mean and standard deviation over seeds.

    Parameters
    ----------
    table : DataFrame
        way, subjects, seed, and the figures.
    figures : sequence of str
    x_label : str

    Returns
    -------
    bytes
        PNG. Colours are those of Okabe and Ito, which colour-blind people tell apart; markers differ too.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.2 * len(figures), 3.4), dpi=130, layout="constrained")
    for axes, name in zip(figure.subplots(1, len(figures), squeeze=False)[0], figures, strict=True):
        for (way, rows), (colour, marker) in zip(table.groupby("way"), LINES, strict=False):
            by_size = rows.groupby("subjects")[name].agg(["mean", "std"]).fillna(0)
            axes.errorbar(
                by_size.index,
                by_size["mean"],
                by_size["std"],
                color=colour,
                marker=marker,
                capsize=3,
                label=str(way),
            )
        sizes = sorted(table["subjects"].unique())
        axes.set_xscale("log")
        axes.set_xticks(sizes, [str(size) for size in sizes])
        axes.minorticks_off()
        axes.set(xlabel=x_label, ylabel=name)
        axes.spines[["top", "right"]].set_visible(False)
    figure.axes[0].legend(frameon=False)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", metadata={"Software": None})
    return buffer.getvalue()
