"""All models side by side: means with intervals, by split, site and sex, gains over the linear model, paired tests."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from dtg_ray import ledger
from dtg_ray.cohort.manifest import SPLITS
from dtg_ray.results import ALL, COMPARISONS, CONTRASTS, FIGURES, GROUPS, HELD_OUT, SPACE, model_table
from dtg_ray.stages.evaluation import space
from dtg_ray.stats.family import false_discovery_rate
from dtg_ray.stats.resampling import Interval, bootstrap_mean, bootstrap_ratio, paired_t
from dtg_ray.store.receipts import Row
from dtg_ray.store.tables import read_table, write_table
from dtg_ray.study import Study

TESTED = tuple(name for name in FIGURES if name != "identification")
"""Figures that are compared by a t test: identification is 0 or 1."""
GAINS = ("r", "diagonality")
MOST_GROUPS = 200
"""A column with more values, such as an age, has no groups."""


def summarise(book: ledger.Ledger) -> Row:
    """Write the tables of all models, and the space of subjects."""
    study = book.study
    done = [name for name in study.config.models if book.account(f"evaluate/{name}").subjects("done")]
    for name in (CONTRASTS, GROUPS, COMPARISONS, SPACE) if not done else ():
        study.storage.delete(name)  # of an earlier state
    if not done:
        return Row("comparison", "excluded", message="got no model that was evaluated, expected at least one")
    wide = {name: _wide(read_table(study.storage, model_table(name, "subjects"))) for name in done}
    groups = pd.DataFrame([line for name in done for line in _groups(study, name, wide[name])])
    write_table(study.storage, GROUPS, groups)
    write_table(study.storage, CONTRASTS, contrasts(study, wide, groups))
    tests = compare_models(study, {name: _of_split(table, HELD_OUT) for name, table in wide.items()})
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
    config = study.config.evaluation
    found: Interval = bootstrap_mean(table.to_numpy(), config.bootstrap, config.seed, _families(study, table.index))
    counts = table.notna().sum()
    columns: Any = table.columns.to_list()
    for number, (contrast, figure) in enumerate(columns):
        if counts.iloc[number]:
            values = {"value": found.mean[number], "low": found.low[number], "high": found.high[number]}
            subjects = int(counts.iloc[number])
            yield {**names, "contrast": contrast, "figure": figure, "subjects": subjects, **values}


def _families(study: Study, subjects: pd.Index) -> NDArray[np.str_]:
    """What each of some people belongs to; who has no family is one alone."""
    families = study.cohort["group"].reindex(subjects)
    return families.where(families.notna() & (families != ""), subjects.to_series()).to_numpy(dtype=np.str_)


def contrasts(study: Study, wide: Mapping[str, pd.DataFrame], groups: pd.DataFrame) -> pd.DataFrame:
    """A row per model and contrast, of held-out people.

    Returns
    -------
    DataFrame
        model, contrast, subjects; of each figure the mean and its 95% interval (`r`, `r_low`, `r_high` ...); what
        `contrasts.parquet` of the model says besides; gain_r and gain_diagonality (percent over the linear model) and
        share_of_ceiling (r divided by that of the second visit's maps) with intervals, over the people that both have;
        NaN where the interval of what they are divided by reaches 0.
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
    more = told[["subjects", "chance", "normalized_diagonality", "mean_map_r", "sd_map_r"]]
    table = more[["subjects"]].join(figures[order]).join(more.drop(columns="subjects"))
    return pd.concat([table, _relative(study, wide).reindex(table.index)], axis=1).reset_index()


def _relative(study: Study, wide: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    """Gains over the linear model, and shares of what a second visit reaches, by model and contrast."""
    held_out = {name: _of_split(table, HELD_OUT).drop(columns=ALL, level=0) for name, table in wide.items()}
    lines: dict[tuple[str, str], dict[str, float]] = {}
    for kind, figures, name in (("linear", GAINS, "gain_{}"), ("retest", ("r",), "share_of_ceiling")):
        reference = next((model for model in wide if study.config.models[model].kind == kind), None)
        for model, figure in itertools.product(wide if reference else (), figures):
            for contrast, values in _ratios(study, held_out[model], held_out[str(reference)], figure).items():
                percent = 100 * (values - 1) if kind == "linear" else values
                parts = dict(zip(("", "_low", "_high"), percent, strict=True))
                key = name.format(figure)
                lines.setdefault((model, contrast), {}).update({f"{key}{suffix}": one for suffix, one in parts.items()})
    return pd.DataFrame.from_dict(lines, orient="index")


def _ratios(study: Study, first: pd.DataFrame, second: pd.DataFrame, figure: str) -> dict[str, NDArray[np.float64]]:
    """The mean of a figure over that of another model, with its interval, (3,), by contrast, for whom both have."""
    subjects = first.index.intersection(second.index)
    a, b = (one.loc[subjects].xs(figure, axis=1, level=1) for one in (first, second))
    shared = a.columns.intersection(b.columns, sort=False)
    if not len(shared) or not len(subjects):
        return {}
    config, families = study.config.evaluation, _families(study, subjects)
    values = (a[shared].to_numpy(), b[shared].to_numpy())
    found = bootstrap_ratio(*values, config.bootstrap, config.seed, families)
    return dict(zip(shared, np.stack([found.mean, found.low, found.high], axis=1), strict=True))


def compare_models(study: Study, wide: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    """Paired t tests of all pairs of models, contrast by contrast and over all that both have of a person.

    Returns
    -------
    DataFrame
        first, second (models), contrast, figure, subjects, difference (of means), t, p (families count as one), d
        (Cohen's d_z) and q, the false discovery rate over the contrasts of a pair and figure; over the pairs where the
        contrast is `ALL`.
    """
    lines = []
    for (first, a), (second, b) in itertools.combinations(wide.items(), 2):
        subjects = a.index.intersection(b.index)
        families = _families(study, subjects)
        for figure in TESTED:
            both = [one.loc[subjects].xs(figure, axis=1, level=1).drop(columns=ALL) for one in (a, b)]
            shared = both[0].columns.intersection(both[1].columns, sort=False)
            known = np.isfinite(both[0][shared].to_numpy() + both[1][shared].to_numpy())
            values: list[Any] = [one[shared].where(known) for one in both]
            for contrast in (ALL, *shared):
                pair = [one.mean(axis=1) if contrast == ALL else one[contrast] for one in values]
                test = paired_t(pair[0].to_numpy(), pair[1].to_numpy(), families)
                names = {"first": first, "second": second, "contrast": contrast, "figure": figure}
                lines.append({**names, **asdict(test)})
    table = pd.DataFrame(lines)
    if len(table):
        over_all = table["contrast"] == ALL
        pairs = (table["first"] + "\n" + table["second"]).where(~over_all, ALL)
        table["q"] = table.groupby([pairs, "figure"])["p"].transform(false_discovery_rate)
    return table
