"""What drives the first network that was interpreted: ROIs, and where their connectivity counts."""

from __future__ import annotations

import contextlib

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from dtg_ray.errors import StudyError
from dtg_ray.ledger import Ledger
from dtg_ray.report import charts, glass
from dtg_ray.report.page import Figure, Part, Section, Table
from dtg_ray.report.style import png, svg
from dtg_ray.results import Results

TARGETS = 12
"""Contrasts and phenotypes that are drawn."""
BRAINS = 3
"""Of them those whose strongest ROI is shown on glass brains."""
LISTED = 10
"""ROIs of each target in the table."""


def section(results: Results, _: Ledger) -> Section:
    """Importance of ROIs by target, and glass brains of the strongest."""
    title = "What drives the synthetic maps"
    found = {name: table for name in results.study.config.models if len(table := results.attributions(name))}
    if not found:
        return Section("interpretation", title, [])
    model, table = next(iter(found.items()))
    method = str(table["method"].iloc[0])
    shown = table[(table["method"] == method) & table["target"].isin(list(dict.fromkeys(table["target"]))[:TARGETS])]
    parts: list[Part] = [_importance(model, method, shown)]
    if results.study.config.grid.mask is None:
        with contextlib.suppress(StudyError, ValueError):  # arrays that were taken away, ROIs that are others now
            parts.append(_brains(results, model, method, shown[shown["rank"] == 1].head(BRAINS)))
    every = pd.concat([one.assign(model=name) for name, one in found.items()], ignore_index=True)
    listed = every[every["rank"] <= LISTED]
    text = f"The {LISTED} most important ROIs of each target; importance is the share of all absolute attributions."
    parts.append(Table("attributions", "Regions by importance", text, listed[["model", *table.columns]]))
    n = int(table["subjects"].max())
    summary = (
        f"Attributions of the network {model} with respect to the connectome, means over {n} people. They "
        "explain the network, not the brain: of two regions that tell the same it may use either."
    )
    return Section("interpretation", title, parts, summary)


def _importance(model: str, method: str, rows: pd.DataFrame) -> Figure:
    first = rows[rows["rank"] == 1]
    told = "; ".join(f"{row['target']}: {row['roi']}" for row in first.to_dict("records"))
    return Figure(
        "attribution-importance",
        "Importance of regions",
        f"By {method.replace('_', ' ')}: the share of all absolute attributions of a target, of {model}.",
        f"A grid of targets by regions. The most important region of each target: {told}.",
        svg(charts.importance(rows)),
        "svg",
        rows,
    )


def _brains(results: Results, model: str, method: str, rows: pd.DataFrame) -> Figure:
    maps = {
        f"{row['target']} through {row['roi']}": _relative(
            results.attribution(model, method, row["kind"], row["target"], row["roi"])
        )
        for row in rows.to_dict("records")
    }
    return Figure(
        "attribution-brains",
        "Where the connectivity of the most important region counts",
        "Mean attribution of each voxel's correlation with the region, relative to the strongest.",
        f"Glass brains: {'; '.join(maps)}.",
        png(glass.brains(maps, results.study.grid, unit="relative")),
        "png",
    )


def _relative(vector: NDArray[np.float32]) -> NDArray[np.float32]:
    """Targets have units of their own."""
    most = float(np.abs(vector).max())
    return vector / most if most else vector
