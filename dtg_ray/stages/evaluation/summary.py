"""All models side by side: means with intervals, by split, site and sex, gains over the linear model, paired tests."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from typing import Any

import numpy as np
import pandas as pd

from dtg_ray import ledger
from dtg_ray.cohort.manifest import SPLITS
from dtg_ray.results import ALL, COMPARISONS, CONTRASTS, FIGURES, GROUPS, HELD_OUT, model_table
from dtg_ray.stages.evaluation import space
from dtg_ray.stats.family import false_discovery_rate
from dtg_ray.stats.resampling import Interval, bootstrap_mean, paired_t
from dtg_ray.store.receipts import Row
from dtg_ray.store.tables import read_table, write_table
from dtg_ray.study import Study

TESTED = tuple(name for name in FIGURES if name != "identification")
"""Figures that are compared by a t test: identification is 0 or 1."""
GAINS = ("r", "diagonality")
MOST_GROUPS = 50
"""A column with more values, such as an age, has no groups."""


def summarise(book: ledger.Ledger) -> Row:
    """Write the tables of all models, and the space of subjects."""
    study = book.study
    done = [name for name in study.config.models if book.account(f"evaluate/{name}").subjects("done")]
    if not done:
        return Row("comparison", "excluded", message="got no model that was evaluated, expected at least one")
    wide = {name: _wide(read_table(study.storage, model_table(name, "subjects"))) for name in done}
    groups = pd.DataFrame([line for name in done for line in _groups(study, name, wide[name])])
    write_table(study.storage, GROUPS, groups)
    write_table(study.storage, CONTRASTS, contrasts(study, wide, groups))
    tests = compare_models({name: _of_split(table, HELD_OUT) for name, table in wide.items()})
    write_table(study.storage, COMPARISONS, tests)
    points = space.write(book)
    counts = {"models": len(done), "tests": len(tests), "points": points}
    return Row("comparison", "done", qc={name: float(count) for name, count in counts.items()})


def _wide(table: pd.DataFrame) -> pd.DataFrame:
    """A row per split and subject, a column per contrast (and all of them) and figure."""
    one = table.pivot_table(index=["split", "subject"], columns="contrast", values=list(FIGURES), sort=False)
    one = one.swaplevel(axis=1)
    every = pd.concat({ALL: table.groupby(["split", "subject"])[list(FIGURES)].mean()}, axis=1)
    return pd.concat([every, one], axis=1)


def _of_split(table: pd.DataFrame, split: str) -> pd.DataFrame:
    return table[table.index.get_level_values("split") == split].droplevel("split")


def _groups(study: Study, model: str, table: pd.DataFrame) -> Iterator[dict[str, object]]:
    """Means with intervals of each split, and of groups of people held out."""
    for split in SPLITS:
        yield from _means(study, _of_split(table, split), {"model": model, "by": "split", "group": split})
    held_out = _of_split(table, HELD_OUT)
    for column in (name for name in study.config.evaluation.by if name in study.people):
        labels = study.people[column].reindex(held_out.index)
        if labels.nunique() <= MOST_GROUPS:
            for label, members in held_out.groupby(labels, sort=True):
                yield from _means(study, members, {"model": model, "by": column, "group": str(label)})


def _means(study: Study, table: pd.DataFrame, names: Mapping[str, str]) -> Iterator[dict[str, object]]:
    """Means over some people of every contrast and figure."""
    if not len(table):
        return
    config, families = study.config.evaluation, study.cohort["group"].reindex(table.index)
    families = families.where(families.notna() & (families != ""), table.index.to_series())
    found: Interval = bootstrap_mean(table.to_numpy(), config.bootstrap, config.seed, families.to_numpy(dtype=str))
    counts = table.notna().sum()
    columns: Any = table.columns.to_list()
    for number, (contrast, figure) in enumerate(columns):
        if counts.iloc[number]:
            values = {"value": found.mean[number], "low": found.low[number], "high": found.high[number]}
            subjects = int(counts.iloc[number])
            yield {**names, "contrast": contrast, "figure": figure, "subjects": subjects, **values}


def contrasts(study: Study, wide: Mapping[str, pd.DataFrame], groups: pd.DataFrame) -> pd.DataFrame:
    """A row per model and contrast, of held-out people.

    Returns
    -------
    DataFrame
        model, contrast, subjects; of each figure the mean and its 95% interval (`r`, `r_low`, `r_high` ...); what
        `contrasts.parquet` of the model says besides; gain_r and gain_diagonality (percent over the linear model) and
        share_of_ceiling (r divided by that of the second visit's maps), over the people that both have.
    """
    held_out = groups[(groups["by"] == "split") & (groups["group"] == HELD_OUT) & (groups["contrast"] != ALL)]
    parts = {"": "value", "_low": "low", "_high": "high"}
    figures = pd.concat(
        [
            held_out.pivot_table(index=["model", "contrast"], columns="figure", values=column, sort=False, dropna=False)
            .reindex(columns=list(FIGURES))
            .add_suffix(suffix)
            for suffix, column in parts.items()
        ],
        axis=1,
    )
    order = [f"{name}{suffix}" for name in FIGURES for suffix in parts]
    told = pd.concat(
        {name: read_table(study.storage, model_table(name, "contrasts")).set_index("contrast") for name in wide},
        names=["model"],
    )
    more = told[["subjects", "normalized_diagonality", "mean_map_r", "sd_map_r"]]
    table = more[["subjects"]].join(figures[order]).join(more.drop(columns="subjects"))
    for name, lines in _relative(study, wide).items():
        table[name] = lines.reindex(table.index)
    return table.reset_index()


def _relative(study: Study, wide: Mapping[str, pd.DataFrame]) -> dict[str, pd.Series]:
    """Gains over the linear model, and shares of what a second visit reaches, by model and contrast."""
    kinds = {name: study.config.models[name].kind for name in wide}
    found: dict[str, dict[tuple[str, str], float]] = {}
    for kind, figures in (("linear", GAINS), ("retest", ("r",))):
        reference = next((name for name in wide if kinds[name] == kind), None)
        for model, figure in itertools.product(wide if reference else (), figures):
            both = [_of_split(wide[name], HELD_OUT).xs(figure, axis=1, level=1) for name in (model, str(reference))]
            key = f"gain_{figure}" if kind == "linear" else "share_of_ceiling"
            for contrast in both[0].columns.intersection(both[1].columns).drop(ALL, errors="ignore"):
                values = pd.concat([one[contrast] for one in both], axis=1).dropna().mean()
                ratio = values.iloc[0] / values.iloc[1] if values.iloc[1] > 0 else np.nan
                found.setdefault(key, {})[model, contrast] = 100 * (ratio - 1) if kind == "linear" else ratio
    return {key: pd.Series(values) for key, values in found.items()}


def compare_models(wide: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    """Paired t tests of all pairs of models, contrast by contrast and over all of them, for people that both have.

    Returns
    -------
    DataFrame
        first, second (models), contrast, figure, subjects, difference (of means), t, p, d (Cohen's d_z) and q, the
        false discovery rate over all tests of a figure.
    """
    lines = []
    for (first, a), (second, b) in itertools.combinations(wide.items(), 2):
        subjects = a.index.intersection(b.index)
        shared: Any = a.columns.intersection(b.columns, sort=False).to_list()
        for contrast, figure in shared:
            if figure in TESTED:
                test = paired_t(*(one.loc[subjects, (contrast, figure)].to_numpy() for one in (a, b)))
                names = {"first": first, "second": second, "contrast": contrast, "figure": figure}
                lines.append({**names, **asdict(test)})
    table = pd.DataFrame(lines)
    if len(table):
        table["q"] = table.groupby("figure")["p"].transform(false_discovery_rate)
    return table
