"""Figures of phenotype prediction: scores with their folds, null distributions, feature sets against each other."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from dtg_ray.report.style import FAINT, GREY, canvas, colours, markers, whole_names

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure as Drawing

CHANCE = {"r": 0.0, "auc": 0.5}
LABELS = {"r": "r, predicted with measured", "auc": "AUC"}
SIGNIFICANT = 0.05


def points(scores: pd.DataFrame, folds: Mapping[tuple[str, str], NDArray[np.floating]], metric: str) -> Drawing:
    """Scores of each phenotype (rows) and feature set (marker), over the figures of its folds.

    Parameters
    ----------
    scores : DataFrame
        features, target, the metric, p, p_family; a row each.
    folds : mapping of (features, target) to (F,) float
    metric : "r" or "auc"

    Returns
    -------
    Figure
        Filled markers: significant (p <= 0.05); a star: family-wise. Small dots: the folds.
    """
    targets, sets = list(dict.fromkeys(scores["target"])), list(dict.fromkeys(scores["features"]))
    colour, marker = colours(sets), markers(sets)
    with canvas(7, 1.2 + 0.34 * len(targets) * max(1, len(sets) / 3)) as drawing:
        axes = drawing.subplots()
        for row in scores.to_dict("records"):
            name = row["features"]
            place = targets.index(row["target"]) + (sets.index(name) - (len(sets) - 1) / 2) * 0.7 / len(sets)
            one = folds.get((name, row["target"]), np.empty(0))
            axes.plot(one, np.full(len(one), place), ".", color=colour[name], alpha=0.35, markersize=4)
            filled = row["p"] <= SIGNIFICANT
            face = colour[name] if filled else "white"
            axes.plot(row[metric], place, marker[name], color=colour[name], markerfacecolor=face, markersize=6)
            if row["p_family"] <= SIGNIFICANT:
                axes.annotate("*", (row[metric], place), xytext=(5, -3), textcoords="offset points")
        for name in sets:
            axes.plot([], [], marker[name], color=colour[name], label=name)
        axes.axvline(CHANCE[metric], color=GREY, linewidth=0.8, linestyle=":")
        whole_names(axes, targets, vertical=True)
        axes.set(xlabel=LABELS[metric], ylim=(len(targets) - 0.4, -0.6))
        axes.grid(axis="x", color=FAINT, linewidth=0.5)
        drawing.legend(loc="outside upper left", ncols=min(len(sets), 3), fontsize=8)
    return drawing


def nulls(scores: pd.DataFrame, found: Mapping[tuple[str, str], NDArray[np.floating]]) -> Drawing:
    """What was observed (line) over its null distribution (histogram): phenotypes by rows, feature sets by columns."""
    targets, sets = list(dict.fromkeys(scores["target"])), list(dict.fromkeys(scores["features"]))
    rows = {(row["features"], row["target"]): row for row in scores.to_dict("records")}
    colour = colours(sets)
    with canvas(2.3 * len(sets) + 0.6, 1.05 * len(targets) + 0.5) as drawing:
        panels = drawing.subplots(len(targets), len(sets), squeeze=False)
        for (at, target), (column, name) in itertools.product(enumerate(targets), enumerate(sets)):
            axes = panels[at][column]
            if row := rows.get((name, target)):
                _null(axes, row, found.get((name, target), np.empty(0)), colour[name])
            else:
                axes.set_visible(False)
            if not at:
                axes.set_title(name, fontsize=8)
            if not column:
                axes.set_ylabel(target, fontsize=8, rotation=0, ha="right", va="center")
    return drawing


def _null(axes: Axes, row: Mapping[Any, Any], null: NDArray[np.floating], colour: str) -> None:
    known = null[np.isfinite(null)]
    if len(known):
        axes.hist(known, bins=30, color=FAINT)
    axes.axvline(row[str(row["metric"])], color=colour, linewidth=1.8)
    axes.set(yticks=[])
    axes.tick_params(labelsize=7)
    axes.spines["left"].set_visible(False)
    above = len(known) > 0 and row[str(row["metric"])] > np.median(known)  # where the line is not
    at, side = (0.02, "left") if above else (0.98, "right")
    axes.annotate(f"p = {row['p']:.3g}", (at, 0.82), xycoords="axes fraction", ha=side, fontsize=7)


def differences(table: pd.DataFrame, targets: Sequence[str]) -> Drawing:
    """Differences between pairs of feature sets by phenotype; filled where both tests hold after FDR.

    Parameters
    ----------
    table : DataFrame
        target, first, second, difference, q_t, q_permutation.
    targets : sequence of str
    """
    pairs = [f"{row.first} - {row.second}" for row in table.itertuples()]
    names = list(dict.fromkeys(pairs))
    colour, marker = colours(names), markers(names)
    with canvas(7, 1.3 + 0.3 * len(targets) * max(1, len(names) / 3)) as drawing:
        axes = drawing.subplots()
        for pair, row in zip(pairs, table.to_dict("records"), strict=True):
            place = targets.index(row["target"]) + (names.index(pair) - (len(names) - 1) / 2) * 0.7 / len(names)
            holds = max(row["q_t"], row["q_permutation"]) <= SIGNIFICANT
            face = colour[pair] if holds else "white"
            axes.plot(row["difference"], place, marker[pair], color=colour[pair], markerfacecolor=face)
        for pair in names:
            axes.plot([], [], marker[pair], color=colour[pair], label=pair)
        axes.axvline(0, color=GREY, linewidth=0.8, linestyle=":")
        whole_names(axes, targets, vertical=True)
        axes.set(xlabel="difference of r or AUC", ylim=(len(targets) - 0.4, -0.6))
        axes.grid(axis="x", color=FAINT, linewidth=0.5)
        drawing.legend(loc="outside upper left", ncols=1 if len(names) < 4 else 2, fontsize=8)
    return drawing
