"""Figures of a study for notebooks: `Study(uri).plot.reconstruction()` and so on, as matplotlib figures."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from dtg_ray.errors import StudyError
from dtg_ray.report import charts, glass, phenotype_charts
from dtg_ray.report.pictures import side_by_side
from dtg_ray.report.sections.models import held_out
from dtg_ray.report.sections.phenotypes import figures_of
from dtg_ray.results import ACTUAL, PREDICTED, Results
from dtg_ray.study import Study

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class Plots:
    """Figures of what a study has found; each raises StudyError where there is no such result yet.

    Parameters
    ----------
    study : Study
    """

    def __init__(self, study: Study) -> None:
        self.study, self.results = study, Results(study)

    def maps(self, subjects: Sequence[str], contrast: str, models: Sequence[str] | None = None) -> Figure:
        """Axial slices of some people (columns), as measured and by some models (rows), by default all.

        Raises
        ------
        UsageError
            When there is no such subject or contrast.
        StudyError
            When a map has not been made, or was not acquired.
        """
        names = ["measured", *(self.study.config.models if models is None else models)]
        grid = self.study.grid
        found = {
            name: np.stack([grid.vectorize(self.study.map(who, contrast, name).get_fdata()) for who in subjects])
            for name in names
        }
        return side_by_side(found, list(subjects), grid)

    def group(self, contrast: str, model: str | None = None) -> Figure:
        """Glass brains of the mean map of held-out people, measured and synthetic; of the first network by default."""
        name = model or self.study.default_model
        maps = {"measured": ACTUAL, name: PREDICTED}
        found = {title: self._group(name, contrast, kind) for title, kind in maps.items()}
        return glass.brains(found, self.study.grid)

    def _group(self, model: str, contrast: str, kind: str) -> NDArray[np.float32]:
        found = self.results.group_map(model, contrast, kind)
        if found is None:
            raise _missing(f"mean map of {contrast} by {model}", "evaluate")
        return found

    def reconstruction(self, figure: str = "r", models: Sequence[str] | None = None) -> Figure:
        """Box plots over held-out people of r, diagonality, dice or dice_auc, by contrast and model."""
        if not self.results.models:
            raise _missing("evaluation", "evaluate")
        return charts.boxes(held_out(self.results), figure, list(models or self.results.models))

    def identification(self, contrast: str, models: Sequence[str] | None = None) -> Figure:
        """Correlation of measured (rows) with synthetic maps (columns) of held-out people, a panel per model."""
        names = models or self.results.models
        found = {name: matrix for name in names if len(matrix := self.results.matrix(name, contrast))}
        if not found:
            raise _missing(f"matrix of {contrast}", "evaluate")
        return charts.matrices(found)

    def training(self) -> Figure:
        """Loss and validation of all networks by epoch."""
        found = {name: table for name in self.study.config.models if len(table := self.results.history(name))}
        if not found:
            raise _missing("trained network", "train")
        return charts.histories(found)

    def space(self) -> Figure:
        """Measured and synthetic maps in two dimensions."""
        if not len(table := self.results.space):
            raise _missing("space of maps", "evaluate")
        return charts.space(table)

    def phenotypes(self, metric: str = "r") -> Figure:
        """Scores by phenotype and feature set, with folds and significance; "r" of numbers, "auc" of classes."""
        scores = self.results.scores
        rows = scores[scores["metric"] == metric] if len(scores) else scores
        if not len(rows):
            raise _missing(f"phenotype with a figure {metric}", "predict")
        return phenotype_charts.points(rows, figures_of(self.results, rows, "folds"), metric)

    def nulls(self) -> Figure:
        """What was observed over its null distribution, by phenotype and feature set."""
        if not len(scores := self.results.scores):
            raise _missing("phenotype prediction", "predict")
        return phenotype_charts.nulls(scores, figures_of(self.results, scores, "nulls"))


def _missing(what: str, verb: str) -> StudyError:
    return StudyError(f"got no {what}, expected one", hint=f"`dtg {verb}` makes it")
