"""Tables about people: age, sex, site, family, and what is to be predicted."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import PurePosixPath

import pandas as pd

from dtg_ray.errors import ConfigError, MissingFileError
from dtg_ray.store.files import read

SUBJECT_COLUMNS = ("subject", "participant_id", "subject_id", "eid", "Subject")


def empty_phenotypes() -> pd.DataFrame:
    """A table of nobody."""
    return pd.DataFrame({"subject": pd.Series(dtype="str")})


def read_phenotypes(path: str) -> pd.DataFrame:
    """Read a CSV, TSV or Parquet table with a row per subject.

    Returns
    -------
    DataFrame
        A column `subject` (text) first, the others as they are.

    Raises
    ------
    ConfigError
        When there is no column of subjects or a subject occurs twice.
    """
    return normalize_subject_column(read_any_table(path), path)


def read_any_table(path: str) -> pd.DataFrame:
    """A table by its extension; subject identifiers stay text (leading zeros are kept)."""
    try:
        data = io.BytesIO(read(path))
        if path.endswith(".parquet"):
            return pd.read_parquet(data)
        separator = "\t" if path.endswith(".tsv") else ","
        text = dict.fromkeys(SUBJECT_COLUMNS, "str")
        return pd.read_csv(data, sep=separator, dtype=text, na_values=["n/a"])
    except MissingFileError as error:
        raise ConfigError(str(error)) from error
    except (ValueError, OSError) as error:
        raise ConfigError(f"{path}: not a table: {error}", hint="expected .csv, .tsv or .parquet") from error


def normalize_subject_column(table: pd.DataFrame, path: str) -> pd.DataFrame:
    """Call the column of subjects `subject` and check that everybody is there once."""
    table = name_subject_column(table, path)
    if repeated := repeated_subjects(table):
        raise ConfigError(f"{path}: got subjects more than once: {', '.join(repeated[:5])}")
    return table


def name_subject_column(table: pd.DataFrame, path: str) -> pd.DataFrame:
    """Call the column of subjects `subject`, put it first, and check that every row has one."""
    column = next((name for name in SUBJECT_COLUMNS if name in table.columns), None)
    if column is None:
        raise ConfigError(f"{path}: got columns {list(table.columns)}, expected one of {list(SUBJECT_COLUMNS)}")
    table = table.rename(columns={column: "subject"})
    if table["subject"].isna().any():
        raise ConfigError(f"{path}: got {int(table['subject'].isna().sum())} rows without a subject, expected none")
    table["subject"] = table["subject"].astype("str")
    return table[["subject", *(name for name in table.columns if name != "subject")]]


def repeated_subjects(table: pd.DataFrame) -> list[str]:
    """Subjects with more than one row, sorted."""
    return sorted(set(table.loc[table["subject"].duplicated(), "subject"]))


def read_tables(paths: Sequence[str]) -> pd.DataFrame:
    """Tables about people side by side, joined by subject; one that repeats another word for word counts once.

    Returns
    -------
    DataFrame
        A column `subject` (text), a row for everybody whom any table knows, NaN where a table does not.

    Raises
    ------
    ConfigError
        When a table cannot be read, or two of them have a column in common: it would have two meanings.
    """
    joined, owner = empty_phenotypes(), dict[str, str]()
    seen: list[pd.DataFrame] = []
    for path in paths:
        table = read_phenotypes(path).sort_values("subject", ignore_index=True)
        if any(table.equals(other) for other in seen):
            continue
        columns = [name for name in table.columns if name != "subject"]
        if twice := [name for name in columns if name in owner]:
            others = ", ".join(sorted({owner[name] for name in twice}))
            raise ConfigError(
                f"{path}: got columns {twice} that {others} has as well, expected each in one table",
                hint="remove them from one of the two",
            )
        owner.update(dict.fromkeys(columns, PurePosixPath(path).name))
        seen.append(table)
        joined = joined.merge(table, on="subject", how="outer")
    return joined
