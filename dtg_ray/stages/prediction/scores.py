"""All tests of a study together: family-wise error, false discovery rate, and feature sets against each other."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from dtg_ray import ledger
from dtg_ray.config import feature_folder
from dtg_ray.ledger import COMMON
from dtg_ray.results import FEATURE_COMPARISONS, SCORES, prediction_table
from dtg_ray.stages.prediction.cells import DECISION, TESTED
from dtg_ray.stages.prediction.people import labels_of
from dtg_ray.stats.classification import auc
from dtg_ray.stats.comparison import corrected_resampled_t, paired_permutation
from dtg_ray.stats.family import false_discovery_rate, family_wise_p
from dtg_ray.stats.metrics import pearson
from dtg_ray.store.receipts import Row
from dtg_ray.store.tables import read_table, write_table
from dtg_ray.study import Study


def summarise(book: ledger.Ledger) -> Row:
    """Write the scores of all tests and the comparisons of all pairs of feature sets."""
    study = book.study
    done = {feature: _done(book, feature) for feature in study.config.feature_sets()}
    scores = all_scores(
        study, {feature: [name for name in names if COMMON not in name] for feature, names in done.items()}
    )
    write_table(study.storage, SCORES, scores)
    in_common = {
        feature: [name.removesuffix(COMMON) for name in names if COMMON in name] for feature, names in done.items()
    }
    comparisons = compare(study, in_common)
    write_table(study.storage, FEATURE_COMPARISONS, comparisons)
    return Row("scores", "done", qc={"tests": float(len(scores)), "comparisons": float(len(comparisons))})


def _done(book: ledger.Ledger, feature: str) -> list[str]:
    """Targets with results, in the order of study.yaml."""
    account = book.account(f"predict/{feature_folder(feature)}")
    done = set(account.subjects("done"))
    return [target for members in account.owed.values() for target in members if target in done]


def all_scores(study: Study, done: Mapping[str, Sequence[str]]) -> pd.DataFrame:
    """A row per feature set and target, with p values over all of them: `p_family` and `q`.

    `p_family` is of the maximum statistic over the permutations that all tests have done (`permutations_family`: fewer
    where tests stop early), `q` the false discovery rate of `p`.
    """
    cells = [(feature, target) for feature, targets in done.items() for target in targets]
    if not cells:
        return pd.DataFrame()
    tables = [read_table(study.storage, prediction_table(feature, "scores", target)) for feature, target in cells]
    for (feature, _), table in zip(cells, tables, strict=True):
        table.insert(0, "features", feature)
    scores = pd.concat(tables, ignore_index=True)
    nulls = [
        read_table(study.storage, prediction_table(feature, "nulls", target))[metric].to_numpy()
        for (feature, target), metric in zip(cells, scores["metric"], strict=True)
    ]
    shortest = min(map(len, nulls))
    scores["p_family"], scores["permutations_family"] = np.nan, shortest
    if shortest:
        observed = [row[row["metric"]] for _, row in scores.iterrows()]
        scores["p_family"] = family_wise_p(observed, np.stack([null[:shortest] for null in nulls]))
    scores["q"] = false_discovery_rate(scores["p"])
    return scores


def compare(study: Study, done: Mapping[str, Sequence[str]]) -> pd.DataFrame:
    """All pairs of feature sets, target by target, for the subjects that have all of them.

    Returns
    -------
    DataFrame
        target, metric, first, second (feature sets), subjects, folds (of all repeats, those that have a figure),
        value_first, value_second, difference; t and p_t of the corrected resampled t test over repeated
        cross-validation, p_permutation of exchanged predictions, q_t and q_permutation over all pairs and targets.
    """
    targets = dict.fromkeys(target for names in done.values() for target in names)
    lines = []
    for target in targets:
        having = [feature for feature, names in done.items() if target in names]
        found = {feature: _Predicted(study, feature, target) for feature in having}
        lines += [_pair(study, found[first], found[second]) for first, second in itertools.combinations(having, 2)]
    table = pd.DataFrame(lines)
    for name in ("t", "permutation") if len(table) else ():
        table[f"q_{name}"] = false_discovery_rate(table[f"p_{name}"])
    return table


class _Predicted:
    """Predictions of a target by one feature set, and figures of the folds."""

    def __init__(self, study: Study, feature: str, target: str) -> None:
        self.feature, self.target = feature, target
        self.metric = TESTED[study.config.prediction.kind_of(target)]
        self.folds = read_table(study.storage, prediction_table(feature, "common/folds", target))
        self.table = read_table(study.storage, prediction_table(feature, "common/predictions", target))

    @property
    def predicted(self) -> NDArray[np.float64]:
        """(n,) predictions, or (n, C) decision values, less their mean and in units of their standard deviation.

        The figures do not depend on either; but exchanged predictions of different scales would be a third kind.
        """
        columns = [f"{DECISION}{name}" for name in self.classes]
        values = np.asarray(self.table[columns or "predicted"].to_numpy(dtype=np.float64))
        spread = values.std(axis=0)
        return np.asarray((values - values.mean(axis=0)) / np.where(spread > 0, spread, 1))

    @property
    def classes(self) -> list[str]:
        """Names of the classes; none of a number."""
        return [str(name).removeprefix(DECISION) for name in self.table if str(name).startswith(DECISION)]

    def figure(self, predicted: NDArray[Any]) -> NDArray[np.float64]:
        """The figure that is compared of predictions (B, n, ...): (B,)."""
        if predicted.ndim == 2:
            return pearson(self.table["actual"].to_numpy(dtype=np.float64), predicted)
        actual = pd.Categorical(self.table["actual"], categories=self.classes).codes
        return auc(np.broadcast_to(actual, predicted.shape[:2]), predicted)


def _pair(study: Study, first: _Predicted, second: _Predicted) -> dict[str, object]:
    """Compare two feature sets."""
    config, subjects = study.config.prediction, first.table["subject"]
    differences = (first.folds[first.metric] - second.folds[second.metric]).to_numpy()
    known = differences[np.isfinite(differences)]  # a fold may lack a class
    sizes = first.folds["train"].mean(), first.folds["test"].mean()
    t, p_t = corrected_resampled_t(known, *sizes) if len(known) > 1 else (np.nan, np.nan)
    blocks = labels_of(study.people.loc[subjects], config.whole or config.groups)
    difference, p = paired_permutation(
        first.figure, first.predicted, second.predicted, config.permutations, config.seed, blocks
    )
    value = {name: float(one.figure(one.predicted[None])[0]) for name, one in (("first", first), ("second", second))}
    return {
        "target": first.target,
        "metric": first.metric,
        "first": first.feature,
        "second": second.feature,
        "subjects": len(subjects),
        "folds": len(known),
        "value_first": value["first"],
        "value_second": value["second"],
        "difference": difference,
        "t": t,
        "p_t": p_t,
        "p_permutation": p,
    }
