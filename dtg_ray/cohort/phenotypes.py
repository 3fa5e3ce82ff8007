"""Tables about people: age, sex, site, family, and what is to be predicted."""

from __future__ import annotations

import io

import pandas as pd

from dtg_ray.errors import ConfigError, MissingFileError
from dtg_ray.store.files import read

SUBJECT_COLUMNS = ("subject", "participant_id", "subject_id", "eid")


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
    column = next((name for name in SUBJECT_COLUMNS if name in table.columns), None)
    if column is None:
        raise ConfigError(f"{path}: got columns {list(table.columns)}, expected one of {list(SUBJECT_COLUMNS)}")
    table = table.rename(columns={column: "subject"})
    if table["subject"].isna().any():
        raise ConfigError(f"{path}: got {int(table['subject'].isna().sum())} rows without a subject, expected none")
    table["subject"] = table["subject"].astype("str")
    if repeated := sorted(set(table.loc[table["subject"].duplicated(), "subject"])):
        raise ConfigError(f"{path}: got subjects more than once: {', '.join(repeated[:5])}")
    return table[["subject", *(name for name in table.columns if name != "subject")]]
