"""Figures of models: agreement by contrast, subject-by-subject matrices, training, the space of subjects."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from dtg_ray.report.style import FAINT, GREY, canvas, colours, markers, whole_names

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure as Drawing

NAMES = {
    "r": "r with the own measured map",
    "diagonality": "diagonality index",
    "identification": "identified",
    "dice": "Dice (top 25%)",
    "dice_auc": "area under the Dice curve",
}
"""What figures are called on an axis."""
MOST_POINTS = 20_000
"""Rows up to which points beyond the whiskers are drawn: an SVG of more is too large."""
MOST_ROIS = 30
SYMLOG = 0.01
"""Diagonality up to which its axis is linear."""


def boxes(table: pd.DataFrame, figure: str, models: Sequence[str]) -> Drawing:
    """Box plots of a figure of every subject, contrast by contrast, models side by side.

    Parameters
    ----------
    table : DataFrame
        model, contrast, subject and the figure, a row for each.
    figure : str
        Such as "r"; "diagonality" has a symmetric logarithmic axis.
    models : sequence of str

    Returns
    -------
    Figure
        Boxes are quartiles with the median, whiskers reach to the last point within 1.5 times their distance; points
        beyond are drawn where there are few.
    """
    contrasts, colour = list(dict.fromkeys(table["contrast"])), colours(models)
    step, by_cell = 0.8 / len(models), dict(list(table.groupby(["model", "contrast"])[figure]))
    with canvas(max(5.5, 1.2 + 0.22 * len(contrasts) * (len(models) + 1)), 3.8) as drawing:
        axes = drawing.subplots()
        for number, model in enumerate(models):
            at = {place: by_cell.get((model, name)) for place, name in enumerate(contrasts)}
            there = {place: values.dropna().to_numpy() for place, values in at.items() if values is not None}
            shift = (number - (len(models) - 1) / 2) * step
            _boxes(axes, there, shift, 0.85 * step, colour[model], fliers=len(table) <= MOST_POINTS)
            axes.plot([], [], color=colour[model], linewidth=6, label=model)
        whole_names(axes, contrasts)
        axes.set(ylabel=NAMES.get(figure, figure), xlim=(-0.6, len(contrasts) - 0.4))
        if figure == "diagonality":
            axes.set_yscale("symlog", linthresh=SYMLOG)
        axes.axhline(0, color=GREY, linewidth=0.6)
        axes.grid(axis="y", color=FAINT, linewidth=0.5)
        axes.set_axisbelow(True)
        drawing.legend(loc="outside upper left", ncols=min(len(models), 6))
    return drawing


def _boxes(
    axes: Axes, values: Mapping[int, np.ndarray], shift: float, width: float, colour: str, *, fliers: bool
) -> None:
    there = {place: one for place, one in values.items() if len(one)}
    if not there:
        return
    axes.boxplot(
        list(there.values()),
        positions=[place + shift for place in there],
        widths=width,
        patch_artist=True,
        manage_ticks=False,
        showfliers=fliers,
        boxprops={"facecolor": f"{colour}80", "edgecolor": colour, "linewidth": 0.8},
        medianprops={"color": "black", "linewidth": 1.2},
        whiskerprops={"color": colour, "linewidth": 0.8},
        capprops={"color": colour, "linewidth": 0.8},
        flierprops={"marker": ".", "markersize": 2, "markeredgecolor": colour},
    )


def intervals(table: pd.DataFrame, value: str, models: Sequence[str], label: str) -> Drawing:
    """A value of each model (markers) by contrast, with its interval where the table has `value_low` and `_high`."""
    contrasts = list(dict.fromkeys(table["contrast"]))
    colour, marker = colours(models), markers(models)
    with canvas(max(5.5, 1.2 + 0.3 * len(contrasts)), 3.6) as drawing:
        axes = drawing.subplots()
        for number, model in enumerate(models):
            rows = table[table["model"] == model].set_index("contrast").reindex(contrasts)
            shift = (number - (len(models) - 1) / 2) * 0.5 / max(len(models), 1)
            error = None
            if f"{value}_low" in rows:
                error = np.abs(rows[[f"{value}_low", f"{value}_high"]].to_numpy().T - rows[value].to_numpy())
            axes.errorbar(
                np.arange(len(contrasts)) + shift,
                rows[value],
                error,
                fmt=marker[model],
                color=colour[model],
                markersize=4,
                linewidth=1,
                label=model,
            )
        whole_names(axes, contrasts)
        axes.axhline(0, color=GREY, linewidth=0.6)
        axes.grid(axis="y", color=FAINT, linewidth=0.5)
        axes.set(ylabel=label)
        drawing.legend(loc="outside upper left", ncols=min(len(models), 6))
    return drawing


def matrices(found: Mapping[str, pd.DataFrame]) -> Drawing:
    """Subject-by-subject matrices side by side: rows measured maps, columns predicted ones, each on a scale of its own.

    Parameters
    ----------
    found : mapping of str to (n, n) DataFrame
        By title.
    """
    n_columns = min(len(found), 4)
    n_rows = -(-len(found) // n_columns)
    with canvas(2.6 * n_columns + 0.3, 2.6 * n_rows + 0.2) as drawing:
        panels = drawing.subplots(n_rows, n_columns, squeeze=False).ravel()
        for axes in panels[len(found) :]:
            axes.set_visible(False)
        for axes, (title, matrix) in zip(panels, found.items(), strict=False):
            values = matrix.to_numpy(dtype=float)
            low, high = np.percentile(values, [1, 99.5])
            image = axes.imshow(values, cmap="cividis", vmin=low, vmax=max(high, low + 1e-6), interpolation="nearest")
            axes.set(title=title, xlabel="predicted", ylabel="measured", xticks=[], yticks=[])
            drawing.colorbar(image, ax=axes, fraction=0.045, pad=0.02, label="r")
    return drawing


def histories(found: Mapping[str, pd.DataFrame]) -> Drawing:
    """Loss of training and validation, and how validation maps agree, by epoch and model."""
    with canvas(9, 3.1) as drawing:
        panels, colour = drawing.subplots(1, 3), colours(list(found))
        wanted = (("loss", "loss"), ("validation_r", "validation r"), ("validation_identification", "identified"))
        for axes, (column, label) in zip(panels, wanted, strict=True):
            for name, history in found.items():
                epochs = history["epoch"] if "epoch" in history else pd.Series(range(1, len(history) + 1))
                if column in history:
                    axes.plot(epochs, history[column], color=colour[name], label=name)
                if column == "loss" and "validation_loss" in history:
                    axes.plot(epochs, history["validation_loss"], color=colour[name], linestyle="--")
            axes.set(xlabel="epoch", ylabel=label)
            axes.grid(color=FAINT, linewidth=0.5)
        panels[0].set_title("solid: training, dashed: validation", fontsize=8, fontweight="normal")
        panels[1].legend(fontsize=8)
    return drawing


def space(table: pd.DataFrame) -> Drawing:
    """Measured and synthetic maps in two dimensions, coloured by task."""
    by = table["contrast"].str.split("_").str[0]
    if len(set(by)) == 1:
        by = table["contrast"]
    names = list(dict.fromkeys(by))
    colour, marker = colours(names), markers(names)
    with canvas(9, 4.4) as drawing:
        panels = drawing.subplots(1, 2, sharex=True, sharey=True)
        for axes, (kind, title) in zip(panels, (("actual", "measured"), ("predicted", "synthetic")), strict=True):
            axes.scatter(table["x"], table["y"], s=4, color=FAINT, linewidths=0)
            for name in names:
                rows = table[(by == name) & (table["kind"] == kind)]
                axes.scatter(
                    rows["x"], rows["y"], s=12, color=colour[name], marker=marker[name], linewidths=0, label=name
                )
            axes.set(title=title, xlabel=f"{table['method'].iloc[0]} 1", xticks=[], yticks=[])
        panels[0].set_ylabel(f"{table['method'].iloc[0]} 2")
        handles, labels = panels[0].get_legend_handles_labels()
        drawing.legend(handles, labels, loc="outside right upper", fontsize=8, markerscale=1.6)
    return drawing


def importance(table: pd.DataFrame) -> Drawing:
    """Importance of ROIs (columns, the most important first) for contrasts and phenotypes (rows).

    Parameters
    ----------
    table : DataFrame
        target, roi, importance.
    """
    wide = table.pivot_table(index="target", columns="roi", values="importance", sort=False)
    wide = wide[wide.max().sort_values(ascending=False).index[:MOST_ROIS]]
    with canvas(1.8 + 0.36 * wide.shape[1], 1.1 + 0.32 * len(wide)) as drawing:
        axes = drawing.subplots()
        image = axes.imshow(wide.to_numpy(), cmap="cividis", vmin=0, aspect="auto")
        whole_names(axes, [str(name) for name in wide.columns])
        whole_names(axes, [str(name) for name in wide.index], vertical=True)
        drawing.colorbar(image, ax=axes, label="share of attribution", fraction=0.04, pad=0.02)
    return drawing
