"""Who takes part in a prediction with which values: phenotypes, confounds, groups and blocks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from dtg_ray import ledger
from dtg_ray.cohort.phenotypes import read_tables
from dtg_ray.cohort.withdrawal import bare
from dtg_ray.errors import ConfigError
from dtg_ray.stages.add import read_withdrawn
from dtg_ray.stats.folds import Fold, check_groups, fold_indices, folds_of
from dtg_ray.stats.permutation import Exchangeability
from dtg_ray.store.tables import write_table
from dtg_ray.study import PEOPLE, PEOPLE_LEFT_OUT, Study

FAMILY = "group"
"""The column that the cohort itself has: who may not be in two splits."""


@dataclass(frozen=True)
class Listed:
    """How the tables of `prediction.tables` and the study agree about who there is.

    Parameters
    ----------
    not_in_study, in_no_table : int
    """

    not_in_study: int = 0
    in_no_table: int = 0

    def describe(self, study: Study) -> list[str]:
        """In words; nothing where all is well."""
        if not (self.not_in_study or self.in_no_table):
            return []
        text = (
            f"prediction.tables: {self.not_in_study} people are not in the study, {self.in_no_table} of the study are "
            f"in no table; they are listed in {study.storage.uri(PEOPLE_LEFT_OUT)}"
        )
        return [text]


def refresh(study: Study) -> tuple[Study, Listed]:
    """Read the columns that are needed of `prediction.tables` into the study, and say who is missing where.

    Returns
    -------
    Study
        With today's people.
    Listed

    Raises
    ------
    ConfigError
        When a table cannot be read, or somebody is in it twice.
    """
    config = study.config.prediction
    if not config.tables:
        return study, Listed()
    wanted = None
    if config.targets:
        wanted = sorted({name for target in config.targets for name in config.columns_of(target)} - {FAMILY})
    table = read_tables(config.tables, wanted)
    by_name = table.assign(bare=[bare(subject) for subject in table["subject"]]).set_index("bare")
    if by_name.index.has_duplicates:
        twice = by_name.index[by_name.index.duplicated()][0]
        raise ConfigError(f"prediction.tables: got {twice} with and without sub-, expected everybody once")
    subjects = list(study.cohort["subject"])
    people = by_name.reindex([bare(subject) for subject in subjects]).assign(subject=subjects)
    absent = [name for name in subjects if bare(name) not in by_name.index]
    known, withdrawn = {bare(name) for name in subjects}, read_withdrawn(study)
    unknown = [name for name in table["subject"] if bare(name) not in known and not withdrawn.has(name)]
    reasons = ["in the tables, but not in the study"] * len(unknown) + ["in the study, but in no table"] * len(absent)
    left_out = pd.DataFrame({"subject": [*unknown, *absent], "reason": reasons}, dtype="str")
    write_table(study.storage, PEOPLE_LEFT_OUT, left_out)
    write_table(study.storage, PEOPLE, people.reset_index(drop=True))
    return Study(study.uri), Listed(len(unknown), len(absent))


def check_targets(study: Study) -> list[str]:
    """The phenotypes to predict.

    Raises
    ------
    ConfigError
        When a column is unknown, a phenotype or a penalty's group is text that should be numbers, or a group is in two
        folds.
    """
    config, table = study.config.prediction, study.people
    names = ledger.target_names(study)
    needed = {name: target for target in names for name in config.columns_of(target)}
    if unknown := [name for name in needed if name not in table]:
        known = ", ".join(table.columns)
        raise ConfigError(f"prediction: got no column {', '.join(unknown)}, expected some of {known}")
    for name in names:
        if config.kind_of(name) == "regression" and not pd.api.types.is_numeric_dtype(table[name]):
            row = table[name].dropna()
            example = f"{row.iloc[0]!r} of {row.index[0]}" if len(row) else "text"
            raise ConfigError(
                f"prediction.targets: {name}: got {example}, expected numbers",
                hint="`kind: classification` predicts classes, which may be text",
            )
    if config.fold_column and config.groups:
        given = table[[config.fold_column, config.groups]].dropna()
        try:
            check_groups(folds_of(given[config.fold_column]), given[config.groups])
        except ValueError as error:
            raise ConfigError(f"prediction.fold_column: {error}") from error
    return names


@dataclass(frozen=True, eq=False)
class Target:
    """What is predicted, of those who have a value and everything else that is needed.

    Parameters
    ----------
    name : str
    kind : "regression" or "classification"
    subjects : list of str
        n of them, in the order of the cohort.
    y : (n,) float64 or int64
        Numbers, or the numbers of classes.
    classes : tuple of str
        Names of the classes; none for regression.
    confounds : (n, c) float64, optional
    groups, strata, given : (n,) arrays, optional
        What keeps subjects in one fold, what is in equal shares in all folds, the folds of a table.
    """

    name: str
    kind: str
    subjects: list[str]
    y: NDArray[Any]
    classes: tuple[str, ...]
    confounds: NDArray[np.float64] | None
    groups: NDArray[np.str_] | None
    strata: NDArray[np.int64] | None
    given: NDArray[np.str_] | None

    def folds(self, n_folds: int, seed: int) -> list[Fold]:
        """Whom each fold trains on and tests.

        Raises
        ------
        ValueError
            When there are more folds than subjects, groups, or members of a class.
        """
        if self.given is not None:
            return folds_of(self.given)
        return fold_indices(len(self.subjects), n_folds, seed, self.groups, self.strata)

    @property
    def signs(self) -> NDArray[np.float64]:
        """What is regressed, (C, n): values, or +1 for members of each class and -1 for others; of two the second."""
        if self.kind == "regression":
            return np.asarray(self.y, dtype=np.float64)[None]
        numbers = np.arange(len(self.classes))[1 if len(self.classes) == 2 else 0 :]
        return np.where(self.y == numbers[:, None], 1.0, -1.0)


def target_of(study: Study, name: str, subjects: Sequence[str]) -> Target | str:
    """A target of those of some subjects who have all that it needs, or why it cannot be predicted.

    Parameters
    ----------
    study : Study
    name : str
    subjects : sequence of str
        Whose features there are.
    """
    config, kind = study.config.prediction, study.config.prediction.kind_of(name)
    table = study.people.loc[list(subjects)]
    needed = [name, *config.confounds_of(name), *(column for column in (config.within, config.fold_column) if column)]
    values = table[name].astype("float64") if kind == "regression" else table[name]
    known = table[needed].notna().all(axis=1).to_numpy()
    if kind == "regression":
        known = known & ~np.isinf(values.to_numpy())
    table, values = table[known], values[known]
    numbers, classes = values.to_numpy(), tuple[str, ...]()
    if kind == "classification":
        labels = [_label(value) for value in values]
        names, numbers = np.unique(np.array(labels, dtype=np.str_), return_inverse=True)
        classes = tuple(str(one) for one in names)
    if why := _unusable(name, numbers, classes, config.folds):
        return why
    return Target(
        name,
        kind,
        list(table.index),
        numbers,
        classes,
        _confounds(table, config.confounds_of(name)),
        labels_of(table, config.groups),
        _strata(numbers, kind, config.folds) if config.stratify else None,
        None if config.fold_column is None else table[config.fold_column].astype("str").to_numpy(dtype=np.str_),
    )


def _unusable(name: str, values: NDArray, classes: tuple[str, ...], n_folds: int) -> str:
    """Why nothing can be said about a target; empty when something can."""
    if len(values) < 2 * n_folds:
        return f"{name}: got {len(values)} subjects with all that is needed, expected at least {2 * n_folds}"
    if np.ptp(values) == 0:
        what = f"class {classes[0]}" if classes else f"{values[0]:g}"
        return f"{name}: got nothing but {what} of {len(values)} subjects, expected a target that varies"
    counts = np.bincount(values) if classes else np.array([n_folds])
    if counts.min() < n_folds:
        least = classes[int(np.argmin(counts))]
        return f"{name}: got {counts.min()} subjects of class {least}, expected at least {n_folds}, one for each fold"
    return ""


def _label(value: object) -> str:
    """A class as text: 1.0 of a column with missing values is 1."""
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)


def _confounds(table: pd.DataFrame, names: Sequence[str]) -> NDArray[np.float64] | None:
    """Numbers as they are, and an indicator for each value of a text."""
    if not names:
        return None
    columns = [
        table[[name]].astype("float64")
        if pd.api.types.is_numeric_dtype(table[name])
        else pd.get_dummies(table[name].astype("str"), dtype="float64")
        for name in names
    ]
    return np.asarray(pd.concat(columns, axis=1).to_numpy(dtype=np.float64))


def labels_of(table: pd.DataFrame, column: str | None) -> NDArray[np.str_] | None:
    """What everybody belongs to; who has no value belongs to nobody else."""
    if column is None:
        return None
    values = [
        f"{column}={value}" if there else subject
        for subject, value, there in zip(table.index, table[column], table[column].notna(), strict=True)
    ]
    return np.array(values, dtype=np.str_)


def _strata(values: NDArray, kind: str, n_folds: int) -> NDArray[np.int64]:
    """Classes, or equal parts of a target by rank: as many as folds, but none with fewer subjects than folds."""
    if kind == "classification":
        return np.asarray(values, dtype=np.int64)
    ranks = np.argsort(np.argsort(values, kind="stable"), kind="stable")
    return np.asarray(ranks * min(n_folds, len(values) // n_folds) // len(values), dtype=np.int64)


def exchangeability(study: Study) -> Exchangeability:
    """Who may take whose place, of everybody in the study.

    Raises
    ------
    ConfigError
        When a whole block is in two blocks of `within`.
    """
    config, table = study.config.prediction, study.people
    within, whole = (labels_of(table, column) for column in (config.within, config.whole))
    if within is not None and whole is not None:  # who has no block of `within` takes no part, and divides no family
        whole = np.where(table[config.within].isna(), table.index.to_numpy(dtype=np.str_), whole)
    try:
        return Exchangeability(len(table), config.seed, within, whole)
    except ValueError as error:
        raise ConfigError(f"prediction.whole: {error}") from error
