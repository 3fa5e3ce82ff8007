"""What the models are worth: training, agreement with measured maps, identification, the space of subjects."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd

from dtg_ray.ledger import Ledger
from dtg_ray.report import charts
from dtg_ray.report.page import Figure, Part, Section, Table
from dtg_ray.report.pictures import curves
from dtg_ray.report.style import png, svg
from dtg_ray.results import ALL, FIGURES, HELD_OUT, Results

COLUMNS = ["model", "contrast", "split", "subject", *FIGURES]
MATRICES = 4
"""Contrasts whose matrices are drawn."""
LISTED = 150
"""People up to whom the numbers of a matrix are put beside the page."""


def training(results: Results, _: Ledger) -> Section:
    """How the networks learned."""
    found = {name: history for name in results.study.config.models if len(history := results.history(name))}
    if not found:
        return Section("training", "Training", [])
    numbers = pd.concat([one.assign(model=name) for name, one in found.items()], ignore_index=True)
    shown = [name for name in numbers if "/" not in str(name)]
    caption = "Validation is over people of the split validation; the best epoch by its rule is what is used."
    figure = Figure(
        "training",
        "Loss and validation by epoch",
        caption,
        f"Lines of loss and validation by epoch for {', '.join(found)}.",
        svg(charts.histories(found)),
        "svg",
        numbers[shown],
    )
    return Section("training", "Training", [figure])


def reconstruction(results: Results, _: Ledger) -> Section:
    """How well synthetic maps agree with measured ones, contrast by contrast and model by model."""
    if not results.models:
        return Section("reconstruction", "Agreement with measured maps", [])
    people = held_out(results)
    parts: list[Part] = [] if people.empty else [_boxes(results, people, name) for name in ("r", "diagonality")]
    parts += _relative(results)
    parts.append(
        Table(
            "contrasts",
            "Every contrast and model",
            "Means over held-out people with 95% bootstrap intervals (families are drawn together). mean_map_r and "
            "sd_map_r compare maps of the group. gain: percent over the linear model, where that is above 0.",
            results.contrasts,
        )
    )
    if len(tests := results.comparisons):
        text = "Paired t tests of the same people, families as one; d: Cohen's d_z, q: false discovery rate of a pair."
        parts.append(Table("model-comparisons", "Models against each other", text, tests))
    if len(groups := results.groups):
        overall = groups[groups["contrast"] == ALL].drop(columns="contrast")
        text = (
            "Means over the contrasts that a model has; of held-out people by what evaluation.by in study.yaml names."
        )
        parts.append(Table("groups", "By split and group", text, overall))
    summary = (
        "r is the correlation, over grey matter, of a person's synthetic and measured map. The diagonality index is "
        "how much that is above the correlation of the own measured map with the synthetic maps of others: what a map "
        "says of the person, not of the task."
    )
    return Section("reconstruction", "Agreement with measured maps", parts, summary)


def held_out(results: Results) -> pd.DataFrame:
    """Figures of held-out people: model, contrast, subject and `FIGURES`."""
    tables = [results.subjects(name).assign(model=name) for name in results.models]
    people = pd.concat([one for one in tables if len(one)] or [pd.DataFrame(columns=COLUMNS)], ignore_index=True)
    return people.loc[people["split"] == HELD_OUT, ["model", "contrast", "subject", *FIGURES]]


def _boxes(results: Results, people: pd.DataFrame, figure: str) -> Figure:
    titles = {"r": "Correlation with the own measured map", "diagonality": "Diagonality index"}
    means = people.groupby("model", sort=False)[figure].mean()
    alt = "; ".join(f"{name} {value:.3f}" for name, value in means.items())
    return Figure(
        f"boxes-{figure}",
        titles[figure],
        "Each box is of the people held out, the split test."
        + (" The axis is linear up to 0.01 and logarithmic beyond." if figure == "diagonality" else ""),
        f"Box plots by contrast and model. Means over people and contrasts: {alt}.",
        svg(charts.boxes(people, figure, results.models)),
        "svg",
        people[["model", "contrast", "subject", figure]],
    )


def _relative(results: Results) -> list[Part]:
    """Gains over the linear model, and shares of what a second visit reaches."""
    table, parts = results.contrasts, list[Part]()
    for column, title, label in (
        ("gain_r", "Gain of r over the linear model", "gain of r, percent"),
        ("share_of_ceiling", "Share of what a second visit reaches", "r / r of the second visit"),
    ):
        kinds = {name: results.study.config.models[name].kind for name in results.models}
        shown = [name for name in results.models if kinds[name] not in {"linear", "retest"}]
        if column not in table or not shown:
            continue
        columns = [column, f"{column}_low", f"{column}_high"]
        rows = table.loc[table["model"].isin(shown), ["model", "contrast", *columns]]
        if rows[column].notna().any():
            means = "; ".join(f"{name} {value:.3g}" for name, value in rows.groupby("model")[column].mean().items())
            drawing = svg(charts.intervals(rows, column, shown, label))
            parts.append(
                Figure(column.replace("_", "-"), title, "Over the people that both have.", means, drawing, "svg", rows)
            )
    return parts


def identification(results: Results, _: Ledger) -> Section:
    """Subject-by-subject matrices of the first network, and of all models for one contrast."""
    model = results.model
    if model not in results.models:
        return Section("identification", "Identification", [])
    chosen = spread_out(results, model, MATRICES)
    parts: list[Part] = []
    of_model = {name: matrix for name in chosen if len(matrix := results.matrix(model, name))}
    if of_model:
        parts.append(_matrices("matrices-by-contrast", f"Maps of {model}, by contrast", of_model))
    middle = chosen[len(chosen) // 2]
    of_models = {name: matrix for name in results.models if len(matrix := results.matrix(name, middle))}
    if len(of_models) > 1:
        parts.append(_matrices("matrices-by-model", f"{middle}, by model", of_models))
    rows = results.contrasts[["model", "contrast", "subjects", "identification", "normalized_diagonality"]]
    parts.append(Table("identification", "Who is found by their map", "Ties share the point.", rows))
    summary = (
        "Each row is a measured map, each column a synthetic one, in the same order of people. A bright diagonal means "
        "that synthetic maps are those of the right person."
    )
    return Section("identification", "Identification", parts, summary)


def _matrices(name: str, title: str, found: dict[str, pd.DataFrame]) -> Figure:
    return Figure(
        name,
        title,
        "Correlation over grey matter of up to 1,000 held-out people, each panel on a scale of its own.",
        f"Matrices of correlations between measured and synthetic maps: {', '.join(found)}.",
        png(charts.matrices(found)),
        "png",
        _numbers(found),
    )


def _numbers(found: dict[str, pd.DataFrame]) -> pd.DataFrame | None:
    """A row per cell of the matrices; of large ones nothing: they are tables of the study already."""
    if max(map(len, found.values())) > LISTED:
        return None
    cells = [one.reset_index().melt("actual", var_name="predicted", value_name="r") for one in found.values()]
    return pd.concat([one.assign(panel=name) for name, one in zip(found, cells, strict=True)], ignore_index=True)


def spread_out(results: Results, model: str, n: int) -> list[str]:
    """Contrasts from the one that a model predicts worst to the best one, evenly."""
    rows = results.contrasts[results.contrasts["model"] == model].sort_values("r", kind="stable")
    names = rows["contrast"].tolist()
    if len(names) <= n:
        return names
    if n == 1:
        return [names[len(names) // 2]]
    return [names[round(number * (len(names) - 1) / (n - 1))] for number in range(n)]


def space(results: Results, _: Ledger) -> Section:
    """Maps of all tasks in two dimensions."""
    table = results.space
    if not len(table):
        return Section("space", "The space of maps", [])
    method, share = table["method"].iloc[0], table["explained"].iloc[0]
    figure = Figure(
        "space",
        f"Measured and synthetic maps, {method}",
        f"Maps of up to {results.study.config.evaluation.space_subjects} held-out people per contrast, by task; "
        f"two principal components hold {share:.0%} of the variance.",
        "Two panels of points, measured and synthetic maps, in clusters by task.",
        svg(charts.space(table)),
        "svg",
        table,
    )
    return Section("space", "The space of maps", [figure])


def transfer(results: Results, _: Ledger) -> Section:
    """Fine-tuned against trained from scratch, by the number of subjects."""
    curves_of = results.transfer_curves()
    parts = [
        Figure(
            f"transfer-{slug}",
            name,
            "Mean and standard deviation over seeds of agreement with held-out people.",
            "Lines of r and identification against the number of training subjects.",
            svg(curves(table, ("r", "identification"), "training subjects")),
            "svg",
            table,
        )
        for (name, table), slug in zip(curves_of.items(), slugs(list(curves_of)).values(), strict=True)
    ]
    return Section("transfer", "How many subjects fine-tuning takes", parts)


def _slug(name: str) -> str:
    """A name as a part of a file's: lower-case letters, digits and single hyphens."""
    kept = "".join(letter if letter.isascii() and letter.isalnum() else "-" for letter in name.lower())
    return "-".join(part for part in kept.split("-") if part)


def slugs(names: Sequence[str]) -> dict[str, str]:
    """Names as parts of files', all different."""
    found: dict[str, str] = {}
    for name in names:
        stem, number = _slug(name) or "x", 1
        while (slug := stem if number == 1 else f"{stem}-{number}") in found.values():
            number += 1
        found[name] = slug
    return found
