"""One phenotype from one feature set: scores, null distributions, predictions; and repeats for comparisons."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from dtg_ray.config import PredictionConfig
from dtg_ray.stages.prediction.clock import Clock
from dtg_ray.stages.prediction.people import Target
from dtg_ray.stages.prediction.tiled import TiledGram
from dtg_ray.stats.classification import auc, class_figures, predicted_classes
from dtg_ray.stats.gram import Gram
from dtg_ray.stats.metrics import regression_figures
from dtg_ray.stats.permutation import Exchangeability, exceeding, p_value
from dtg_ray.stats.ridge import OutOfFold
from dtg_ray.stats.solvers import Factorised, Inverses
from dtg_ray.stats.tails import generalised_pareto_p, negative_binomial_p, stopping_point

Float = NDArray[np.float64]
TESTED = {"regression": "r", "classification": "auc"}
"""The figure that p values are of."""
DECISION = "decision_"
"""Before the name of a class: the column of its decision values."""
SMALL_IS_GOOD = frozenset({"mae", "mse"})
BATCH_BYTES = 128 * 2**20
"""Targets solved at a time."""
COUNT, STOPPED, TAIL = "permutations", "negative binomial", "generalised Pareto"
"""How a p value was found."""


class Engines:
    """Ridge for the subjects of one target after the other; those of the last one are kept.

    Parameters
    ----------
    X : Gram, TiledGram or (n, p) float64
        Features of `subjects`.
    subjects : list of str
    alpha : float, "features/samples" or sequence of float
    """

    def __init__(self, X: Gram | TiledGram | Float, subjects: list[str], alpha: Any) -> None:
        self.X, self.alpha = X, alpha
        self.n_features = X.shape[1] if isinstance(X, np.ndarray) else X.n_features
        self.place = {subject: number for number, subject in enumerate(subjects)}
        self._subjects: list[str] = []
        self._of_subjects: Factorised | Float

    def engine(self, target: Target, n_folds: int, seed: int) -> OutOfFold:
        """Ridge for a target, whose folds are drawn from a seed.

        Raises
        ------
        ValueError
            When there are too few groups for the folds, or confounds that do not vary among training subjects.
        """
        return OutOfFold(self.features(target), target.folds(n_folds, seed), self.alpha, target.confounds)

    def features(self, target: Target) -> Factorised | Float:
        """The features of a target's subjects."""
        if target.subjects != self._subjects:
            rows = np.array([self.place[subject] for subject in target.subjects])
            if isinstance(self.X, np.ndarray):
                self._of_subjects = self.X[rows]
            else:
                self._of_subjects = Inverses(self.X, rows) if isinstance(self.X, Gram) else self.X.of(rows)
            self._subjects = target.subjects
        return self._of_subjects


@dataclass(frozen=True, eq=False)
class Outcome:
    """Predictions of a target, or of permutations of it.

    Parameters
    ----------
    actual : (B, n) float64 or int64
        Less what confounds explain, or classes.
    predicted : (B, n) or (B, n, C) float64
        Values, or decision values of each class.
    """

    actual: NDArray[Any]
    predicted: Float

    def figures(self, rows: NDArray[np.integer] | slice = slice(None)) -> dict[str, Float]:
        """How well they agree, (B,) each, of some subjects."""
        actual, predicted = self.actual[:, rows], self.predicted[:, rows]
        if predicted.ndim == 2:
            return regression_figures(actual, predicted)
        figures = class_figures(actual, predicted_classes(predicted), predicted.shape[-1])
        return {**figures, "auc": auc(actual, predicted)}


def outcome(engine: OutOfFold, target: Target, orders: NDArray[np.int64] | None = None) -> Outcome:
    """Predict a target, or permutations of it given as (B, n) orders.

    With confounds it is what they do not explain that is permuted, of numbers; classes are permuted as they are.
    """
    one = np.arange(len(target.subjects))[None] if orders is None else orders
    if target.kind == "regression" and target.confounds is None:
        permuted = target.signs[0][one]  # (B, n)
        return Outcome(permuted, engine.predict(permuted))
    if target.kind == "regression":
        permuted = engine.residual(target.signs)[0][one]
        return Outcome(engine.adjusted(permuted), engine.added(permuted))
    permuted = target.signs[:, one]  # (C, B, n)
    n_signs, n_orders, n = permuted.shape
    decisions = engine.predict(permuted.reshape(-1, n)).reshape(n_signs, n_orders, n)
    both = [-decisions[0], decisions[0]] if n_signs == 1 else list(decisions)
    return Outcome(target.y[one], np.stack(both, axis=-1))


def predict_target(
    engines: Engines,
    target: Target,
    exchange: Exchangeability,
    everybody: NDArray[np.int64],
    config: PredictionConfig,
    clock: Clock,
) -> dict[str, pd.DataFrame]:
    """Scores, folds, predictions and null distributions of one target.

    Parameters
    ----------
    engines : Engines
    target : Target
    exchange : Exchangeability
        Of everybody in the study.
    everybody : (n,) int64
        Numbers of the target's subjects among them.
    config : PredictionConfig
    clock : Clock
        Gets `factor`, `solve` and `score`.

    Returns
    -------
    dict of str to DataFrame
        `scores` (one row), `folds`, `predictions`, `nulls`.
    """
    with clock("factor"):
        engine = engines.engine(target, config.folds, config.seed)
    with clock("solve"):
        found = outcome(engine, target)
    with clock("score"):
        observed = {name: float(values[0]) for name, values in found.figures().items()}
    if target.strata is not None:  # folds that follow from the target hold for who stays inside them
        exchange, everybody = exchange.inside(everybody, fold_of(engine)), np.arange(len(everybody))
    nulls = null_distributions(engine, target, exchange, everybody, config, observed, clock)
    scores = {
        "target": target.name,
        "kind": target.kind,
        "subjects": len(target.subjects),
        "n_features": engine.n_features,
        "alpha": float(np.median(engine.alphas(target.signs[0]))),
        "metric": TESTED[target.kind],
        **observed,
        **test(observed, nulls, target.kind, config),
    }
    return {
        "scores": pd.DataFrame([scores]),
        "folds": fold_table(engine, found, target, 0),
        "predictions": prediction_table(engine, found, target),
        "nulls": pd.DataFrame({"target": target.name, "permutation": range(len(nulls[TESTED[target.kind]])), **nulls}),
    }


def null_distributions(
    engine: OutOfFold,
    target: Target,
    exchange: Exchangeability,
    everybody: NDArray[np.int64],
    config: PredictionConfig,
    observed: Mapping[str, float],
    clock: Clock,
) -> dict[str, Float]:
    """All figures under permutations, (P,) each; fewer where the test stops early.

    Raises
    ------
    ValueError
        When blocks leave everybody in their place.
    """
    tested, batch = TESTED[target.kind], batch_size(target)
    parts: list[dict[str, Float]] = []
    for start in range(0, config.permutations, batch):
        with clock("permute"):
            orders = exchange.orders(start, min(start + batch, config.permutations), everybody)
        if (orders == np.arange(orders.shape[1])).all():
            raise ValueError("got blocks in which nobody can take anybody's place, expected several of a size")
        with clock("solve"):
            permuted = outcome(engine, target, orders)
        with clock("score"):
            parts.append(permuted.figures())
        if config.early_stopping:
            values = np.concatenate([part[tested] for part in parts])
            if exceeding(observed[tested], values).sum() >= config.early_stopping:
                break
    nulls = {name: np.concatenate([part[name] for part in parts]) if parts else np.empty(0) for name in observed}
    if config.early_stopping:
        stop = stopping_point(observed[tested], nulls[tested], config.early_stopping)
        nulls = {name: values[:stop] for name, values in nulls.items()}
    return nulls


def batch_size(target: Target) -> int:
    """Permutations solved at a time: it depends on the target alone, and so do the last bits of what comes out."""
    return int(np.clip(BATCH_BYTES // (8 * target.signs.size), 16, 1024))


def test(
    observed: Mapping[str, float], nulls: Mapping[str, Float], kind: str, config: PredictionConfig
) -> dict[str, Any]:
    """P values of all figures: `p` of the one that is tested, how it was found and from how many permutations."""
    tested = TESTED[kind]
    null = nulls[tested]
    if not len(null):
        return {"p": np.nan, "p_method": "", "permutations": 0}
    p = {
        name: float(p_value(*(np.negative(x) if name in SMALL_IS_GOOD else np.asarray(x) for x in pair)))
        for name, pair in ((name, (observed[name], nulls[name])) for name in observed)
    }
    best, method = p[tested], COUNT
    stops = config.early_stopping
    if stops and stopping_point(observed[tested], null, stops) is not None:
        best, method = negative_binomial_p(observed[tested], null, stops), STOPPED
    elif config.tail and (small := generalised_pareto_p(observed[tested], null, config.seed)) is not None:
        best, method = small, TAIL
    others = {f"p_{name}": value for name, value in p.items()}
    return {"p": best, "p_method": method, "permutations": len(null), **others}


def fold_table(engine: OutOfFold, found: Outcome, target: Target, repeat: int) -> pd.DataFrame:
    """Figures of each fold."""
    lines = []
    for number, (train, rows) in enumerate(engine.folds):
        figures = found.figures(rows) if len(rows) > 1 else dict.fromkeys(found.figures(), np.full(1, np.nan))
        sizes = {"train": len(train), "test": len(rows)}
        values = {name: float(figure[0]) for name, figure in figures.items()}
        lines.append({"target": target.name, "repeat": repeat, "fold": number, **sizes, **values})
    return pd.DataFrame(lines)


def fold_of(engine: OutOfFold) -> NDArray[np.int64]:
    """The fold that tests each subject, (n,)."""
    fold = np.empty(engine.n, dtype=np.int64)
    for number, (_, rows) in enumerate(engine.folds):
        fold[rows] = number
    return fold


def prediction_table(engine: OutOfFold, found: Outcome, target: Target) -> pd.DataFrame:
    """What was measured and predicted, a row per subject: numbers less what confounds explain, or classes."""
    table = pd.DataFrame({"target": target.name, "subject": target.subjects, "fold": fold_of(engine)})
    if target.kind == "regression":
        return table.assign(actual=found.actual[0], predicted=found.predicted[0])
    names = np.array(target.classes)
    decisions = {f"{DECISION}{name}": found.predicted[0, :, number] for number, name in enumerate(target.classes)}
    classes = predicted_classes(found.predicted[0])
    return table.assign(actual=names[found.actual[0]], predicted=names[classes], **decisions)


def predict_repeatedly(
    engines: Engines, target: Target, config: PredictionConfig, clock: Clock
) -> dict[str, pd.DataFrame]:
    """Figures of the folds of repeated cross-validation, and the predictions of the first, to compare feature sets.

    Returns
    -------
    dict of str to DataFrame
        `common/folds` and `common/predictions`.
    """
    folds: list[pd.DataFrame] = []
    predictions = pd.DataFrame()
    for repeat in range(1 if target.given is not None else config.repeats):
        with clock("factor"):
            engine = engines.engine(target, config.folds, (config.seed + repeat) % 2**32)
        with clock("solve"):
            found = outcome(engine, target)
        with clock("score"):
            folds.append(fold_table(engine, found, target, repeat))
            predictions = predictions if repeat else prediction_table(engine, found, target)
    return {"common/folds": pd.concat(folds, ignore_index=True), "common/predictions": predictions}
