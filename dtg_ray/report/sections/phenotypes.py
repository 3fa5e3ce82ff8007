"""What the maps say about the people: scores, null distributions, feature sets against each other."""

from __future__ import annotations

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from dtg_ray.ledger import Ledger
from dtg_ray.report import phenotype_charts as charts
from dtg_ray.report.page import Figure, Part, Section, Table
from dtg_ray.report.style import svg
from dtg_ray.results import Results

SHOWN = 12
"""Feature sets, phenotypes or pairs in one figure: those with the clearest results where there are more."""


def section(results: Results, _: Ledger) -> Section:
    """Scores, nulls and comparisons."""
    scores = results.scores
    if not len(scores):
        return Section("phenotypes", "Phenotypes", [])
    parts: list[Part] = []
    for metric, what in (("r", "Numbers"), ("auc", "Classes")):
        rows = scores[scores["metric"] == metric]
        if len(rows):
            parts.append(_points(results, _clearest(rows), metric, what))
    if scores["permutations"].max() > 0:
        parts.append(_nulls(results, _clearest(scores)))
    comparisons = results.feature_comparisons
    if len(comparisons):
        parts.append(_differences(comparisons))
        text = (
            "Corrected resampled t test over repeated cross-validation, and a permutation test that exchanges the two "
            "predictions of a person; q: false discovery rate."
        )
        parts.append(Table("feature-comparisons", "Feature sets against each other", text, comparisons))
    text = (
        "p is of r or AUC, by permutation; p_family is over all tests together, q the false discovery rate. R2 below 0 "
        "is worse than the mean."
    )
    parts.append(Table("scores", "Every phenotype and feature set", text, scores.dropna(axis=1, how="all")))
    summary = (
        "Ridge regression, out of fold: nobody is predicted by a model that has seen them. The null distributions are "
        "those of the same analysis with phenotypes permuted."
    )
    return Section("phenotypes", "Phenotypes", parts, summary)


def _clearest(scores: pd.DataFrame) -> pd.DataFrame:
    """Of many phenotypes and feature sets those with the smallest p values, in their order."""
    for column in ("target", "features"):
        best = scores.groupby(column)["p"].min().nsmallest(SHOWN, keep="first").index
        scores = scores[scores[column].isin(best)]
    return scores


def figures_of(results: Results, scores: pd.DataFrame, what: str) -> dict[tuple[str, str], NDArray[np.floating]]:
    """The tested figure of all folds or permutations, by feature set and phenotype."""
    return {
        (row["features"], row["target"]): table[row["metric"]].to_numpy()
        for row in scores.to_dict("records")
        if len(table := results.prediction(row["features"], what, row["target"]))
    }


def _numbers(found: dict[tuple[str, str], NDArray[np.floating]], column: str) -> pd.DataFrame:
    lines = [
        {"features": features, "target": target, "number": number, column: value}
        for (features, target), values in found.items()
        for number, value in enumerate(values)
    ]
    return pd.DataFrame(lines)


def _points(results: Results, rows: pd.DataFrame, metric: str, what: str) -> Figure:
    folds = figures_of(results, rows, "folds")
    told = [f"{row['target']} from {row['features']} {row[metric]:.2f}" for row in rows.to_dict("records")]
    return Figure(
        f"scores-{metric}",
        f"{what}: {charts.LABELS[metric]}",
        "Small dots: folds. Filled: p of at most 0.05. Star: family-wise p of at most 0.05. Dotted line: chance.",
        f"{charts.LABELS[metric]}: {'; '.join(told)}.",
        svg(charts.points(rows, folds, metric)),
        "svg",
        pd.concat([rows[["features", "target", metric, "p", "p_family"]], _numbers(folds, f"{metric}_of_fold")]),
    )


def _nulls(results: Results, rows: pd.DataFrame) -> Figure:
    found = figures_of(results, rows, "nulls")
    return Figure(
        "nulls",
        "Null distributions",
        "Grey: r or AUC of the same analysis with permuted phenotypes. Line: what was observed.",
        f"{len(found)} histograms, each with a line at the observed value.",
        svg(charts.nulls(rows, found)),
        "svg",
        _numbers(found, "figure_of_permutation"),
    )


def _differences(table: pd.DataFrame) -> Figure:
    pairs = table["first"] + " - " + table["second"]
    clearest = table.assign(pair=pairs, q=table[["q_t", "q_permutation"]].max(axis=1))
    kept = clearest.groupby("pair")["q"].min().nsmallest(SHOWN, keep="first").index
    rows = clearest[clearest["pair"].isin(kept)]
    holds = int((rows["q"] <= charts.SIGNIFICANT).sum())
    return Figure(
        "feature-differences",
        "Differences between feature sets",
        "Above 0 the first of a pair predicts better. Filled: both tests hold at a false discovery rate of 5%.",
        f"{len(rows)} differences, of which {holds} hold by both tests.",
        svg(charts.differences(rows, list(dict.fromkeys(rows["target"])))),
        "svg",
        rows,
    )
