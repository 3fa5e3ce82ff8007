"""Figures of the cohort and of the work: quality of scans, and what each stage took."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from dtg_ray.report.style import COLOURS, FAINT, GREY, canvas, whole_names

if TYPE_CHECKING:
    from matplotlib.figure import Figure as Drawing


def histograms(table: pd.DataFrame, labels: Mapping[str, str]) -> Drawing:
    """Distributions of some columns, a panel each; missing values are left out."""
    with canvas(2.9 * len(labels) + 0.3, 2.5) as drawing:
        for axes, (column, label) in zip(
            drawing.subplots(1, len(labels), squeeze=False)[0], labels.items(), strict=True
        ):
            values = table[column].dropna().to_numpy(dtype=float)
            axes.hist(values, bins=min(30, max(5, int(np.sqrt(len(values)) * 1.5))), color=COLOURS[0], alpha=0.8)
            axes.axvline(float(np.median(values)), color=GREY, linewidth=1, linestyle=":")
            axes.set(xlabel=label, ylabel="people")
            axes.grid(axis="y", color=FAINT, linewidth=0.5)
            axes.set_axisbelow(True)
    return drawing


def times(table: pd.DataFrame) -> Drawing:
    """Time (sum over workers, on a logarithmic axis) and largest memory of each stage.

    Parameters
    ----------
    table : DataFrame
        stage, seconds, peak_memory_gb.
    """
    with canvas(8, 0.9 + 0.26 * len(table)) as drawing:
        panels = drawing.subplots(1, 2, sharey=True)
        for axes, column, label, colour in (
            (panels[0], "seconds", "seconds of work", COLOURS[0]),
            (panels[1], "peak_memory_gb", "largest memory, GB", COLOURS[1]),
        ):
            axes.barh(range(len(table)), table[column], color=colour, alpha=0.85)
            axes.set(xlabel=label, ylim=(len(table) - 0.4, -0.6))
            axes.grid(axis="x", color=FAINT, linewidth=0.5)
            axes.set_axisbelow(True)
        panels[0].set_xscale("log")
        whole_names(panels[0], list(table["stage"]), vertical=True)
    return drawing
